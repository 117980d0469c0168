"""The encoder under a name in timm's and TerraTorch's registries; TorchGeo takes it by its name in timm.

    make = lambda: load_backbone("encoder", bands=["B02", "B03", "B04", "B08", "B11", "B12"])
    register_timm("my_encoder", make)            # timm, segmentation-models-pytorch, TorchGeo
    register_terratorch("my_encoder", make)

A name stands for trained weights: they are there whatever `pretrained` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .features import FeatureMaps, Pyramid
from .model import Groups, SpectralBackbone

Make = Callable[[], SpectralBackbone]
"""Returns a backbone: `load_backbone` with what it is to be asked."""


class Classifier(nn.Module):
    """A backbone with a linear head on the mean of its tokens, as timm has its models."""

    def __init__(self, backbone: SpectralBackbone, num_classes: int = 0) -> None:
        """num_classes: 0 returns the mean itself."""
        super().__init__()
        self.backbone, self.num_features = backbone, backbone.num_features
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put another head in place; tokens are pooled by their mean, which is all that `global_pool` may say."""
        if global_pool not in (None, "", "avg"):
            raise ValueError(f"global_pool {global_pool!r} is not known here: tokens are averaged (`avg`).")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        """Return the tokens [B, N, D] of images [B, C, H, W]."""
        return self.backbone.forward_features(image_BCHW)

    def forward_head(self, tokens_BND: Tensor, pre_logits: bool = False) -> Tensor:
        """Map tokens [B, N, D] to [B, classes], or to their mean [B, D]."""
        pooled = tokens_BND.mean(1)
        out: Tensor = pooled if pre_logits else self.head(pooled)
        return out

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Map images [B, C, H, W] to [B, classes]."""
        return self.forward_head(self.forward_features(image_BCHW))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass instead of keeping them."""
        self.backbone.recompute = enable


def register_timm(name: str, make: Make) -> None:
    """Give timm the models `name`, and `name_pyramid` with cells of 4 to 32 px for decoders made for convolutions.

    `timm.create_model(name, num_classes=10)`, `timm.create_model(name, features_only=True, out_indices=(5, 11))`,
    `smp.Unet("tu-name_pyramid", encoder_weights=None, in_channels=6)`.
    """
    # at first use: this file travels with every export, which needs torch and safetensors alone
    from timm.models import register_model

    def plain(
        features_only: bool = False, out_indices: Any = 4, num_classes: int = 0, **given: Any
    ) -> nn.Module:
        # made when it is asked for: a name that is registered and not used reads no weights
        backbone = _checked(make(), **given)
        return FeatureMaps(backbone, out_indices) if features_only else Classifier(backbone, num_classes)

    def pyramid(features_only: bool = True, out_indices: Sequence[int] = range(4), **given: Any) -> nn.Module:
        if not features_only:
            raise ValueError(f"{name}_pyramid gives features only; {name} classifies.")
        return Pyramid(_checked(make(), **given), out_indices)

    register_model(_called(plain, name))
    register_model(_called(pyramid, f"{name}_pyramid"))


def register_terratorch(name: str, make: Make) -> None:
    """Give TerraTorch the backbone `name`: `EncoderDecoderFactory().build_model(..., backbone=name)`.

    Words of its own: `backbone_out_indices`, `backbone_groups` (mean or concat).
    """
    from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY

    def maps(
        pretrained: bool = True, out_indices: int | Sequence[int] = 4, groups: Groups = "mean"
    ) -> nn.Module:
        return FeatureMaps(make(), out_indices, groups)

    TERRATORCH_BACKBONE_REGISTRY.register(_called(maps, name))


def _called(entry: Callable[..., nn.Module], name: str) -> Callable[..., nn.Module]:
    # both registries go by the function's name
    entry.__name__ = entry.__qualname__ = name
    return entry


def _checked(backbone: SpectralBackbone, in_chans: int | None = None, **known: Any) -> SpectralBackbone:
    """Return a backbone that takes so many channels; what timm adds of its own accord is let through."""
    unknown = known.keys() - {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
    if unknown:
        raise TypeError(
            f"{', '.join(sorted(unknown))}: not known here; see load_backbone for what can be asked."
        )
    bands = backbone.plan.bands
    if in_chans is not None and in_chans != len(bands):
        raise ValueError(
            f"in_chans is {in_chans}, and the encoder takes {len(bands)} bands: {', '.join(bands)}. Give `bands` to"
            " load_backbone where it is registered."
        )
    return backbone
