"""Cloud masks as L1C products hold them: a GML file of polygons, or, from baseline 04.00 on, JPEG 2000 with layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes

from preprocessing.simulation.raster import MASK_CODINGS, PLACE, Place, transform, write_jp2
from preprocessing.simulation.view import CLASS_CIRRUS, CLASS_CLOUD_HIGH, CLASS_CLOUD_MEDIUM, View

GSD_M = 60
_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" xmlns:gml="http://www.opengis.net/gml/3.2"'
    ' gml:id="MSK_CLOUDS">\n'
)
Ring = Sequence[tuple[float, float]]


def write_cloud_mask(folder: Path, view: View, has_layers: bool, place: Place = PLACE) -> Path:
    """Write MSK_CLASSI_B00.jp2 (`has_layers`) or MSK_CLOUDS_B00.gml into `folder`; returns its path."""
    classes = view.scene_classification(GSD_M)
    opaque = np.isin(classes, (CLASS_CLOUD_MEDIUM, CLASS_CLOUD_HIGH))
    cirrus = classes == CLASS_CIRRUS
    folder.mkdir(parents=True, exist_ok=True)
    # real masks are at 60 m in either form
    if has_layers:
        path = folder / "MSK_CLASSI_B00.jp2"
        # the third layer is snow, of which the simulated ground has none
        layers = np.stack([opaque, cirrus, np.zeros_like(opaque)]).astype(np.uint8)
        write_jp2(path, layers, GSD_M, MASK_CODINGS[GSD_M], place)
        return path
    path = folder / "MSK_CLOUDS_B00.gml"
    path.write_text(gml({"OPAQUE": opaque, "CIRRUS": cirrus}, GSD_M, place), encoding="utf-8")
    return path


def gml(masks: Mapping[str, NDArray[np.bool_]], gsd_m: float = GSD_M, place: Place = PLACE) -> str:
    """Return masks [y, x] as the polygons of their outlines, one feature a patch."""
    features = [
        _feature(kind, number, rings)
        for kind, mask in masks.items()
        for number, rings in enumerate(_outlines(mask, transform(gsd_m, place)))
    ]
    # a mask without a polygon has no envelope either
    if not features:
        return f"{_HEAD}  <eop:maskMembers/>\n</eop:Mask>\n"
    envelope = (
        f'  <gml:boundedBy><gml:Envelope srsName="urn:ogc:def:crs:EPSG:8.7:{place.crs[5:]}"/></gml:boundedBy>'
    )
    members = "\n".join(features)
    return f"{_HEAD}{envelope}\n  <eop:maskMembers>\n{members}\n  </eop:maskMembers>\n</eop:Mask>\n"


def _outlines(mask: NDArray[np.bool_], to_ground: Affine) -> list[list[Ring]]:
    found = shapes(mask.astype(np.uint8), mask=mask, transform=to_ground)
    return [shape["coordinates"] for shape, _ in found]


def _feature(kind: str, number: int, rings: list[Ring]) -> str:
    edges = [_edge("exterior", rings[0]), *(_edge("interior", ring) for ring in rings[1:])]
    return (
        f'    <eop:MaskFeature gml:id="{kind}.{number}">'
        f'<eop:maskType codeSpace="urn:gs2:S2PDGS:maskType">{kind}</eop:maskType>'
        f'<eop:extentOf><gml:Polygon gml:id="{kind}.{number}_Polygon">{"".join(edges)}</gml:Polygon></eop:extentOf>'
        "</eop:MaskFeature>"
    )


def _edge(place: str, ring: Ring) -> str:
    numbers = " ".join(f"{x:.0f} {y:.0f}" for x, y in ring)
    return (
        f'<gml:{place}><gml:LinearRing><gml:posList srsDimension="2">{numbers}</gml:posList></gml:LinearRing>'
        f"</gml:{place}>"
    )
