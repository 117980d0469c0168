"""What the bands of a simulated Sentinel-2 product say of themselves: eight layers a band, or polygons before 04.00.

Real masks are empty but for the short-wave bands, whose crosstalk is corrected in part; flaws are added on demand: a
lost packet, a dead column, saturated pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.sensors import Band
from preprocessing.simulation.cloud_masks import gml
from preprocessing.simulation.raster import MASK_CODINGS, Place, write_jp2

LAYERS = (
    "ANC_LOST",
    "ANC_DEG",
    "MSI_LOST",
    "MSI_DEG",
    "QT_DEFECTIVE_PIXELS",
    "QT_NODATA_PIXELS",
    "QT_PARTIALLY_CORRECTED_PIXELS",
    "QT_SATURATED_PIXELS_L1A",
)
"""Of MSK_QUALIT, in their order."""
FILES = {
    "TECQUA": LAYERS[:4],
    "DEFECT": LAYERS[4:5],
    "NODATA": LAYERS[5:7],
    "SATURA": LAYERS[7:],
}
"""Kind of GML file -> kinds of polygon in it."""
Marks = Mapping[str, NDArray[np.bool_]]
"""Kind -> where it is marked [y, x]; the kinds that are left out are marked nowhere."""


def marks(band: Band, side_px: int, has_flaws: bool) -> dict[str, NDArray[np.bool_]]:
    """Return what a band of `side_px` pixels is marked with; flaws are in the four bands B04, B8A, B11 and B01."""
    found: dict[str, NDArray[np.bool_]] = {}
    # as in most real products; readers must not take it for a loss
    if band.name in ("B11", "B12"):
        found["QT_PARTIALLY_CORRECTED_PIXELS"] = _part(side_px, slice(None), slice(0, side_px // 2))
    flaw = FLAWS.get(band.name) if has_flaws else None
    if flaw:
        place = slice(side_px // 2, side_px // 2 + 2)
        # packets hold lines, detectors make columns
        across = flaw == "MSI_LOST"
        found[flaw] = _part(side_px, *((place, slice(None)) if across else (slice(None), place)))
    return found


FLAWS = {
    "B04": "MSI_LOST",
    "B8A": "QT_DEFECTIVE_PIXELS",
    "B11": "QT_SATURATED_PIXELS_L1A",
    "B01": "QT_NODATA_PIXELS",
}
"""Band -> its flaw: two rows of it, or two columns."""


def _part(side_px: int, rows: slice, columns: slice) -> NDArray[np.bool_]:
    marked = np.zeros((side_px, side_px), np.bool_)
    marked[rows, columns] = True
    return marked


def write_layers(folder: Path, band: Band, side_px: int, marked: Marks, place: Place) -> None:
    """Write MSK_QUALIT of a band of `side_px` pixels into `folder`."""
    gsd_m = round(band.gsd_m)
    # all eight, empty ones too: readers tell them by their number
    layers = np.zeros((len(LAYERS), side_px, side_px), np.uint8)
    for kind, mask in marked.items():
        layers[LAYERS.index(kind)] = mask
    write_jp2(folder / f"MSK_QUALIT_{band.name}.jp2", layers, gsd_m, MASK_CODINGS[gsd_m], place)


def write_polygons(folder: Path, band: Band, marked: Marks, place: Place) -> None:
    """Write MSK_TECQUA, MSK_DEFECT, MSK_NODATA and MSK_SATURA of a band into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kinds in FILES.items():
        held = {kind: marked[kind] for kind in kinds if kind in marked}
        text = gml(held, band.gsd_m, place)
        (folder / f"MSK_{name}_{band.name}.gml").write_text(text, encoding="utf-8")
