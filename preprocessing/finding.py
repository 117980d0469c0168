"""The scenes of an archive: opened, selected, checked together, and grouped by acquisition."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.errors import ConfigError, SceneError
from preprocessing import conventions, duplicates, grids, labelling, quality, selection, settings, splits
from preprocessing.duplicates import Place
from preprocessing.grids import Grid
from preprocessing.jobs import SceneJob
from preprocessing.quality import Rejection
from preprocessing.readers import READERS, Request, discover
from preprocessing.scenes import Scene
from preprocessing.selection import Ring
from preprocessing.settings import ShardConfig
from preprocessing.splits import Lists

FEW = 300
"""Up to so many scenes a plan opens all."""
SAMPLE = 50
"""Of more it opens so many of each family."""
OPENERS = 8
"""Files that are opened at a time."""


@dataclass(frozen=True)
class Found:
    """The scenes of an archive, and the products no scene could be made of."""

    jobs: tuple[SceneJob, ...]
    rejections: tuple[Rejection, ...]
    """Products that cannot be opened, and those `rejected.csv` names and nobody repaired."""
    unselected: dict[str, str] = field(default_factory=dict)
    """Product -> why `select` leaves it out."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Scenes of one acquisition over one tile, the preferred one first."""
    places: dict[str, Place] = field(default_factory=dict)
    """Scene -> where and when, where its file was opened: of all scenes, or of a sample of each family."""
    is_sampled: bool = False
    """Whether only a sample was opened."""
    sources: dict[str, str] = field(default_factory=dict)
    """Every product with a digest that changes when it does; of one that cannot be opened, of its reason. None in a
    plan."""

    @property
    def total(self) -> int:
        """Number of products that were to be used."""
        return len(self.jobs) + len(self.rejections)

    def why_unselected(self) -> dict[str, int]:
        """Count the products `select` leaves out, by reason."""
        return dict(sorted(Counter(self.unselected.values()).items()))


def find_scenes(request: ShardConfig, planning: bool = False) -> Found:
    """Open the metadata of every product below `scenes`; no pixel is read, but the corners of two-fold scenes.

    planning: nothing is made of them, so of many scenes only some need their files opened.
    """
    asked = Request(
        request.instrument,
        request.bands,
        gsd_m=None if request.gsd_m == "native" else request.gsd_m,
        offset=request.offset,
        files=request.files,
        table=request.labels.table if request.labels else None,
        quality_masks=request.quality_masks,
    )
    lists = splits.read(
        request.split, READERS[request.reader].lists_from if request.reader in READERS else ""
    )
    scenes, rejections, unselected = _open_products(request, asked, lists)
    to_open = scenes_to_open(request, list(scenes.values()), planning)
    places = dict(_places(request, to_open))
    for name, place in places.items() if request.select.area else ():
        if selection.outside(request.select, corners(place.grid)):
            unselected[str(scenes.pop(name).location)] = "outside the area"
    check_levels(scenes.values())
    found = Found((), tuple(rejections), unselected, places=places, is_sampled=len(to_open) < len(scenes))
    jobs = [SceneJob(scenes[name], request) for name in sorted(scenes)]
    # a plan compares with nothing; every digest looks at all files of its scene
    sources = {} if planning else _sources(jobs, rejections)
    return _settle(request, replace(found, sources=sources), jobs)


def _open_products(
    request: ShardConfig, asked: Request, lists: Lists
) -> tuple[dict[str, Scene], list[Rejection], dict[str, str]]:
    """Return the scenes by name, the products no scene could be made of, and why `select` leaves others out."""
    scenes: dict[str, Scene] = {}
    rejections, unselected = [], {}
    for reader, product in discover(request.scenes, asked, request.reader):
        try:
            scene = lists.place(labelling.check(reader.open(product, asked), request.labels))
            scene = _renamed(scene, scenes, request)
        except SceneError as error:
            rejections.append(Rejection(str(product), str(error), quality.OPENING))
            continue
        # after it was opened: date and cloud stand in the metadata
        reason = selection.unwanted(request.select, scene)
        if reason:
            unselected[str(product)] = reason
        else:
            scenes[scene.id] = scene
    return scenes, rejections, unselected


