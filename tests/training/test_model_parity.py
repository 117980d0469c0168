"""The fast model agrees with the reference in loops, in loss and in gradients, for every option."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training import reference
from tests.training.reference import Reference
from training import masking
from training.architecture import ModelConfig
from training.chosen import Chosen
from training.masking import Choice, Draw, Keys, MaskingConfig
from training.model import SpatialSpectralMAE
from training.tokens import Layout

WAVES = ((492.7, 65.0), (559.8, 35.0), (664.6, 30.0), (832.8, 105.0), (1613.7, 90.0), (2202.4, 174.0))
EVEN = Layout(((0, 1, 2), (3, 4, 5)), 16, waves_nm=WAVES)
WIDE = replace(EVEN, image_px=24)
UNEQUAL = Layout(((0, 1, 2, 3), (4, 5)), 16, shared=False, waves_nm=WAVES)
CROSSING = Layout(((4, 0, 2), (1, 3, 5)), 16, shared=False, waves_nm=WAVES)
LARGE = Layout(((0, 1, 2), (3, 4, 5)), 32, 16, waves_nm=WAVES)
SATMAE = {"positions": "sincos", "class_token": True, "decoder_depth": 8}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products of a few numbers: threads would only wait for each other, and on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """One combination of options."""

    model: dict[str, Any]
    masking: dict[str, Any]
    layout: Layout = EVEN


def case(layout: Layout = EVEN, masks: dict[str, Any] | None = None, **model: Any) -> Case:
    return Case(model, masks or {}, layout)


VALID = {"count": "valid"}
SOME = {"reconstruct": 0.25}
CASES = {
    "the default": case(WIDE),
    "2 decoder blocks": case(decoder_depth=2),
    "patch 16": case(LARGE),
    "25 % hidden": case(masks={"ratio": 0.25}),
    "sincos": case(WIDE, positions="sincos"),
    "vanilla": case(positions="vanilla"),
    "wavelength": case(spectral_position="wavelength"),
    "sincos by wavelength": case(positions="sincos", spectral_position="wavelength"),
    "target none": case(target="none"),
    "target signed": case(target="signed"),
    "target by cube": case(target="cube_standardised"),
    "target by band": case(target="band_standardised"),
    "spectral sum": case(spectral_sum_loss=True),
    "spectral sum, packed": case(masks=VALID, spectral_sum_loss=True, class_token=True, target="signed"),
    "unequal groups": case(UNEQUAL),
    "unequal groups by wavelength": case(UNEQUAL, spectral_position="wavelength"),
    "unequal groups by cube": case(UNEQUAL, target="cube_standardised"),
    "unequal groups by band": case(UNEQUAL, target="band_standardised"),
    "groups across the bands": case(CROSSING, target="band_standardised"),
    "SatMAE": case(UNEQUAL, **SATMAE),
    "class token": case(class_token=True),
    "partial": case(masks=SOME),
    "cross": case(decoder="cross"),
    "cross, partial": case(masks=SOME, decoder="cross", class_token=True),
    "packed": case(WIDE, VALID),
    "packed, naive attention": case(masks=VALID, attention="naive"),
    "packed cross, partial": case(UNEQUAL, VALID | SOME, decoder="cross", class_token=True),
}


def chosen(layout: Layout, settings: MaskingConfig) -> tuple[Choice, np.ndarray]:
    """Masks of three images, of which one has invalid places and one hardly any valid one."""
    valid = np.ones((3, layout.places), bool)
    valid[1, :2], valid[2, 1:] = False, False
    saliency = np.random.default_rng(0).random(valid.shape)
    draw = Draw(Keys(3, np.arange(3, dtype=np.uint64), 1), saliency, layout.groups, 0.0, settings)
    return masking.choose(draw, valid), valid


def model_of(layouts: dict[str, Layout], **config: object) -> SpatialSpectralMAE:
    torch.manual_seed(0)
    model = SpatialSpectralMAE(ModelConfig.model_validate({"size": "tiny", **config}), layouts)
    # biases and norms start at 0 and 1, where a mistake in them would not show
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def reference_of(model: SpatialSpectralMAE, sensor: str) -> Reference:
    weights = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    config, size, layout = model.config, model.config.dimensions, model.layouts[sensor]
    return Reference(
        weights, sensor, layout.members, layout.waves_nm, layout.side, layout.patch_px, size.heads,
        size.decoder_heads, config.positions, config.spectral_position, layout.shared, config.decoder == "cross",
        config.target,
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_loss_and_gradients_agree_with_the_reference(name: str) -> None:
    case = CASES[name]
    model = model_of({"sentinel2": case.layout}, **case.model)
    choice, valid = chosen(case.layout, MaskingConfig.model_validate({"ratio": 0.75, **case.masking}))
    check(model, choice, valid, "sentinel2")


def check(model: SpatialSpectralMAE, choice: Choice, valid: np.ndarray, sensor: str) -> None:
    """Compare the loss and every gradient of three random images."""
    layout = model.layouts[sensor]
    image = torch.rand(3, 6, layout.image_px, layout.image_px, generator=torch.Generator().manual_seed(1))
    fast = model(image, Chosen.of(choice, valid, slice(None), layout.tokens), sensor).loss_sums
    fast.sum().backward()
    slow, weights = slow_losses(reference_of(model, sensor), image, choice, valid)
    slow = slow[: len(fast)]
    assert slow.detach()[0] > 0
    assert fast.detach().numpy() == pytest.approx(slow.detach().numpy(), rel=1e-5)
    names = list(weights)
    # a weight the loss does not depend on has none, and 0 in the fast model
    gradients = torch.autograd.grad(slow.sum(), list(weights.values()), allow_unused=True)
    largest = max(float(g.norm()) for g in gradients if g is not None)
    for key, expected in zip(names, gradients, strict=True):
        found = model.get_parameter(key).grad
        off = (found.double() - expected).norm() if expected is not None else found.norm()
        # keys' biases have a gradient of 0: what is left there is rounding
        scale = max(float(expected.norm()) if expected is not None else 0.0, 1e-3 * largest)
        assert float(off) < 1e-4 * scale, key


@pytest.mark.parametrize("spectral_position", ["table", "wavelength"])
@pytest.mark.parametrize("sensor", ["sentinel2", "landsat_oli", "landsat_tm"])
def test_sensors_in_one_model_agree_with_the_reference(sensor: str, spectral_position: str) -> None:
    # the first two share projection and places, the third has both to itself
    layouts = {"sentinel2": EVEN, "landsat_oli": EVEN, "landsat_tm": replace(UNEQUAL, image_px=24)}
    model = model_of(layouts, spectral_position=spectral_position)
    check(model, *chosen(layouts[sensor], MaskingConfig(ratio=0.75)), sensor)
    # a gradient of 0, not none, of what other sensors use: DeepSpeed's stages must not differ
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None for g in gradients.values())
    others = set(layouts) - {sensor}
    assert not any(g.any() for n, g in gradients.items() if any(o in n for o in others))  # type: ignore[union-attr]


def slow_losses(
    slow: Reference, image: Tensor, choice: Choice, valid: np.ndarray
) -> tuple[Tensor, dict[str, Tensor]]:
    rows = zip(
        image.double(), choice.shown_BK.tolist(), choice.predicted_BM.tolist(), valid.tolist(), strict=True
    )
    each = [
        torch.stack(slow.losses(img, [n for n in seen if n >= 0], [n for n in asked if n >= 0], ok))
        for img, seen, asked, ok in rows
    ]
    return torch.stack(each).sum(0), dict(slow.weights)


@pytest.mark.parametrize("policy", ["mask_salient", "keep_salient"])
@pytest.mark.parametrize("draw_of", ["hidden", "shown"])
def test_masks_agree_with_the_reference(policy: str, draw_of: str) -> None:
    settings = MaskingConfig.model_validate({"strategy": "saliency", "policy": policy, "draw": draw_of})
    saliency, valid = np.random.default_rng(5).random((4, 36)), np.random.default_rng(6).random((4, 36)) > 0.2
    draw = Draw(Keys(9, np.arange(4, dtype=np.uint64), 2), saliency, 4, 0.7, settings)
    found = masking.choose(draw, valid)
    for b in range(4):
        scores = reference.saliency_scores(
            draw.noise[b].tolist(), saliency[b].tolist(), 0.7, policy == "mask_salient", draw_of
        )
        shown, hidden = reference.choose(scores, valid[b].tolist(), 14)
        assert (found.shown_BK[b].tolist(), found.hidden_BM[b].tolist()) == (shown, hidden)
