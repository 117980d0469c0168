"""The scene: one acquisition as its product describes it, before any pixel is read.

Readers (`preprocessing/readers/`) make scenes; `radiometry` turns them into reflectance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.sample import Flag


@dataclass(frozen=True)
class BandSource:
    """One band's file and the rule from its digital numbers (DN) to reflectance: `DN * scale + offset`."""

    name: str
    path: str
    """What rasterio opens: a path, or a /vsizip/ or /vsitar/ location."""
    scale: float
    offset: float
    nodata_dn: int = 0
    """DN that means no measurement; tested before the offset is applied."""
    saturated_dn: int | None = None
    """DN that means saturation, where the product defines one."""


@dataclass(frozen=True)
class MaskSource:
    """A quality layer: a file of class codes or of bit fields, mapped to mask flags."""

    path: str
    classes: dict[int, Flag] = field(default_factory=dict)
    """Class code -> flags (Sentinel-2 SCL)."""
    bits: dict[int, Flag] = field(default_factory=dict)
    """Bit number -> flags (Landsat QA_PIXEL, QA_RADSAT)."""


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
    licence: str = ""
    cloud_share: float | None = None
    """Share of the scene under clouds as its metadata states it, 0 to 1; None where nothing does."""
    version: str = ""
    """Of two products of one acquisition, the one whose version sorts later is used (baseline, time of making)."""
    notes: tuple[str, ...] = ()
    """What a person should know (offset found, baseline, fallback)."""
