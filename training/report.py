"""What a step tells: packed into one tensor, added up over the ranks, and read when the host next has time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from training.world import World


@dataclass(frozen=True)
class StepResult:
    """What a step reports, over the global batch."""

    loss: float
    grad_norm: float
    lr: float
    applied: bool
    """Whether the optimiser moved the weights."""
    stop: bool
    """Whether any rank was asked to stop."""
    counted: float
    """Items that the loss's first term is the mean of."""
    observed: dict[str, float]
    """What each rank observed, averaged over the ranks."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient were finite; where not, the weights stayed as they were."""
        return self.applied and math.isfinite(self.loss)


@dataclass(frozen=True)
class Told:
    """What one rank has to tell of a step; numbers may still be on their way on the device."""

    lr: float
    norm: float | Tensor
    missed: float | Tensor
    """1 where the weights stay as they were."""
    stop: bool
    losses: Sequence[Tensor]
    """One sum a term."""
    counted: Sequence[float]
    """Items of each term."""
    observed: dict[str, float]


class Report:
    """A step's result, the same on all ranks, once it is read."""

    def __init__(self, told: Told, world: World) -> None:
        """Start the reduction over the ranks; collective."""
        self._told, self._ranks = told, world.size
        # one tensor, one reduction: a dozen small ones would each wait for the network
        mine = [told.norm, told.missed, float(told.stop), *told.losses, *told.counted]
        self._read: Callable[[], list[float]] = world.send([*mine, *told.observed.values()])

    def read(self) -> StepResult:
        """Wait for the numbers."""
        told, terms = self._told, len(self._told.counted)
        norms, misses, stops, *rest = self._read()
        sums, counted, observed = rest[:terms], rest[terms : 2 * terms], rest[2 * terms :]
        return StepResult(
            # 0 where nothing counted anywhere: NaN would be taken for a step that went wrong
            sum(s / max(n, 1.0) for s, n in zip(sums, counted, strict=True)),
            # of the whole gradient: all ranks sent the same number, and added it up
            norms / self._ranks,
            told.lr,
            applied=not misses,
            stop=stops > 0,
            counted=counted[0],
            observed={k: v / self._ranks for k, v in zip(told.observed, observed, strict=True)},
        )
