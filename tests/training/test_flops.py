"""The formula for the operations of a step equals what torch counts while it runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.architecture import ModelConfig
from training.chosen import Chosen
from training.flops import encoder_flops, measure_peak, model_flops, step_flops
from training.masking import Choice, Draw, Keys, MaskingConfig, choose
from training.model import SpatialSpectralMAE
from training.tokens import Layout

EVEN = Layout.even(6, 48)
UNEVEN = Layout(((0, 1, 2), (3, 4), (5,)), 48, shared=False)
CASES = {
    "default": (ModelConfig(size="tiny"), EVEN, MaskingConfig()),
    "partial": (ModelConfig(size="tiny"), EVEN, MaskingConfig(ratio=0.75, reconstruct=0.25)),
    "cross": (ModelConfig(size="tiny", decoder="cross"), EVEN, MaskingConfig(reconstruct=0.25)),
    "satmae": (
        ModelConfig(size="tiny", class_token=True, decoder_depth=8),
        UNEVEN,
        MaskingConfig(ratio=0.75),
    ),
    "spectral_sum": (ModelConfig(size="tiny", spectral_sum_loss=True), EVEN, MaskingConfig()),
}


def chosen_of(masking: MaskingConfig, layout: Layout) -> tuple[Choice, np.ndarray]:
    valid = np.ones((2, layout.places), bool)
    keys = Keys(0, np.arange(2, dtype=np.uint64), 0)
    return choose(Draw(keys, np.zeros((2, layout.places)), layout.groups, 0.0, masking), valid), valid


@pytest.mark.parametrize("case", CASES)
def test_the_formula_is_what_runs_forward_and_backward(case: str) -> None:
    config, layout, masking = CASES[case]
    # what torch counts of a fused backward pass holds what is computed again
    model = SpatialSpectralMAE(config.model_copy(update={"attention": "naive"}), {"made": layout})
    choice, valid = chosen_of(masking, layout)
    chosen = Chosen.of(choice, valid, slice(0, 2), layout.tokens)
    with FlopCounterMode(display=False) as forward:
        loss = model(torch.rand(2, 6, 48, 48), chosen).loss_sums.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    expected = model_flops(config, layout, choice.shown_BK.shape[1], choice.predicted_BM.shape[1])
    assert forward.get_total_flops() == 2 * expected.forward
    assert backward.get_total_flops() == 2 * (expected.training - expected.forward)
    assert step_flops(config, layout, choice) == 2 * expected.training


def test_images_that_show_fewer_cubes_count_less() -> None:
    config, layout, _ = CASES["default"]
    choice, _ = chosen_of(MaskingConfig(), layout)
    fewer = choice.shown_BK.copy()
    fewer[1, -2:] = -1
    parts = [model_flops(config, layout, fewer.shape[1] - less, choice.hidden_BM.shape[1]) for less in (0, 2)]
    found = step_flops(config, layout, replace(choice, shown_BK=fewer))
    assert found == sum(part.training for part in parts)


def test_base_at_96_px_costs_what_its_parts_do() -> None:
    flops = model_flops(ModelConfig(), Layout.even(12, 96), 58, 518)
    # 12 blocks of 768 over 58 tokens and 4 blocks of 512 over 576: the decoder is 63 % of the work
    assert flops.encoder == 12 * (24 * 58 * 768**2 + 4 * 58**2 * 768)
    assert flops.decoder / flops.forward == pytest.approx(0.63, abs=0.01)
    assert encoder_flops(ModelConfig(), Layout.even(12, 96), 58).forward == flops.embedding + flops.encoder


def test_the_peak_is_a_speed_that_a_product_reaches() -> None:
    assert 1e9 < measure_peak(torch.device("cpu"), torch.float32, times=2) < 1e14
