"""What runs of several seeds, scored scene by scene, show: means, and intervals by a bootstrap over seeds and groups.

Rows are compared in pairs: each draw takes the same seeds and the same groups for both, so that what makes a seed or a
scene hard cancels out. An interval that holds 0 shows no difference; it does not show that there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ContractError
from pipeline.keys import hash_text
from training.scored import Tally

OfScene = Mapping[str, Tally]
"""A run's tally of each scene."""
Score = Callable[[Sequence[Tally]], float]
"""The score of tallies put together."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    def told(self, sign: str = "") -> str:
        """Return `0.712 [0.690, 0.731]`; sign "+" for differences."""
        return f"{self.value:{sign}.3f} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


@dataclass(frozen=True)
class Comparison:
    """One row of a task's table."""

    row: str
    seeds: int
    score: Estimate
    difference: Estimate | None
    """Against the reference, of the seeds both have; None for the reference itself."""
    better: int = 0
    """Of those seeds, where the row scored more."""
    pairs: int = 0
    """Number of those seeds."""


def _common_scenes(runs: Mapping[str, Mapping[int, OfScene]]) -> list[str]:
    """Return the scenes that all runs were scored on, in order of names; pairs of other scenes would be none."""
    scored = {f"{row}-s{seed}": sorted(one) for row, seeds in runs.items() for seed, one in seeds.items()}
    first, scenes = next(iter(scored.items()))
    for run, mine in scored.items():
        if mine != scenes:
            raise ContractError(
                f"{run} was scored on {len(mine)} scenes, {first} on {len(scenes)}, and they are not the same: the"
                " shard set was made anew in between. Give the study another `output`."
            )
    return scenes


class Evidence:
    """The runs of one task: row -> seed -> scene -> tally."""

    def __init__(
        self, runs: Mapping[str, Mapping[int, OfScene]], groups: Mapping[str, str] | None, score: Score
    ) -> None:
        """groups: scene -> group; None: each scene for itself.

        Raises `ContractError` where runs were scored on other scenes, or a scene has no group.
        """
        self._runs, self._score = runs, score
        scenes = _common_scenes(runs)
        lacking = [scene for scene in scenes if groups is not None and scene not in groups]
        if lacking:
            raise ContractError(
                f"{len(lacking)} of {len(scenes)} scenes have no group, {lacking[0]} for one: add them to the study's"
                " `groups`."
            )
        members: dict[str, list[str]] = {}
        for scene in scenes:
            members.setdefault(scene if groups is None else groups[scene], []).append(scene)
        self.groups = list(members.values())
        """Scenes, group by group."""

    def compare(self, reference: str, draws: int) -> list[Comparison]:
        """Return each row's score and its difference to the reference's."""
        return [self._compare(row, reference, draws) for row in self._runs if self._runs[row]]

    def of(self, row: str, seed: int) -> float:
        """Return the score of a run over all its scenes."""
        return self._of(row, seed, range(len(self.groups)))

    def _compare(self, row: str, reference: str, draws: int) -> Comparison:
        seeds = sorted(self._runs[row])
        score = self._estimate(lambda seed, groups: self._of(row, seed, groups), seeds, draws)
        both = [seed for seed in seeds if seed in self._runs[reference]]
        if row == reference or not both:
            return Comparison(row, len(seeds), score, None)

        def difference(seed: int, groups: Sequence[int]) -> float:
            return self._of(row, seed, groups) - self._of(reference, seed, groups)

        better = sum(self.of(row, seed) > self.of(reference, seed) for seed in both)
        return Comparison(row, len(seeds), score, self._estimate(difference, both, draws), better, len(both))

    def _of(self, row: str, seed: int, groups: Sequence[int]) -> float:
        of_scene = self._runs[row][seed]
        return self._score([of_scene[scene] for group in groups for scene in self.groups[group]])

    def _estimate(
        self, number: Callable[[int, Sequence[int]], float], seeds: Sequence[int], draws: int
    ) -> Estimate:
        every = range(len(self.groups))
        # by the seeds alone: rows are drawn alike, and a report made again is the same
        rng = np.random.default_rng(hash_text("bootstrap", *seeds))
        found: NDArray[np.float64] = np.empty(draws)
        for draw in range(draws):
            # seeds and scenes both: with either held fast, chance in the other would pass for certainty
            groups = rng.integers(len(self.groups), size=len(self.groups))
            found[draw] = np.mean(
                [number(int(seed), groups.tolist()) for seed in rng.choice(seeds, len(seeds))]
            )
        # of a class that no drawn group holds there is no score
        low, high = np.nanpercentile(found, [2.5, 97.5])
        return Estimate(float(np.mean([number(s, every) for s in seeds])), float(low), float(high))
