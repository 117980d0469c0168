"""What a finished run says about itself: the manifest with its data contract."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import __version__
from pipeline.contract import BandContract, BandStatistics, DataContract
from pipeline.manifest import Manifest, SceneRecord, Shard
from preprocessing import settings
from preprocessing.settings import ShardConfig
from preprocessing.spool import Spool

NOMINAL = 0.25
"""A measured pixel size this close to the instrument's own is called by the instrument's."""


def manifest(
    request: ShardConfig,
    spools: Sequence[Spool],
    splits: dict[str, tuple[Shard, ...]],
    statistics: tuple[BandStatistics, ...],
) -> Manifest:
    """Put the manifest of a set together."""
    return Manifest(
        name=request.name,
        contract=contract(request, spools),
        statistics=statistics,
        splits=splits,
        scenes=tuple(record(s) for s in spools),
        # without paths: the same run elsewhere must give the same bytes
        settings=settings.comparable(request),
        code_version=__version__,
        notices=tuple(sorted({s.licence for s in spools if s.licence})),
    )


def record(made: Spool) -> SceneRecord:
    """Return a scene's entry in the manifest."""
    return SceneRecord(
        id=made.scene,
        reader=made.reader,
        acquired=made.acquired,
        level=made.level,
        tiles=made.tiles,
        unlabelled=made.unlabelled,
        notes=made.notes,
    )


def contract(request: ShardConfig, spools: Sequence[Spool]) -> DataContract:
    """State what the numbers of the set mean."""
    bands = request.instrument.select(request.bands)
    levels = sorted({s.level for s in spools})
    return DataContract(
        sensor=request.sensor,
        level="+".join(levels),
        bands=tuple(
            BandContract(
                name=b.name, role=b.role, centre_nm=b.centre_nm, width_nm=b.width_nm, source_gsd_m=b.gsd_m
            )
            for b in bands
        ),
        gsd_m=nominal_gsd_m(request, spools),
        tile_px=request.tile_px,
        cell_px=request.cell_px,
        indices=request.indices,
        index_bands={name: request.index_bands(name) for name in request.indices},
        resampling=request.resampling,
        clear_excludes=request.clear_excludes,
        classes=request.labels.classes if request.labels else (),
    )


def nominal_gsd_m(request: ShardConfig, spools: Sequence[Spool]) -> float:
    """Return the grid's pixel size in metres: as asked, the instrument's own, or as measured where neither fits."""
    if request.gsd_m != "native":
        return float(request.gsd_m)
    own = min(b.gsd_m for b in request.instrument.select(request.bands))
    # the median: one odd scene must not name the set
    measured = sorted(s.gsd_m for s in spools)[len(spools) // 2]
    return own if abs(measured / own - 1) <= NOMINAL else float(f"{measured:.3g}")


def sample_bytes(request: ShardConfig) -> int:
    """Return the size of an uncompressed sample in bytes."""
    cells = (request.tile_px // request.cell_px) ** 2
    return request.tile_px**2 * (2 * len(request.bands) + 1) + 12 * cells * len(request.indices)
