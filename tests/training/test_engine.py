"""The engine refuses what would poison the weights, on every ZeRO stage and in both precisions."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch

from pipeline.errors import ConfigError
from tests.training.processes import ROOT
from training.engine import EngineConfig

CODE = """
import json
import sys
import torch
from torch import nn
from training.engine import Engine, EngineConfig, Recipe
from training.world import World


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, poison):
        loss = self.linear(x).float().square().sum()
        if poison == "loss":
            loss = loss * float("nan")
        if poison == "sum":  # the loss is infinite, its slope is not
            loss = loss + float("inf")
        if poison == "gradient":  # the loss stays finite: the slope of a root at 0 does not
            loss = loss + torch.sqrt((self.linear.weight.float().sum() * 0).abs())
        return loss[None]


class Work:
    counted, observed = (1.0,), {"seen": 3.0}

    def __init__(self, engine, poison, precision):
        self.engine, self.poison = engine, poison
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    @property
    def losses(self):
        yield self.engine.module(torch.ones(1, 4, dtype=self.dtype), self.poison)


def attempt(stage, precision, poison):
    torch.manual_seed(0)
    model = Model()
    recipe = Recipe([{"params": list(model.parameters()), "weight_decay": 0.0}], (0.9, 0.95), 1.0, 1, 1)
    engine = Engine(model, recipe, EngineConfig(zero_stage=stage, precision=precision), World())
    first = engine.step(Work(engine, "", precision), 0.1, False).read()
    before = engine.weights()
    poisoned = engine.step(Work(engine, poison, precision), 0.1, False).read()
    kept = same(before, engine.weights())
    after = engine.step(Work(engine, "", precision), 0.1, False).read()
    return {
        "counted": first.counted,
        "observed": first.observed,
        "finite": [first.finite, poisoned.finite, after.finite],
        "kept": [kept, same(before, engine.weights())],
    }


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


found = [attempt(*case) for case in json.loads(sys.argv[1])]
print("FOUND", json.dumps(found))
"""


def test_t10_what_is_not_finite_never_reaches_the_weights() -> None:
    ways = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")]
    cases = [[*way, poison] for way in ways for poison in ("loss", "gradient", "sum")]
    command = [sys.executable, "-c", CODE, json.dumps(cases)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = json.loads(told.split("FOUND ")[1])
    for case, result in zip(cases, found, strict=True):
        # skipped alone: the step before and the one after count
        assert result["finite"] == [True, False, True], case
        assert result["kept"] == [True, False], case
        assert (result["counted"], result["observed"]) == (1.0, {"seen": 3.0})


HALF = """
import json
import sys
import torch
from torch import nn
from deepspeed.accelerator import get_accelerator
from training.engine import Engine, EngineConfig, Recipe
from training.world import World

# DeepSpeed runs fp16 on GPUs only; its arithmetic is the same here, and slow
get_accelerator().is_fp16_supported = lambda: True
type(get_accelerator()).supported_dtypes = lambda self: [torch.float, torch.bfloat16, torch.half]
EngineConfig.resolve = lambda self, device: "fp16"


class Work:
    counted, observed = (1.0,), {}

    def __init__(self, engine, factor=1.0):
        self.engine, self.factor = engine, factor

    @property
    def losses(self):
        given = self.engine.module(torch.ones(2, 4, dtype=torch.float16)).float()
        yield (given - 1).square().sum()[None] * self.factor


def attempt(stage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    recipe = Recipe([{"params": list(model.parameters()), "weight_decay": 0.0}], (0.9, 0.95), 1.0, 2, 1)
    engine = Engine(model, recipe, EngineConfig(zero_stage=stage), World())

    def step(factor=1.0):
        result = engine.step(Work(engine, factor), 0.01, False).read()
        return {"finite": result.finite, "loss": result.loss, "norm": result.grad_norm} | engine.observe()

    steps = [step() for _ in range(8)]
    steps.append(step(float("nan")))
    kept = engine.snapshot()
    steps.append(step())
    step(float("nan"))
    engine.restore(kept)
    return {"steps": steps, "again": step()}


print("FOUND", json.dumps([attempt(stage) for stage in (1, 2, 3)]))
"""


def test_fp16_scales_the_loss_until_it_fits_skips_what_overflows_and_resumes_with_the_scale() -> None:
    told = subprocess.run([sys.executable, "-c", HALF], cwd=ROOT, capture_output=True, text=True, check=True)
    for found in json.loads(told.stdout.split("FOUND ")[1]):
        *steps, poisoned, after = found["steps"]
        finite, scales = [s["finite"] for s in steps], [s["loss_scale"] for s in steps]
        assert finite == sorted(finite) and not finite[0] and finite[-1]  # skipped first, then never again
        assert all(now == before / 2 for before, now in itertools.pairwise(scales) if now != before)
        applied = [s["loss"] for s in steps if s["finite"]]
        assert applied == sorted(applied, reverse=True) and len(applied) > 2
        assert not poisoned["finite"]
        assert after["finite"] and after["loss"] < applied[-1]
        assert found["again"] == after


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "fp16"}, "engine.precision fp16 needs a GPU"),
        ({"precision": "fp16", "zero_stage": 0}, "engine.zero_stage 0 with fp16 trains wrongly"),
        ({"precision": "bf16", "zero_stage": 0}, "engine.zero_stage 0 with bf16 trains wrongly"),
    ],
)
def test_precisions_that_cannot_train_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig.model_validate(given).resolve(torch.device("cpu"))
