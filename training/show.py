"""Look at what a pretraining makes of images: what it sees, what guides the mask, what it restores, how far it is off.

`python training/show.py RUN [--sample KEY ...]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run by path: `python training/show.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.console import run, say
from pipeline.errors import EXIT_DONE, ConfigError, ContractError, unknown
from pipeline.sample import Sample
from training import panels
from training.checkpoint import read_state
from training.data import Batch
from training.looking import Pixel, look
from training.origins import find, read_weights
from training.pretrain import PretrainConfig, Pretraining
from training.sets import Source
from training.stream import Pass
from training.world import World

EXAMPLES = """examples:
  python training/show.py runs/pretrain                          the first images of the newest checkpoint's step
  python training/show.py runs/pretrain --images 8 --out eight.png
  python training/show.py runs/pretrain --sample KEY --pixel 10,20 --pixel 40,8
  python training/show.py runs/pretrain/checkpoints/step-00000500 --shards /path/to/shards

A row an image: true colour with marks, the set's indices, saliency, the share of the spectral groups that is shown, what
the encoder sees, what comes back, the error on the scale of [0, 1], and the marked pixels' spectra, original and
restored. Keys of samples are those of preprocessing/show.py."""


@dataclass(frozen=True)
class Some:
    """Some samples of sources, in the order asked for."""

    chosen: tuple[tuple[Source, int], ...]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.chosen)

    def read(self, number: int) -> Sample:
        """Read one."""
        source, inside = self.chosen[number]
        return source.read(inside)


def opened(location: Path, shards: Path | None) -> tuple[Pretraining, int]:
    """Return a pretraining with the weights of a run or checkpoint, and the checkpoint's step.

    shards: a set to take images from instead of the run's own. Raises `ContractError` for weights of another kind.
    """
    folder = find(location)
    state = read_state(folder)
    if state.kind != "pretrain":
        raise ContractError(f"{location} is a {state.kind} run: give one of training/pretrain.py.")
    # weights come from the checkpoint: what training alone needed may be gone
    tree = state.config | {"init": None, "probe": None, "stages": []}
    if shards:
        tree["data"] = tree["data"] | {"shards": [str(shards)]}
    work = Pretraining(PretrainConfig.model_validate(tree), World())
    work.model.load_state_dict(read_weights(folder))
    work.model.to(work.world.device).eval()
    return work, state.step


def batches(work: Pretraining, step: int, keys: Sequence[str], count: int) -> Iterator[tuple[Batch, int]]:
    """Yield a batch to look at of each sensor, with its number of images: by keys, or those of the last step."""
    if not keys:
        for sensor in work.inputs:
            batch = work.stream[work.stream.last(sensor, step)]
            yield batch, min(count, len(batch.keys))
        return
    missing = set(keys)
    for part in work.stream.parts:
        rows = [(s, n, s.key(n)) for s in part.family.sources for n in range(len(s))]
        by_key = {key: (source, number) for source, number, key in rows if key in missing}
        # in the order asked for, not in that of the shards
        found = [by_key[key] for key in keys if key in by_key]
        missing -= by_key.keys()
        if found:
            whole = Pass(Some(tuple(found)), replace(part.view, augment=False), len(found), work.world)
            # masks are those of the checkpoint's step
            yield replace(whole[0], step=step - 1), len(found)
    for key in missing:
        known = [s.key(n) for part in work.stream.parts for s in part.family.sources for n in range(len(s))]
        raise unknown("sample", key, known, work.config.data.names)


def _pixel(text: str) -> Pixel:
    row, _, column = text.partition(",")
    if not (row.isdecimal() and column.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no ROW,COLUMN")
    return int(row), int(column)


def _require_inside(pixels: Sequence[Pixel], image_px: int) -> None:
    for row, column in pixels:
        if max(row, column) >= image_px:
            raise ConfigError(
                f"--pixel {row},{column} lies outside of images of {image_px} px: rows and columns count from 0."
            )


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="python training/show.py",
        description=(__doc__ or "").split("\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("location", type=Path, metavar="RUN", help="run folder, or a checkpoint's folder")
    made.add_argument("--images", type=int, default=4, metavar="N", help="images (default: %(default)s)")
    made.add_argument(
        "--sample", action="append", default=[], metavar="KEY", help="a sample to look at; again for more"
    )
    made.add_argument(
        "--pixel",
        action="append",
        default=[],
        type=_pixel,
        metavar="ROW,COLUMN",
        help="a pixel whose spectra are drawn; again for more",
    )
    made.add_argument("--shards", type=Path, help="take images from this shard set")
    made.add_argument("--out", type=Path, help="PNG to write (default: RUN/panels/look-step-N.png)")
    return made


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    asked = parser().parse_args(argv)
    work, step = opened(asked.location, asked.shards)
    several = len(work.inputs) > 1
    for batch, count in batches(work, step, asked.sample, max(asked.images, 1)):
        _require_inside(asked.pixel, work.inputs[batch.sensor].layout.image_px)
        path = asked.out or work.config.folder / "panels" / f"look-step-{step:08d}.png"
        path = path.with_name(f"{path.stem}-{batch.sensor}{path.suffix}") if several else path
        say(str(panels.reconstruction(look(work, work.model, batch, count, asked.pixel), path)))
    return EXIT_DONE


if __name__ == "__main__":
    run(main)
