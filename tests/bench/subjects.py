"""What training's benchmarks measure: this project's own step, as a run takes it, and the published one.

`python -m tests.bench.subjects NAME SHARDS SIZE` takes a step of one of them for each line that it reads, and writes a
line of numbers: a process each, so that memory is one's own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ROOT, load
from tests.bench.published import PublishedMAE, PublishedStep
from training import memory
from training.data import make_view
from training.flops import model_flops, step_flops
from training.inputs import SensorInput
from training.loop import make_engine
from training.masking import counts
from training.pretrain import PretrainConfig, Pretraining
from training.report import Report
from training.sets import Part, open_families, run_data
from training.stream import ShardStream
from training.world import World

CONFIG = ROOT / "configs/pretrain/default.yaml"
LIKE_PUBLISHED = ("masking.strategy=random", "data.augment=false", "engine.zero_stage=auto", "data.workers=0")
"""S2MAE's own objective, in one process."""
OURS = {"ours": (), "cross, 25 %": ("model.decoder=cross", "masking.reconstruct=0.25")}
PUBLISHED = {"published": False, "published, memory kept": True}
"""The second with this project's setting of the allocator, to tell what that alone does."""
_PEAK_SIDE, _PEAK_TIMES = 2048, 3


class Parts:
    """Seconds spent in parts of a step, by name, since the last `take`."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.clock, self._spent = clock, defaultdict[str, float](float)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time every call of a method of `owner`."""
        inner = getattr(owner, method)

        def timed(*args: Any, **given: Any) -> Any:
            start = self.clock()
            try:
                return inner(*args, **given)
            finally:
                self._spent[name] += self.clock() - start

        # past nn.Module's own bookkeeping: it is no parameter
        object.__setattr__(owner, method, timed)

    def take(self) -> dict[str, float]:
        """Return the seconds so far, and begin anew."""
        spent, self._spent = dict(self._spent), defaultdict(float)
        return spent


class OurStep:
    """The step of `training.loop`: masks, normalisation, DeepSpeed, and a report that is read a step later."""

    def __init__(self, shards: Path, words: Sequence[str] = (), size: str = "base", batch: int = 8) -> None:
        given = [f"data.shards={shards}", f"batch.size={batch}", f"batch.micro={batch}", f"model.size={size}"]
        config = load(PretrainConfig, CONFIG, [*given, *LIKE_PUBLISHED, *words])
        world = World()
        world.connect()
        self.work = Pretraining(config, world)
        self.engine = make_engine(self.work)
        self.batch = self.work.stream[0]
        self.parts, self._before = Parts(), None
        layout, config = self.work.inputs[self.batch.sensor].layout, self.work.config.model
        self.flops = step_flops(config, layout, self.work.choose(self.batch))
        for owner, method, name in (
            (self.work, "choose", "masks"),
            (self.work.model, "forward", "forward"),
            (self.work.model.encoder, "forward", "of that the encoder"),
            (self.work.model.decoder, "forward", "of that the decoder"),
            (self.engine, "apply", "optimiser"),
        ):
            self.parts.watch(owner, method, name)

    _before: Report | None

    def __call__(self) -> None:
        """Take a step."""
        report = self.engine.step(self.work.prepare(self.batch, self.engine), 1e-4, False)
        if self._before is not None:
            self._before.read()
        self._before = report


class TheirStep:
    """The published pattern on the same images."""

    def __init__(self, shards: Path, size: str = "base", batch: int = 8) -> None:
        given = [f"data.shards={shards}", f"batch.size={batch}", f"batch.micro={batch}", f"model.size={size}"]
        config = load(PretrainConfig, CONFIG, [*given, *LIKE_PUBLISHED])
        (family,) = open_families(config.data)
        part = Part(family, make_view(family.contract, config.data, config.model.patch_px))
        (record,) = run_data([part], config.data.normalise).sensors.values()
        mine = SensorInput.of(record, config.model)
        self._pixels = ShardStream([part], config.batch, World())[0].image_BCHW
        self._normaliser, self._ratio = mine.normaliser, config.masking.ratio
        # what all-token prediction and embedding do beyond the objective is its own affair
        split = counts(mine.layout.tokens, config.masking.ratio)
        self.flops = batch * model_flops(config.model, mine.layout, *split).training
        model = PublishedMAE(config.model, mine.layout)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.02) if p.ndim > 1 else None
        self.step, self.parts = PublishedStep(model, config.optimiser.clip_norm), Parts()
        self.parts.watch(self.step, "loss", "forward")
        self.parts.watch(self.step, "update", "optimiser")

    def __call__(self) -> None:
        """Take a step."""
        image: Tensor = self._normaliser(self._pixels)
        self.step(image, self._ratio)


def product_s() -> float:
    """Return the CPU seconds of an operation of a large matrix product, at its best."""
    a, b, took_s = torch.rand(_PEAK_SIDE, _PEAK_SIDE), torch.rand(_PEAK_SIDE, _PEAK_SIDE), []
    for _ in range(_PEAK_TIMES):
        start = time.process_time()
        a @ b
        took_s.append(time.process_time() - start)
    return min(took_s) / (2 * _PEAK_SIDE**3)


def make(name: str, shards: Path, size: str) -> OurStep | TheirStep:
    """Return the subject called `name`."""
    if name in OURS:
        return OurStep(shards, OURS[name], size)
    if PUBLISHED[name]:
        memory.keep()
    return TheirStep(shards, size)


def measured(step: OurStep | TheirStep) -> dict[str, Any]:
    """Take a step; return its CPU seconds, those of its parts, and the share of the peak."""
    start = time.process_time()
    step()
    seconds = time.process_time() - start
    found = {"seconds": seconds, "parts": step.parts.take()}
    # in the same process and right after: what else the machine does then falls on both
    return found | {"peak_share": step.flops * product_s() / seconds}


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def warmed_up(step: OurStep | TheirStep) -> dict[str, Any]:
    """Take the first two steps, the second with the optimiser's state in place; return the most memory."""
    step()
    step()
    step.parts.take()
    return {"bytes": peak_memory()}


def main(name: str, shards: str, size: str) -> None:
    """Serve a subject: first its memory, then steps."""
    torch.set_num_threads(1)
    step, answer = make(name, Path(shards), size), warmed_up
    for _ in sys.stdin:
        sys.stdout.write(f"STEP {json.dumps(answer(step))}\n")
        sys.stdout.flush()
        answer = measured


if __name__ == "__main__":
    main(*sys.argv[1:])
