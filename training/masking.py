"""Which cubes are shown: random masking (S2MAE) and saliency-guided dynamic masking (SIGMAE's SSDTM).

One contract: a strategy returns a score for each token, and the lowest scores are shown. Counting, invalid cubes
and splitting are written once, in `choose`. Everything here is a pure function of (seed, sample id, epoch,
saliency, lambda), computed in numpy on the CPU, so it is the same for any number of ranks and workers.
An implementation of the published description of SSDTM; choices of ours are configuration keys.
Shape letters: B batch, T spectral groups, S places, N = T * S tokens (index t * S + s).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.config import Config
from pipeline.errors import ConfigError, unknown
from pipeline.keys import UInt64, uniform

Scores = NDArray[np.float64]
_SALT = 0x6D61736B  # keeps the noise apart from the other uses of (seed, sample, epoch)


class MaskingConfig(Config):
    """What is hidden from the encoder."""

    strategy: str = "random"
    """A key of `MASKINGS`: random, saliency, tube, spectral."""
    ratio: float = Field(default=0.9, gt=0, lt=1)
    """Share of the cubes that is hidden."""
    policy: Literal["mask_salient", "keep_salient"] = "mask_salient"
    """Saliency: hide the informative cubes, or show them."""
    draw: Literal["hidden", "shown"] = "hidden"
    """Saliency: which of the two sets is the weighted sample."""
    lambda_max: float | None = Field(default=None, ge=0)
    """Saliency: strength of the guidance at the end of the curriculum; 0 is uniform random masking, null takes
    the policy's own: 0.25 for mask_salient, 2 for keep_salient."""
    curriculum: Literal["linear", "cosine", "step"] = "linear"
    """Saliency: how lambda rises from the end of warm-up to `full_at`."""
    full_at: float = Field(default=0.8, gt=0, le=1)
    """Saliency: share of the training at which lambda_max is reached."""
    richness_weight: float = Field(default=0.5, ge=0, le=1)
    """Saliency: weight of semantic richness against internal heterogeneity."""


@dataclass(frozen=True)
class Draw:
    """What a strategy sees of a batch."""

    noise_BN: Scores
    """Uniform (0, 1), independent for each token."""
    saliency_BS: Scores
    """Saliency of each place in [0, 1]."""
    groups: int
    """T."""
    strength: float
    """The curriculum's lambda at this step."""
    config: MaskingConfig


@dataclass(frozen=True)
class Choice:
    """The cubes shown and hidden in a batch, and what can be observed of the curriculum."""

    shown_BK: NDArray[np.int64]
    """Token indices, ascending."""
    hidden_BM: NDArray[np.int64]
    """Token indices, ascending."""
    counted_BM: NDArray[np.bool_]
    """Hidden cubes that carry loss (at least half of their pixels are valid)."""
    observed: dict[str, float]
    """Curriculum observables for the log."""


def counts(tokens: int, ratio: float) -> tuple[int, int]:
    """Return (n_shown, n_hidden) with n_hidden = floor(L r + 0.5): 58 of 576 shown at 90 %."""
    # not int(L * (1 - r)), which loses a token to floating point, nor round(), which goes to even
    hidden = math.floor(tokens * ratio + 0.5)
    return tokens - hidden, hidden


def token_noise(seed: int, sample_ids: UInt64, epoch: int, tokens: int) -> Scores:
    """Return uniform noise [B, N], a pure function of (seed, sample id, epoch, token)."""
    # each token has its own number, so a mask does not depend on what else is in the batch
    ids, token = np.asarray(sample_ids, np.uint64)[:, None], np.arange(tokens, dtype=np.uint64)[None]
    return uniform(_SALT, seed, ids, epoch, token)


def strength(config: MaskingConfig, step: int, warmup_steps: int, total_steps: int) -> float:
    """Return lambda at a step: 0 during warm-up, then rising to lambda_max at `full_at` of the training."""
    # a short run may end its warm-up after full_at
    full = max(config.full_at * total_steps, warmup_steps + 1)
    progress = min(max((step - warmup_steps) / (full - warmup_steps), 0.0), 1.0)
    if config.curriculum == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    elif config.curriculum == "step":
        progress = float(progress >= 1)
    # at 90 % hidden, hiding the salient already empties the shown of them at a strength that hardly helps showing
    usual = 0.25 if config.policy == "mask_salient" else 2.0
    return (usual if config.lambda_max is None else config.lambda_max) * progress


def check(config: MaskingConfig, tokens: int, groups: int) -> int:
    """Return how many cubes are shown; raises before a run starts where strategy and ratio cannot be kept."""
    return masking(config.strategy).shown(tokens, groups, config)


