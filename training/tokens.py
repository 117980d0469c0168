"""Images to spectral cubes and back: the token layout of S2MAE.

A cube is `bands_per_cube` consecutive bands over one patch; the token index is spectral-major, `t * S + s`.
Shape letters: B batch, C bands, H W pixels, T spectral groups, S places, N = T * S tokens, K chosen tokens,
D width, P voxels of a cube.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.contract import Normalisation
from pipeline.errors import ConfigError
from pipeline.sample import NODATA


@dataclass(frozen=True)
class Layout:
    """How an image of `channels` bands and `image_px` pixels a side is cut into cubes."""

    channels: int
    image_px: int
    patch_px: int = 8
    bands_per_cube: int = 3

    def __post_init__(self) -> None:
        if self.channels % self.bands_per_cube:
            fits = [d for d in range(1, self.channels + 1) if self.channels % d == 0]
            raise ConfigError(
                f"{self.channels} bands cannot be cut into cubes of {self.bands_per_cube}: set model.bands_per_cube"
                f" to one of {fits}, or choose another number of bands in data.bands."
            )
        if self.image_px % self.patch_px:
            raise ConfigError(
                f"patches of {self.patch_px} px do not divide {self.image_px} px:"
                " change model.patch_px or data.image_px."
            )

    @property
    def groups(self) -> int:
        """T, the number of spectral groups."""
        return self.channels // self.bands_per_cube

    @property
    def side(self) -> int:
        """Patches along one side."""
        return self.image_px // self.patch_px

    @property
    def places(self) -> int:
        """S, the number of places."""
        return self.side**2

    @property
    def tokens(self) -> int:
        """N = T * S."""
        return self.groups * self.places

    @property
    def voxels(self) -> int:
        """P, the number of voxels of a cube."""
        return self.bands_per_cube * self.patch_px**2


def to_cubes(image_BCHW: Tensor, layout: Layout) -> Tensor:
    """Cut images [B, C, H, W] into cubes [B, N, P]; voxels are ordered (band, y, x)."""
    B = image_BCHW.shape[0]
    T, b, g, p = layout.groups, layout.bands_per_cube, layout.side, layout.patch_px
    # groups before places: the token index is t * S + s, so a place repeats every S tokens
    split = image_BCHW.reshape(B, T, b, g, p, g, p)
    return split.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, layout.tokens, layout.voxels)


def to_image(cubes_BNP: Tensor, layout: Layout) -> Tensor:
    """Put cubes [B, N, P] together to images [B, C, H, W]: the inverse of `to_cubes`."""
    B = cubes_BNP.shape[0]
    T, b, g, p = layout.groups, layout.bands_per_cube, layout.side, layout.patch_px
    split = cubes_BNP.reshape(B, T, g, g, b, p, p)
    return split.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, layout.channels, layout.image_px, layout.image_px)


def gather(x_BNx: Tensor, chosen_BK: Tensor) -> Tensor:
    """Pick tokens [B, K] of [B, N, ...]."""
    # expand makes a view: no memory is spent on the repeated index
    index = chosen_BK.unsqueeze(-1).expand(-1, -1, x_BNx.shape[-1])
    return torch.gather(x_BNx, 1, index)


class Normaliser:
    """The recorded input normalisation, applied on the device to int16 images.

    Its constants stay float32 whatever the model's precision, so they are no module buffers.
    """

    def __init__(self, recorded: Normalisation) -> None:
        self.recorded = recorded

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Map int16 [B, C, H, W] to float32 of the same shape; nodata becomes 0."""
        shift, span = _constants(self.recorded, image_BCHW.device)
        x = (image_BCHW.float() * self.recorded.scale - shift) / span
        # clouds and glint lie far above the 99.5 % quantile; unclipped they would rule the loss
        x = x.clamp(0, 1) if self.recorded.clip else x
        # 0 is the value that says least: the lower end of minmax, the mean of standardise
        return torch.where(image_BCHW == NODATA, torch.zeros_like(x), x)


class Rescale:
    """From one recorded normalisation to another, for images that are normalised already."""

    def __init__(self, before: Normalisation, after: Normalisation) -> None:
        self.before, self.after = before, after

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Map float32 [B, C, H, W] on the one scale to the same shape on the other."""
        was_shift, was_span = _constants(self.before, image_BCHW.device)
        shift, span = _constants(self.after, image_BCHW.device)
        x = (image_BCHW * was_span + was_shift - shift) / span
        return x.clamp(0, 1) if self.after.clip else x


def _constants(recorded: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    shift, span = (
        torch.as_tensor(v, dtype=torch.float32, device=device) for v in (recorded.shift, recorded.span)
    )
    return shift.view(1, -1, 1, 1), span.view(1, -1, 1, 1)
