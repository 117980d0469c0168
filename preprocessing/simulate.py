"""Write a small simulated archive of genuine products: one Sentinel-2 L2A `.SAFE`, one Landsat 9 L2SP, or others.

    python preprocessing/simulate.py demo/archive

Beside each product stands its land cover, `<product>_landcover.tif`; `quicklook.png` shows the ground. The archive
appears under its name only when it is whole; equal settings give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run by path: `python preprocessing/simulate.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from pydantic import Field, field_validator

from pipeline.config import Config, build
from pipeline.console import Progress, run, say
from pipeline.errors import EXIT_DONE, OutputError, unknown
from pipeline.sensors import SENSORS
from preprocessing.simulation.products import PRODUCTS, Ground
from preprocessing.simulation.raster import write_picture
from preprocessing.simulation.view import block_mean, make_view

FORMAT_VERSION = 1
RECORD = "archive.json"
"""Written last into an archive: what it was made with, and its files."""
PICTURE_PX = 768


class Simulation(Config):
    """What to simulate."""

    size_px: int = Field(default=1536, ge=192)
    """Side of the ground in 10 m pixels; a multiple of 6, so that the 20, 30 and 60 m grids nest."""
    seed: int = Field(default=1, ge=0)
    """Another seed is another ground, other weather, and another day."""
    baseline: str = Field(default="05.10", pattern=r"^\d\d\.\d\d$")
    """Sentinel-2 processing baseline; from 04.00 on digital numbers carry an offset."""

    products: tuple[str, ...] = ("sentinel2-l2a", "landsat9-l2sp")
    """Which products to make, of: PRODUCTS; on the command line with commas between."""

    @field_validator("products", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("products")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PRODUCTS:
                raise ValueError(str(unknown("product", name, PRODUCTS)))
        # packed or not, two of one kind would have one name
        kinds = [re.sub("-(zip|tar)$", "", name) for name in value]
        if len(set(kinds)) < len(kinds):
            raise ValueError("two products of one kind in one archive; make another archive for one of them")
        return value

    @property
    def ground(self) -> Ground:
        """Return what the products are made of."""
        return Ground(self.size_px, self.seed, self.baseline)

    @field_validator("size_px")
    @classmethod
    def _grids_nest(cls, value: int) -> int:
        if value % 6:
            raise ValueError(f"{value} is not a multiple of 6; take {value // 6 * 6} or {value // 6 * 6 + 6}")
        return value


_DEFAULTS = Simulation().model_dump(mode="json")
"""What archives of before a setting existed were made with."""


def simulate(output: Path, settings: Simulation, progress: Callable[[str], None] = lambda name: None) -> bool:
    """Write an archive of `settings` to the folder `output`; returns False where it was there already.

    progress: is told every image that is done. Raises `OutputError` for a folder that holds something else.
    """
    if _is_there(output, settings):
        return False
    try:
        _write_archive(output, settings, progress)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error}. Free space, or choose another folder.") from error
    return True


def _write_archive(output: Path, settings: Simulation, progress: Callable[[str], None]) -> None:
    """Write into a hidden folder beside `output` and give it its name when it is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(output)
    work = Path(tempfile.mkdtemp(prefix=f"{_leftover_prefix(output)}{os.getpid()}-", dir=output.parent))
    try:
        _write_products(work, settings, progress)
        _write_record(work, settings)
        work.chmod(0o755)  # mkdtemp makes it private
        _install(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_there(output: Path, settings: Simulation) -> bool:
    """Say whether `output` is this archive and whole; raises `OutputError` where it is anything else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
        made_with, files = record["settings"], record["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{output} is not empty and holds no simulated archive. Choose another folder."
        ) from error
    # never mix two grounds in one folder: their products would look like one archive
    asked = settings.model_dump(mode="json")
    if record.get("format_version") != FORMAT_VERSION or {**_DEFAULTS, **made_with} != asked:
        raise OutputError(
            f"{output} holds an archive of other settings ({made_with}, asked for {asked})."
            " Choose another folder, or remove this one."
        )
    return all(
        (output / name).is_file() and (output / name).stat().st_size == size for name, size in files.items()
    )


def _write_products(folder: Path, settings: Simulation, progress: Callable[[str], None]) -> None:
    for name in settings.products:
        PRODUCTS[name].write(folder, settings.ground, progress)
    # the picture has no sensor noise: it is for people, and compresses better
    view = make_view(settings.size_px, settings.seed, "sentinel2")
    reduction = max(settings.size_px // PICTURE_PX, 1)
    bands = (SENSORS["sentinel2"][name] for name in ("B04", "B03", "B02"))
    picture = np.stack([block_mean(view.reflectance(band.centre_nm), reduction) for band in bands])
    write_picture(folder / "quicklook.png", picture)
    progress("quicklook.png")


def image_count(settings: Simulation) -> int:
    """Return how many images `simulate` reports to its `progress`."""
    return sum(PRODUCTS[name].image_count(settings.ground) for name in settings.products) + 1


def _write_record(folder: Path, settings: Simulation) -> None:
    files = {
        p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()
    }
    record = {"format_version": FORMAT_VERSION, "settings": settings.model_dump(mode="json"), "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _install(work: Path, output: Path) -> None:
    """Move a whole archive to its name; of a damaged one only what this script writes is replaced."""
    if not output.exists() or not any(output.iterdir()):
        work.replace(output)
        return
    entries = sorted(work.iterdir(), key=lambda path: path.name == RECORD)  # the record goes last
    (output / RECORD).unlink()
    for entry in entries:
        old = output / entry.name
        if old.is_dir():
            shutil.rmtree(old)
        entry.replace(old)


def _leftover_prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _remove_leftovers(output: Path) -> None:
    """Remove what killed runs left beside `output`."""
    prefix = _leftover_prefix(output)
    for folder in output.parent.glob(f"{prefix}*"):
        pid = folder.name.removeprefix(prefix).split("-")[0]
        # another run may be at work beside this one
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    # signal 0 only asks; another user's process answers with a refusal
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(argv)
    words = {key: value for key, value in vars(given).items() if key != "output" and value is not None}
    settings = build(Simulation, words, "the command line")
    output = Path(given.output).expanduser()
    progress = Progress(f"simulate {output}", image_count(settings), "images")
    if simulate(output, settings, lambda name: progress.advance(note=name)):
        say(f"simulated archive written to {output} (look at {output / 'quicklook.png'})")
    else:
        say(f"simulated archive is there already, whole: {output}")
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    defaults = Simulation()
    parser = argparse.ArgumentParser(
        description="Write a small simulated archive: a Sentinel-2 L2A .SAFE and a Landsat 9 L2SP folder, or others.",
        epilog="examples:\n  python preprocessing/simulate.py demo/archive\n"
        "  python preprocessing/simulate.py /path/to/archive --size-px 3072 --seed 7\n"
        "  python preprocessing/simulate.py /path/to/archive --products sentinel2-l1c-zip,landsat7-l2sr\n\n"
        f"products:\n  {' '.join(PRODUCTS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "output", metavar="OUTPUT_FOLDER", help="folder to write; must not exist, or be empty"
    )
    parser.add_argument(
        "--size-px", type=int, help=f"side in 10 m pixels, a multiple of 6 (default {defaults.size_px})"
    )
    parser.add_argument("--seed", type=int, help=f"another seed, another ground (default {defaults.seed})")
    parser.add_argument(
        "--products", help=f"with commas between (default {','.join(defaults.products)}); listed below"
    )
    parser.add_argument("--baseline", help=f"Sentinel-2 processing baseline (default {defaults.baseline})")
    return parser


if __name__ == "__main__":
    run(main)
