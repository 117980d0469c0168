"""Growing archives: new scenes go into a numbered set beside the finished ones, which are never touched.

Training reads the sets together; their contracts are the same because their settings are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import console
from pipeline import manifest as manifests
from pipeline.config import differences
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest
from preprocessing import duplicates, profiles, quality, settings
from preprocessing.duplicates import Place
from preprocessing.finding import Found
from preprocessing.grids import Box
from preprocessing.jobs import SceneJob
from preprocessing.profiles import Profile
from preprocessing.scenes import Scene
from preprocessing.settings import ShardConfig

FREE = ("select", "format_versions")
"""Settings that may differ between the sets of one archive: they choose scenes."""


@dataclass(frozen=True)
class Earlier:
    """A finished set that stands there already."""

    folder: Path
    made: Manifest
    scenes: dict[str, Any]
    """Of its quality report."""

    @cached_property
    def by_day(self) -> dict[str, list[str]]:
        """Scenes by the day they were taken on: an archive has too many to compare each with each."""
        days: dict[str, list[str]] = {}
        for name, known in self.scenes.items():
            days.setdefault(known["acquired"][:10], []).append(name)
        return days

    def near(self, time: datetime) -> Iterator[str]:
        """Yield the scenes that may be of the same acquisition."""
        for day in {f"{time + apart:%Y-%m-%d}" for apart in (-duplicates.SAME_TIME, duplicates.SAME_TIME)}:
            yield from self.by_day.get(day, ())


def beside(request: ShardConfig, found: Found) -> tuple[ShardConfig, Found, tuple[Earlier, ...]]:
    """Return what to make beside the finished sets of an output, of which scenes.

    Where the first set is not finished yet, it is what is made. Raises `ConfigError` where settings differ.
    """
    earlier = tuple(_finished(request.output))
    if not earlier:
        return request, found, ()
    for one in earlier:
        _check_settings(request, one)
    sources = {n: d for one in earlier for n, d in settings.read_sources(one.folder).items()}
    held = {scene.id for one in earlier for scene in one.made.scenes}
    altered = {n: sources[n] for n in held & found.sources.keys() & sources.keys()}
    changed = settings.source_changes(altered, {n: found.sources[n] for n in altered})
    # told, not redone: an earlier set is what somebody's training has read
    if changed:
        console.say(f"changed after their set was made, which stays as it is: {changed}.")
    # what was rejected then is tried again once its files are others
    known = held | {n for n, d in found.sources.items() if sources.get(n) == d}
    # only what is new: the earlier sets hold the others
    jobs = tuple(job for job in found.jobs if job.scene.id not in known)
    names = {job.scene.id for job in jobs}
    number = len(earlier) + 1
    target = request.model_copy(
        update={
            "output": manifests.numbered(request.output, number),
            "name": f"{request.name[:60]}-{number:03d}",
        }
    )
    fresh = replace(
        found,
        jobs=tuple(replace(job, config=target) for job in jobs),
        rejections=tuple(r for r in found.rejections if r.product not in known),
        groups=tuple(
            g for g in (tuple(n for n in group if n in names) for group in found.groups) if len(g) > 1
        ),
        sources={n: d for n, d in found.sources.items() if n not in known},
    )
    return target, fresh, earlier


def _finished(output: Path) -> Iterator[Earlier]:
    """Yield the finished sets of a series, in order; the first without a manifest ends it."""
    number = 1
    # numbers without gaps: a set that was moved away ends the series
    while (folder := manifests.numbered(output, number)).joinpath(manifests.NAME).exists():
        yield Earlier(folder, manifests.read(folder), dict(quality.read_scenes(folder)))
        number += 1


def _check_settings(request: ShardConfig, earlier: Earlier) -> None:
    old, new = (
        {k: v for k, v in tree.items() if k not in FREE}
        for tree in (earlier.made.settings, settings.comparable(request))
    )
    changed = differences(old, new)
    if changed:
        raise ConfigError(
            f"a set beside {earlier.folder} must be made by the same settings: {'; '.join(changed)}."
            " Set them back, or take another `output`."
        )


def without_ground_of(earlier: Sequence[Earlier], found: Found, job: SceneJob) -> SceneJob:
    """Return a job that leaves out ground which earlier sets hold from the same acquisition."""
    place = found.places.get(job.scene.id)
    # without a time two scenes cannot be told to be one acquisition
    if place is None or place.time is None or not place.grid.is_placed or job.config.duplicates == "keep":
        return job
    boxes = [box for one in earlier for name in one.near(place.time) for box in _common(one, name, place)]
    return replace(job, taken=(*job.taken, *boxes)) if boxes else job


def _common(earlier: Earlier, name: str, place: Place) -> list[Box]:
    """Return the ground of an earlier scene's samples where it is the same acquisition."""
    known = earlier.scenes[name]
    grid: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known["grid"].items()}
    profile = Profile(**grid)
    if not profile.grid.is_placed:
        return []
    mine = place.scene
    stand_in = Scene(name, mine.sensor, mine.level, mine.reader, Path(name), known["acquired"], ())
    other = Place.of(stand_in, profile.grid)
    # the same ground on another day is another sample
    if other.time is None or not duplicates.acquisitions([place, other]):
        return []
    samples = {profiles.LETTERS[split] for split in earlier.made.splits if split in profiles.LETTERS}
    return [
        profile.grid.box(top_px, left_px, profile.tile_px)
        for top_px, letters in zip(profile.tops, known["fates"], strict=True)
        for left_px, letter in zip(profile.lefts, letters, strict=True)
        if letter in samples
    ]
