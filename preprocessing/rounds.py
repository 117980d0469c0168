"""The scenes of a run, in rounds: first every acquisition's preferred scene, then what others of it still add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from pipeline import console
from preprocessing import duplicates, offset_check, scene_work
from preprocessing.cluster import Pool
from preprocessing.duplicates import Decision
from preprocessing.finding import Found
from preprocessing.jobs import SceneJob
from preprocessing.quality import Rejection
from preprocessing.spool import Spool


@dataclass
class Outcome:
    """What became of every scene."""

    spools: dict[str, Spool] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    tiles: int = 0
    """Number of samples."""
    before: NDArray[np.int64] | int = 0
    """[band, bin]: the pixels of all scenes, `Profile.bands`."""
    indices: NDArray[np.int64] | int = 0
    """[index, bin]: the cells of all samples, `Profile.indices`."""

    def add(self, made: Spool) -> None:
        """Take in a scene's record; its counts are added up and let go: of half a million they would fill the memory."""
        profile = made.profile
        self.tiles += len(made.segments)
        self.before = self.before + np.asarray(profile.bands)
        self.indices = self.indices + (np.asarray(profile.indices) if profile.indices else 0)
        self.spools[made.scene] = replace(made, profile=replace(profile, bands=(), indices=()))


def run(found: Found, pool: Pool, taken: Callable[[SceneJob], SceneJob]) -> Outcome:
    """Work all scenes; a scene that cannot be used is replaced by another of its acquisition.

    taken: adds to a job the ground that earlier shard sets hold.
    """
    outcome = Outcome(rejections=list(found.rejections))
    progress = console.Progress("scenes", len(found.jobs), "scenes")
    # a single large scene takes minutes: say at once that work has begun
    progress.advance(0)
    second = {name for group in found.groups for name in group[1:]}
    jobs = [taken(job) for job in found.jobs if job.scene.id not in second]
    # as many rounds as the largest group has scenes: each depends on what the one before gave
    for place in range(1, max(map(len, found.groups), default=1) + 1):
        for result in pool.run(scene_work.work, jobs, lambda job: job.scene.id):
            _take(outcome, result)
            progress.advance(note=f"{outcome.tiles} tiles, {len(outcome.rejections)} rejected")
        before = len(outcome.decisions)
        jobs = list(_next(found, outcome, place, taken))
        # left out without work
        progress.advance(len(outcome.decisions) - before - sum(d.kept for d in outcome.decisions[before:]))
    # results come in any order; reports must not
    outcome.rejections.sort(key=lambda r: r.product)
    outcome.decisions.sort(key=lambda d: d.scene)
    return outcome


def _take(outcome: Outcome, result: Spool | Rejection) -> None:
    if isinstance(result, Rejection):
        outcome.rejections.append(result)
    else:
        outcome.add(result)
        for note in result.notes:
            if note.startswith(offset_check.WARNING):
                console.say(f"{result.scene}: {note}")


def _next(
    found: Found, outcome: Outcome, place: int, taken: Callable[[SceneJob], SceneJob]
) -> Iterator[SceneJob]:
    """Yield the scenes at a place of their groups that still add ground, and record what was decided."""
    jobs = {job.scene.id: job for job in found.jobs}
    for group in (g for g in found.groups if len(g) > place):
        name = group[place]
        used = [other for other in group[:place] if other in outcome.spools]
        # whoever went before could not be used: this one takes its place
        if not used:
            yield taken(jobs[name])
            continue
        share = _new_share(found, name, used)
        kept = share >= duplicates.LITTLE
        product = str(jobs[name].scene.location)
        outcome.decisions.append(Decision(name, product, tuple(used), share, kept))
        if kept:
            yield with_taken(taken(jobs[name]), (outcome.spools[other] for other in used))


def _new_share(found: Found, name: str, used: Sequence[str]) -> float:
    try:
        return duplicates.new_share(found.places[name], [found.places[other] for other in used])
    except RasterioError:
        # the work on the scene meets the same file, and tells
        return 1.0


def with_taken(job: SceneJob, others: Iterable[Spool]) -> SceneJob:
    """Return a job that leaves out the ground of other scenes' samples."""
    return replace(job, taken=(*job.taken, *(box for other in others for box in other.boxes)))
