"""Runs that differ in nothing but their seed, put together: what a setting scores, and how sure that is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from training.evidence import Estimate
from training.recorded import RecordedRun

IDENTITY = (
    "name",
    "output",
    "stop_at",
    "tracking.experiment",
    "tracking.uri",
    "tracking.parent",
    "dry_run",
    "resume",
)
"""Parameters that say which run it is, and nothing of what it does."""
_SEED, _INIT = "seed", "init"
# 97.5 % quantiles of Student's t by degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Setting:
    """Runs of one configuration with several seeds."""

    runs: tuple[RecordedRun, ...]

    @property
    def name(self) -> str:
        """The runs' names."""
        return ", ".join(run.name for run in self.runs)

    def estimate(self, metric: str) -> Estimate | None:
        """Return a metric's mean over the seeds with its 95 % interval by Student's t; None where no run has it.

        Of one seed nothing is known of the spread: its interval is without bounds.
        """
        values = [run.metrics[metric] for run in self.runs if metric in run.metrics]
        if not values:
            return None
        mean, number = statistics.fmean(values), len(values)
        if number == 1:
            return Estimate(mean, float("-inf"), float("inf"))
        # beyond the table an approximation, less than 0.03 too small
        quantile = _T[number - 2] if number - 2 < len(_T) else 1.96 + 2.4 / (number - 1)
        half = quantile * statistics.stdev(values) / number**0.5
        return Estimate(mean, mean - half, mean + half)


def settings(runs: Sequence[RecordedRun]) -> list[Setting]:
    """Return the settings of finished runs, in the order of their first run."""
    by_folder = {PurePath(run.folder): run for run in runs}
    found: dict[object, list[RecordedRun]] = {}
    # a run under way has last values too, which are no result yet
    for run in (r for r in runs if r.status == "FINISHED"):
        found.setdefault(_setting(run, by_folder), []).append(run)
    return [Setting(tuple(members)) for members in found.values()]


def _setting(
    run: RecordedRun, by_folder: Mapping[PurePath, RecordedRun], after: tuple[str, ...] = ()
) -> object:
    """Return all that must be alike; weights to start from are alike where their own settings are.

    after: identifiers of the runs that started from its weights.
    """
    same = {k: v for k, v in run.parameters.items() if k not in (*IDENTITY, _SEED, _INIT)}
    init = PurePath(run.parameters.get(_INIT, ""))
    origin = next((by_folder[p] for p in (init, *init.parents) if p in by_folder), None)
    line = (*after, run.id)
    # a folder that was made anew can name one that itself started from what was there before
    came_from = _setting(origin, by_folder, line) if origin and origin.id not in line else str(init)
    return (run.kind, frozenset(same.items()), came_from)


def told(estimate: Estimate | None) -> str:
    """Return `0.712 [0.690, 0.731]`, one number where there is one seed, a dash where there is none."""
    if estimate is None:
        return "-"
    return f"{estimate.value:.4f}" if estimate.high == float("inf") else estimate.told()
