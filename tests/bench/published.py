"""The published pattern of a 3-D masked autoencoder, plainly re-implemented from the papers' descriptions.

What training is measured against: every cube is embedded before nine in ten are dropped, queries, keys and values are
projected apart, attention is materialised, the decoder predicts shown and hidden cubes alike, and the host reads the
loss in every step. The model is the one of `training.model` in its default configuration, weight by weight.
Shape letters: B batch, C bands, H W pixels, T spectral groups, S places, N = T * S tokens, K shown, D width, P voxels.
"""

from __future__ import annotations

import functools
import math
import re

import torch
from torch import Tensor, nn

from training.architecture import ModelConfig
from training.tokens import Layout

BETAS = (0.9, 0.95)


class Attention(nn.Module):
    """Self-attention with three projections and all weights in memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        query, key, value = (
            linear(x).reshape(B, N, self.heads, D // self.heads).permute(0, 2, 1, 3)
            for linear in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(-2, -1)) * (D // self.heads) ** -0.5
        weights = weights.softmax(dim=-1)
        return self.project((weights @ value).transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.enlarge, self.act, self.reduce = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.reduce(self.act(self.enlarge(self.norm_2(x))))


class PublishedMAE(nn.Module):
    """Embed all, drop, encode, restore, decode all, and take the mean error of the hidden."""

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        super().__init__()
        width, depth, heads, decoder_width, decoder_heads = config.dimensions
        self.layout = layout
        kernel = (layout.depth, layout.patch_px, layout.patch_px)
        self.embed = nn.Conv3d(1, width, kernel, stride=kernel)
        self.spatial = nn.Parameter(torch.zeros(1, layout.places, width))
        self.spectral = nn.Parameter(torch.zeros(1, layout.groups, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.enter = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_spatial = nn.Parameter(torch.zeros(1, layout.places, decoder_width))
        self.decoder_spectral = nn.Parameter(torch.zeros(1, layout.groups, decoder_width))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.leave = nn.Linear(decoder_width, layout.voxels)

    def forward(self, image: Tensor, noise: Tensor, ratio: float) -> Tensor:
        """Return the loss of normalised images [B, C, H, W]; the cubes of lowest noise [B, N] are shown."""
        x = self.embed(image.unsqueeze(1)).flatten(2).transpose(1, 2)
        x = x + self.positions(self.spatial, self.spectral)
        x, mask, restore = self.drop(x, noise, ratio)
        for block in self.blocks:
            x = block(x)
        x = self.decode(self.norm(x), restore)
        error = (x - self.cubes(image)).square().mean(-1)
        return (error * mask).sum() / mask.sum()

    def positions(self, spatial: Tensor, spectral: Tensor) -> Tensor:
        T, S = self.layout.groups, self.layout.places
        return spatial.repeat(1, T, 1) + spectral.repeat_interleave(S, dim=1)

    def drop(self, x: Tensor, noise: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the shown tokens [B, K, D], the mask [B, N] (1 hidden), and what brings tokens back in order."""
        B, N, D = x.shape
        shown = N - math.floor(N * ratio + 0.5)
        order = torch.argsort(noise, dim=1)
        restore = torch.argsort(order, dim=1)
        kept = torch.gather(x, 1, order[:, :shown].unsqueeze(-1).repeat(1, 1, D))
        mask = torch.ones(B, N)
        mask[:, :shown] = 0
        return kept, torch.gather(mask, 1, restore), restore

    def decode(self, x: Tensor, restore: Tensor) -> Tensor:
        """Predict the voxels of all cubes, [B, N, P]."""
        x = self.enter(x)
        hidden = self.mask_token.repeat(len(x), restore.shape[1] - x.shape[1], 1)
        x = torch.cat([x, hidden], dim=1)
        x = torch.gather(x, 1, restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = x + self.positions(self.decoder_spatial, self.decoder_spectral)
        for block in self.decoder_blocks:
            x = block(x)
        return self.leave(self.decoder_norm(x))

    def cubes(self, image: Tensor) -> Tensor:
        """Cut images into cubes [B, N, P]."""
        B, T, p = len(image), self.layout.groups, self.layout.patch_px
        side = self.layout.side
        split = image.reshape(B, T, self.layout.depth, side, p, side, p)
        return torch.einsum("btuhpwq->bthwupq", split).reshape(B, T * side * side, -1)


class PublishedStep:
    """A training step as published: plain AdamW over all weights, and the loss read every time."""

    def __init__(self, model: PublishedMAE, clip_norm: float) -> None:
        self.model, self.clip_norm = model, clip_norm
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4, betas=BETAS)

    def __call__(self, image: Tensor, ratio: float = 0.9) -> float:
        """Train on normalised images [B, C, H, W]; returns the loss."""
        loss = self.loss(image, ratio)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"loss {value}")
        loss.backward()
        self.update()
        return value

    def loss(self, image: Tensor, ratio: float) -> Tensor:
        """Return the loss of freshly drawn masks."""
        noise = torch.rand(len(image), self.model.layout.tokens)
        return self.model(image, noise, ratio)

    def update(self) -> None:
        """Clip, move the weights, and drop the gradients."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()


_NAMES = (
    (r"(en|de)coder\.(embed|leave)\.shared", r"\2"),
    (r"encoder\.positions\.(spatial|spectral)\..*", r"\1"),
    (r"decoder\.positions\.(spatial|spectral)\..*", r"decoder_\1"),
    (r"decoder\.(enter|mask_token)", r"\1"),
    (r"decoder\.(blocks|norm)", r"decoder_\1"),
    (r"encoder\.(blocks|norm)", r"\1"),
    (r"mlp\.0", "enlarge"),
    (r"mlp\.2", "reduce"),
)


def with_weights_of(state: dict[str, Tensor], published: PublishedMAE) -> PublishedMAE:
    """Load the weights of a `SpatialSpectralMAE` of one sensor, in its default configuration, into the plain model."""
    wanted, found = published.state_dict(), {}
    for ours, tensor in state.items():
        name = functools.reduce(lambda n, change: re.sub(*change, n), _NAMES, ours)
        parts = ("query", "key", "value") if "qkv" in name else ("",)
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            theirs = name.replace("qkv", part)
            found[theirs] = piece.reshape(wanted[theirs].shape)
    published.load_state_dict(found)
    return published
