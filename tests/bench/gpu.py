"""A pretraining of ViT-L in bf16 on one GPU, as a user starts it: `make bench-gpu`.

`python -m tests.bench.gpu --try` runs a tiny one on whatever there is, to see that the script works.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from pipeline.config import ROOT
from pipeline.console import run, say, table
from tests.bench.measure import HEADER, Ratio
from tests.training.shard_sets import TWELVE_BANDS, write_shards
from training import journal, pretrain

PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "A100": 312, "A40": 150, "L40": 362,
    "A10": 125, "4090": 165, "3090": 71,
}  # fmt: skip
"""What the makers state for dense bf16, by a part of the device's name; the first that fits."""
_WARM_UP = 10
TINY = ("model.size=tiny", "batch.size=8", "batch.micro=8", "data.workers=1", "steps=16")
FULL = ("model.size=large", "data.workers=8", "steps=60", "engine.compile=true")


def main(argv: list[str]) -> int:
    """Train for some steps and print speeds; returns the exit code, which says nothing about goals."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("--try", dest="tiny", action="store_true", help="a tiny model, also without a GPU")
    parser.add_argument("--batch", type=int, default=512, help="images of a step (default: %(default)s)")
    parser.add_argument(
        "words", nargs="*", metavar="a.b=c", help="configuration words, engine.compile=false say"
    )
    asked = parser.parse_args(argv)
    if not asked.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --try runs a tiny model without one")
    sized = TINY if asked.tiny else (*FULL, f"batch.size={asked.batch}", f"batch.micro={asked.batch}")
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        metrics = _trained(
            Path(folder), [*sized, *asked.words], samples=16 if asked.tiny else 2 * asked.batch
        )
    rows = [(name, *_spread(metrics[name])) for name in ("samples_per_s", "flops_per_s", "peak_share")]
    say(f"\n{table(('metric', 'median', 'spread'), rows)}")
    say(f"\n{table(HEADER, [one.row() for one in _ratios(metrics)])}")
    if torch.cuda.is_available():
        say(f"{torch.cuda.get_device_name()}, {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most")
    return 0


def _trained(folder: Path, words: list[str], samples: int) -> dict[str, list[float]]:
    """Run the entry of pretraining; return what it recorded of each step after the first few."""
    shards = write_shards(folder / "tiles", {"train": range(samples)}, TWELVE_BANDS, per_shard=64)
    common = [
        f"data.shards={shards}",
        f"output={folder}",
        "name=bench",
        "panel_images=0",
        "masking.strategy=random",
    ]
    config = str(ROOT / "configs/pretrain/default.yaml")
    pretrain.main([config, *common, "save_every_steps=100000", *words])
    lines = journal.read(folder / "bench")[_WARM_UP:]
    return {name: [line.metrics[name] for line in lines] for name in lines[0].metrics}


def _ratios(metrics: dict[str, list[float]]) -> list[Ratio]:
    found = [Ratio("data wait / step", tuple(metrics["data_wait_share"]), 0.02, least=False)]
    measured = Ratio("model FLOPs / measured peak", tuple(metrics["peak_share"]), 0.5)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    stated = next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
    if stated is None:
        return [measured, *found]
    shares = tuple(rate / stated for rate in metrics["flops_per_s"])
    return [Ratio(f"model FLOPs / stated peak of {name}", shares, 0.5), measured, *found]


def _spread(values: list[float]) -> tuple[str, str]:
    return f"{statistics.median(values):.4g}", f"{min(values):.4g} to {max(values):.4g}"


if __name__ == "__main__":
    run(lambda argv: main(list(argv)))
