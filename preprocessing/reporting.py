"""The quality report of a set: `quality.json` with every number, and `quality.html` that draws them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline import histogram as exact
from pipeline.histogram import Histogram
from pipeline.manifest import Manifest, write_atomically
from pipeline.sample import NODATA, SCALE, Flag
from preprocessing import finding, leakage, page, profiles, quality
from preprocessing.finding import Found
from preprocessing.profiles import BIN, HIGHEST, LOWEST
from preprocessing.rounds import Outcome
from preprocessing.settings import ShardConfig
from preprocessing.spool import Spool

DIGITS = 6
"""Of degrees and shares in the report: a decimetre."""


@dataclass(frozen=True)
class Inputs:
    """What the report is made of."""

    request: ShardConfig
    made: Manifest
    spools: Sequence[Spool]
    outcome: Outcome
    found: Found
    histograms: Mapping[str, Histogram]
    """Scene -> [band, stored value + 32768] over its training tiles."""


def write(inputs: Inputs) -> dict[str, Any]:
    """Write `quality.json` and `quality.html`; returns the tree of the first."""
    tree, folder = report(inputs), inputs.request.output
    write_atomically(folder / quality.REPORT, (json.dumps(tree, indent=1) + "\n").encode())
    write_atomically(folder / page.NAME, page.page(inputs.made, tree, folder).encode())
    return tree


def report(inputs: Inputs) -> dict[str, Any]:
    """Return all numbers of a run."""
    made, outcome = inputs.made, inputs.outcome
    leaks = leakage.check([s for s in inputs.spools if s.profile.grid.is_placed])
    return {
        "name": made.name,
        "tiles": quality.total_tiles(made.scenes),
        "unlabelled": sum(s.unlabelled for s in made.scenes),
        "scenes": {s.scene: scene(inputs, s) for s in inputs.spools},
        # here too: a report should need no second file
        "rejected": [{"product": r.product, "reason": r.reason} for r in outcome.rejections],
        "duplicates": [asdict(d) | {"text": d.text} for d in outcome.decisions],
        "not_selected": inputs.found.why_unselected(),
        "leakage": asdict(leaks),
        "bands": {b.name: s.model_dump() for b, s in zip(made.contract.bands, made.statistics, strict=True)},
        "histograms": histograms(inputs),
    }


def scene(inputs: Inputs, made: Spool) -> dict[str, Any]:
    """Return the numbers of one scene."""
    record = next(r for r in inputs.made.scenes if r.id == made.scene)
    profile = made.profile
    bits = [f for f in Flag if profile.share(int(f))]
    placed = profile.grid.is_placed
    return record.model_dump(include={"tiles", "unlabelled", "notes", "acquired"}) | {
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
        # what it contributed to the statistics of the set
        "bands": {
            name: statistics.model_dump()
            for name, statistics in zip(
                inputs.request.bands, exact.statistics(inputs.histograms[made.scene]), strict=True
            )
        },
    }


def histograms(inputs: Inputs) -> dict[str, Any]:
    """Return what the histograms of the page show.

    bands: `before` are all measured pixels of windows of the scenes, clouds and all; `after` the clear pixels of
    training tiles, which the statistics are made of. indices: means of the cells of all samples.
    """
    before = np.sum([s.profile.bands for s in inputs.spools], axis=0)
    after = sum(coarse(h) for h in inputs.histograms.values())
    counted = [s.profile.indices for s in inputs.spools if s.profile.indices]
    indices = np.sum(counted, axis=0) if counted else np.zeros((len(inputs.request.indices), 0))
    return {
        "reflectance": [LOWEST * SCALE, HIGHEST * SCALE],
        "bands": {
            name: {"before": before[k].tolist(), "after": np.asarray(after)[k].tolist()}
            for k, name in enumerate(inputs.request.bands)
        },
        "indices": {name: indices[k].tolist() for k, name in enumerate(inputs.request.indices)},
        "letters": {letter: name for name, letter in profiles.LETTERS.items()} | {profiles.OTHER: "other"},
    }


def coarse(histogram: Histogram) -> Histogram:
    """Sum an exact histogram [band, value] up to the bins of the page; values beyond its ends go to the last bins."""
    first, last = LOWEST - NODATA, HIGHEST - NODATA
    inner = histogram[:, first:last].reshape(len(histogram), -1, BIN).sum(-1)
    inner[:, 0] += histogram[:, :first].sum(-1)
    inner[:, -1] += histogram[:, last:].sum(-1)
    return np.asarray(inner, np.int64)
