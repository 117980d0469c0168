"""Cutting images into cubes and back, and the input normalisation on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.contract import BandStatistics, normalisation
from pipeline.errors import ConfigError
from pipeline.sample import NODATA
from training.tokens import Layout, Normaliser, gather, real_voxels, to_cubes, to_image


@pytest.mark.parametrize(("image_px", "tokens"), [(96, 576), (128, 1024)])
def test_token_counts_are_the_published_ones(image_px: int, tokens: int) -> None:
    layout = Layout.even(12, image_px)
    assert (layout.tokens, layout.groups, layout.voxels) == (tokens, 4, 192)


def test_cubes_are_spectral_major_and_ordered_band_y_x() -> None:
    layout = Layout.even(channels=6, image_px=16)
    image = torch.arange(6 * 16 * 16).view(1, 6, 16, 16)
    cubes = to_cubes(image, layout)
    t, row, col = 1, 1, 0
    token = t * layout.places + row * layout.side + col
    assert torch.equal(cubes[0, token].view(3, 8, 8), image[0, 3:6, 8:16, 0:8])


@pytest.mark.parametrize(
    ("channels", "image_px", "patch_px", "depth"), [(12, 96, 8, 3), (6, 32, 16, 2), (5, 24, 8, 1)]
)
def test_images_survive_the_way_through_cubes(
    channels: int, image_px: int, patch_px: int, depth: int
) -> None:
    layout = Layout.even(channels, image_px, patch_px, depth)
    image = torch.randn(2, channels, image_px, image_px)
    assert torch.equal(to_image(to_cubes(image, layout), layout), image)


UNEQUAL = Layout(((4, 0, 2), (1, 3)), 16, shared=False)


def test_unequal_groups_survive_the_way_through_cubes_and_are_filled_up_with_zeros() -> None:
    image = torch.rand(2, 5, 16, 16) + 1
    cubes = to_cubes(image, UNEQUAL)
    assert cubes.shape == (2, 8, 192)
    assert torch.equal(to_image(cubes, UNEQUAL), image)
    # place 1 of group 0 holds bands 4, 0, 2; of group 1 bands 1, 3 and nothing
    assert torch.equal(cubes[0, 1].view(3, 8, 8), image[0, [4, 0, 2], 0:8, 8:16])
    assert torch.equal(cubes[0, 5, :128].view(2, 8, 8), image[0, [1, 3], 0:8, 8:16])
    assert not cubes[:, 4:, 128:].any()


def test_only_real_voxels_are_counted() -> None:
    real = real_voxels(torch.tensor([[0, 3, 4, 7]]), UNEQUAL)
    assert real is not None
    assert real.sum(-1).tolist() == [[192, 192, 128, 128]]
    assert real_voxels(torch.tensor([[0]]), Layout.even(6, 16)) is None


def test_groups_of_unequal_size_cannot_share_a_projection() -> None:
    with pytest.raises(ConfigError, match="equal"):
        Layout(((0, 1), (2,)), 16)


def test_a_band_count_that_does_not_divide_names_what_does() -> None:
    with pytest.raises(ConfigError, match=r"10 bands.*cubes of 3.*\[1, 2, 5, 10\]"):
        Layout.even(10, 96)
    with pytest.raises(ConfigError, match=r"do not divide 100 px"):
        Layout.even(12, 100)


def test_gather_picks_tokens() -> None:
    x = torch.arange(2 * 5 * 3).view(2, 5, 3)
    chosen = torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(gather(x, chosen), torch.stack([x[0, [4, 0]], x[1, [1, 1]]]))


@pytest.mark.parametrize("kind", ["minmax", "standardise", "none"])
def test_the_device_normalises_as_the_recorded_function_says(kind: str) -> None:
    statistics = tuple(BandStatistics(n=9, mean=0.1 * i, std=0.05, low=0.01, high=0.2 * i) for i in (1, 2))
    recorded = normalisation(kind, statistics)
    pixels = np.random.default_rng(0).integers(-500, 9000, (2, 2, 8, 8)).astype(np.int16)
    pixels[0, 1, 3] = NODATA
    found = Normaliser(recorded)(torch.from_numpy(pixels)).numpy()
    assert np.allclose(found, recorded(pixels), atol=1e-6)
    assert (found[0, 1, 3] == 0).all()
    assert found.std() > 0.01
