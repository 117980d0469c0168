"""The scene: one acquisition as its product describes it, before any pixel is read.

Readers (`preprocessing/readers/`) make scenes; `radiometry` turns them into reflectance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.sample import Flag


@dataclass(frozen=True)
class Checksum:
    """What a product says a file's bytes sum to."""

    algorithm: str
    """Key in `checksums.ALGORITHMS`; others are not checked."""
    value: str
    """Hexadecimal, in lower case."""


@dataclass(frozen=True)
class StatedGrid:
    """Where metadata says that a file's pixels lie, as far as it does: planned with, and compared with the file."""

    by: str
    """Who says so, for people."""
    crs: str = ""
    """EPSG:32633, or WKT."""
    transform: tuple[float, ...] = ()
    """a, b, c, d, e, f of x = a column + b row + c, y = d column + e row + f, from the outer edge."""
    shape_px: tuple[int, int] | None = None
    """Rows and columns."""


@dataclass(frozen=True)
class BandSource:
    """One band's file and the rule from its digital numbers (DN) to reflectance: `DN * scale + offset`."""

    name: str
    path: str
    """What rasterio opens: a path, or a /vsizip/ or /vsitar/ location."""
    scale: float
    offset: float
    nodata_dn: float | None = 0
    """DN that means no measurement, tested before the offset is applied; None where every number is one."""
    saturated_dn: int | None = None
    """DN that means saturation, where the product defines one."""
    layer: int = 1
    """Layer of the file, from 1."""
    gsd_m: float | None = None
    """Pixel size in metres to take where the file has no georeferencing; None refuses such a file."""
    checksum: Checksum | None = None
    """Checked before the file is decoded."""
    stated: StatedGrid | None = None


@dataclass(frozen=True)
class MaskSource:
    """A quality layer mapped to mask flags: class codes, bit fields, a layer for each class, or polygons."""

    path: str
    classes: dict[int, Flag] = field(default_factory=dict)
    """Class code -> flags (Sentinel-2 SCL)."""
    bits: dict[int, Flag] = field(default_factory=dict)
    """Bit number -> flags (Landsat QA_PIXEL, QA_RADSAT)."""
    layers: tuple[Flag, ...] = ()
    """Flags of each layer of the file, where it is not 0 (Sentinel-2 MSK_CLASSI)."""
    polygons: dict[str, Flag] = field(default_factory=dict)
    """Kind of polygon -> flags, in a GML file (Sentinel-2 MSK_CLOUDS)."""
    grow_nodata_px: int = 0
    """Nodata is widened by this many pixels of the layer."""
    checksum: Checksum | None = None
    """Checked before the file is decoded."""


@dataclass(frozen=True)
class Given:
    """What the set a scene belongs to says about it as a whole."""

    name: str = ""
    """What the set's lists call it; empty where that is the scene's id."""
    classes: tuple[str, ...] | None = None
    """Names of its classes; None where nothing is said, and a class raster may label it."""
    split: str = ""
    """Split it belongs to; empty where nothing says."""


@dataclass(frozen=True)
class Scene:
    """One acquisition: lazy bands at their own resolution, validity rule, offset and scale from its metadata."""

    id: str
    """Unique in an archive, matches `[A-Za-z0-9_-]{1,64}`; the first part of its samples' keys."""
    sensor: str
    """Key in `SENSORS`."""
    level: str
    """L1C, L2A, L2SP, ..."""
    reader: str
    """Key in `READERS`."""
    location: Path
    """Folder or file it was read from."""
    acquired: str
    """ISO 8601, UTC where the product says so."""
    bands: tuple[BandSource, ...]
    """The requested bands, in the requested order."""
    masks: tuple[MaskSource, ...] = ()
    labels: str | None = None
    """Class raster beside the scene (what rasterio opens), where the archive has one."""
    label_layer: int = 1
    """Layer of the class raster, from 1."""
    given: Given = Given()
    after: tuple[BandSource, ...] = ()
    """The same bands of the same ground at a later date, in sets of pairs."""
    licence: str = ""
    cloud_share: float | None = None
    """Share of the scene under clouds as its metadata states it, 0 to 1; None where nothing does."""
    version: str = ""
    """Of two products of one acquisition, the one whose version sorts later is used (baseline, time of making)."""
    notes: tuple[str, ...] = ()
    """What a person should know (offset found, baseline, fallback)."""
