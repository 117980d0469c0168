"""What an export gives to somebody who has torch and safetensors and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.exports import OLI, S2, images_of, made, record
from tests.training.processes import ROOT
from training.backbones import depths, feature_maps
from training.model import Encoder
from training.spectral_backbone import BackboneError, BandMismatch, FeatureMaps, load_backbone
from training.spectral_backbone.features import Pyramid

GROUPS = (("B02", "B03", "B04"), ("B08",), ("B11", "B12"))
ARCHITECTURES = [
    {},
    {"positions": "sincos"},
    {"positions": "vanilla"},
    {"spectral_position": "wavelength"},
    {"positions": "sincos", "spectral_position": "wavelength", "groups": GROUPS},
    {"positions": "sincos", "groups": GROUPS, "class_token": True},
    {"groups": (("B11", "B02", "B03"), ("B04", "B12", "B08"))},
    {"patch_px": 16, "bands_per_cube": 2, "class_token": True},
]


def drawn_tokens(encoder: Encoder, image: torch.Tensor, sensor: str = "") -> torch.Tensor:
    with torch.inference_mode():
        return encoder.everything(image, sensor)


@pytest.mark.parametrize("config", ARCHITECTURES, ids=str)
def test_features_are_those_of_the_projects_encoder(tmp_path: Path, config: dict[str, object]) -> None:
    encoder, images = made(tmp_path, [record(S2)], **config)
    backbone, image = load_backbone(tmp_path), images_of(S2)
    normalised = images["sentinel2"].normaliser(image)
    with torch.inference_mode():
        ours, theirs = encoder.everything(normalised), backbone.forward_features(image)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6 * float(ours.abs().max()))
        # the levels that the project's own dense tasks read
        maps = feature_maps(encoder, normalised, pooled=False)
        found = backbone.feature_maps(image, [d - 1 for d in depths(encoder)], "keep")
        for one, other in zip(maps, found, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-6 * float(one.abs().max()))
        assert torch.allclose(backbone(image), theirs.mean(1))
    assert not backbone.training
    assert backbone.adapted == ()


@pytest.mark.parametrize("normalise", ["minmax", "standardise", "none"])
def test_images_may_be_stored_reflectance_or_normalised(tmp_path: Path, normalise: str) -> None:
    _, images = made(tmp_path, [record(S2, normalise)])
    backbone, image = load_backbone(tmp_path), images_of(S2)
    stored = backbone.forward_features(image)
    backbone.inputs = "reflectance"
    reflectance = torch.where(image == -32768, torch.nan, image * 1e-4)
    assert torch.allclose(backbone.forward_features(reflectance), stored, atol=1e-4)
    backbone.inputs = "normalised"
    assert torch.equal(backbone.forward_features(images["sentinel2"].normaliser(image)), stored)


def test_each_sensor_of_several_has_its_own_bands(tmp_path: Path) -> None:
    encoder, images = made(tmp_path, [record(S2), record(OLI, image_px=32)])
    with pytest.raises(
        BackboneError, match=r"knows images of sentinel2, landsat_oli, not of None: give sensor="
    ):
        load_backbone(tmp_path)
    for name, kind, px in (("sentinel2", S2, 48), ("landsat_oli", OLI, 32)):
        image = images_of(kind, px)
        ours = drawn_tokens(encoder, images[name].normaliser(image), name)
        assert torch.allclose(load_backbone(tmp_path, name).forward_features(image), ours, atol=1e-4)


def test_it_trains_and_recomputes(tmp_path: Path) -> None:
    made(tmp_path, [record(S2)])
    backbone, image, slopes = load_backbone(tmp_path).train(), images_of(S2), []
    for backbone.recompute in (False, True):
        backbone.zero_grad()
        backbone(image).square().sum().backward()
        slopes.append([p.grad.clone() for p in backbone.parameters()])
    assert len(slopes[0]) == len(backbone.state_dict())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*slopes, strict=True))
    half = load_backbone(tmp_path).bfloat16()(image)
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.float(), load_backbone(tmp_path)(image)).min() > 0.99


def test_maps_of_several_depths_pool_groups_or_keep_them(tmp_path: Path) -> None:
    made(tmp_path, [record(S2)])
    backbone, image = load_backbone(tmp_path), images_of(S2)
    kept = backbone.feature_maps(image, (0, -1), "keep")
    assert [x.shape for x in kept] == [(2, 2, 96, 6, 6)] * 2
    assert torch.equal(backbone.feature_maps(image, (0, -1))[1], kept[1].mean(1))
    assert torch.equal(backbone.feature_maps(image, (0, -1), "concat")[0], kept[0].flatten(1, 2))
    assert backbone.indices(2) == (1, 3)
    with pytest.raises(ValueError, match=r"out_indices \[4\] must name some of the 4 blocks"):
        backbone.feature_maps(image, (4,))


def test_maps_have_the_contract_of_timm_and_terratorch(tmp_path: Path) -> None:
    made(tmp_path, [record(S2)])
    backbone, image = load_backbone(tmp_path), images_of(S2)
    maps = FeatureMaps(backbone, (1, 3), "concat")
    found = maps(image)
    assert [list(x.shape) for x in found] == [[2, 192, 6, 6]] * 2
    assert maps.out_channels == maps.feature_info.channels() == [192, 192]
    assert maps.feature_info.reduction() == [8, 8]
    assert maps.feature_info.module_name(1) == "blocks.3"
    assert maps.out_indices == maps.feature_info.out_indices == (1, 3)
    assert [entry["num_chs"] for entry in maps.feature_info] == [192, 192]
    assert maps.feature_info.get_dicts(["reduction"]) == [{"reduction": 8}] * 2
    pyramid = Pyramid(load_backbone(tmp_path, image_px=64))
    assert [list(x.shape) for x in pyramid(images_of(S2, 64))] == [[2, 96, n, n] for n in (16, 8, 4, 2)]
    assert pyramid.feature_info.reduction() == [4, 8, 16, 32]
    with pytest.raises(ValueError, match="take mean or concat"):
        FeatureMaps(backbone, groups="keep")


def test_mismatched_bands_are_refused_with_a_line_for_each(tmp_path: Path) -> None:
    made(tmp_path, [record(S2)])
    with pytest.raises(BandMismatch) as told:
        load_backbone(tmp_path, bands=["B04", "B03", "B02", "B8A", "B11"])
    lines = [" ".join(line.split()) for line in str(told.value).splitlines()]
    assert lines[:8] == [
        "the images' bands are not those that the weights were trained on (sentinel2):",
        "channel images weights",
        "0 B04 B02 493 nm B02 is channel 2",
        "1 B03 B03 560 nm same",
        "2 B02 B04 665 nm B04 is channel 0",
        "3 B8A B08 833 nm B8A is unknown to the weights, B08 is missing",
        "4 B11 B11 1614 nm same",
        "5 - B12 2202 nm B12 is missing",
    ]
    assert "complete groups of them (B02, B03, B04; B08, B11, B12)" in lines[8]
    with pytest.raises(BandMismatch, match="bands B02 are listed twice"):
        load_backbone(tmp_path, bands=["B02", "B02"])
    # a name alone does not make a band
    waves = dict.fromkeys(S2.bands, (600.0, 30.0))
    with pytest.raises(BandMismatch, match="B02 is another band in the weights, B02 493 nm"):
        load_backbone(tmp_path, bands=waves)


def test_bands_are_reordered_by_name_and_more_are_left_out(tmp_path: Path) -> None:
    made(tmp_path, [record(S2)])
    image, names = images_of(S2), list(S2.bands)
    order = [5, 0, 3, 1, 2, 4]
    turned = load_backbone(tmp_path, bands=[names[n] for n in order], adapt=True)
    assert torch.equal(turned(image[:, order]), load_backbone(tmp_path)(image))
    assert turned.adapted == ("bands reordered by name: B02, B03, B04, B08, B11, B12",)
    more = load_backbone(tmp_path, bands=["B01", *names], adapt=True)
    assert torch.equal(more(torch.cat([image[:, :1], image], 1)), load_backbone(tmp_path)(image))
    assert more.adapted == ("channels of the images left out: B01",)


@pytest.mark.parametrize(
    "config", [{}, {"positions": "vanilla"}, {"positions": "sincos", "groups": GROUPS}], ids=str
)
def test_complete_groups_are_as_if_the_others_were_hidden(tmp_path: Path, config: dict[str, object]) -> None:
    encoder, images = made(tmp_path, [record(S2)], **config)
    image = images_of(S2)
    rgb = load_backbone(tmp_path, bands=["B02", "B03", "B04"], adapt=True)
    assert rgb.adapted == ("groups of the weights left out: B08, B11, B12",)
    from training.chosen import Chosen
    from training.tokens import to_cubes

    layout = images["sentinel2"].layout
    shown = torch.arange(layout.places).expand(2, -1)
    cubes = to_cubes(images["sentinel2"].normaliser(image), layout)
    with torch.inference_mode():
        ours = encoder(cubes, Chosen(shown, shown[:, :0], shown[:, :0].bool()), "sentinel2")
        assert torch.allclose(rgb.forward_features(image[:, :3]), ours, atol=1e-4)
    with pytest.raises(BandMismatch, match="no group of bands is complete"):
        load_backbone(tmp_path, bands=["B03", "B08"][: 1 if "groups" in config else 2], adapt=True)


def test_other_bands_enter_by_wavelength_where_the_weights_know_it(tmp_path: Path) -> None:
    encoder, images = made(tmp_path, [record(S2)], spectral_position="wavelength")
    image, oli = images_of(S2), record(OLI)
    waves = {b.name: (b.centre_nm, b.width_nm) for b in oli.contract.bands}
    found = load_backbone(tmp_path, bands=waves, adapt=True)
    assert found.adapted[0].startswith("groups placed by wavelength: B2 482 nm, B3 561 nm")
    # the project's own model of that sensor, with the same weights and the same normalised images
    other = {"landsat_oli": replace(images["sentinel2"].layout, waves_nm=tuple(waves.values()))}
    theirs = Encoder(made_config(), other).eval()
    theirs.load_state_dict(encoder.state_dict())
    ours = drawn_tokens(theirs, found.normalise(image))
    assert torch.allclose(found.forward_features(image), ours, atol=1e-4)
    # ranges lie between those of the neighbours
    low, high = (found.scaling.shift[2], load_backbone(tmp_path).scaling.shift)
    assert high[1] < low < high[3]
    with pytest.raises(BandMismatch, match="a multiple of 3 bands"):
        load_backbone(tmp_path, bands={**waves, "B1": (443.0, 16.0)}, adapt=True)
    with pytest.raises(BandMismatch, match="wavelengths of B2"):
        load_backbone(tmp_path, bands=["B2", "B03", "B04"], adapt=True)


def made_config() -> object:
    from training.architecture import ModelConfig

    return ModelConfig.model_validate({"size": "tiny", "spectral_position": "wavelength"})


@pytest.mark.parametrize("positions", ["learnable", "sincos", "vanilla"])
def test_another_size_of_image_interpolates_places_as_handover_does(tmp_path: Path, positions: str) -> None:
    from training.handover import Origin, hand_over

    encoder, images = made(tmp_path, [record(S2)], positions=positions)
    larger, _ = made(tmp_path / "larger", [record(S2, image_px=64)], positions=positions)
    hand_over(Origin(encoder.state_dict(), encoder.layouts), larger, larger.layouts, "interpolate")
    backbone, image = load_backbone(tmp_path, image_px=64), images_of(S2, 64)
    ours = drawn_tokens(larger, images["sentinel2"].normaliser(image))
    assert torch.allclose(backbone.forward_features(image), ours, atol=1e-4)
    assert backbone.adapted == ("positions: 6 x 6 -> 8 x 8 places",)
    with pytest.raises(ValueError, match=r"images are \[2, 6, 48, 48\], not \[batch, 6, 64, 64\]"):
        backbone(images_of(S2))
    with pytest.raises(BackboneError, match="no multiple of the patch, 8 px"):
        load_backbone(tmp_path, image_px=50)


def test_what_is_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"config\.json is missing: give the folder"):
        load_backbone(tmp_path)
    made(tmp_path, [record(S2)])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(BackboneError, match="has format 99; this code reads up to 1"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BackboneError, match="is no configuration of an export"):
        load_backbone(tmp_path)
    config["architecture"]["width"] = 48
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="does not fit"):
        load_backbone(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(BackboneError, match=r"model\.safetensors cannot be read"):
        load_backbone(tmp_path)


HEAVY = (
    "deepspeed",
    "mlflow",
    "pydantic",
    "yaml",
    "rasterio",
    "zarr",
    "dask",
    "numcodecs",
    "pipeline",
    "sqlalchemy",
)


@pytest.mark.parametrize("where", ["the project", "a copy alone"])
def test_one_call_loads_it_with_torch_and_safetensors_alone(tmp_path: Path, where: str) -> None:
    made(tmp_path / "export", [record(S2)])
    package = "training.spectral_backbone"
    if where == "a copy alone":
        import shutil

        shutil.copytree(ROOT / "training/spectral_backbone", tmp_path / "export/spectral_backbone")
        package = "spectral_backbone"
    code = f"""
import sys, time
sys.path[:0] = [{str(ROOT if where == "the project" else tmp_path / "export")!r}]
import torch, safetensors.torch
before, began = set(sys.modules), time.perf_counter()
from {package} import load_backbone
took = time.perf_counter() - began
backbone = load_backbone({str(tmp_path / "export")!r})
print(list(backbone(torch.zeros(1, 6, 48, 48)).shape), took < 1)
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(new & set({HEAVY!r})), [n for n in sys.modules if n.startswith("training.") and "spectral_backbone" not in n])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["[1, 96] True", "[] []"], done.stderr
