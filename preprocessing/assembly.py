"""What a finished run says about itself: the manifest with its data contract."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline import __version__, histogram
from pipeline.config import ROOT, read_yaml
from pipeline.contract import BandContract, DataContract
from pipeline.manifest import Manifest, SceneRecord, Shard
from preprocessing import settings
from preprocessing.contributions import Contributions
from preprocessing.settings import ShardConfig
from preprocessing.splits import record as record_split
from preprocessing.spool import Spool

LAPTOP = "configs/pretrain/laptop.yaml"
"""A first training that any set and any machine is good enough for."""
COPERNICUS = "modified Copernicus Sentinel data"
"""In a notice: the years of the data come after it."""
NOMINAL = 0.25
"""A measured pixel size this close to the instrument's own is called by the instrument's."""


def manifest(
    request: ShardConfig,
    spools: Sequence[Spool],
    splits: dict[str, tuple[Shard, ...]],
    given: Contributions,
) -> Manifest:
    """Put the manifest of a set together; given: what the scenes gave to the statistics."""
    return Manifest(
        name=request.name,
        contract=contract(request, spools),
        statistics=histogram.statistics(given.total),
        splits=splits,
        split=record_split(request.split, request.labels.table if request.labels else None),
        scenes=tuple(record(s, given.counted[s.scene]) for s in spools),
        # without paths: the same run elsewhere must give the same bytes
        settings=settings.comparable(request),
        code_version=__version__,
        notices=notices(spools),
    )


def notices(spools: Sequence[Spool]) -> tuple[str, ...]:
    """Return the licences and notices of all sources, with the years that Copernicus asks to be named."""
    years: dict[str, set[str]] = {}
    for made in spools:
        if made.licence:
            years.setdefault(made.licence, set()).add(made.acquired[:4])
    return tuple(sorted(_with_years(licence, sorted(found)) for licence, found in years.items()))


def _with_years(licence: str, years: Sequence[str]) -> str:
    # "Contains modified Copernicus Sentinel data [Year]", in the words of the legal notice of its data
    known = [year for year in years if year.isdecimal()]
    named = f"{COPERNICUS} {', '.join(known)}" if known else COPERNICUS
    return licence.replace(COPERNICUS, named)


def record(made: Spool, statistics_px: int = 0) -> SceneRecord:
    """Return a scene's entry in the manifest; statistics_px: pixels a band that it gave to the statistics."""
    return SceneRecord(
        id=made.scene,
        reader=made.reader,
        acquired=made.acquired,
        level=made.level,
        tiles=made.tiles,
        licence=made.licence,
        unlabelled=made.unlabelled,
        statistics_px=statistics_px,
        notes=made.notes,
    )


def contract(request: ShardConfig, spools: Sequence[Spool]) -> DataContract:
    """State what the numbers of the set mean."""
    bands = request.instrument.select(request.bands)
    # Landsat archives mix L1TP and L1GT, which hold the same quantity
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
        index_formulas={name: request.index(name).text for name in request.indices},
        resampling=request.resampling,
        clear_excludes=request.clear_excludes,
        classes=request.labels.classes if request.labels else (),
        label_kind=request.labels.kind if request.labels else "class",
        dates=2 if any(s.dates == 2 for s in spools) else 1,
    )


def next_command(made: Manifest, folder: Path) -> str:
    """Return a command that trains on a set just made: the laptop's configuration and what the set needs changed."""
    file = read_yaml(ROOT / LAPTOP)
    model, stored = file.get("model", {}), made.contract
    words = [f"name={made.name}", f"data.shards={folder}"]
    group = int(model.get("bands_per_cube", 3))
    if len(stored.bands) < group:
        words += ["data.bands=null", "model.bands_per_cube=1"]
    elif not set(file["data"]["bands"]) <= set(stored.band_names):
        words.append(f"data.bands=[{','.join(whole_cubes(stored, group))}]")
    # the largest power of two: it is a multiple of every smaller micro-batch
    size = min(file["batch"]["size"], 1 << (made.samples("train").bit_length() - 1))
    if size < file["batch"]["size"]:
        words += [f"batch.size={size}", f"batch.micro={min(size, file['batch']['micro'])}"]
    patch_px = int(model.get("patch_px", 8))
    if patch_px % stored.cell_px or stored.tile_px % patch_px:
        words.append(f"model.patch_px={stored.cell_px}")
    return " ".join(["python training/pretrain.py", LAPTOP, *map(shlex.quote, words)])


def whole_cubes(stored: DataContract, group: int) -> list[str]:
    """Return as many band names as fill cubes of `group` bands, in stored order; the coarsest are left out first."""
    # sorted keeps the order of equals, and coastal bands stand first
    coarsest_first = sorted(stored.bands, key=lambda band: -band.source_gsd_m)
    left_out = {band.name for band in coarsest_first[: len(stored.bands) % group]}
    return [name for name in stored.band_names if name not in left_out]


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
