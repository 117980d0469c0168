"""Images to spectral cubes and back: the token layout of S2MAE, and of SatMAE with unequal groups.

A cube is a group of bands over one patch; the token index is spectral-major, `t * S + s`. Where groups hold
unequal numbers of bands, smaller cubes are filled up with zeros to the voxels of the largest.
Shape letters: B batch, C bands, H W pixels, T spectral groups, S places, N = T * S tokens, K chosen tokens,
D width, P voxels of the largest cube.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.contract import Normalisation
from pipeline.errors import ConfigError
from pipeline.sample import NODATA


@dataclass(frozen=True)
class Layout:
    """How an image of `image_px` pixels a side is cut into cubes."""

    members: tuple[tuple[int, ...], ...]
    """Channels of each spectral group; every channel is in one group."""
    image_px: int
    patch_px: int = 8
    shared: bool = True
    """Whether one projection serves all groups, which must then be of one size."""
    waves_nm: tuple[tuple[float, float], ...] = ()
    """Centre wavelength and width of each channel; positions by wavelength need them."""

    def __post_init__(self) -> None:
        if self.shared and not self.equal:
            raise ConfigError("groups that share a projection must be equal: list them in model.groups.")
        if self.image_px % self.patch_px:
            raise ConfigError(
                f"patches of {self.patch_px} px do not divide {self.image_px} px:"
                " change model.patch_px or data.image_px."
            )

    @classmethod
    def even(cls, channels: int, image_px: int, patch_px: int = 8, bands_per_cube: int = 3) -> Layout:
        """Return the layout whose cubes hold `bands_per_cube` consecutive bands each.

        Raises `ConfigError` naming what fits where the number of bands does not divide.
        """
        if channels % bands_per_cube:
            fits = [d for d in range(1, channels + 1) if channels % d == 0]
            raise ConfigError(
                f"{channels} bands cannot be cut into cubes of {bands_per_cube}: set model.bands_per_cube"
                f" to one of {fits}, choose another number of bands in data.bands, or list unequal groups of bands"
                " in model.groups."
            )
        members = [tuple(range(i, i + bands_per_cube)) for i in range(0, channels, bands_per_cube)]
        return cls(tuple(members), image_px, patch_px)

    @property
    def channels(self) -> int:
        """C, the number of bands."""
        return sum(len(m) for m in self.members)

    @property
    def groups(self) -> int:
        """T, the number of spectral groups."""
        return len(self.members)

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
    def depth(self) -> int:
        """Bands of the largest group."""
        return max(len(m) for m in self.members)

    @property
    def voxels(self) -> int:
        """P, the number of voxels of the largest cube."""
        return self.depth * self.patch_px**2

    def voxels_of(self, group: int) -> int:
        """Return the number of voxels of a cube of one group."""
        return len(self.members[group]) * self.patch_px**2

    @property
    def equal(self) -> bool:
        """Whether all cubes hold the same number of voxels."""
        return all(len(m) == self.depth for m in self.members)

    @property
    def plain(self) -> bool:
        """Whether the groups are equal and consecutive, so that no band has to be moved."""
        return self.equal and list(chain(*self.members)) == list(range(self.channels))


def to_cubes(image_BCHW: Tensor, layout: Layout) -> Tensor:
    """Cut images [B, C, H, W] into cubes [B, N, P]; voxels are ordered (band, y, x), then zeros."""
    B = image_BCHW.shape[0]
    T, b, g, p = layout.groups, layout.depth, layout.side, layout.patch_px
    if not layout.plain:
        # one more channel, of zeros, for the places that a small group leaves empty
        slots, _ = _slots(layout, image_BCHW.device)
        image_BCHW = F.pad(image_BCHW, (0, 0, 0, 0, 0, 1)).index_select(1, slots)
    # groups before places: the token index is t * S + s, so a place repeats every S tokens
    split = image_BCHW.reshape(B, T, b, g, p, g, p)
    return split.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, layout.tokens, layout.voxels)


def to_image(cubes_BNP: Tensor, layout: Layout) -> Tensor:
    """Put cubes [B, N, P] together to images [B, C, H, W]: the inverse of `to_cubes`."""
    B = cubes_BNP.shape[0]
    T, b, g, p = layout.groups, layout.depth, layout.side, layout.patch_px
    split = cubes_BNP.reshape(B, T, g, g, b, p, p).permute(0, 1, 4, 2, 5, 3, 6)
    image = split.reshape(B, T * b, layout.image_px, layout.image_px)
    return image if layout.plain else image.index_select(1, _slots(layout, image.device)[1])


def real_voxels(tokens_BK: Tensor, layout: Layout) -> Tensor | None:
    """Tell which voxels of cubes [B, K] are no filling, float32 [B, K, P]; None where all are real."""
    if layout.equal:
        return None
    return _real(layout, tokens_BK.device)[tokens_BK % layout.tokens // layout.places]


@lru_cache(maxsize=64)
def _slots(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the channel of each slot [T * b], C for an empty one, and the slot of each channel [C]."""
    empty = layout.channels
    filled = [[*m, *[empty] * (layout.depth - len(m))] for m in layout.members]
    slots = list(chain(*filled))
    where = [slots.index(channel) for channel in range(layout.channels)]
    return torch.tensor(slots, device=device), torch.tensor(where, device=device)


@lru_cache(maxsize=64)
def _real(layout: Layout, device: torch.device) -> Tensor:
    count = torch.tensor([layout.voxels_of(t) for t in range(layout.groups)], device=device)
    return (torch.arange(layout.voxels, device=device) < count[:, None]).float()


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
    return _copied(tuple(recorded.shift.tolist()), device), _copied(tuple(recorded.span.tolist()), device)


@lru_cache(maxsize=64)
def _copied(values: tuple[float, ...], device: torch.device) -> Tensor:
    # once: the host waits for the device when it copies a few numbers there
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
