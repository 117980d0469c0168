"""Entry: a shard set as a table and pictures: tiles, one sample, one scene; and a scene as GeoTIFF.

python preprocessing/show.py SHARDS [--split S] [--count N] [--sample KEY] [--scene ID [--cog FILE.tif]]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by path: `python preprocessing/show.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)


from pipeline import console
from pipeline import manifest as manifests
from pipeline.errors import EXIT_DONE, MissingInputError, unknown
from pipeline.manifest import Manifest
from preprocessing import archive, cog, packing, panels, pictures
from preprocessing.archive import StoredScene


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    arguments = _parser().parse_args(argv)
    folder = arguments.shards.expanduser()
    made = manifests.read(folder)
    # a manifest's own path is as good a name for its set
    folder = folder if folder.is_dir() else folder.parent
    if arguments.cog:
        stored = scene_of(folder, made, arguments.scene)
        console.say(f"{cog.export(stored, arguments.cog)}: {stored.header.id}, reflectance x 10 000.")
        return EXIT_DONE
    if arguments.scene is not None:
        stored = scene_of(folder, made, arguments.scene)
        _write(arguments, folder, f"scene-{stored.header.id}", panels.of_scene(made, stored))
        return EXIT_DONE
    if arguments.sample:
        tile = packing.find(folder, made, arguments.sample)
        console.say("\n".join(f"{key}: {value}" for key, value in tile.info.items()))
        _write(arguments, folder, f"sample-{tile.key}", panels.of_sample(made, tile))
        return EXIT_DONE
    console.say(describe(made))
    samples = pictures.first_samples(folder, made, arguments.split, arguments.count)
    sheet = panels.Panels(
        pictures.contact_sheet(made, samples), ("tiles in natural colours, saliency beside",)
    )
    _write(arguments, folder, f"contact-{arguments.split}", sheet)
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Show what a shard set holds.",
        epilog="examples:\n  python preprocessing/show.py demo/shards/sentinel2 --count 24\n"
        "  python preprocessing/show.py demo/shards/sentinel2 --scene first --picture scene.png\n"
        "  python preprocessing/show.py demo/shards/sentinel2 --scene first --cog scene.tif",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", type=Path, help="folder of a shard set, or its manifest.json")
    parser.add_argument("--split", default="train", help="split to take tiles from (default: train)")
    parser.add_argument("--count", type=_count, default=24, help="number of tiles (default: 24)")
    parser.add_argument("--sample", metavar="KEY", help="one sample: natural colours, indices, saliency")
    parser.add_argument("--scene", metavar="ID", help="one scene of the archive likewise, or `first`")
    parser.add_argument("--picture", type=Path, help="PNG to write (default: in the set)")
    parser.add_argument("--cog", type=Path, metavar="FILE", help="write the scene as cloud-optimised GeoTIFF")
    return parser


def _count(text: str) -> int:
    """Read a number of tiles; argparse tells its user of a `ValueError`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least one tile is needed, not {number}")
    return number


def _write(arguments: argparse.Namespace, folder: Path, name: str, shown: panels.Panels) -> None:
    path = arguments.picture or folder / f"{name}.png"
    pictures.write_png(path, shown.picture)
    console.say(f"{path}: {', '.join(shown.titles)} (saliency: bright is salient).")


def scene_of(folder: Path, made: Manifest, name: str | None) -> StoredScene:
    """Open a scene of a set's archive, the first where no other is named.

    Raises `UnknownNameError` for one the set has not, and `MissingInputError` where the archive was not kept.
    """
    names = [scene.id for scene in made.scenes]
    wanted = names[0] if name in (None, "first") else str(name)
    if wanted not in names:
        raise unknown("scene", wanted, names, f"the shard set {made.name}")
    place = folder / archive.FOLDER / wanted
    if not place.is_dir():
        raise MissingInputError(
            f"{place} is not there: the archive was not kept. Make the set with `keep_zarr: true` to see whole scenes."
        )
    return StoredScene(place)


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
    body = console.table(["band", "role", "nm", "mean", "std", "0.5 %", "99.5 %"], rows)
    formulas = [
        [name, contract.index(name).text, ", ".join(contract.index_bands[name])] for name in contract.indices
    ]
    indices = console.table(["index", "formula", "bands"], formulas)
    return f"{title}\n{splits}; {len(made.scenes)} scenes\n{body}\n\n{indices}"


if __name__ == "__main__":
    console.run(main)
