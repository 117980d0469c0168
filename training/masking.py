"""Which cubes are shown: random masking (S2MAE) and saliency-guided dynamic masking (SIGMAE's SSDTM).

One contract: a strategy returns a score for each token, and the lowest scores are shown. Counting, invalid cubes
and splitting are written once, in `choose`. Everything here is a pure function of (seed, sample id, epoch,
saliency, lambda), computed in numpy on the CPU, so it is the same for any number of ranks and workers.
An implementation of the published description of SSDTM; choices of ours are configuration keys.
Shape letters: B batch, T spectral groups, S places, N = T * S tokens (index t * S + s), K shown, M hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.errors import ConfigError, unknown
from pipeline.keys import UInt64, uniform

Scores = NDArray[np.float64]
Tokens = NDArray[np.int64]
_SHOW, _PREDICT = (
    0x6D61736B,
    0x70726564,
)  # keep the draws apart from each other and from other uses of the key


class MaskingConfig(Config):
    """What is hidden from the encoder."""

    strategy: str = "random"
    """A key of `MASKINGS`: random, saliency, tube, spectral."""
    ratio: float = Field(default=0.9, gt=0, lt=1)
    """Share of the cubes that is hidden."""
    count: Literal["all", "valid"] = "all"
    """Whether the share is one of all cubes, the same number for every image, or of an image's valid cubes: images with
    nodata then show fewer, and nothing is spent on what is not there."""
    reconstruct: float = Field(default=1.0, gt=0, le=1)
    """Share of the hidden cubes that is reconstructed; the others cost nothing and teach nothing in that step."""
    policy: Literal["mask_salient", "keep_salient", "partial"] = "mask_salient"
    """Saliency: hide the informative cubes, show them, or hide them and reconstruct mostly those."""
    draw: Literal["hidden", "shown"] = "hidden"
    """Saliency: which of the two sets is the weighted sample."""
    lambda_max: float | None = Field(default=None, ge=0)
    """Saliency: strength of the guidance at the end of the curriculum; 0 is uniform random masking, null takes
    the policy's own: 2 for keep_salient, 0.25 for the others."""
    curriculum: Literal["linear", "cosine", "step"] = "linear"
    """Saliency: how lambda rises from the end of warm-up to `full_at`."""
    full_at: float = Field(default=0.8, gt=0, le=1)
    """Saliency: share of the training at which lambda_max is reached."""
    richness_weight: float = Field(default=0.5, ge=0, le=1)
    """Saliency: weight of semantic richness against internal heterogeneity."""
    reconstruct_lambda: float = Field(default=2.0, ge=0)
    """partial: how strongly the reconstructed cubes are drawn toward the salient."""

    @model_validator(mode="after")
    def _sound(self) -> MaskingConfig:
        if self.policy == "partial" and (self.strategy != "saliency" or self.reconstruct == 1):
            raise ValueError("policy: partial needs strategy: saliency and reconstruct below 1 (0.25, say)")
        if self.count == "valid" and self.strategy == "spectral":
            raise ValueError("count: valid has no meaning for strategy: spectral, which hides whole groups")
        return self


@dataclass(frozen=True)
class Keys:
    """What the noise of a batch is a pure function of."""

    seed: int
    sample_ids: UInt64
    epoch: int


@dataclass(frozen=True)
class Draw:
    """What a strategy sees of a batch."""

    keys: Keys
    saliency_BS: Scores
    """Saliency of each place in [0, 1]."""
    groups: int
    """T."""
    strength: float
    """The curriculum's lambda at this step."""
    config: MaskingConfig

    @property
    def tokens(self) -> int:
        """N."""
        return int(self.saliency_BS.shape[1]) * self.groups

    @cached_property
    def noise(self) -> Scores:
        """Uniform (0, 1), independent for each token."""
        return token_noise(self.keys, self.tokens)

    @cached_property
    def guide(self) -> Scores:
        """Standardised saliency of each token, so that lambda means the same for flat and for rich images."""
        centred = self.saliency_BS - self.saliency_BS.mean(1, keepdims=True)
        scaled = centred / np.maximum(self.saliency_BS.std(1, keepdims=True), 1e-6)
        # repeated over the groups: saliency belongs to a place, noise to a token
        return np.tile(scaled, (1, self.groups))


