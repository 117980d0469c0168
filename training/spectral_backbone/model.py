"""The encoder: cubes of bands over patches to tokens, transformer blocks, feature maps.

Shape letters: B batch, C bands, H W pixels, T spectral groups, S places, N = T * S tokens, D width, P voxels of a cube,
y x cells of a map.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Groups = Literal["mean", "concat", "keep"]
"""What becomes of the spectral groups of a map: their mean [B, D, y, x], one after the other [B, T * D, y, x], or an
axis of their own [B, T, D, y, x]."""
Inputs = Literal["stored", "reflectance", "normalised"]
"""What images hold: reflectance x 10 000 as products store it (int16 or float, nodata -32768), reflectance (nodata is
NaN), or what the normalisation of the configuration gives."""


@dataclass(frozen=True)
class Plan:
    """Everything about an encoder but its weights."""

    width: int
    depth: int
    heads: int
    patch_px: int
    image_px: int
    groups: tuple[tuple[int, ...], ...]
    """Channels of each spectral group."""
    bands: tuple[str, ...]
    """Bands of an image, in order."""
    shared: bool
    """Whether one projection serves all groups."""
    class_token: bool
    trained_positions: bool
    """Whether positions are learned, and train on."""

    @property
    def side(self) -> int:
        """Places along one side."""
        return self.image_px // self.patch_px


@dataclass(frozen=True)
class Scaling:
    """The input normalisation: `(reflectance - shift) / span`, clipped to [0, 1] where `clip` says so."""

    shift: tuple[float, ...]
    span: tuple[float, ...]
    clip: bool
    scale: float
    """Reflectance per stored unit."""
    nodata: int

    def __call__(self, image_BCHW: Tensor, inputs: Inputs) -> Tensor:
        """Map images [B, C, H, W] to model input, float32 of the same shape; nodata becomes 0."""
        if inputs == "normalised":
            return image_BCHW
        empty = image_BCHW == self.nodata if inputs == "stored" else image_BCHW.isnan()
        # float32 whatever the model runs in: half precision has no room for stored values
        shift, span = (
            torch.tensor(v, dtype=torch.float32, device=image_BCHW.device).view(1, -1, 1, 1)
            for v in (self.shift, self.span)
        )
        x = (image_BCHW.float() * (self.scale if inputs == "stored" else 1.0) - shift) / span
        x = x.clamp(0, 1) if self.clip else x
        return torch.where(empty, torch.zeros_like(x), x)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map tokens [B, N, D] to [B, N, D]."""
        B, N, D = x_BND.shape
        query, key, value = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.project(mixed.transpose(1, 2).reshape(B, N, D))
        return projected


class Block(nn.Module):
    """Pre-norm transformer block: attention and a GELU perceptron, each with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map tokens [B, N, D] to [B, N, D]."""
        x_BND = x_BND + self.attention(self.norm_1(x_BND))
        out: Tensor = x_BND + self.mlp(self.norm_2(x_BND))
        return out


