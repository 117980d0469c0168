"""The masked autoencoder: published sizes, hidden-cube loss against a reference in loops, targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.contract import BandStatistics, NormalisationKind, normalisation
from training import masking
from training.model import ModelConfig, SpatialSpectralMAE, count_parameters, restore, targets
from training.tokens import Layout, Normaliser, Rescale, gather, to_cubes

LAYOUT = Layout(channels=6, image_px=32)


def made(**config: object) -> SpatialSpectralMAE:
    torch.manual_seed(0)
    return SpatialSpectralMAE(ModelConfig(size="tiny", **config), LAYOUT)  # type: ignore[arg-type]


def inputs(images: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    noise = masking.token_noise(0, np.arange(images, dtype=np.uint64), 0, LAYOUT.tokens)
    draw = masking.Draw(
        noise, np.zeros((images, LAYOUT.places)), LAYOUT.groups, 0.0, masking.MaskingConfig(ratio=0.75)
    )
    choice = masking.choose(draw, np.ones((images, LAYOUT.places), bool))
    image = torch.rand(images, 6, 32, 32, generator=torch.Generator().manual_seed(1))
    return (
        image,
        torch.from_numpy(choice.shown_BK),
        torch.from_numpy(choice.hidden_BM),
        torch.from_numpy(choice.counted_BM),
    )


def test_base_at_128_px_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = SpatialSpectralMAE(ModelConfig(), Layout(12, 128))
    assert round(count_parameters(model) / 1e6, 2) == 98.64


def reference_loss(
    model: SpatialSpectralMAE, image: Tensor, shown: Tensor, hidden: Tensor, counted: Tensor
) -> float:
    """The same model written as loops in float64, one image and one cube at a time."""
    model = model.double()
    total = 0.0
    for b in range(len(image)):
        cubes = [cut(image[b].double(), n) for n in range(LAYOUT.tokens)]
        seen = [model.encoder.embed(cubes[n]) + place(model.encoder.positions, n) for n in shown[b].tolist()]
        x = transform(torch.stack(seen), model.encoder.blocks, heads=3)
        x = model.decoder.enter(layer_norm(x, model.encoder.norm))
        queue = dict(zip(shown[b].tolist(), x, strict=True)) | dict.fromkeys(
            hidden[b].tolist(), model.decoder.mask_token
        )
        order = sorted(queue)
        tokens = torch.stack([queue[n] + place(model.decoder.positions, n) for n in order])
        out = model.decoder.leave(
            layer_norm(transform(tokens, model.decoder.blocks, heads=2), model.decoder.norm)
        )
        for n, counts in zip(hidden[b].tolist(), counted[b].tolist(), strict=True):
            total += float(((out[order.index(n)] - cubes[n].clamp(0, 1)) ** 2).mean()) if counts else 0.0
    return total


def cut(image: Tensor, token: int) -> Tensor:
    t, s = divmod(token, LAYOUT.places)
    row, col = divmod(s, LAYOUT.side)
    return image[3 * t : 3 * t + 3, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8].reshape(-1)


def place(positions: torch.nn.Module, token: int) -> Tensor:
    t, s = divmod(token, LAYOUT.places)
    return positions.spatial[s] + positions.spectral[t]


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def transform(x: Tensor, blocks: torch.nn.ModuleList, heads: int) -> Tensor:
    for block in blocks:
        q, k, v = block.attention.qkv(layer_norm(x, block.norm_1)).chunk(3, -1)
        width = q.shape[-1] // heads
        parts = []
        for h in range(heads):
            a, b, c = (m[:, h * width : (h + 1) * width] for m in (q, k, v))
            parts.append((a @ b.T / width**0.5).softmax(-1) @ c)
        x = x + block.attention.project(torch.cat(parts, -1))
        x = x + block.mlp(layer_norm(x, block.norm_2))
    return x


def test_loss_agrees_with_a_reference_in_loops() -> None:
    model, given = made(), inputs()
    given[3][0, :5] = False  # five hidden cubes of the first image carry no loss
    with torch.no_grad():
        fast = float(model(*given).loss_sum)
        slow = reference_loss(model, *given)
    assert fast == pytest.approx(slow, rel=1e-5)


def test_hidden_pixels_never_reach_the_encoder() -> None:
    model, (image, shown, hidden, _) = made(), inputs()
    changed = to_cubes(image, LAYOUT).clone()
    changed.scatter_(1, hidden.unsqueeze(-1).expand(-1, -1, LAYOUT.voxels), 0.123)
    first = model.encoder(to_cubes(image, LAYOUT), shown)
    assert torch.equal(model.encoder(changed, shown), first)
    assert not torch.equal(model.encoder(changed, hidden), model.encoder(to_cubes(image, LAYOUT), hidden))


@pytest.mark.parametrize("target", ["none", "unit", "signed", "cube_standardised", "band_standardised"])
def test_targets_are_on_the_stated_scale(target: str) -> None:
    image, _, hidden, _ = inputs()
    image[0, 0, :8, :8], image[0, 0, 8:, :8] = 0, 1
    cubes = gather(to_cubes(image, LAYOUT), hidden)
    found = targets(cubes, ModelConfig(size="tiny", target=target), LAYOUT)  # type: ignore[arg-type]
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
    assert torch.allclose(
        restore(found, cubes, ModelConfig(size="tiny", target=target), LAYOUT), cubes, atol=1e-5
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["standardise", "none"])
@pytest.mark.parametrize("target", ["unit", "signed"])
def test_unit_targets_are_the_same_whatever_the_input_is(kind: NormalisationKind, target: str) -> None:
    statistics = tuple(
        BandStatistics(n=9, mean=0.1 + 0.02 * i, std=0.05, low=0.01 * i, high=0.3 + 0.05 * i)
        for i in range(6)
    )
    reflectance = torch.randint(0, 9000, (2, 6, 32, 32), dtype=torch.int16)
    on_unit, other = (normalisation(k, statistics) for k in ("minmax", kind))
    model = SpatialSpectralMAE(ModelConfig(size="tiny", target=target), LAYOUT, Rescale(other, on_unit))  # type: ignore[arg-type]
    expected = to_cubes(Normaliser(on_unit)(reflectance), LAYOUT)
    assert torch.allclose(model.source(Normaliser(other)(reflectance)), expected, atol=1e-5)
    assert 0 < float((expected == 1).float().mean()) < 0.9


@pytest.mark.parametrize("target", ["cube_standardised", "band_standardised"])
def test_t20_a_constant_tile_gives_a_finite_loss_and_gradient(target: str) -> None:
    model, (image, *rest) = made(target=target), inputs()
    loss = model(torch.ones_like(image), *rest).loss_sum
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_all_parameters_get_a_gradient() -> None:
    model = made()
    model(*inputs()).loss_sum.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_misspelt_size_is_corrected() -> None:
    with pytest.raises(ValidationError, match="Did you mean `base`"):
        ModelConfig(size="bas")
