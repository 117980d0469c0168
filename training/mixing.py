"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): two images in one, and so two labels.

All draws follow from a key, so that a resumed run mixes as the whole one would have.
Shape letters: B batch, C bands, H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Config


class Regularisation(Config):
    """What keeps full fine-tuning from learning its few images by heart."""

    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Share of the images that leave out a branch of the last block; earlier blocks have less."""
    mixup: float = Field(default=0.0, ge=0)
    """Parameter of the beta distribution that images are blended by; 0 blends none. One class a tile only."""
    cutmix: float = Field(default=0.0, ge=0)
    """The same for the share of a rectangle that comes from another image; with both, each step takes one of them."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class Mixed:
    """Images of which each holds a share of a partner."""

    image_BCHW: Tensor
    partner_B: Tensor
    """int64: whose label counts too."""
    own: float
    """Weight of the image's own label."""


def mix(image_BCHW: Tensor, labelled_B: Tensor, how: Regularisation, key: int) -> Mixed:
    """Mix normalised images with those at the other end of the batch; unlabelled ones, bool [B], with none."""
    rng = np.random.default_rng(key)
    cut = how.cutmix > 0 and (how.mixup == 0 or rng.random() < 0.5)
    strength = how.cutmix if cut else how.mixup
    own = float(rng.beta(strength, strength))
    itself = torch.arange(len(image_BCHW))
    # the order of samples is random already: the other end is as good as a drawn partner
    other = itself.flip(0)
    partner = torch.where(labelled_B & labelled_B[other], other, itself).to(image_BCHW.device)
    if not cut:
        return Mixed(own * image_BCHW + (1 - own) * image_BCHW[partner], partner, own)
    rows, columns = rectangle(image_BCHW.shape[-1], own, rng)
    mixed = image_BCHW.clone()
    mixed[:, :, rows, columns] = image_BCHW[partner][:, :, rows, columns]
    taken = (rows.stop - rows.start) * (columns.stop - columns.start)
    # by what was taken: the edge may have left less of the rectangle than was drawn
    return Mixed(mixed, partner, 1 - taken / image_BCHW.shape[-1] ** 2)


def rectangle(side_px: int, own: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Return a rectangle of about 1 - own of the image; what lies beyond the edge is cut off."""
    half_px = side_px * math.sqrt(1 - own) / 2
    centres = rng.integers(0, side_px, 2)
    top_left = [max(round(c - half_px), 0) for c in centres.tolist()]
    ends = [min(round(c + half_px), side_px) for c in centres.tolist()]
    rows, columns = (slice(a, b) for a, b in zip(top_left, ends, strict=True))
    return rows, columns
