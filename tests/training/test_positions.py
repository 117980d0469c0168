"""Positions: fixed codes as published, tables by sensor and side, and a function of wavelength."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.errors import ConfigError
from training.architecture import ModelConfig
from training.positions import Positions
from training.spectral_backbone.codes import WAVE_FEATURES, group_codes, place_codes, wave_features
from training.tokens import Layout

EVEN = Layout.even(6, 24)
WAVES = ((492.7, 65.0), (559.8, 35.0), (664.6, 30.0), (832.8, 105.0), (1613.7, 90.0), (2202.4, 174.0))


def made(layouts: dict[str, Layout], width: int = 96, **config: object) -> Positions:
    torch.manual_seed(0)
    return Positions(ModelConfig.model_validate(config), layouts, width)


@pytest.mark.parametrize(("width", "of_group"), [(768, 256), (512, 128), (1024, 256), (96, 24), (64, 16)])
def test_codes_share_the_width_as_satmae_does(width: int, of_group: int) -> None:
    places, groups = place_codes(3, width), group_codes(2, width)
    assert (places.shape, groups.shape) == ((9, width), (2, width))
    assert not places[:, width - of_group :].any()
    assert not groups[:, : width - of_group].any()
    # place (0, 0) and group 0: sines of 0 and cosines of 0
    assert set(places[0].tolist()) == set(groups[0].tolist()) == {0.0, 1.0}
    assert len(torch.unique(places, dim=0)) == 9


def test_the_code_of_a_place_depends_on_row_and_column_alike() -> None:
    codes = place_codes(4, 96).view(4, 4, 96)
    half = 36
    assert torch.equal(codes[1, 2, :half], codes[3, 2, :half])
    assert torch.equal(codes[1, 2, half : 2 * half], codes[1, 0, half : 2 * half])
    assert torch.equal(codes[1, 2, :half], codes[2, 1, half : 2 * half])


@pytest.mark.parametrize("positions", ["learnable", "sincos", "vanilla"])
def test_every_cube_has_a_position_of_its_own(positions: str) -> None:
    found = made({"a": EVEN}, positions=positions)(torch.arange(18)[None], "a")
    assert found.shape == (1, 18, 96)
    assert len(torch.unique(found[0], dim=0)) == 18


def test_sensors_of_one_side_share_places_and_no_groups() -> None:
    found = made({"a": EVEN, "b": EVEN, "c": replace(EVEN, image_px=32)})
    assert sorted(found.spatial) == ["3", "4"]
    assert sorted(found.spectral) == ["a", "b", "c"]
    assert found.others("a") == [found.spatial["4"], found.spectral["b"], found.spectral["c"]]


def test_what_is_fixed_is_neither_learned_nor_saved() -> None:
    fixed = made({"a": EVEN}, positions="sincos")
    assert (list(fixed.parameters()), fixed.state_dict()) == ([], {})


def test_features_of_wavelength_are_finite_for_any_sensor_and_near_for_near_bands() -> None:
    found = wave_features(((300.0, 1.0), (490.0, 65.0), (492.7, 65.0), (832.8, 105.0), (12000.0, 1000.0)))
    assert found.shape == (5, WAVE_FEATURES)
    assert torch.isfinite(found).all()
    assert (found[1] - found[2]).norm() < 0.2 < (found[2] - found[3]).norm()


def test_a_group_stands_at_the_mean_of_its_bands_whatever_their_order() -> None:
    turned = Layout(((2, 0, 1), (5, 4, 3)), 24, waves_nm=WAVES)
    plain = replace(EVEN, waves_nm=WAVES)
    token = torch.arange(18)[None]
    found = made({"a": plain, "b": turned}, spectral_position="wavelength")
    assert torch.allclose(found(token, "a"), found(token, "b"), atol=1e-6)


def test_positions_by_wavelength_need_wavelengths() -> None:
    with pytest.raises(ConfigError, match=r"ModelConfig\.layout"):
        made({"a": EVEN}, spectral_position="wavelength")
