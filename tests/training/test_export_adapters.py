"""The libraries that take the encoder as a backbone, as they really are; where one is not installed, it is skipped.

`docs/export.md` names the versions that this was run with, in an environment of their own: they pin much.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.training.exports import S2, images_of, made, record
from training.spectral_backbone import SpectralBackbone, load_backbone
from training.spectral_backbone.adapters import Classifier, register_terratorch, register_timm
from training.spectral_backbone.features import Pyramid
from training.spectral_backbone.load import WEIGHTS

Make = Callable[[], SpectralBackbone]


def library(name: str) -> ModuleType:
    """Return a library, or skip with the reason where it does not import."""
    try:
        return importlib.import_module(name)
    # torchvision, which all of them need, raises RuntimeError where its build is not that of torch
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name} does not import here ({error}); .ci/adapters.sh makes an environment for it")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """How an encoder of 6 bands and 64 px is made."""
    made(tmp_path, [record(S2)])
    assert (tmp_path / WEIGHTS).exists()
    return lambda: load_backbone(tmp_path, image_px=64)


def test_a_classifier_has_the_contract_of_timm(make: Make) -> None:
    model, image = Classifier(make(), 10), images_of(S2, 64)
    assert (model.num_features, model.num_classes) == (96, 10)
    tokens = model.forward_features(image)
    assert torch.equal(model(image), model.forward_head(tokens))
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens.mean(1))
    model.reset_classifier(0)
    assert torch.equal(model(image), make()(image))
    model.set_grad_checkpointing()
    assert model.backbone.recompute
    with pytest.raises(ValueError, match="tokens are averaged"):
        model.reset_classifier(3, "token")


def test_names_are_registered_as_both_libraries_ask(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # what their registries do with an entry, where they are not installed: keep it by its name, call it with words
    entries: dict[str, Callable[..., torch.nn.Module]] = {}
    timm, terratorch = ModuleType("timm.models"), ModuleType("terratorch.registry")
    timm.register_model = lambda entry: entries.setdefault(entry.__name__, entry)  # type: ignore[attr-defined]
    terratorch.TERRATORCH_BACKBONE_REGISTRY = type(  # type: ignore[attr-defined]
        "Registry",
        (),
        {"register": lambda _, entry: entries.setdefault(f"terratorch_{entry.__name__}", entry)},
    )()
    for module in (timm, terratorch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(sys.modules, module.__name__.split(".")[0], ModuleType("parent"))
    register_timm("mine", make)
    register_terratorch("mine", make)
    image, of_timm = images_of(S2, 64), {"pretrained": True, "pretrained_cfg": None, "cache_dir": None}
    assert entries["mine"](num_classes=4, in_chans=6, **of_timm)(image).shape == (2, 4)
    maps = entries["mine"](features_only=True, out_indices=(1, 3), **of_timm)
    assert (maps.out_indices, len(maps(image))) == ((1, 3), 2)
    pyramid = entries["mine_pyramid"](features_only=True, out_indices=(0, 1, 2, 3), in_chans=6, **of_timm)
    assert [x.shape[-1] for x in pyramid(image)] == [16, 8, 4, 2]
    assert entries["terratorch_mine"](pretrained=True, out_indices=[0, 3]).out_channels == [96, 96]
    with pytest.raises(ValueError, match="mine_pyramid gives features only"):
        entries["mine_pyramid"](features_only=False)


def test_timm_classifies_and_gives_features(make: Make) -> None:
    timm = library("timm")
    register_timm("spectral_trial", make)
    image = images_of(S2, 64).float()
    assert timm.is_model("spectral_trial")
    model = timm.create_model("spectral_trial", pretrained=True, num_classes=10, in_chans=6)
    assert model(image).shape == (2, 10)
    assert model.get_classifier().out_features == 10
    features = timm.create_model("spectral_trial", features_only=True, out_indices=(1, 3))
    assert [list(x.shape) for x in features(image)] == [[2, 96, 8, 8]] * 2
    assert (features.feature_info.channels(), features.feature_info.reduction()) == ([96, 96], [8, 8])
    # the weights are the export's, not new ones
    assert torch.equal(features(image)[-1], make().feature_maps(image, 1)[0])
    with pytest.raises(ValueError, match=r"in_chans is 3, and the encoder takes 6 bands: B02"):
        timm.create_model("spectral_trial", in_chans=3)
    with pytest.raises(TypeError, match="drop_path_rate: not known here"):
        timm.create_model("spectral_trial", drop_path_rate=0.1)


@pytest.mark.parametrize("decoder", ["Unet", "UPerNet", "FPN", "Segformer"])
def test_segmentation_models_take_the_pyramid(make: Make, decoder: str) -> None:
    smp = library("segmentation_models_pytorch")
    register_timm("spectral_trial", make)
    model = getattr(smp, decoder)("tu-spectral_trial_pyramid", encoder_weights=None, in_channels=6, classes=3)
    image = images_of(S2, 64).float()
    assert model(image).shape == (2, 3, 64, 64)
    assert torch.equal(model.encoder(image)[-4], Pyramid(make())(image)[0])
    model(image).square().mean().backward()
    slope = model.encoder.model.backbone.blocks[0].attention.qkv.weight.grad
    assert slope is not None
    assert slope.abs().sum() > 0


@pytest.mark.slow
def test_torchgeo_classifies_and_segments(make: Make) -> None:
    trainers = library("torchgeo.trainers")
    register_timm("spectral_trial", make)
    image = images_of(S2, 64).float()
    task = trainers.ClassificationTask(
        model="spectral_trial",
        weights=None,
        in_channels=6,
        task="multiclass",
        num_classes=4,
        freeze_backbone=True,
    )
    assert task(image).shape == (2, 4)
    trained = [name for name, p in task.model.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias"]
    for model in ("unet", "upernet"):
        dense = trainers.SemanticSegmentationTask(
            model=model, backbone="tu-spectral_trial_pyramid", weights=None, in_channels=6, task="multiclass",
            num_classes=3,
        )  # fmt: skip
        found = dense(image)
        assert found.shape == (2, 3, 64, 64)
        loss = dense.criterion(found, torch.zeros(2, 64, 64, dtype=torch.long))
        loss.backward()
        assert loss.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ("FCNDecoder", {"necks": [{"name": "SelectIndices", "indices": [-1]}]}),
        ("UperNetDecoder", {"necks": [{"name": "LearnedInterpolateToPyramidal"}]}),
    ],
)
def test_terratorch_builds_on_it(make: Make, decoder: str, words: dict[str, object]) -> None:
    factories = library("terratorch.models")
    registry = library("terratorch.registry")
    register_terratorch("spectral_trial", make)
    maps = registry.BACKBONE_REGISTRY.build("spectral_trial", out_indices=[0, 1, 2, 3])
    image = images_of(S2, 64).float()
    assert maps.out_channels == [96] * 4
    assert [list(x.shape) for x in maps(image)] == [[2, 96, 8, 8]] * 4
    model = factories.EncoderDecoderFactory().build_model(
        "segmentation", backbone="spectral_trial", backbone_out_indices=[0, 1, 2, 3], decoder=decoder, num_classes=3,
        **words,
    )  # fmt: skip
    out = model(image).output
    assert out.shape == (2, 3, 64, 64)
    out.square().mean().backward()
    assert all(p.grad is not None for p in model.encoder.backbone.blocks.parameters())
