"""A simulated Sentinel-2 L1C product as of before December 2016: two tiles in one `.SAFE`, under the old names.

Baseline 02.04, as products of that time have: without an offset, with masks as polygons.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from preprocessing.simulation.safe import TILES, SafeOptions, image_count, write_safe
from preprocessing.simulation.safe_metadata import manifest_xml

BASELINE = "02.04"
_CENTRE = "SIML"
"""Where it was processed, for which real names have SGS_, EPA_ or MTI_."""


def write_old_safe(
    folder: Path, options: SafeOptions, written: Callable[[str], None] = lambda name: None
) -> Path:
    """Write one product and the land cover of its tiles into `folder`; returns the product's path.

    written: is told each image's name when it is done. Level, baseline and tile of `options` are not asked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # the images are those of one product a tile, moved: only names and folders differ
    with tempfile.TemporaryDirectory(dir=folder) as work:
        tiles = [
            write_safe(Path(work), replace(options, level="L1C", baseline=BASELINE, tile=tile), written)
            for tile in TILES
        ]
        stamp = tiles[0].name.split("_")[2]
        tail = f"PDMC_{stamp}_R022_V{stamp}_{stamp}"
        product = folder / f"S2A_OPER_PRD_MSIL1C_{tail}.SAFE"
        # metadata of the product is the same for all of its tiles
        for tile in tiles:
            _move_granule(tile, product, stamp)
        shutil.move(tiles[0] / "MTD_MSIL1C.xml", product / f"S2A_OPER_MTD_SAFL1C_{tail}.xml")
    # last: it holds the checksums of all others, under their new names
    (product / "manifest.safe").write_text(manifest_xml(product), encoding="utf-8")
    return product


def old_image_count(options: SafeOptions) -> int:
    """Return how many images `write_old_safe` writes."""
    return len(TILES) * image_count(replace(options, level="L1C", baseline=BASELINE))


def _move_granule(source: Path, product: Path, stamp: str) -> None:
    """Move the granule of a product of one tile into a product of several, and its land cover beside that."""
    [old] = (source / "GRANULE").iterdir()
    tail = f"{_CENTRE}_{stamp}_A000001_{old.name.split('_')[1]}"
    granule = product / "GRANULE" / f"S2A_OPER_MSI_L1C_TL_{tail}_N{BASELINE}"
    moves = {old / "MTD_TL.xml": granule / f"S2A_OPER_MTD_L1C_TL_{tail}.xml"}
    for image in (old / "IMG_DATA").iterdir():
        band = image.stem.rsplit("_", 1)[1]
        moves[image] = granule / "IMG_DATA" / f"S2A_OPER_MSI_L1C_TL_{tail}_{band}.jp2"
    for mask in (old / "QI_DATA").iterdir():
        kind, band = re.findall(r"MSK_(\w+)_(B\w\w)", mask.stem)[0]
        moves[mask] = granule / "QI_DATA" / f"S2A_OPER_MSK_{kind}_{tail}_{band}_MSIL1C{mask.suffix}"
    landcover = source.parent / f"{source.stem}_landcover.tif"
    moves[landcover] = product.parent / f"{granule.name}_landcover.tif"
    for before, after in moves.items():
        after.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(before, after)
