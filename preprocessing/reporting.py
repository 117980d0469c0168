"""The quality report of a set: its numbers, and a page that draws them.

`quality.json` and `quality.html` stay small enough to open however many scenes a set has: what grows with the scenes
is summed up, or told of the first of them. Every scene has its line in `scenes.jsonl`.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline import histogram as exact
from pipeline.histogram import Sparse
from pipeline.manifest import Manifest, SceneRecord, write_atomically
from pipeline.sample import SCALE, Flag
from preprocessing import contributions, finding, leakage, page, profiles, quality
from preprocessing.contributions import Contributions, Counts, Unlike
from preprocessing.finding import Found
from preprocessing.footprints import Footprints
from preprocessing.profiles import HIGHEST, LOWEST
from preprocessing.rounds import Outcome
from preprocessing.settings import ShardConfig
from preprocessing.spool import Spool

DIGITS = 6
"""Of degrees and shares in the report: a decimetre."""
SHOWN = 400
"""Scenes, rejections and decisions in `quality.json`; the others stand in their own files."""
TOLD = 20
"""Scenes named as unlike all others."""


@dataclass(frozen=True)
class Inputs:
    """What the report is made of."""

    request: ShardConfig
    made: Manifest
    spools: Sequence[Spool]
    outcome: Outcome
    found: Found
    histograms: Mapping[str, Sparse]
    """Scene -> counts over its training tiles."""
    given: Contributions
    """What the scenes gave to the statistics."""


@dataclass
class Totals:
    """What the scenes come to, as they pass by."""

    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The first scenes' numbers."""
    footprints: Footprints = field(default_factory=Footprints)
    unlike: list[tuple[float, str, str]] = field(default_factory=list)
    """Share of pixels outside the range of all others, scene, band: the largest."""
    number_unlike: int = 0

    def add(self, name: str, numbers: dict[str, Any]) -> None:
        """Take one scene into account."""
        if len(self.first) < SHOWN:
            self.first[name] = numbers
        if numbers["footprint"]:
            self.footprints.add(name, numbers["footprint"], numbers["clear_share"])
        apart = Unlike(**numbers["unlike"])
        if apart.is_told:
            self.number_unlike += 1
            heapq.heappush(self.unlike, (apart.share, name, apart.band))
            # the heap gives up its smallest
            if len(self.unlike) > TOLD:
                heapq.heappop(self.unlike)


def write(inputs: Inputs) -> dict[str, Any]:
    """Write the report's files; returns the tree of `quality.json`."""
    folder, totals = inputs.request.output, Totals()
    quality.write_scenes(folder, _passing(inputs, totals))
    quality.write_duplicates(folder, inputs.outcome.decisions)
    # only now: the totals were summed up while the scenes were written
    tree = report(inputs, totals)
    write_atomically(folder / quality.REPORT, (json.dumps(tree, indent=1) + "\n").encode())
    write_atomically(folder / page.NAME, page.page(inputs.made, tree, folder).encode())
    return tree


def _passing(inputs: Inputs, totals: Totals) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every scene with its numbers, and sum them up on the way."""
    records = {record.id: record for record in inputs.made.scenes}
    total = contributions.coarse(exact.sparse(inputs.given.total))
    for spool in inputs.spools:
        numbers = scene(inputs, spool, records[spool.scene], total)
        totals.add(spool.scene, numbers)
        yield spool.scene, numbers


def report(inputs: Inputs, totals: Totals) -> dict[str, Any]:
    """Return the numbers of a run; lists are cut where `totals` says how long they are."""
    made, outcome, left_out = inputs.made, inputs.outcome, inputs.given.left_out
    leaks = leakage.check([s for s in inputs.spools if s.profile.grid.is_placed])
    return {
        "name": made.name,
        "tiles": quality.total_tiles(made.scenes),
        "unlabelled": sum(s.unlabelled for s in made.scenes),
        "totals": {
            "scenes": len(made.scenes),
            "rejected": len(outcome.rejections),
            "duplicates": len(outcome.decisions),
            "left_out_of_statistics": len(left_out),
            "unlike": totals.number_unlike,
        },
        "scenes": totals.first,
        # here too: a report should need no second file
        "rejected": [{"product": r.product, "reason": r.reason} for r in outcome.rejections[:SHOWN]],
        "rejected_digest": quality.digest_of(outcome.rejections),
        "duplicates": [asdict(d) | {"text": d.text} for d in outcome.decisions[:SHOWN]],
        "not_selected": inputs.found.why_unselected(),
        "leakage": asdict(leaks),
        "left_out_of_statistics": dict(list(left_out.items())[:SHOWN]),
        "unlike": [
            {"scene": name, "band": band, "share": round(share, DIGITS)}
            for share, name, band in sorted(totals.unlike, reverse=True)
        ],
        "map": totals.footprints.drawn(),
        "bands": {b.name: s.model_dump() for b, s in zip(made.contract.bands, made.statistics, strict=True)},
        "histograms": histograms(inputs),
    }


def scene(inputs: Inputs, made: Spool, record: SceneRecord, total: Counts) -> dict[str, Any]:
    """Return the numbers of one scene; total: coarse counts [band, bin] of the set."""
    profile, counts = made.profile, inputs.histograms[made.scene]
    bands = inputs.request.bands
    apart = contributions.unlike(bands, total, contributions.coarse(counts))
    bits = [f for f in Flag if profile.share(int(f))]
    placed = profile.grid.is_placed
    kept = {"tiles", "unlabelled", "notes", "acquired", "statistics_px"}
    return record.model_dump(include=kept) | {
        "footprint": np.round(finding.corners(profile.grid), DIGITS).tolist() if placed else None,
        "valid_share": round(1 - profile.share(int(Flag.NODATA)), DIGITS),
        "clear_share": round(1 - profile.share(int(inputs.request.unclear_bits)), DIGITS),
        "flags": {str(f.name).lower(): round(profile.share(int(f)), DIGITS) for f in bits},
        "fates": list(profile.fates),
        "grid": {
            "crs": profile.crs,
            "transform": profile.transform,
            "shape_px": profile.shape_px,
            "tile_px": profile.tile_px,
            "tops": profile.tops,
            "lefts": profile.lefts,
        },
        # its own training pixels, whether or not they were let into the statistics of the set
        "bands": {
            name: statistics.model_dump(exclude={"winsorised"})
            for name, statistics in zip(bands, exact.statistics_of(counts), strict=True)
        },
        "unlike": {"band": apart.band, "share": round(apart.share, DIGITS)},
    }


def histograms(inputs: Inputs) -> dict[str, Any]:
    """Return what the histograms of the page show.

    bands: `before` are all measured pixels of rows of the scenes, clouds and all; `after` the clear pixels of training
    tiles, which the statistics are made of. indices: means of the cells of all samples.
    """
    request = inputs.request
    before, after = np.asarray(inputs.outcome.before), contributions.coarse(exact.sparse(inputs.given.total))
    # no scene gave a sample: nothing was counted
    counted = np.asarray(inputs.outcome.indices)
    indices = counted if counted.ndim else np.zeros((len(request.indices), 0))
    return {
        "reflectance": [LOWEST * SCALE, HIGHEST * SCALE],
        "bands": {
            name: {"before": before[k].tolist(), "after": after[k].tolist()}
            for k, name in enumerate(request.bands)
        },
        "indices": {name: indices[k].tolist() for k, name in enumerate(request.indices)},
        "letters": {letter: name for name, letter in profiles.LETTERS.items()} | {profiles.OTHER: "other"},
    }
