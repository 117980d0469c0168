"""S2MAE: a 3-D masked autoencoder on spectral cubes, written from the published description (CVPR 2024).

Shape letters: B batch, C bands, H W pixels, T spectral groups, S places, N = T * S tokens, K shown, M hidden,
D width, P voxels of a cube.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.errors import unknown
from training.attention import initialise, stack
from training.tokens import Layout, Rescale, gather, to_cubes

Target = Literal["none", "unit", "signed", "cube_standardised", "band_standardised"]


class Size(NamedTuple):
    """Width, depth and heads of the encoder, then of the decoder."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int


SIZES: dict[str, Size] = {
    "tiny": Size(96, 4, 3, 64, 2),
    "small": Size(384, 12, 6, 256, 8),
    "base": Size(768, 12, 12, 512, 16),
    "large": Size(1024, 24, 16, 512, 16),
    "huge": Size(1280, 32, 16, 512, 16),
}


class ModelConfig(Config):
    """The masked autoencoder."""

    size: str = "base"
    """A key of `SIZES`: tiny and small are ours, for laptops."""
    patch_px: int = Field(default=8, ge=1)
    """Side of a cube in pixels."""
    bands_per_cube: int = Field(default=3, ge=1)
    """Bands of a cube; must divide the number of bands."""
    decoder_depth: int = Field(default=4, ge=1)
    """Blocks of the decoder."""
    target: Target = "unit"
    """What is reconstructed: the input's scale, [0, 1], [-1, 1], or standardised by cube or by cube and band."""
    attention: str = "auto"
    """A key of `ATTENTIONS`."""

    @model_validator(mode="after")
    def _known_size(self) -> ModelConfig:
        if self.size not in SIZES:
            raise ValueError(str(unknown("size", self.size, SIZES, "model.size")))
        return self

    @property
    def dimensions(self) -> Size:
        """The numbers behind `size`."""
        return SIZES[self.size]


