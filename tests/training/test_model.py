"""The masked autoencoder: published sizes, all options against a reference in loops, targets, several sensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.contract import BandStatistics, NormalisationKind, normalisation
from pipeline.errors import UnknownNameError
from training import masking
from training.architecture import ModelConfig
from training.blocks import Stack
from training.chosen import Chosen
from training.model import SpatialSpectralMAE
from training.targets import picture, restore, targets
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
@pytest.mark.parametrize("tile", ["constant", "dark", "saturated", "half nodata"])
def test_t20_an_odd_tile_gives_a_finite_loss_and_gradient(target: str, tile: str) -> None:
    model, (image, chosen) = made(target=target), inputs()
    if tile == "half nodata":
        valid = np.ones((2, LAYOUT.places), bool)
        valid[:, : LAYOUT.places // 2] = False
        settings = masking.MaskingConfig(ratio=0.75)
        draw = masking.Draw(
            masking.Keys(0, np.arange(2, dtype=np.uint64), 0), valid * 1.0, LAYOUT.groups, 0.0, settings
        )
        chosen = Chosen.of(masking.choose(draw, valid), valid, slice(None), LAYOUT.tokens)
        image[..., :16, :] = 0
    else:
        image = torch.full_like(image, {"constant": 0.3, "dark": 0.0, "saturated": 3.2767}[tile])
    loss = model(image, chosen).loss_sums.sum()
    loss.backward()
    assert loss > 0 or tile != "half nodata"
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_all_parameters_get_a_gradient() -> None:
    model = made()
    model(*inputs()).loss_sums.sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_packed_row_of_equal_images_is_the_same_as_rows() -> None:
    model = made(class_token=True)
    rows, packed = (model(*inputs(3, count=count)) for count in ("all", "valid"))
    assert torch.allclose(rows.loss_sums, packed.loss_sums, rtol=1e-6)
    assert torch.allclose(rows.predicted_BMP.flatten(0, 1), packed.predicted_BMP[0], atol=1e-5)


@pytest.mark.parametrize("config", [{}, {"decoder": "cross", "class_token": True}])
def test_recomputed_activations_give_the_same_gradients(config: dict[str, object]) -> None:
    plain, recomputed = made(**config), made(**config)
    for module in recomputed.modules():
        if isinstance(module, Stack):
            module.recompute = True
    for model in (plain, recomputed):
        model(*inputs()).loss_sums.sum().backward()
    pairs = zip(plain.parameters(), recomputed.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_an_image_that_holds_nothing_gives_no_loss_and_no_harm(decoder: str) -> None:
    model, valid = made(decoder=decoder), np.zeros((2, LAYOUT.places), bool)
    valid[0] = True
    draw = masking.Draw(
        masking.Keys(0, np.arange(2, dtype=np.uint64), 0),
        valid * 1.0,
        2,
        0.0,
        masking.MaskingConfig(count="valid"),
    )
    choice = masking.choose(draw, valid)
    image = torch.rand(2, 6, 32, 32)
    both = model(image, Chosen.of(choice, valid, slice(None), LAYOUT.tokens)).loss_sums
    one = model(image[:1], Chosen.of(choice, valid, slice(0, 1), LAYOUT.tokens)).loss_sums
    assert torch.allclose(both, one, rtol=1e-5)
    nothing = model(image[1:], Chosen.of(choice, valid, slice(1, 2), LAYOUT.tokens)).loss_sums
    nothing.sum().backward()
    assert nothing.item() == 0


def test_partial_reconstruction_with_cross_attention_predicts_what_full_does() -> None:
    model, (image, chosen) = made(decoder="cross"), inputs()
    some = Chosen(chosen.shown_BK, chosen.hidden_BM[:, ::4], chosen.valid_BS)
    whole, part = model(image, chosen).predicted_BMP, model(image, some).predicted_BMP
    assert torch.allclose(whole[:, ::4], part, atol=1e-6)


def test_a_class_token_sees_the_image_and_is_no_cube() -> None:
    model, image = made(class_token=True), inputs()[0]
    assert model.encoder.everything(image).shape == (2, LAYOUT.tokens, 96)
    model.encoder.everything(image).sum().backward()
    assert model.encoder.class_token is not None
    assert model.encoder.class_token.grad is not None


def test_pictures_hold_what_was_shown_and_predicted() -> None:
    layout = Layout(((0, 1, 2, 3), (4, 5)), 32, shared=False)
    for count in ("all", "valid"):
        image, chosen = inputs(2, layout, count=count)
        cubes = to_cubes(image, layout)
        wanted = gather(chosen.lay(cubes), chosen.hidden_BM)
        assert torch.allclose(picture(cubes, chosen, wanted, "unit", layout), image)
        shown = picture(cubes, chosen, None, "unit", layout)
        assert 0.2 < float((shown == image).float().mean()) < 0.3
        assert not shown[shown != image].any()


@pytest.mark.parametrize(
    "config",
    [
        {"positions": "sincos", "class_token": True},
        {"spectral_position": "wavelength", "decoder": "cross"},
        {"spectral_sum_loss": True, "target": "cube_standardised"},
    ],
)
def test_in_bf16_the_loss_stays_float32_and_close(config: dict[str, object]) -> None:
    layouts = {"sentinel2": replace(LAYOUT, waves_nm=((500.0, 50.0),) * 6)}
    exact, rough = made(layouts, **config)(*inputs()), made(layouts, **config).bfloat16()(*inputs())
    assert rough.loss_sums.dtype == rough.predicted_BMP.dtype == torch.float32
    assert torch.allclose(exact.loss_sums, rough.loss_sums, rtol=0.02)


def test_a_sensor_the_model_does_not_know_is_named() -> None:
    model = made({"sentinel2": LAYOUT, "landsat_oli": LAYOUT})
    with pytest.raises(UnknownNameError, match="Did you mean `landsat_oli`"):
        model(*inputs(), "landsat_oil")
    # which of two cannot be guessed
    with pytest.raises(UnknownNameError):
        model(*inputs())


def test_the_default_model_is_drawn_as_before_from_its_seed() -> None:
    # 32-bit sums of one platform's generator: a change of the order of initialisation shows
    model = made()
    assert float(model(*inputs()).loss_sums.detach()) == pytest.approx(44.86393, rel=1e-5)
