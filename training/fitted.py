"""Downstream runs without steps: what pooled features tell, and the plain baselines. Scored and recorded as trainings
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.console import Progress, say, table
from training import neighbours, plain, runs
from training.data import Batch
from training.downstream import BY_FEATURES, Setup
from training.guards import COMPLETE, mark
from training.model import count_parameters
from training.tasks.dense import Dense
from training.tracking import Tracker
from training.upernet import stretched

Predict = Callable[[Batch], Tensor]


def fit(setup: Setup) -> bool:
    """Learn from the training samples at once, score the whole validation split, record both; collective."""
    config, world = setup.config, setup.world
    # nodes with copies of their own may read other sets, and nothing below would notice
    world.require_same("data", setup.data.model_dump(mode="json"))
    micro = config.batch.micro or max(config.batch.size // world.size, 1)
    learn = _by_features if config.mode in BY_FEATURES else _plain
    if world.main:
        say(table(("what", "this run"), [("run", str(config.folder)), ("task", _what(setup)), *setup.told()]))
    identity = runs.identity(config, config.task, setup.data, {"ranks": world.size})
    # made at once: a run that fails to learn is a recorded run too
    with Tracker(identity, config.tracking, 0, world.main) as tracker:
        predict, validation = learn(setup, micro), setup.validation(micro)
        scored = setup.score(
            _followed(predict, Progress("score", len(validation), "batches", live=world.main)), validation
        )
        tally = scored.tally
        scores = setup.task.scores(tally)
        tracker.log(1, {f"{config.val_split}_{k}": v for k, v in scores.items()})
        tracker.commit(1)
        tracker.finish(complete=True)
        if world.main:
            # the marker last: whoever finds it finds the tallies too
            scored.save(config.folder)
            mark(config.folder, COMPLETE)
            told = ", ".join(f"{k} {v:.4f}" for k, v in scores.items())
            say(f"{setup.task.report(tally)}\n{config.val_split}: {told}")
    world.barrier()
    return True


def _training(setup: Setup, micro: int) -> Iterator[Batch]:
    """Yield the training samples' batches, and tell how far they are."""
    known = setup.training(micro)
    progress = Progress("learn", len(known), "batches", live=setup.world.main)
    for batch in known.batches(setup.config.data.workers):
        yield batch
        progress.advance()


def _followed(predict: Predict, progress: Progress) -> Predict:
    """Return what predicts as well, and tells how far it is."""

    def following(batch: Batch) -> Tensor:
        predicted = predict(batch)
        progress.advance()
        return predicted

    return following


def _what(setup: Setup) -> str:
    config = setup.config
    from_what = f" of {config.init}" if config.init else ""
    return f"{config.task}, {config.mode}{from_what}"


def _by_features(setup: Setup, micro: int) -> Predict:
    """Return what nearest neighbours, or a linear map, of the training samples' features say."""
    model, handed = setup.model()
    model.to(setup.world.device).eval()
    for line in handed if setup.world.main else ():
        say(line)

    @torch.no_grad()
    def embed(batch: Batch) -> Tensor:
        return model.embed(*setup.images(batch)).float().cpu()

    if setup.world.main:
        say(f"encoder of {count_parameters(model.encoder) / 1e6:.2f} M parameters")
    return (_tiles if setup.task.pooled else _cells)(setup, micro, embed)


def _tiles(setup: Setup, micro: int, features: Predict) -> Predict:
    """Return what one vector a tile says, with the tile's statistics beside it where they are asked for."""
    config, task = setup.config, setup.task
    statistics = _statistics(setup) if config.beside_statistics else None

    def embed(batch: Batch) -> Tensor:
        if statistics is None:
            return features(batch)
        return torch.cat([features(batch), torch.from_numpy(statistics.tiles(batch))], 1)

    known = neighbours.collect(_training(setup, micro), embed, task.usable, setup.world)
    way: neighbours.Way = "knn" if config.mode == "knn" else "ridge"
    learned = neighbours.learn(way, known, len(task.classes), config.neighbours)
    return lambda batch: learned(embed(batch).numpy())


def _cells(setup: Setup, micro: int, features: Predict) -> Predict:
    """Return what one vector a cell says, stretched over the cell's pixels."""
    task, side = setup.task, setup.part.view.image_px
    weights = task.weights if isinstance(task, Dense) else None
    weights = torch.ones(len(task.classes)) if weights is None else weights
    known = neighbours.collect_cells(_training(setup, micro), features, weights, setup.world)
    learned = neighbours.learn_cells(known)
    return lambda batch: stretched(learned(features(batch)), side)


def _statistics(setup: Setup) -> plain.Statistics:
    """Return which statistics of tiles and pixels the run asks for."""
    part = setup.part
    return plain.Statistics(
        part.family.contract, tuple(b.name for b in part.bands), setup.config.index_statistics
    )


def _plain(setup: Setup, micro: int) -> Predict:
    """Return what a classifier on statistics of tiles or pixels says."""
    config, task, statistics = setup.config, setup.task, _statistics(setup)
    weights = task.weights.tolist() if isinstance(task, Dense) and task.weights is not None else None
    classifier = plain.Plain("forest" if config.mode == "forest" else "logistic", config.seed, weights)
    found = [_rows(setup, statistics, batch) for batch in _training(setup, micro)]
    # every rank fits the same to all rows: predictions then need no exchange
    shared = setup.world.gather(tuple(np.concatenate(part) for part in zip(*found, strict=True)))
    vectors, labels = (np.concatenate(part) for part in zip(*shared, strict=True))
    classifier.fit(vectors, labels)

    def predict(batch: Batch) -> Tensor:
        if task.pooled:
            return classifier.scores(statistics.tiles(batch), len(task.classes))
        rows_BFHW = statistics.pixels(batch)
        flat = np.moveaxis(rows_BFHW, 1, -1).reshape(-1, rows_BFHW.shape[1])
        scores = classifier.scores(flat, len(task.classes))
        return scores.reshape(len(rows_BFHW), *rows_BFHW.shape[2:], -1).movedim(-1, 1)

    return predict


def _rows(setup: Setup, statistics: plain.Statistics, batch: Batch) -> tuple[plain.Rows, NDArray[np.int64]]:
    """Return the statistics and labels to learn from of a batch."""
    if setup.task.pooled:
        usable = setup.task.usable(batch).numpy()
        return statistics.tiles(batch)[usable], batch.labels_B.numpy()[usable]
    return plain.some_pixels(statistics.pixels(batch), batch, setup.config.seed)