def scenes_to_open(request: ShardConfig, scenes: Sequence[Scene], planning: bool) -> Sequence[Scene]:
    """Return the scenes whose grid has to be known: all where ground decides, else a sample of each family."""
    by_ground = request.select.area is not None or (request.duplicates == "drop" and not planning)
    if by_ground or len(scenes) <= FEW:
        return scenes
    families: dict[tuple[str, str], list[Scene]] = defaultdict(list)
    for scene in scenes:
        families[family(scene)].append(scene)
    # evenly spread, as patches of one region stand together
    return [one for members in families.values() for one in members[:: -(-len(members) // SAMPLE)]]


def family(scene: Scene) -> tuple[str, str]:
    """Return what scenes have in common whose grids are alike."""
    return scene.reader, scene.level


def _renamed(scene: Scene, known: dict[str, Scene], request: ShardConfig) -> Scene:
    """Give a scene a name of its own; a product that stands in two folders is settled as a duplicate."""
    if scene.id not in known:
        return scene
    if request.duplicates == "keep":
        raise SceneError(
            f"{scene.location} has the same name as {known[scene.id].location}; keep one of them,"
            " or set `duplicates: drop`."
        )
    # short enough for a key, which must hold the tile's place too
    number = next(n for n in range(2, len(known) + 3) if f"{scene.id[:60]}-{n}" not in known)
    return replace(scene, id=f"{scene.id[:60]}-{number}")


def _places(request: ShardConfig, scenes: Collection[Scene]) -> Iterator[tuple[str, Place]]:
    """Yield the place of every scene that is compared, selected by ground or planned for."""

    def grid(scene: Scene) -> Grid | None:
        try:
            return target_grid(request, scene)
        # the work on the scene meets the same file, and tells
        except SceneError:
            return None

    # opening waits for the disk, which can look for several files at once
    with ThreadPoolExecutor(OPENERS) as pool:
        for scene, found in zip(scenes, pool.map(grid, scenes), strict=True):
            if found:
                yield scene.id, Place.of(scene, found)


def target_grid(request: ShardConfig, scene: Scene) -> Grid:
    """Return the grid a scene will be stored on, from the file of its finest band alone."""
    bands = request.instrument.select(request.bands)
    # the finest band's grid is the target's; the others' need not be opened to plan
    finest = min(range(len(bands)), key=lambda k: bands[k].gsd_m)
    own = grids.stated(scene.bands[finest].stated) or grids.read_grid(scene.bands[finest].path)
    return grids.choose(own, None if request.gsd_m == "native" else request.gsd_m, request.crs)


def corners(grid: Grid) -> Ring:
    """Return longitude and latitude of a grid's corners, [4, 2], clockwise from the upper left."""
    width, height = float(grid.width_px), float(grid.height_px)
    lon, lat = grid.lonlat(np.array([0, width, width, 0]), np.array([0, 0, height, height]))
    return np.stack([lon, lat], -1)


def _sources(jobs: Sequence[SceneJob], rejections: Sequence[Rejection]) -> dict[str, str]:
    digests = {job.scene.id: job.source_digest for job in jobs}
    return digests | {r.product: settings.digest(r.reason) for r in rejections}


def _settle(request: ShardConfig, found: Found, jobs: Sequence[SceneJob]) -> Found:
    """Leave out what an earlier run rejected and nobody changed; group what shows one acquisition."""
    earlier = {r.product: r for r in quality.read_rejected(request.output)}
    still = [
        known
        for job in jobs
        if (known := earlier.get(str(job.scene.location))) and known.tried in ("", job.sample_digest())
    ]
    out = {r.product for r in still}
    kept = tuple(job for job in jobs if str(job.scene.location) not in out)
    groups: tuple[tuple[str, ...], ...] = ()
    if request.duplicates == "drop" and not found.is_sampled:
        # a scene whose file cannot be opened has no place; the work on it will say so
        placed = [found.places[j.scene.id] for j in kept if j.scene.id in found.places]
        near = [p for p in placed if p.grid.is_placed]
        groups = tuple(tuple(p.scene.id for p in group) for group in duplicates.acquisitions(near))
    return replace(found, jobs=kept, rejections=(*found.rejections, *still), groups=groups)


def check_levels(scenes: Collection[Scene]) -> None:
    """Raise `ConfigError` where reflectance at the top of the atmosphere and of the surface would be mixed."""
    # one set has one contract, and one contract one quantity
    kinds = {conventions.standard_name(s.level): s for s in scenes}
    if len(kinds) > 1:
        examples = " and ".join(f"{s.location.name} ({s.level})" for s in kinds.values())
        raise ConfigError(
            f"{examples} do not hold the same quantity, {' and '.join(kinds)}:"
            " point `scenes` at a folder with one of them."
        )
