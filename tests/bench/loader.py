"""The training loader against what people use instead, on real imagery: the Onera scenes, sharded with lz4."""

from __future__ import annotations

import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numcodecs import Blosc, blosc

from pipeline.config import ROOT
from tests.bench.measure import REPETITIONS, Ratio, interleaved
from tests.bench.preprocessing import REAL_DATA, run

BATCH, STEPS = 128, 4
COUNT = BATCH * STEPS
# a process takes a while to start
_LONG = 32
_TIF_COUNT = 48
_TIF = {"driver": "GTiff", "tiled": True, "blockxsize": 96, "blockysize": 96, "compress": "deflate"}
_SCALE = (0.2, 1.0)
_RATIO = (3 / 4, 4 / 3)


def loader(folder: Path) -> list[Ratio]:
    """Samples a CPU-second in batches of 128, one core, warm cache; and what a training step waits for them."""
    # torch takes seconds to load, and other benchmarks do without
    import torch

    torch.set_num_threads(1)
    shards = shard_set(folder)
    tars = sorted((shards / "train").glob("*.tar"))
    twins = [uncompressed(path, folder / f"twin-{path.name}") for path in tars]
    images = [sample.pixels for sample in itertools.islice(samples_of(shards), COUNT)]
    tifs = list(as_tifs(images[:_TIF_COUNT], folder / "tifs"))
    turned, plain = batches_of(shards, augment=True), batches_of(shards, augment=False)
    work = {
        "ours": (plain, COUNT),
        "turned": (turned, COUNT),
        "process": (batches_of(shards, augment=False, workers=1, steps=_LONG), _LONG * BATCH),
        "pixels": (pixels_of(tars), COUNT),
        "codec": (unpacked(tars), COUNT),
        "handler": (lambda: stock(tars, with_blosc), COUNT),
        "twin": (lambda: stock(twins), COUNT),
        "tif": (lambda: from_tifs(tifs, moments(images)), _TIF_COUNT),
        "copy": (lambda: copied(images), COUNT),
    }
    times = interleaved({name: work_of for name, (work_of, _) in work.items()})
    each = {name: [t / count for t in times[name]] for name, (_, count) in work.items()}
    return [*ratios(each), handing_over(each), waiting(shards, folder)]


def ratios(each: Mapping[str, Sequence[float]]) -> Iterator[Ratio]:
    """Compare seconds a sample."""
    for what, slow, fast, goal in (
        ("stock webdataset, five-line handler / ours", "handler", "ours", 2.5),
        ("the same, ours with crops, flips and turns", "handler", "turned", 2.5),
        ("stock webdataset, .decode() on uncompressed / ours", "twin", "ours", 2.5),
        ("the same, ours with crops, flips and turns", "twin", "turned", 2.5),
        ("GeoTIFFs with SatMAE's transform / ours with turns", "tif", "turned", 20),
        ("memory copy / ours: whole batches", "copy", "ours", 0.30),
        ("memory copy / ours: pixels alone, read and decoded", "copy", "pixels", 0.30),
        ("memory copy / blosc alone, from memory: no reader can do more", "copy", "codec", 0.30),
    ):
        values = tuple(s / f for s, f in zip(each[slow], each[fast], strict=True))
        medians = statistics.median(each[slow]) * 1e3, statistics.median(each[fast]) * 1e3
        yield Ratio(f"loader: {what} (ms a sample)", values, goal, seconds=medians)


def handing_over(each: Mapping[str, Sequence[float]]) -> Ratio:
    """Compare loading in a process of its own with loading in the training process: CPU seconds of both."""
    values = tuple(p / o for p, o in zip(each["process"], each["ours"], strict=True))
    medians = statistics.median(each["process"]) * 1e3, statistics.median(each["ours"]) * 1e3
    what = "loader: ours, a loader process and the training process / the latter alone (ms a sample)"
    return Ratio(what, values, 1.5, least=False, seconds=medians)


