"""Training at ViT-B, 96 px, 12 bands, 90 % hidden, batch 8, against the published pattern of the same size."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import ROOT
from pipeline.console import say, table
from tests.bench.measure import REPETITIONS, Ratio
from tests.training.shard_sets import TWELVE_BANDS, write_shards
from training import checkpoint, journal
from training.pretrain import PretrainConfig

SIZE = os.environ.get("BENCH_SIZE", "base")
"""tiny tries the benchmark out."""
BATCH = 8


class Subject:
    """A process of its own that takes a step when asked."""

    def __init__(self, name: str, shards: Path) -> None:
        self.name, self.turns = name, list[dict[str, Any]]()
        command = [sys.executable, "-m", "tests.bench.subjects", name, str(shards), SIZE]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def step(self) -> None:
        """Let it take a step, and keep what it tells."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("STEP "):
                self.turns.append(json.loads(line.removeprefix("STEP ")))
                return
        raise RuntimeError(f"{self.name} ended with code {self._process.wait()}")

    def close(self) -> None:
        """Let it end."""
        self._process.stdin.close()
        self._process.wait()

    def all(self, key: str) -> list[float]:
        """Return a number of every turn but the first, which warms up."""
        return [turn[key] for turn in self.turns[1:]]

    def part(self, name: str) -> list[float]:
        """Return the seconds of a part in every turn but the first."""
        return [turn["parts"][name] for turn in self.turns[1:]]

    @property
    def gigabytes(self) -> float:
        """The most memory that it held while it warmed up."""
        return float(self.turns[0]["bytes"]) / 1e9


def measure(names: Sequence[str], folder: Path) -> list[Subject]:
    """Let subjects take steps in turns, one at a time."""
    shards = folder / "tiles"
    if not shards.exists():
        write_shards(shards, {"train": range(BATCH)}, TWELVE_BANDS)
    subjects = [Subject(name, shards) for name in names]
    for _ in range(REPETITIONS + 1):
        for subject in subjects:
            subject.step()
    for subject in subjects:
        subject.close()
    return subjects


def training(folder: Path) -> list[Ratio]:
    """A training step: this project's against the published pattern's, one thread; its parts and its memory."""
    theirs, ours, cross = subjects = measure(("published", "ours", "cross, 25 %"), folder)
    _tell(subjects)
    shares = tuple(p / s for p, s in zip(ours.part("optimiser"), ours.all("seconds"), strict=True))
    return [
        _ratio("same objective: published / ours", theirs, ours, 1.35),
        Ratio("same objective: share of the matrix-product peak", tuple(ours.all("peak_share")), 0.70),
        Ratio(
            "same objective: peak memory, ours / published", (ours.gigabytes / theirs.gigabytes,), 0.70, False
        ),
        _ratio("cross decoder, 25 %: published / ours", theirs, cross, 3.0),
        Ratio("same objective: optimiser / step", shares, 0.03, least=False),
    ]


def allocator(folder: Path) -> list[Ratio]:
    """The published pattern as it is against itself with this project's setting of the allocator."""
    theirs, kept = measure(("published", "published, memory kept"), folder)
    return [_ratio("published pattern: as it is / with memory kept", theirs, kept, 1.0)]


def _ratio(what: str, slow: Subject, fast: Subject, goal: float) -> Ratio:
    seconds = slow.all("seconds"), fast.all("seconds")
    values = tuple(s / f for s, f in zip(*seconds, strict=True))
    return Ratio(what, values, goal, seconds=(statistics.median(seconds[0]), statistics.median(seconds[1])))


def _tell(subjects: Sequence[Subject]) -> None:
    """Print each subject's speed, share of the peak and memory, and the time of its parts."""
    speeds, parts = [], []
    for subject in subjects:
        rates = [BATCH / s for s in subject.all("seconds")]
        spread = f"{min(rates):.3f} to {max(rates):.3f}"
        share = f"{statistics.median(subject.all('peak_share')):.0%}"
        speeds.append(
            (subject.name, f"{statistics.median(rates):.3f}", spread, share, f"{subject.gigabytes:.2f}")
        )
        whole = statistics.median(subject.all("seconds"))
        for name in subject.turns[-1]["parts"]:
            part = statistics.median(subject.part(name))
            parts.append((subject.name, name, f"{part:.3f}", f"{part / whole:.1%}"))
    say(f"\n{table(('step', 'images/s', 'spread', 'of the peak', 'peak GB'), speeds)}")
    say(f"\n{table(('step', 'part', 'CPU s', 'share'), parts)}\nthe rest is the backward pass")


def saving(folder: Path) -> list[Ratio]:
    """Checkpoints of a ViT-B against the training between them, at the default interval: its own journal's figures."""
    shards = folder / "tiles"
    if not shards.exists():
        write_shards(shards, {"train": range(BATCH)}, TWELVE_BANDS)
    interval, found = PretrainConfig.model_fields["save_every_steps"].default, []
    for name, meanwhile in (("written meanwhile", True), ("waited for", False)):
        step_s, saves_s, size = _saved(folder, shards, meanwhile)
        rate = size / statistics.median(saves_s) / 1e9
        say(
            f"{name}: a checkpoint of {size / 1e9:.2f} GB holds the training up at {rate:.2f} GB/s; a step takes {step_s:.2f} s"
        )
        shares = tuple(100 * s / (interval * step_s) for s in saves_s)
        what = f"saving every {interval} steps, {name}: % of the time"
        found.append(Ratio(what, shares, 1.0, False, (statistics.median(saves_s), step_s)))
    return found


def _saved(folder: Path, shards: Path, meanwhile: bool) -> tuple[float, list[float], int]:
    """Train with a checkpoint after every step; return seconds of a step, waited for each, and bytes of one."""
    name = f"saving-{meanwhile}"
    words = [
        f"data.shards={shards}",
        f"output={folder}",
        f"name={name}",
        f"model.size={SIZE}",
        "data.workers=0",
    ]
    words += [f"batch.size={BATCH}", f"batch.micro={BATCH}", "panel_images=0", f"save_async={meanwhile}"]
    # one step more than is counted: the first warms up
    words += [f"steps={REPETITIONS + 2}", "save_every_steps=1", f"tracking.uri=sqlite:///{folder}/m.db"]
    command = [sys.executable, "training/pretrain.py", "configs/pretrain/default.yaml", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    lines = [line.metrics for line in journal.read(folder / name)][1:]
    step_s = statistics.median(BATCH / line["samples_per_s"] for line in lines)
    size = sum(p.stat().st_size for p in checkpoint.find(folder / name).iterdir())
    return step_s, [line["save_s"] for line in lines if "save_s" in line], size


BENCHES = {"training": training, "allocator": allocator, "saving": saving}
