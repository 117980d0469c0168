"""Learning rate and parameter groups."""

from __future__ import annotations

import pytest
import torch

from training.architecture import ModelConfig
from training.downstream import Downstream
from training.model import Encoder, SpatialSpectralMAE
from training.schedule import OptimiserConfig, decay_groups, layer_decay_groups, learning_rate
from training.tasks.classification import PooledHead
from training.tokens import Layout

LAYOUTS = {"sentinel2": Layout.even(6, 32)}


def test_the_published_recipe_peaks_at_its_rate() -> None:
    assert OptimiserConfig().peak_lr(4096) == pytest.approx(3.2e-3)


def test_the_rate_rises_linearly_and_falls_as_half_a_cosine_to_zero() -> None:
    rates = [learning_rate(step, 1.0, warmup_steps=10, total_steps=110) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_decay_spares_biases_and_one_dimensional_parameters() -> None:
    model = SpatialSpectralMAE(ModelConfig(size="tiny"), LAYOUTS)
    groups = {g["weight_decay"]: g["params"] for g in decay_groups(model, 0.05)}
    assert all(p.ndim > 1 for p in groups[0.05])
    assert all(p.ndim <= 1 for p in groups[0.0])
    assert len(groups[0.05]) + len(groups[0.0]) == len(list(model.parameters()))


def test_layer_decay_slows_the_embedding_most_and_leaves_out_the_frozen() -> None:
    model = Downstream(
        Encoder(ModelConfig(size="tiny"), LAYOUTS), PooledHead(96, 3), pooled=True, frozen=False
    )
    scale = {id(p): g["lr_scale"] for g in layer_decay_groups(model, 0.05, 0.5, depth=4) for p in g["params"]}
    named = dict(model.named_parameters())
    assert scale[id(named["encoder.embed.shared.weight"])] == 0.5**5
    assert scale[id(named["encoder.blocks.3.mlp.0.weight"])] == 0.5
    assert scale[id(named["head.linear.weight"])] == 1.0
    probe = Downstream(
        Encoder(ModelConfig(size="tiny"), LAYOUTS), PooledHead(96, 3), pooled=True, frozen=True
    )
    trained = [p for g in layer_decay_groups(probe, 0.05, 0.5, depth=4) for p in g["params"]]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in probe.head.parameters())
    assert torch.is_tensor(trained[0])