def choose(draw: Draw, valid_BS: NDArray[np.bool_]) -> Choice:
    """Split the cubes of every image into shown and hidden ones.

    valid_BS: places with at least half of their pixels valid; invalid cubes are hidden before any other and carry
    no loss. Ties are broken by the token index.
    """
    strategy = masking(draw.config.strategy)
    tokens = draw.noise_BN.shape[1]
    n_shown = strategy.shown(tokens, draw.groups, draw.config)
    valid_BN = np.tile(valid_BS, (1, draw.groups))
    # infinity sorts last, and what sorts last is hidden
    scores = np.where(valid_BN, strategy.score(draw), np.inf)
    # stable: ties go to the lower token index on every machine
    order = np.argsort(scores, axis=1, kind="stable")
    shown, hidden = np.sort(order[:, :n_shown]), np.sort(order[:, n_shown:])
    # what could not be measured cannot be right or wrong
    counted = np.take_along_axis(valid_BN, hidden, axis=1)
    return Choice(shown, hidden, counted, _observe(draw, shown, hidden))


def _observe(draw: Draw, shown: NDArray[np.int64], hidden: NDArray[np.int64]) -> dict[str, float]:
    """Measure how the shown differ from the hidden in saliency."""
    saliency_BN = np.tile(draw.saliency_BS, (1, draw.groups))
    quartile = np.quantile(saliency_BN, 0.75, axis=1, keepdims=True)
    of_shown = np.take_along_axis(saliency_BN, shown, axis=1)
    of_hidden = np.take_along_axis(saliency_BN, hidden, axis=1)
    return {
        "mask_lambda": draw.strength if draw.config.strategy == "saliency" else 0.0,
        "mask_saliency_shown": float(of_shown.mean()),
        "mask_saliency_hidden": float(of_hidden.mean()),
        "mask_top_quartile_shown": float((of_shown > quartile).mean()),
    }


def _random(draw: Draw) -> Scores:
    return draw.noise_BN


def _tube(draw: Draw) -> Scores:
    places = draw.noise_BN.shape[1] // draw.groups
    return np.tile(draw.noise_BN[:, :places], (1, draw.groups))


def _spectral(draw: Draw) -> Scores:
    places = draw.noise_BN.shape[1] // draw.groups
    return np.repeat(draw.noise_BN[:, : draw.groups], places, axis=1)


def _saliency(draw: Draw) -> Scores:
    """SSDTM: `s lambda zscore(S) + Gumbel` (draw: hidden), or the shown set as the weighted sample."""
    # adding Gumbel noise and sorting draws without replacement, weighted by exp(score)
    gumbel = -np.log(-np.log(draw.noise_BN))
    # repeated over the groups: saliency belongs to a place, noise to a token
    guided = draw.strength * np.tile(_zscore(draw.saliency_BS), (1, draw.groups))
    guided = guided if draw.config.policy == "mask_salient" else -guided
    return guided + gumbel if draw.config.draw == "hidden" else guided - gumbel


def _zscore(saliency_BS: Scores) -> Scores:
    # standardised, so that lambda means the same for flat and for rich images
    centred = saliency_BS - saliency_BS.mean(1, keepdims=True)
    scaled: Scores = centred / np.maximum(saliency_BS.std(1, keepdims=True), 1e-6)
    return scaled


@dataclass(frozen=True)
class Masking:
    """A strategy: scores [B, N], the lowest of which are shown, and how many tokens it hides together."""

    score: Callable[[Draw], Scores]
    unit: Callable[[int, int], int] = lambda tokens, groups: 1
    """(N, T) -> tokens hidden together."""

    def shown(self, tokens: int, groups: int, config: MaskingConfig) -> int:
        """Return n_shown of N tokens: `N - floor(N r + 0.5)`, counted in units.

        Raises `ConfigError` naming the nearest ratio where nothing would be left to show or to hide.
        """
        unit = self.unit(tokens, groups)
        units = tokens // unit
        shown, hidden = counts(units, config.ratio)
        if shown and hidden:
            return shown * unit
        nearest = min(max(hidden, 1), units - 1) / units if units > 1 else math.nan
        raise ConfigError(
            f"masking.ratio {config.ratio} cannot be reached by strategy `{config.strategy}`, which hides {unit} of"
            f" {tokens} cubes together; the nearest is {nearest:.3g}."
        )


def masking(name: str) -> Masking:
    """Return the strategy called `name`; raises `UnknownNameError` with the nearest one."""
    try:
        return MASKINGS[name]
    except KeyError:
        raise unknown("masking strategy", name, MASKINGS, "masking.strategy") from None


MASKINGS: dict[str, Masking] = {
    "random": Masking(_random),
    "saliency": Masking(_saliency),
    "tube": Masking(_tube, unit=lambda tokens, groups: groups),
    "spectral": Masking(_spectral, unit=lambda tokens, groups: tokens // groups),
}
