"""The masked autoencoder: published sizes, all options against a reference in loops, targets, several sensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.contract import BandStatistics, NormalisationKind, normalisation
from training import masking
from training.architecture import ModelConfig
from training.chosen import Chosen
from training.model import SpatialSpectralMAE
from training.targets import restore, targets
from training.tokens import Layout, Normaliser, Rescale, gather, to_cubes

LAYOUT = Layout.even(channels=6, image_px=32)


def made(layouts: Mapping[str, Layout] | None = None, **config: object) -> SpatialSpectralMAE:
    torch.manual_seed(0)
    return SpatialSpectralMAE(
        ModelConfig.model_validate({"size": "tiny", **config}), layouts or {"sentinel2": LAYOUT}
    )


def inputs(images: int = 2, layout: Layout = LAYOUT, **config: object) -> tuple[Tensor, Chosen]:
    valid = np.ones((images, layout.places), bool)
    keys = masking.Keys(0, np.arange(images, dtype=np.uint64), 0)
    settings = masking.MaskingConfig.model_validate({"ratio": 0.75, **config})
    choice = masking.choose(
        masking.Draw(keys, np.zeros((images, layout.places)), layout.groups, 0.0, settings), valid
    )
    shape = (images, layout.channels, layout.image_px, layout.image_px)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return image, Chosen.of(choice, valid, slice(None), layout.tokens)


def test_hidden_pixels_never_reach_the_encoder() -> None:
    model, (image, chosen) = made(), inputs()
    cubes = to_cubes(image, LAYOUT)
    changed = cubes.scatter(1, chosen.hidden_BM.unsqueeze(-1).expand(-1, -1, LAYOUT.voxels), 0.123)
    first = model.encoder(cubes, chosen, "sentinel2")
    assert torch.equal(model.encoder(changed, chosen, "sentinel2"), first)
    swapped = Chosen(chosen.hidden_BM, chosen.shown_BK, chosen.valid_BS)
    assert not torch.equal(
        model.encoder(changed, swapped, "sentinel2"), model.encoder(cubes, swapped, "sentinel2")
    )


@pytest.mark.parametrize("target", ["none", "unit", "signed", "cube_standardised", "band_standardised"])
def test_targets_are_on_the_stated_scale(target: str) -> None:
    image, chosen = inputs()
    image[0, 0, :8, :8], image[0, 0, 8:, :8] = 0, 1
    cubes = gather(to_cubes(image, LAYOUT), chosen.hidden_BM)
    found = targets(cubes, chosen.hidden_BM, target, LAYOUT)  # type: ignore[arg-type]
    by_band = found.view(*found.shape[:-1], 3, 64)
    checks = {
        "none": torch.equal(found, cubes),
        "unit": torch.equal(found, cubes),
        "signed": found.min() == -1 and found.max() == 1,
        "cube_standardised": torch.allclose(found.mean(-1), torch.zeros(()), atol=1e-5)
        and bool((found.std(-1) - 1).abs().max() < 0.02),
        "band_standardised": torch.allclose(by_band.mean(-1), torch.zeros(()), atol=1e-5),
    }
    assert checks[target]
    # pictures undo it
    back = restore(found, cubes, chosen.hidden_BM, target, LAYOUT)  # type: ignore[arg-type]
    assert torch.allclose(back, cubes, atol=1e-5)


@pytest.mark.parametrize("kind", ["standardise", "none"])
@pytest.mark.parametrize("target", ["unit", "signed"])
def test_unit_targets_are_the_same_whatever_the_input_is(kind: NormalisationKind, target: str) -> None:
    statistics = tuple(
        BandStatistics(n=9, mean=0.1 + 0.02 * i, std=0.05, low=0.01 * i, high=0.3 + 0.05 * i)
        for i in range(6)
    )
    reflectance = torch.randint(0, 9000, (2, 6, 32, 32), dtype=torch.int16)
    on_unit, other = (normalisation(k, statistics) for k in ("minmax", kind))
    config = ModelConfig(size="tiny", target=target)  # type: ignore[arg-type]
    model = SpatialSpectralMAE(config, {"sentinel2": LAYOUT}, {"sentinel2": Rescale(other, on_unit)})
    expected = to_cubes(Normaliser(on_unit)(reflectance), LAYOUT)
    assert torch.allclose(model.source(Normaliser(other)(reflectance)), expected, atol=1e-5)
    assert 0 < float((expected == 1).float().mean()) < 0.9


@pytest.mark.parametrize("target", ["cube_standardised", "band_standardised"])
def test_t20_a_constant_tile_gives_a_finite_loss_and_gradient(target: str) -> None:
    model, (image, chosen) = made(target=target), inputs()
    loss = model(torch.ones_like(image), chosen).loss_sums.sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_all_parameters_get_a_gradient() -> None:
    model = made()
    model(*inputs()).loss_sums.sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
