"""Small shard sets for the training tests, written with the project's own formats."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import manifest as manifests
from pipeline.contract import BandContract, BandStatistics, DataContract
from pipeline.indices import INDICES
from pipeline.manifest import Manifest, Shard
from pipeline.saliency import cell_statistics
from pipeline.sample import NODATA, Flag, Sample, encode
from pipeline.sensors import SENSORS
from tests.training.processes import SMALL, Case, run_cases

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
INDEX_NAMES = ("NDVI", "NDWI", "NDBI")
TILE_PX, CELL_PX = 48, 8
CLASSES = ("water", "field", "town")
_SPECTRA = {
    0: (0.06, 0.05, 0.03, 0.02, 0.01, 0.01),
    1: (0.03, 0.07, 0.05, 0.4, 0.2, 0.1),
    2: (0.1, 0.12, 0.14, 0.2, 0.25, 0.22),
}


def make_sample(number: int) -> Sample:
    """One tile of two land covers in stripes; every seventh has a nodata corner."""
    rng = np.random.default_rng(number)
    label = number % len(CLASSES)
    stripes = (np.arange(TILE_PX)[None] // 12 + np.arange(TILE_PX)[:, None] // 16 + number) % 4 == 0
    classes = np.where(stripes, (label + 1) % 3, label)
    table = np.array([_SPECTRA[c] for c in range(3)])
    reflectance = table[classes].transpose(2, 0, 1) * rng.uniform(0.8, 1.2, (1, TILE_PX, TILE_PX))
    pixels = np.rint(reflectance * 1e4).astype(np.int16)
    mask = np.zeros((TILE_PX, TILE_PX), np.uint8)
    if number % 7 == 0:
        mask[:16, :16] = Flag.NODATA
        pixels[:, :16, :16] = NODATA
    return Sample(f"tile_{number:05d}", pixels, mask, _cells(pixels, mask), {"scene": "made"}, label)


def _cells(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    reflectance = pixels.astype(np.float32) * 1e-4
    roles = {SENSORS["sentinel2"][name].role: reflectance[i] for i, name in enumerate(BANDS)}
    values = np.stack([INDICES[n](*(roles[r] for r in INDICES[n].roles)) for n in INDEX_NAMES])
    return cell_statistics(values, mask == 0, CELL_PX)


def write_shards(
    folder: Path, splits: dict[str, range], per_shard: int = 16, labelled: Sequence[str] | None = None
) -> Path:
    """Write a shard set with the numbered samples of each split, all or the named ones labelled; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        name: tuple(_write_split(folder, name, numbers, per_shard, labelled is None or name in labelled))
        for name, numbers in splits.items()
    }
    first = np.stack([make_sample(i).pixels for i in range(8)]).astype(np.float64) * 1e-4
    statistics = tuple(_statistics(first[:, i]) for i in range(len(BANDS)))
    manifest = Manifest(
        name="made", contract=_contract(), statistics=statistics, splits=written, scenes=(), settings={},
        code_version="test", notices=(),
    )  # fmt: skip
    manifests.write(manifest, folder)
    return folder


def _write_split(folder: Path, name: str, numbers: range, per_shard: int, labelled: bool) -> list[Shard]:
    (folder / name).mkdir(exist_ok=True)
    shards = []
    for start in range(0, len(numbers), per_shard):
        chosen = numbers[start : start + per_shard]
        path = folder / name / f"shard-{start // per_shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in chosen:
                sample = make_sample(number)
                sample = sample if labelled else replace(sample, label=None)
                for suffix, data in encode(sample).items():
                    info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        shards.append(Shard(path=f"{name}/{path.name}", samples=len(chosen), size_bytes=path.stat().st_size,
                            sha256=manifests.sha256(path)))  # fmt: skip
    return shards


def _contract() -> DataContract:
    bands = SENSORS["sentinel2"].select(BANDS)
    return DataContract(
        sensor="sentinel2", level="L2A", gsd_m=10, tile_px=TILE_PX, cell_px=CELL_PX, indices=INDEX_NAMES,
        index_bands={"NDVI": ("B08", "B04"), "NDWI": ("B03", "B08"), "NDBI": ("B11", "B08")}, resampling="bilinear",
        bands=tuple(
            BandContract(name=b.name, role=b.role, centre_nm=b.centre_nm, width_nm=b.width_nm, source_gsd_m=b.gsd_m)
            for b in bands
        ),
        classes=CLASSES,
    )  # fmt: skip


def _statistics(values: np.ndarray) -> BandStatistics:
    measured = values[values > -1]
    low, high = np.quantile(measured, [0.005, 0.995])
    return BandStatistics(n=measured.size, mean=measured.mean(), std=measured.std(), low=low, high=high)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 40 training and 12 validation samples, 6 bands, 48 px, three classes."""
    return write_shards(
        tmp_path_factory.mktemp("shards") / "made", {"train": range(40), "val": range(40, 52)}
    )


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Write further shard sets: `make_shards(name, train=range(n))`."""

    def make(name: str, labelled: Sequence[str] | None = None, **splits: range) -> Path:
        return write_shards(tmp_path / name, splits, labelled=labelled)

    return make


@pytest.fixture(scope="session")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of finished single-process runs."""
    output = tmp_path_factory.mktemp("trained")
    common = [f"output={output}", f"data.shards={shards}"]
    cases: list[Case] = [("pretrain", [*common, *SMALL, "name=whole"])]
    for stage in (0, 1, 2, 3):
        words = [*common, *SMALL, f"name=stage{stage}", f"engine.zero_stage={stage}", "panel_images=0"]
        cases += [("pretrain", [*words, "stop_at=10"]), ("pretrain", words)]
        cases.append(("pretrain", [*words, f"name=whole{stage}"]))
    cases.append(("pretrain", [*common, *SMALL, "name=accumulated", "batch.micro=2", "data.workers=1"]))
    tune = [
        *common,
        "batch.size=8",
        "optimiser.base_lr=0.03",
        "optimiser.warmup_epochs=1",
        "epochs=4",
        f"init={output}/whole",
    ]
    cases += [("finetune", [*tune, f"name={mode}", f"mode={mode}"]) for mode in ("linear_probe", "full")]
    outcomes = run_cases(output, cases)
    assert outcomes == [True, *[False, True, True] * 4, True, True, True]
    return output
