"""Quality layers of Sentinel-2 products: scene classification, clouds of L1C, and what each band says of itself.

A band's own layer tells what no number does: pixels that a lost packet or a dead column left without measurement,
filled by interpolation, and pixels that saturated before they were corrected. From baseline 04.00 on MSK_QUALIT has
eight layers in one file, before there are polygons in four. Specification: S2-PDGS-TAS-DI-PSD (ESA), 14.9, annex E.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import SceneError
from pipeline.sample import Flag
from preprocessing.readers.product import QualityMasks, choose_gsd
from preprocessing.scenes import Checksum, MaskSource

SCL_FLAGS = {
    0: Flag.NODATA,
    1: Flag.SATURATED,  # saturated or defective
    3: Flag.SHADOW,
    8: Flag.CLOUD,  # medium probability
    9: Flag.CLOUD,  # high probability
    10: Flag.CIRRUS,
    11: Flag.SNOW,
}
CLASSI_FLAGS = (Flag.CLOUD, Flag.CIRRUS, Flag.SNOW)
"""Layers of MSK_CLASSI: opaque clouds, cirrus, snow and ice (L1C from baseline 04.00 on)."""
CLOUD_FLAGS = {"OPAQUE": Flag.CLOUD, "CIRRUS": Flag.CIRRUS}
"""Kinds of polygon in MSK_CLOUDS (L1C before baseline 04.00)."""
QUALITY_FLAGS = {
    "ANC_LOST": Flag.NODATA,
    "ANC_DEG": Flag(0),
    "MSI_LOST": Flag.NODATA,
    # degraded and partially corrected pixels are measurements, and whole detectors are marked so
    "MSI_DEG": Flag(0),
    "QT_DEFECTIVE_PIXELS": Flag.NODATA,
    "QT_NODATA_PIXELS": Flag.NODATA,
    "QT_PARTIALLY_CORRECTED_PIXELS": Flag(0),
    "QT_SATURATED_PIXELS_L1A": Flag.SATURATED,
}
"""What a band's quality mask tells, in the order of the layers of MSK_QUALIT."""
POLYGON_FLAGS = QUALITY_FLAGS | {"QT_SATURATED_PIXELS_L1B": Flag.SATURATED}
"""Kinds of polygon in MSK_TECQUA, MSK_DEFECT, MSK_NODATA and MSK_SATURA (before baseline 04.00)."""

_MASK = re.compile(
    r"(?:.*/QI_DATA|qi)/(?:S2[A-D]_(?:OPER|USER)_)?(?:MSK_)?"
    r"(?P<kind>CLASSI|CLOUDS|QUALIT|TECQUA|DEFECT|NODATA|SATURA)_(?:[^/]*_)?(?P<band>B\d[\dA])(?:_MSIL1C)?"
    r"\.(?:jp2|gml)"
)
_OF_ALL_BANDS = "B00"
_POLYGONS = ("TECQUA", "DEFECT", "NODATA", "SATURA")


@dataclass(frozen=True)
class QualityFiles:
    """The quality layers a product holds."""

    members: Mapping[str, str]
    """Relative name -> what rasterio opens."""
    checksums: Mapping[str, Checksum] = field(default_factory=dict)

    def of_band(self, band: str) -> tuple[MaskSource, ...]:
        """Return what a band says of itself; nothing where the product has none."""
        found = self._found(band)
        # one file from baseline 04.00 on; archives that hold both were reprocessed
        if "QUALIT" in found:
            return (self._source(found["QUALIT"], layers=tuple(QUALITY_FLAGS.values())),)
        # kinds that flag nothing would be drawn for nothing, over whole detectors
        flags = {kind: flag for kind, flag in POLYGON_FLAGS.items() if flag}
        return tuple(self._source(found[kind], polygons=flags) for kind in _POLYGONS if kind in found)

    def clouds(self) -> tuple[MaskSource, ...]:
        """Return the cloud mask of an L1C product, where it holds one."""
        found = self._found(_OF_ALL_BANDS)
        # products hold one of them; where an archive added the other, the newer counts
        if "CLASSI" in found:
            return (self._source(found["CLASSI"], layers=CLASSI_FLAGS),)
        return (self._source(found["CLOUDS"], polygons=CLOUD_FLAGS),) if "CLOUDS" in found else ()

    def classification(self, sizes: Mapping[float, str], gsd_m: float | None) -> MaskSource:
        """Return the scene classification of an L2A product; `sizes`: pixel size in metres -> relative name."""
        name = choose_gsd(sizes, gsd_m)
        return MaskSource(self.members[name], classes=dict(SCL_FLAGS), checksum=self.checksums.get(name))

    def _found(self, band: str) -> dict[str, str]:
        """Return kind -> relative name of the masks of one band."""
        matches = ((_MASK.fullmatch(name), name) for name in self.members)
        return {match["kind"]: name for match, name in matches if match and match["band"] == band}

    def _source(
        self, name: str, layers: tuple[Flag, ...] = (), polygons: Mapping[str, Flag] | None = None
    ) -> MaskSource:
        stated = self.checksums.get(name)
        return MaskSource(self.members[name], layers=layers, polygons=dict(polygons or {}), checksum=stated)


def of_bands(
    files: QualityFiles, bands: Sequence[str], wanted: QualityMasks, where: str
) -> tuple[MaskSource, ...]:
    """Return what the bands say of themselves, as far as it is wanted.

    Raises `SceneError` naming the first band without where all are required; `where` is the product.
    """
    # before anything is looked for: a broken mask must not hinder who wants none
    if wanted == "off":
        return ()
    found = {band: files.of_band(band) for band in bands}
    without = [band for band, masks in found.items() if not masks]
    if without and wanted == "required":
        raise SceneError(
            f"{where}: no quality mask of band {without[0]} (MSK_QUALIT_{without[0]}.jp2, or before baseline 04.00"
            " MSK_DEFECT and others). Fetch the product again, or set `quality_masks: auto`."
        )
    return tuple(mask for masks in found.values() for mask in masks)