class Positions(nn.Module):
    """Learned position of a token: a spatial table [S, D] plus a spectral table [T, D]."""

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        self.spatial = nn.Parameter(torch.empty(layout.places, width))
        self.spectral = nn.Parameter(torch.empty(layout.groups, width))
        for table in (self.spatial, self.spectral):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, tokens_BK: Tensor) -> Tensor:
        """Return the positions [B, K, D] of token indices [B, K]."""
        places = self.spatial.shape[0]
        return self.spatial[tokens_BK % places] + self.spectral[tokens_BK // places]


class Encoder(nn.Module):
    """Embeds and encodes chosen cubes only: gathered first, embedded after."""

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        super().__init__()
        width, depth, heads, _, _ = config.dimensions
        self.layout, self.width, self.depth = layout, width, depth
        self.embed = nn.Linear(layout.voxels, width)
        self.positions = Positions(layout, width)
        self.blocks = stack(width, depth, heads, config.attention)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        # after everything is made: positions are parameters of their own and keep their trunc_normal
        self.apply(initialise)

    def forward(self, cubes_BNP: Tensor, shown_BK: Tensor) -> Tensor:
        """Encode the cubes at indices [B, K] of [B, N, P] to [B, K, D]."""
        # gathered first: nine in ten cubes are never embedded
        x = self.embed(gather(cubes_BNP, shown_BK).to(self.embed.weight.dtype))
        x = x + self.positions(shown_BK)
        for block in self.blocks:
            x = block(x)
        encoded: Tensor = self.norm(x)
        return encoded

    def everything(self, cubes_BNP: Tensor) -> Tensor:
        """Encode all cubes [B, N, P] to [B, N, D], as downstream tasks do."""
        B, N, _ = cubes_BNP.shape
        encoded: Tensor = self(cubes_BNP, torch.arange(N, device=cubes_BNP.device).expand(B, N))
        return encoded


class Decoder(nn.Module):
    """Self-attention decoder: encoded cubes and mask tokens with positions of its own, to voxels."""

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        super().__init__()
        encoder_width, _, _, width, heads = config.dimensions
        self.enter = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.positions = Positions(layout, width)
        self.blocks = stack(width, config.decoder_depth, heads, config.attention)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.leave = nn.Linear(width, layout.voxels)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(initialise)

    def forward(self, encoded_BKD: Tensor, shown_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """Predict the voxels [B, M, P] of the hidden cubes. Token order does not matter to attention."""
        shown = self.enter(encoded_BKD) + self.positions(shown_BK)
        # shown first, hidden after: attention does not mind, and the hidden are cut off by one slice
        x = torch.cat([shown, self.mask_token + self.positions(hidden_BM)], dim=1)
        for block in self.blocks:
            x = block(x)
        predicted: Tensor = self.leave(self.norm(x[:, shown_BK.shape[1] :]))
        return predicted


@dataclass(frozen=True)
class MAEOutput:
    """What a forward pass returns."""

    loss_sum: Tensor
    """Squared error, averaged over a cube's voxels, summed over the counted cubes; float32 scalar."""
    predicted_BMP: Tensor
    """Predicted voxels of the hidden cubes, on the target's scale."""


class SpatialSpectralMAE(nn.Module):
    """The masked autoencoder: encoder over the shown cubes, decoder to the hidden ones, loss on the counted."""

    def __init__(self, config: ModelConfig, layout: Layout, to_unit: Rescale | None = None) -> None:
        """to_unit: from the input's scale to the one of `minmax`; None where the input is on it already."""
        super().__init__()
        self.config, self.layout = config, layout
        self.to_unit = to_unit if config.target in ("unit", "signed") else None
        self.encoder = Encoder(config, layout)
        self.decoder = Decoder(config, layout)

    def forward(
        self, image_BCHW: Tensor, shown_BK: Tensor, hidden_BM: Tensor, counted_BM: Tensor
    ) -> MAEOutput:
        """Reconstruct normalised images [B, C, H, W]; see `MAEOutput`."""
        cubes_BNP = to_cubes(image_BCHW, self.layout)
        encoded_BKD = self.encoder(cubes_BNP, shown_BK)
        # the loss is computed in float32 whatever the model runs in
        predicted_BMP = self.decoder(encoded_BKD, shown_BK, hidden_BM).float()
        source_BNP = cubes_BNP if self.to_unit is None else self.source(image_BCHW)
        wanted_BMP = targets(gather(source_BNP, hidden_BM).float(), self.config, self.layout)
        # a sum, not a mean: the divisor is a number of the global batch, which no rank knows alone
        error_BM = (predicted_BMP - wanted_BMP).square().mean(-1)
        return MAEOutput((error_BM * counted_BM).sum(), predicted_BMP)

    def source(self, image_BCHW: Tensor) -> Tensor:
        """Return the cubes [B, N, P] that targets are made from: `unit` and `signed` want [0, 1] whatever the input."""
        return to_cubes(self.to_unit(image_BCHW) if self.to_unit else image_BCHW, self.layout)


def targets(cubes_BMP: Tensor, config: ModelConfig, layout: Layout) -> Tensor:
    """Return what the decoder should predict, [B, M, P], for cubes [B, M, P] on the source's scale."""
    if config.target == "signed":
        return 2 * cubes_BMP - 1
    if config.target in ("none", "unit"):
        return cubes_BMP
    mean, deviation = _moments(_pieces(cubes_BMP, config, layout))
    return ((_pieces(cubes_BMP, config, layout) - mean) / deviation).flatten(-2)


def restore(predicted_BMP: Tensor, cubes_BMP: Tensor, config: ModelConfig, layout: Layout) -> Tensor:
    """Undo `targets` for a picture: predictions [B, M, P] back on the source's scale, moments from the true cubes."""
    if config.target == "signed":
        return (predicted_BMP + 1) / 2
    if config.target in ("none", "unit"):
        return predicted_BMP
    mean, deviation = _moments(_pieces(cubes_BMP, config, layout))
    return (_pieces(predicted_BMP, config, layout) * deviation + mean).flatten(-2)


def _pieces(cubes_BMP: Tensor, config: ModelConfig, layout: Layout) -> Tensor:
    """Split the voxels into what is standardised together: the bands of a cube, or all of it, [B, M, pieces, ...]."""
    pieces = layout.bands_per_cube if config.target == "band_standardised" else 1
    return cubes_BMP.view(*cubes_BMP.shape[:-1], pieces, -1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    # eps 1e-6 keeps a constant cube finite: it becomes 0, not NaN
    return mean, ((x - mean).square().mean(-1, keepdim=True) + 1e-6).sqrt()


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())