@dataclass(frozen=True)
class Choice:
    """The cubes shown, hidden and predicted in a batch, and what can be observed of the curriculum.

    Indices are ascending; with `count: valid`, -1 fills up the rows of images that have fewer.
    """

    shown_BK: Tokens
    hidden_BM: Tokens
    predicted_BM: Tokens
    """The hidden cubes that are reconstructed: all, or a share of them."""
    counted_BM: NDArray[np.bool_]
    """Predicted cubes that carry loss (at least half of their pixels are valid)."""
    observed: dict[str, float]
    """Curriculum observables for the log."""
    packed: bool = False
    """Whether images may show different numbers of cubes."""


def counts(tokens: int, ratio: float) -> tuple[int, int]:
    """Return (n_shown, n_hidden) with n_hidden = floor(L r + 0.5): 58 of 576 shown at 90 %."""
    # exact, of the ratio as it is written: int(L * (1 - r)) loses a token to floating point, round() goes to even
    hidden = math.floor(Fraction(str(ratio)) * tokens + Fraction(1, 2))
    return tokens - hidden, hidden


def token_noise(keys: Keys, tokens: int, salt: int = _SHOW) -> Scores:
    """Return uniform noise [B, N], a pure function of (seed, sample id, epoch, token)."""
    # each token has its own number, so a mask does not depend on what else is in the batch
    ids, token = np.asarray(keys.sample_ids, np.uint64)[:, None], np.arange(tokens, dtype=np.uint64)[None]
    return uniform(salt, keys.seed, ids, keys.epoch, token)


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
    usual = 2.0 if config.policy == "keep_salient" else 0.25
    return (usual if config.lambda_max is None else config.lambda_max) * progress


def check(config: MaskingConfig, tokens: int, groups: int) -> int:
    """Return how many cubes are shown; raises before a run starts where strategy and ratio cannot be kept."""
    return masking(config.strategy).shown(tokens, groups, config)


def choose(draw: Draw, valid_BS: NDArray[np.bool_]) -> Choice:
    """Split the cubes of every image into shown and hidden ones, and say which of the hidden are predicted.

    valid_BS: places with at least half of their pixels valid; invalid cubes are hidden before any other and carry
    no loss. Ties are broken by the token index.
    """
    valid_BN = np.tile(valid_BS, (1, draw.groups))
    # infinity sorts last, and what sorts last is hidden
    scores_BN = np.where(valid_BN, masking(draw.config.strategy).score(draw), np.inf)
    shown_B, used_B = _numbers(draw, valid_BS)
    # stable: ties go to the lower token index on every machine
    order_BN = np.argsort(scores_BN, axis=1, kind="stable")
    shown, hidden = _rows(order_BN, np.zeros_like(shown_B), shown_B), _rows(order_BN, shown_B, used_B)
    predicted = _predicted(draw, hidden, valid_BN) if draw.config.reconstruct < 1 else hidden
    # what could not be measured cannot be right or wrong
    counted = (predicted >= 0) & np.take_along_axis(valid_BN, predicted, axis=1)
    observed = _observe(draw, shown, hidden, predicted)
    return Choice(shown, hidden, predicted, counted, observed, draw.config.count == "valid")