class SpectralBackbone(nn.Module):
    """A pretrained encoder of multispectral images of `image_px` pixels a side."""

    config: dict[str, Any]
    """The exported `config.json`."""
    adapted: tuple[str, ...] = ()
    """What was done to make other bands or another size fit, a line each."""
    recompute = False
    """Keep only what enters each block, and compute the rest again in the backward pass: less memory, more time."""

    def __init__(self, plan: Plan, scaling: Scaling, inputs: Inputs = "stored") -> None:
        super().__init__()
        self.plan, self.scaling, self.inputs = plan, scaling, inputs
        # the channel that each slot of the cubes takes; images may have more, in any order
        self.channels = [channel for group in plan.groups for channel in group]
        sizes = [len(group) * plan.patch_px**2 for group in plan.groups]
        self.embed = nn.ModuleList(nn.Linear(n, plan.width) for n in (sizes[:1] if plan.shared else sizes))
        start = torch.zeros(len(plan.groups) * plan.side**2, plan.width)
        self.positions = nn.Parameter(start, requires_grad=plan.trained_positions)
        self.class_token = nn.Parameter(torch.zeros(plan.width)) if plan.class_token else None
        self.blocks = nn.ModuleList(Block(plan.width, plan.heads) for _ in range(plan.depth))
        self.norm = nn.LayerNorm(plan.width, eps=1e-6)
        # timm's models have both names, and libraries ask for either
        self.num_features = self.embed_dim = plan.width
        self.patch_size = plan.patch_px

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """Map images [B, C, H, W] as `inputs` says to the bands of the cubes as the model knows them.

        Raises `ValueError` for another number of bands or another size.
        """
        wanted = (len(self.plan.bands), self.plan.image_px, self.plan.image_px)
        if image_BCHW.ndim != 4 or tuple(image_BCHW.shape[1:]) != wanted:
            raise ValueError(
                f"images are {list(image_BCHW.shape)}, not [batch, {', '.join(map(str, wanted))}]: bands"
                f" {', '.join(self.plan.bands)}. load_backbone(..., bands=..., image_px=...) takes others."
            )
        return self.scaling(image_BCHW[:, self.channels], self.inputs)

    def embedded(self, image_BCHW: Tensor) -> Tensor:
        """Return the tokens [B, N, D] that enter the first block, the class token ahead where there is one."""
        plan, x = self.plan, self.normalise(image_BCHW).to(self.norm.weight.dtype)
        parts = torch.split(x, [len(group) for group in plan.groups], 1)
        maps = list(self.embed) * (len(parts) if plan.shared else 1)
        tokens = [linear(self._cubes(part)) for linear, part in zip(maps, parts, strict=True)]
        # groups before places: the token index is t * S + s
        x = torch.cat(tokens, 1) + self.positions
        return x if self.class_token is None else torch.cat([self.class_token.expand(len(x), 1, -1), x], 1)

    def _cubes(self, part_BCHW: Tensor) -> Tensor:
        """Cut the bands of one group into the cubes [B, S, P] of all places; voxels are ordered (band, y, x)."""
        # F.unfold does the same for floating types only, and more slowly
        B, b, g, p = *part_BCHW.shape[:2], self.plan.side, self.plan.patch_px
        split = part_BCHW.reshape(B, b, g, p, g, p)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(B, g * g, b * p * p)

    def levels(self, image_BCHW: Tensor, depths: Collection[int]) -> list[Tensor]:
        """Return what comes after so many blocks, each normed, [B, N, D] without class token."""
        x, found = self.embedded(image_BCHW), {}
        for number, block in enumerate(self.blocks, start=1):
            again = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            if number in depths:
                found[number] = self.norm(x)[:, int(self.class_token is not None) :]
        # by what was asked: in its order, and twice where small models are asked for a depth twice
        return [found[number] for number in depths]

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        """Return the tokens [B, N, D] of images [B, C, H, W], spectral groups one after the other."""
        return self.levels(image_BCHW, (self.plan.depth,))[0]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return one vector [B, D] an image: the mean of its tokens."""
        return self.forward_features(image_BCHW).mean(1)

    def feature_maps(
        self, image_BCHW: Tensor, out_indices: int | Sequence[int] = 4, groups: Groups = "mean"
    ) -> list[Tensor]:
        """Return a map for each of the blocks, as `groups` says; see `indices` for `out_indices`."""
        depths = [index + 1 for index in self.indices(out_indices)]
        return [self._as_map(tokens, groups) for tokens in self.levels(image_BCHW, depths)]

    def indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        """Return the blocks meant, from 0: a list, where -1 is the last; or so many at equal distances.

        Raises `ValueError` where there is no such block.
        """
        depth = self.plan.depth
        if isinstance(out_indices, int):
            count = min(max(out_indices, 1), depth)
            return tuple(depth * (n + 1) // count - 1 for n in range(count))
        if not out_indices or any(not -depth <= index < depth for index in out_indices):
            raise ValueError(f"out_indices {list(out_indices)} must name some of the {depth} blocks, from 0.")
        return tuple(index % depth for index in out_indices)

    def _as_map(self, tokens_BND: Tensor, groups: Groups) -> Tensor:
        B, _, D = tokens_BND.shape
        T, g = len(self.plan.groups), self.plan.side
        map_BTDyx = tokens_BND.view(B, T, g, g, D).permute(0, 1, 4, 2, 3)
        if groups == "mean":
            return map_BTDyx.mean(1)
        return map_BTDyx.flatten(1, 2) if groups == "concat" else map_BTDyx