def shard_set(folder: Path) -> Path:
    """Shard the Onera scenes with lz4: 13 bands, 96 px."""
    shards = folder / "loader"
    if not shards.exists():
        words = [
            str(ROOT / "configs/shard/oscd.yaml"),
            f"scenes={REAL_DATA / 'oscd'}",
            "workers=2",
            "codec=lz4",
        ]
        run(shards, *words)()
    return shards


def samples_of(shards: Path) -> Iterator[Any]:
    """Yield the samples of a set in stored order."""
    from training.reader import ShardReader

    reader = ShardReader(shards, "train")
    return (reader.read(number) for number in range(len(reader)))


def batches_of(shards: Path, augment: bool, workers: int = 0, steps: int = STEPS) -> Callable[[], object]:
    """Return loading training batches, whole: pixels, validity, saliency, labels."""
    from training.data import BatchConfig, DataConfig, make_view
    from training.sets import Part, open_families
    from training.stream import ShardStream
    from training.world import World

    config = DataConfig.model_validate({"shards": shards, "augment": augment})
    (family,) = open_families(config)
    part = Part(family, replace(make_view(family.contract, config, 8), augment=augment))
    stream = ShardStream([part], BatchConfig(size=BATCH), World())
    return lambda: [len(batch.keys) for batch in stream.batches(0, steps, workers)]


def places_of(tars: Sequence[Path]) -> list[tuple[int, int, int]]:
    """Return descriptor, first byte and size of the pixels of samples in stored order."""
    from training.offsets import find_offsets

    places = []
    for path in tars:
        with path.open("rb") as stream:
            offsets = find_offsets(stream, str(path))
        descriptor = os.open(path, os.O_RDONLY)
        rows = (offsets.members(row)["pixels.npy.blosc"] for row in range(len(offsets)))
        places += [(descriptor, *place) for place in rows]
    return places[:COUNT]


def pixels_of(tars: Sequence[Path]) -> Callable[[], object]:
    """Return reading and decoding the pixels alone, at known offsets, into memory that is used again."""
    from pipeline.sample import Scratch, decode_array

    places, scratch = places_of(tars), Scratch()

    def read() -> None:
        for descriptor, offset, size in places:
            stored = scratch.room("stored", size).data
            os.preadv(descriptor, [stored], offset)
            decode_array(stored, scratch.room("plain", int.from_bytes(stored[4:8], "little")))

    return read


def unpacked(tars: Sequence[Path]) -> Callable[[], object]:
    """Return what numcodecs' decoder alone does with the pixels, stored and plain ones in memory."""
    stored = [os.pread(descriptor, size, offset) for descriptor, offset, size in places_of(tars)]
    plain = np.empty(max(int.from_bytes(data[4:8], "little") for data in stored), np.uint8)
    return lambda: [blosc.decompress(data, plain) for data in stored]


def with_blosc(key: str, data: bytes) -> object:
    """Decode a member as README's five lines do."""
    return np.load(io.BytesIO(Blosc().decode(data))) if key.endswith("blosc") else None


def stock(tars: Sequence[Path], *handlers: Callable[[str, bytes], object]) -> int:
    """Read samples with webdataset and stack their arrays to batches."""
    import webdataset

    read = webdataset.WebDataset([str(path) for path in tars], shardshuffle=False).decode(*handlers)
    done = 0
    for group in _groups(read):
        for name in ("pixels", "mask", "cells"):
            (member,) = (key for key in group[0] if key.startswith(f"{name}.npy"))
            done += len(np.stack([sample[member] for sample in group]))
    return done


def _groups(read: Any) -> Iterator[list[dict[str, Any]]]:
    taken = itertools.islice(read, COUNT)
    return iter(lambda: list(itertools.islice(taken, BATCH)), [])


def uncompressed(path: Path, target: Path) -> Path:
    """Write a shard with its arrays as plain .npy, which stock tools decode by themselves."""
    with tarfile.open(path) as source, tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in source:
            data = source.extractfile(member).read()  # type: ignore[union-attr]
            compressed = member.name.endswith(".blosc")
            info = tarfile.TarInfo(member.name.removesuffix(".blosc"))
            data = Blosc().decode(data) if compressed else data
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target