def _numbers(draw: Draw, valid_BS: NDArray[np.bool_]) -> tuple[Tokens, Tokens]:
    """Return how many cubes of each image are shown, and how many are shown or hidden, [B]."""
    strategy = masking(draw.config.strategy)
    if draw.config.count == "all":
        shown = strategy.shown(draw.tokens, draw.groups, draw.config)
        return np.full(len(valid_BS), shown), np.full(len(valid_BS), draw.tokens)
    unit = strategy.unit(draw.tokens, draw.groups)
    used_B = valid_BS.sum(1) * draw.groups
    # at least one: an image that holds nothing shows an empty cube, and attention always has a key
    shown_B = np.array([max(counts(n // unit, draw.config.ratio)[0], 1) * unit for n in used_B.tolist()])
    return shown_B, np.maximum(used_B, shown_B)


def _rows(order_BN: Tokens, start_B: Tokens, stop_B: Tokens) -> Tokens:
    """Return order[start:stop] of each image, ascending, filled up with -1 to the longest."""
    tokens = order_BN.shape[1]
    at = start_B[:, None] + np.arange((stop_B - start_B).max())
    picked = np.take_along_axis(order_BN, np.minimum(at, tokens - 1), axis=1)
    ascending = np.sort(np.where(at < stop_B[:, None], picked, tokens), axis=1)
    return np.where(ascending < tokens, ascending, -1)


def _predicted(draw: Draw, hidden_BM: Tokens, valid_BN: NDArray[np.bool_]) -> Tokens:
    """Draw the share of the hidden cubes that is reconstructed; `partial` draws toward the salient."""
    toward = draw.config.reconstruct_lambda if draw.config.policy == "partial" else 0.0
    drawn = toward * draw.guide + _gumbel(token_noise(draw.keys, draw.tokens, _PREDICT))
    # the invalid teach nothing: last of the hidden; and before them nothing that is shown
    usefulness_BN = np.where(valid_BN, drawn, -1e300)
    is_hidden = np.zeros((len(hidden_BM), draw.tokens + 1), bool)
    # -1 marks the column past the end, which is cut off
    np.put_along_axis(is_hidden, hidden_BM, True, axis=1)
    order = np.argsort(np.where(is_hidden[:, :-1], -usefulness_BN, np.inf), axis=1, kind="stable")
    hidden_B = (hidden_BM >= 0).sum(1)
    number_B = np.array([max(counts(n, draw.config.reconstruct)[1], min(n, 1)) for n in hidden_B.tolist()])
    return _rows(order, np.zeros_like(number_B), number_B)


def _observe(draw: Draw, shown: Tokens, hidden: Tokens, predicted: Tokens) -> dict[str, float]:
    """Measure how many are hidden, and how the shown, the hidden and the predicted differ in saliency."""
    saliency_BN = np.tile(draw.saliency_BS, (1, draw.groups))
    quartile = np.quantile(saliency_BN, 0.75, axis=1, keepdims=True)
    hidden_B, shown_B = (hidden >= 0).sum(1), (shown >= 0).sum(1)
    found = {
        "mask_ratio": float((hidden_B / (hidden_B + shown_B)).mean()),
        "mask_lambda": draw.strength if draw.config.strategy == "saliency" else 0.0,
        "mask_saliency_shown": _mean_of(saliency_BN, shown),
        "mask_saliency_hidden": _mean_of(saliency_BN, hidden),
        "mask_top_quartile_shown": _mean_of(saliency_BN > quartile, shown),
    }
    if draw.config.reconstruct < 1:
        found["mask_saliency_predicted"] = _mean_of(saliency_BN, predicted)
    return found


def _mean_of(values_BN: NDArray[np.floating] | NDArray[np.bool_], picked: Tokens) -> float:
    taken = np.take_along_axis(values_BN, picked, axis=1)[picked >= 0]
    return float(taken.mean()) if taken.size else 0.0


def _random(draw: Draw) -> Scores:
    return draw.noise


def _tube(draw: Draw) -> Scores:
    places = draw.noise.shape[1] // draw.groups
    return np.tile(draw.noise[:, :places], (1, draw.groups))


def _spectral(draw: Draw) -> Scores:
    places = draw.noise.shape[1] // draw.groups
    return np.repeat(draw.noise[:, : draw.groups], places, axis=1)


def _saliency(draw: Draw) -> Scores:
    """SSDTM: `s lambda zscore(S) + Gumbel` (draw: hidden), or the shown set as the weighted sample."""
    # adding Gumbel noise and sorting draws without replacement, weighted by exp(score)
    gumbel = _gumbel(draw.noise)
    guided = draw.strength * draw.guide
    guided = -guided if draw.config.policy == "keep_salient" else guided
    return guided + gumbel if draw.config.draw == "hidden" else guided - gumbel


def _gumbel(uniform_BN: Scores) -> Scores:
    return np.asarray(-np.log(-np.log(uniform_BN)))


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
