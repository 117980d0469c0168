"""Measuring on noisy machines: contenders take turns, and what counts is their ratio within a turn."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

REPETITIONS = 5
Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How often the first contender's time goes into the second's, over the turns."""

    what: str
    values: tuple[float, ...]
    goal: float
    """At least; at most where `least` is False."""
    least: bool = True
    seconds: tuple[float, float] = (0.0, 0.0)
    """Medians of the contenders."""

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def row(self) -> tuple[str, ...]:
        """Return a row of the table that ends a benchmark."""
        met = self.median >= self.goal if self.least else self.median <= self.goal
        sign = ">=" if self.least else "<="
        spread = f"{min(self.values):.2f} to {max(self.values):.2f}"
        times = " / ".join(f"{s:.3f}" for s in self.seconds) if any(self.seconds) else "-"
        return self.what, f"{self.median:.2f}", spread, f"{sign} {self.goal:g}", "yes" if met else "no", times


HEADER = ("ratio", "median", "spread", "goal", "met", "seconds")


def cpu_s() -> float:
    """CPU seconds of this process, its threads, and the processes it has waited for."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def interleaved(work: Mapping[str, Work], clock: Callable[[], float] = cpu_s) -> dict[str, list[float]]:
    """Time every contender once a turn, after one turn that does not count; returns seconds by name."""
    for each in work.values():
        each()
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(REPETITIONS):
        # in turns: what else the machine does then falls on all of them
        for name, each in work.items():
            start = clock()
            each()
            found[name].append(clock() - start)
    return found


def ratio(what: str, slow: Work, fast: Work, goal: float, clock: Callable[[], float] = cpu_s) -> Ratio:
    """Measure how many times the time of `fast` the time of `slow` is."""
    times = interleaved({"slow": slow, "fast": fast}, clock)
    values = tuple(s / f for s, f in zip(times["slow"], times["fast"], strict=True))
    middle = statistics.median(times["slow"]), statistics.median(times["fast"])
    return Ratio(what, values, goal, seconds=middle)


def wall_s() -> float:
    """Seconds on the wall, for what runs in several processes at once."""
    return time.perf_counter()
