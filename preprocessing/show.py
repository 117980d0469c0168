"""Entry: what a shard set holds, as a table and as a picture of some tiles with their saliency.

python preprocessing/show.py SHARDS [--split train] [--count 24] [--picture FILE.png]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by path: `python preprocessing/show.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from pipeline import console, sample
from pipeline import manifest as manifests
from pipeline.contract import normalisation
from pipeline.errors import EXIT_DONE, OutputError
from pipeline.manifest import Manifest
from pipeline.saliency import saliency
from pipeline.sample import Sample
from pipeline.sensors import sensor
from preprocessing import packing

COLUMNS = 6
GAP_PX = 4
GAMMA = 0.7
Picture = NDArray[np.uint8]
"""[3, y, x]"""


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Show what a shard set holds.",
        epilog="example: python preprocessing/show.py demo/shards/sentinel2 --count 24",
    )
    parser.add_argument("shards", type=Path, help="folder of a shard set, or its manifest.json")
    parser.add_argument("--split", default="train", help="split to take tiles from (default: train)")
    parser.add_argument("--count", type=_count, default=24, help="number of tiles (default: 24)")
    parser.add_argument("--picture", type=Path, help="PNG to write (default: contact-SPLIT.png in the set)")
    arguments = parser.parse_args(argv)
    folder = arguments.shards.expanduser()
    made = manifests.read(folder)
    folder = folder if folder.is_dir() else folder.parent
    console.say(describe(made))
    picture = arguments.picture or folder / f"contact-{arguments.split}.png"
    write_png(picture, contact_sheet(made, first_samples(folder, made, arguments.split, arguments.count)))
    console.say(f"{picture}: each tile in natural colours, and beside it its saliency (bright is salient).")
    return EXIT_DONE


def _count(text: str) -> int:
    """Read a number of tiles; argparse tells its user of a `ValueError`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least one tile is needed, not {number}")
    return number


def describe(made: Manifest) -> str:
    """Return a shard set's bands with their statistics, and its splits, as text."""
    contract = made.contract
    rows = [
        [b.name, b.role, f"{b.centre_nm:g}", f"{s.mean:.4f}", f"{s.std:.4f}", f"{s.low:.4f}", f"{s.high:.4f}"]
        for b, s in zip(contract.bands, made.statistics, strict=True)
    ]
    title = (
        f"{made.name}: {contract.sensor} {contract.level}, {contract.gsd_m:g} m, {contract.tile_px} px tiles"
    )
    splits = ", ".join(f"{made.samples(s)} {s} in {len(made.shards(s))} shards" for s in made.splits)
    indices = ", ".join(f"{name} from {'/'.join(bands)}" for name, bands in contract.index_bands.items())
    body = console.table(["band", "role", "nm", "mean", "std", "0.5 %", "99.5 %"], rows)
    return f"{title}\n{splits}; {len(made.scenes)} scenes; {indices}\n{body}"


def first_samples(folder: Path, made: Manifest, split: str, count: int) -> list[Sample]:
    """Return the first samples of a split; their order is shuffled already."""
    paths = [folder / shard.path for shard in made.shards(split)]
    # lazily: only as many shards are opened as the picture needs
    found = ((key, members, path) for path in paths for key, members in packing.read_shard(path))
    return [sample.decode(key, members, str(path)) for key, members, path in itertools.islice(found, count)]


def contact_sheet(made: Manifest, samples: Sequence[Sample]) -> Picture:
    """Lay tiles out in rows, each in natural colours beside its saliency; returns uint8 [3, y, x]."""
    pairs = [np.concatenate([natural_colours(made, s), heat(s)], axis=2) for s in samples]
    height, width = made.contract.tile_px + GAP_PX, 2 * made.contract.tile_px + GAP_PX
    sheet = np.full((3, -(-len(pairs) // COLUMNS) * height, COLUMNS * width), 255, np.uint8)
    for number, pair in enumerate(pairs):
        top, left = number // COLUMNS * height, number % COLUMNS * width
        sheet[:, top : top + pair.shape[1], left : left + pair.shape[2]] = pair
    return sheet


def natural_colours(made: Manifest, tile: Sample) -> Picture:
    """Return red, green and blue, uint8 [3, y, x], stretched between the set's 0.5 and 99.5 % quantiles."""
    names = made.contract.band_names
    bands = tuple(sensor(made.contract.sensor).resolve(role, names).name for role in ("red", "green", "blue"))
    places = made.contract.band_positions(bands)
    # the set's own quantiles, as the model sees them
    stretched = normalisation("minmax", tuple(made.statistics[p] for p in places))(tile.pixels[places])
    return (stretched**GAMMA * 255).astype(np.uint8)


def heat(tile: Sample) -> Picture:
    """Return a tile's saliency as a picture from black over red to yellow, [3, y, x]."""
    rows, columns = tile.cells.shape[1:3]
    level = saliency(tile.cells).reshape(rows, columns)
    cell_px = tile.mask.shape[0] // rows
    # a cell is one colour: the model sees no finer saliency
    fine = np.kron(level, np.ones((cell_px, cell_px)))
    return (np.stack([np.clip(2 * fine, 0, 1), np.clip(2 * fine - 1, 0, 1), fine * 0]) * 255).astype(np.uint8)


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture, uint8 [3, y, x], as PNG; raises `OutputError` where it cannot be written."""
    bands, height, width = picture.shape
    shape = {"width": width, "height": height, "count": bands, "dtype": "uint8"}
    # in memory first: what rasterio raises for a file that cannot be written has no public name
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a contact sheet lies nowhere
        with memory.open(driver="PNG", **shape) as png:
            png.write(picture)
        data = memory.read()
    try:
        manifests.write_atomically(path, data)
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error}). Take another place with --picture FILE.png."
        ) from error


if __name__ == "__main__":
    console.run(main)
