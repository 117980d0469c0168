"""The data contract: what the numbers in a shard mean. Shard sets, checkpoints and exports all carry it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.config import Config, differences
from pipeline.errors import ContractError, unknown
from pipeline.indices import Index
from pipeline.sample import NODATA, SCALE, Flag

NormalisationKind = Literal["minmax", "standardise", "none"]
LabelKind = Literal["class", "classes", "mask"]
"""One class a tile (`label.cls`), several classes a tile (`label.json`), a class a pixel (`label.npy.blosc`)."""


class BandContract(Config):
    """One band as stored."""

    name: str
    """The sensor's own name."""
    role: str
    """Common name (`red`, `nir`)."""
    centre_nm: float
    """Centre wavelength in nm."""
    width_nm: float
    """Bandwidth in nm."""
    source_gsd_m: float
    """Pixel size the instrument has, in metres; coarser than the grid means resampled."""


class BandStatistics(Config):
    """Distribution of one band over the valid and clear pixels of the training tiles, in reflectance."""

    n: int
    """Pixels counted."""
    mean: float
    """Mean reflectance, winsorised."""
    std: float
    """Population standard deviation of reflectance, winsorised."""
    low: float
    """0.5 % quantile."""
    high: float
    """99.5 % quantile."""
    winsorised: tuple[float, float] | None = None
    """The 0.1 and 99.9 % quantiles: values beyond count as these in mean and std (`pipeline.histogram`). None in sets
    of format 1, whose mean and std are of all values as they are, and where there are no pixels."""


class DataContract(Config):
    """What both rooms agree on about a shard set."""

    sensor: str
    """Key in `pipeline.sensors.SENSORS`."""
    level: str
    """Processing level (L1C, L2A, L2SP)."""
    bands: tuple[BandContract, ...]
    """In stored order."""
    gsd_m: float
    """Nominal pixel size of the grid in metres."""
    tile_px: int
    """Side of a stored tile in pixels."""
    cell_px: int
    """Side of a statistics cell in pixels."""
    indices: tuple[str, ...]
    """Index names, in the order of the cells' first axis."""
    index_bands: dict[str, tuple[str, ...]]
    """Bands each index was computed from (a fallback shows here)."""
    index_formulas: dict[str, str] = Field(default_factory=dict)
    """Formula of each index in band roles, as `pipeline.formulas` reads it; its roles are `index_bands` in order."""
    resampling: str
    """How coarser bands came onto the grid."""
    scale: float = SCALE
    """Reflectance per stored unit."""
    nodata: int = NODATA
    """Stored value that is no measurement."""
    flags: dict[str, int] = Field(default_factory=lambda: {str(f.name): int(f) for f in Flag})
    """Mask bits."""
    clear_excludes: tuple[str, ...] = ()
    """Flags that make a pixel unclear: left out of statistics."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their numbers; empty for an unlabelled set."""
    label_kind: LabelKind = "class"
    """What a label of this set is."""
    dates: Literal[1, 2] = 1
    """Images a sample holds; of two, `pixels` is the earlier and `after` the later."""

    @property
    def band_names(self) -> tuple[str, ...]:
        """Band names in stored order."""
        return tuple(b.name for b in self.bands)

    @property
    def quantity(self) -> str:
        """What the level measures: L1 at the top of the atmosphere, L2 at the surface; the other letters of a level
        say how (Landsat's L1TP and L1GT, L2SP and L2SR).
        """
        return "+".join(sorted({level[:2] for level in self.level.split("+")}))

    def band_positions(self, names: tuple[str, ...]) -> list[int]:
        """Return the places of the named bands along the stored band axis, from 0, in the order of `names`.

        Raises `UnknownNameError` for a band that is not stored and `ContractError` for one named twice.
        """
        stored = list(self.band_names)
        # a band twice is always a slip of the pen: it would only make the model larger
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ContractError(f"bands {', '.join(twice)} are listed twice; list each once.")
        for name in names:
            if name not in stored:
                raise unknown("band", name, stored, f"the shard set of sensor {self.sensor}")
        return [stored.index(n) for n in names]

    def index(self, name: str) -> Index:
        """Return one of `indices` as the set's own formula says; raises `ContractError` where it states none."""
        if name not in self.index_formulas:
            raise ContractError(
                f"the contract states no formula for index `{name}`: make the shard set again."
            )
        return Index(name, name, self.index_formulas[name])

    def require_equal(self, other: DataContract, ours: str, theirs: str, free: Collection[str] = ()) -> None:
        """Raise `ContractError` with a list of what differs, field by field, unless both contracts mean the same
        numbers. free: fields that may differ.
        """
        common = set(self.band_names) & set(other.band_names)
        trees = (c._by_band(common, free) for c in (self, other))
        found = differences(*trees)
        if found:
            raise ContractError(f"{ours} and {theirs} do not hold the same data: {'; '.join(found)}.")

    def _by_band(self, names: Collection[str], free: Collection[str]) -> dict[str, Any]:
        # as JSON: one side was read from a file, where tuples are lists
        tree = self.model_dump(mode="json", exclude={"bands", *free})
        details = {b.name: b.model_dump(mode="json", exclude={"name"}) for b in self.bands if b.name in names}
        return {**tree, "bands": list(self.band_names), "band": details}


@dataclass(frozen=True)
class Normalisation:
    """The one recorded function from stored int16 to model input: `(x * scale - shift) / span`, clipped."""

    kind: NormalisationKind
    shift: NDArray[np.float32]
    """[band], reflectance."""
    span: NDArray[np.float32]
    """[band], reflectance."""
    clip: bool
    """Whether the result is clipped to [0, 1]."""
    scale: float = SCALE

    def __call__(self, pixels: NDArray[np.int16]) -> NDArray[np.float32]:
        """Normalise int16 [..., band, y, x] to float32 of the same shape; nodata becomes 0."""
        x = (pixels.astype(np.float32) * np.float32(self.scale) - self.shift[:, None, None]) / self.span[
            :, None, None
        ]
        x = np.clip(x, np.float32(0), np.float32(1)) if self.clip else x
        # finite is all it must be: the mask says where it is, and no loss counts it
        return np.where(pixels == NODATA, np.float32(0), x)


def normalisation(kind: NormalisationKind, statistics: tuple[BandStatistics, ...]) -> Normalisation:
    """Derive the input normalisation from the training set's band statistics, one entry a band.

    `minmax` maps the 0.5 and 99.5 % quantiles to 0 and 1 and clips; `standardise` subtracts the mean and divides
    by the deviation; `none` keeps reflectance.
    """
    if kind == "minmax":
        shift = [s.low for s in statistics]
        # a constant band must not divide by zero
        span = [max(s.high - s.low, SCALE) for s in statistics]
    elif kind == "standardise":
        shift = [s.mean for s in statistics]
        span = [max(s.std, SCALE) for s in statistics]
    else:
        # reflectance is of order 1 already
        shift, span = [0.0] * len(statistics), [1.0] * len(statistics)
    return Normalisation(kind, np.array(shift, np.float32), np.array(span, np.float32), clip=kind == "minmax")