def as_tifs(images: Sequence[np.ndarray], folder: Path) -> Iterator[Path]:
    """Write images as tiled GeoTIFFs with deflate, as archives of tiles hold them."""
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        path = folder / f"{number}.tif"
        count, height, width = image.shape
        with rasterio.open(path, "w", **_TIF, count=count, height=height, width=width, dtype="uint16") as tif:
            tif.write(image.clip(0).astype(np.uint16))
        yield path


def moments(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each band, in double precision, as lists of them in Python become."""
    every = np.stack(images[:_TIF_COUNT]).astype(np.float64)
    return every.mean((0, 2, 3)), every.std((0, 2, 3))


def from_tifs(paths: Sequence[Path], of_bands: tuple[np.ndarray, np.ndarray]) -> int:
    """Read GeoTIFFs as SatMAE's data set does, bands last in float32; bring each band from two deviations around its
    mean, kept in float64, to 8 bits; then a crop of 0.2 to 1 of the area, resized, and a flip.
    """
    import torch

    rng, (mean, std) = np.random.default_rng(0), of_bands
    low, high = mean - 2 * std, mean + 2 * std
    done = 0
    for group in (paths[i : i + BATCH] for i in range(0, len(paths), BATCH)):
        images = []
        for path in group:
            with rasterio.open(path) as tif:
                image = tif.read().transpose(1, 2, 0).astype(np.float32)
            eight = np.clip((image - low) / (high - low) * 255.0, 0, 255).astype(np.uint8)
            planes = torch.from_numpy(eight.transpose(2, 0, 1)).contiguous()
            images.append(resized_crop(planes.float().div(255), rng))
        done += len(torch.stack(images))
    return done


def resized_crop(image: Any, rng: np.random.Generator) -> Any:
    """Return a crop of a random area and aspect at the full size, bicubic, flipped every other time."""
    import torch

    side = image.shape[-1]
    area, aspect = rng.uniform(*_SCALE) * side**2, np.exp(rng.uniform(*np.log(_RATIO)))
    height, width = (min(round(float(np.sqrt(a))), side) for a in (area / aspect, area * aspect))
    top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    cut = image[None, :, top : top + height, left : left + width]
    resized = torch.nn.functional.interpolate(cut, (side, side), mode="bicubic", antialias=True)[0]
    return resized.flip(-1) if rng.random() < 0.5 else resized


def copied(images: Sequence[np.ndarray]) -> int:
    """Copy pixels that are decoded already into new batches: no loader can do less."""
    return sum(len(np.stack(images[i : i + BATCH])) for i in range(0, COUNT, BATCH))


def waiting(shards: Path, folder: Path) -> Ratio:
    """Train on the CPU for some steps with one loader process; returns the share of the time that steps wait."""
    words = [
        "configs/pretrain/laptop.yaml",
        f"data.shards={shards}",
        f"output={folder / 'runs'}",
        "name=waits",
    ]
    words += ["data.workers=1", "stop_at=24"]
    command = [sys.executable, str(ROOT / "training/pretrain.py"), *words]
    subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL, env=os.environ)
    lines = (folder / "runs/waits/journal.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    shares = [m["metrics"]["data_wait_share"] for m in logged if "data_wait_share" in m.get("metrics", {})]
    # the first steps wait for the loader process to start
    return Ratio(
        "training on the CPU: share of the time that a step waits for data",
        tuple(shares[4:]),
        0.02,
        least=False,
    )


def order(folder: Path) -> list[Ratio]:
    """A resume in the middle of an epoch of 100 million samples in 100 000 shards: seconds to its first step's samples."""
    from training.order import Offer, Order

    def resume() -> float:
        began = time.perf_counter()
        Order.of([[Offer("all", [1000] * 100_000)]], 4096, seed=0).draws(7_000_013)
        return time.perf_counter() - began

    seconds = tuple(resume() for _ in range(REPETITIONS))
    return [Ratio("order: seconds to the first step of a resume, 1e8 samples", seconds, 1.0, least=False)]


BENCHES = {"loader": loader, "order": order}
NEED_REAL_DATA = ("loader",)
