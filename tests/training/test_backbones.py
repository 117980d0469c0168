"""Backbones, decoders and what keeps them from overfitting: shapes, known sizes, keyed draws."""

from __future__ import annotations

import pytest
import torch

from training.architecture import ModelConfig
from training.backbones import LEVELS, build, depths, feature_maps, set_drop_path, shape_of
from training.blocks import DropPath
from training.mixing import Regularisation, mix
from training.model import Encoder, count_parameters
from training.resnet import ResNet
from training.tasks.common import pool
from training.tokens import Layout
from training.upernet import LinearDecoder, UPerNet, pyramid

LAYOUT = Layout.even(6, 48)
TINY = ModelConfig(size="tiny")


@pytest.mark.parametrize(("kind", "image_px"), [("encoder", 32), ("encoder", 72), ("resnet50", 40)])
def test_maps_are_shaped_as_told_and_decoders_return_every_pixel(kind: str, image_px: int) -> None:
    layout = Layout.even(6, image_px)
    backbone = build(kind, TINY, layout, "sentinel2")  # type: ignore[arg-type]
    shape, image = shape_of(backbone, layout), torch.rand(2, 6, image_px, image_px)
    maps = feature_maps(backbone, image, pooled=False)
    assert [tuple(x.shape) for x in maps] == [
        (2, shape.groups, width, side, side) for width, side in zip(shape.widths, shape.sides, strict=True)
    ]
    (last,) = feature_maps(backbone.eval(), image, pooled=True)[-1:]
    assert pool([last]).shape == (2, shape.width)
    for decoder in (UPerNet(shape, 3), LinearDecoder(shape, 3)):
        assert decoder(maps).shape == (2, 3, image_px, image_px)
    sides = pyramid(shape)
    assert list(sides) == sorted(sides, reverse=True)


def test_the_encoders_maps_lie_where_the_image_does() -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY, {"sentinel2": LAYOUT})
    image = torch.zeros(1, 6, 48, 48)
    changed = image.clone()
    changed[:, :3, 8:16, 24:32] = 1
    before, after = (feature_maps(encoder, x, pooled=False)[0] for x in (image, changed))
    moved = (after - before).abs().sum(2)[0]
    # the first group's cube in row 1, column 3
    assert divmod(int(moved.flatten().argmax()), 36) == (0, 1 * 6 + 3)
    assert torch.equal(
        feature_maps(encoder, image, pooled=True)[0], feature_maps(encoder, image, pooled=False)[-1]
    )
    assert torch.allclose(
        pool(feature_maps(encoder, image, True)), encoder.everything(image).mean(1), atol=1e-6
    )
    assert depths(encoder) == (1, 2, 3, 4)
    assert len(depths(encoder)) == LEVELS


def test_resnet_50_has_the_published_number_of_weights() -> None:
    # 25 557 032 with the head of 1 000 classes, 2 049 000 of which are the head's
    assert count_parameters(ResNet(3)) == 25_557_032 - 2_049_000
    assert count_parameters(ResNet(12)) - count_parameters(ResNet(3)) == 9 * 64 * 49


def test_drop_path_grows_with_depth_and_keeps_the_mean() -> None:
    encoder = Encoder(TINY, {"sentinel2": LAYOUT})
    set_drop_path(encoder, 0.3)
    rates = [m.rate for m in encoder.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    drop, ones = DropPath(), torch.ones(4000, 2, 3)
    assert drop(ones) is ones
    drop.rate = 0.25
    torch.manual_seed(0)
    dropped = drop(ones)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert ((dropped == 0).all((1, 2)) | (dropped > 0).all((1, 2))).all()
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert drop.eval()(ones) is ones


@pytest.mark.parametrize("how", [Regularisation(mixup=0.8), Regularisation(cutmix=1.0)])
def test_a_mixed_image_holds_as_much_of_each_as_its_label_says(how: Regularisation) -> None:
    image = torch.stack([torch.full((1, 32, 32), float(i)) for i in range(6)])
    labelled = torch.tensor([True, True, False, True, True, True])
    for key in range(20):
        mixed = mix(image, labelled, how, key)
        assert mixed.partner_B.tolist() == [5, 4, 2, 3, 1, 0]
        share = mixed.image_BCHW[0].mean() / 5  # of the partner, whose pixels are 5
        assert float(share) == pytest.approx(1 - mixed.own, abs=1e-5)
        assert torch.equal(mixed.image_BCHW[2], image[2])
        again = mix(image, labelled, how, key)
        assert torch.equal(again.image_BCHW, mixed.image_BCHW)
    assert len({mix(image, labelled, how, key).own for key in range(20)}) > 10


def test_with_both_each_step_takes_one_of_them() -> None:
    image, labelled = torch.rand(4, 1, 16, 16), torch.ones(4, dtype=torch.bool)
    both = Regularisation(mixup=0.8, cutmix=1.0)
    found = [mix(image, labelled, both, key).image_BCHW for key in range(30)]
    # a rectangle leaves other pixels as they were, a blend none
    cut = [bool((x == image).any()) for x in found]
    assert 5 < sum(cut) < 25
