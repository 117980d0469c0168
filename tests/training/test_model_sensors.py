"""Two sensors in one model, one a step, under every ZeRO stage and on two ranks: nobody waits, all stages agree."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.training.processes import ROOT, free_port, rank_environment

CODE = """
import json
import sys
from dataclasses import replace
import numpy as np
import torch
from training import masking
from training.architecture import ModelConfig
from training.chosen import Chosen
from training.engine import Engine, EngineConfig, Recipe
from training.model import SpatialSpectralMAE
from training.schedule import decay_groups
from training.tokens import Layout
from training.world import World

WORLD = World.from_env()
WAVES = ((490.0, 60.0), (560.0, 40.0), (660.0, 30.0), (830.0, 100.0), (1610.0, 90.0), (2200.0, 170.0))
EVEN = Layout.even(6, 24)
LAYOUTS = {
    "sentinel2": replace(EVEN, waves_nm=WAVES),
    "landsat_oli": Layout(((0, 1), (2,)), 16, shared=False, waves_nm=WAVES[:3]),
}


class Work:
    observed = {}

    def __init__(self, engine, step):
        self.engine, self.sensor = engine, list(LAYOUTS)[step % 2]
        layout = LAYOUTS[self.sensor]
        ids = np.arange(4, dtype=np.uint64)[WORLD.rank :: WORLD.size]
        valid = np.ones((len(ids), layout.places), bool)
        draw = masking.Draw(masking.Keys(0, ids, step), valid * 1.0, layout.groups, 0.0, masking.MaskingConfig(ratio=0.5))
        choice = masking.choose(draw, valid)
        generator = torch.Generator().manual_seed(step)
        images = torch.rand(4, layout.channels, layout.image_px, layout.image_px, generator=generator)
        self.inputs = images[WORLD.rank :: WORLD.size], Chosen.of(choice, valid, slice(None), layout.tokens)
        self.counted = (float(choice.counted_BM.sum()),)

    @property
    def losses(self):
        yield self.engine.module(*self.inputs, self.sensor).loss_sums


def train(stage, config):
    torch.manual_seed(0)
    model = SpatialSpectralMAE(ModelConfig(size="tiny", decoder_depth=1, **config), LAYOUTS)
    recipe = Recipe(decay_groups(model, 0.05), (0.9, 0.95), 1.0, 4 // WORLD.size, 1)
    engine = Engine(model, recipe, EngineConfig(zero_stage=stage), WORLD)
    losses = [engine.step(Work(engine, step), 1e-3, False).read().loss for step in range(6)]
    weights = engine.weights()
    return losses, {n: float(w.double().abs().sum()) for n, w in weights.items()}


found = [[train(stage, config) for stage in (0, 1, 2, 3)] for config in json.loads(sys.argv[1])]
if WORLD.main:
    print("FOUND", json.dumps(found))
WORLD.close()
"""


CONFIGS = [
    {},
    {"positions": "sincos", "spectral_position": "wavelength", "class_token": True, "decoder": "cross"},
]


def run(ranks: int) -> list[list[tuple[list[float], dict[str, float]]]]:
    """Return losses and sizes of weights, by configuration and stage."""
    port = free_port()
    started = [
        subprocess.Popen([sys.executable, "-c", CODE, json.dumps(CONFIGS)], cwd=ROOT, text=True,
                         env=rank_environment(rank, ranks, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(ranks)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * ranks, outputs
    return json.loads(outputs[0][0].split("FOUND ")[1])  # type: ignore[no-any-return]


@pytest.mark.slow
def test_all_stages_and_numbers_of_ranks_train_two_sensors_alike() -> None:
    for alone, together in zip(run(1), run(2), strict=True):
        check(alone, together)


def check(
    alone: list[tuple[list[float], dict[str, float]]], together: list[tuple[list[float], dict[str, float]]]
) -> None:
    losses, sums = alone[0]
    assert losses[4] < losses[0]
    assert losses[5] < losses[1]
    kept = [name for name in sums if not name.endswith("bias")]
    for found in [*alone[1:], *together]:
        assert found[0] == pytest.approx(losses, rel=1e-5)
        # a key's bias has no gradient but rounding, which Adam makes as large as any
        assert {n: found[1][n] for n in kept} == pytest.approx({n: sums[n] for n in kept}, rel=1e-4)
    # what follows from the configuration is no part of the state
    assert not any("codes" in name or "features" in name for name in sums)
