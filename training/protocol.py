"""A study as data: which pretrainings (rows), how often (seeds), and how each is judged (tasks).

A cell is a row with one seed: a pretraining, then a downstream run for each task. Rows differ from the reference by
their words alone, and cells of one seed are pairs: the same order of samples, the same labels, the same splits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config import Config, UserPath
from pipeline.errors import unknown

Words = dict[str, Any]


class BaseConfig(Config):
    """What the pretrainings of all rows share."""

    config: UserPath
    """YAML file of `training/pretrain.py`."""
    words: Words = Field(default_factory=dict)
    """Keys that are other than there: {data: {shards: /path}, epochs: 20}."""


class TaskConfig(BaseConfig):
    """One way to judge an encoder; `config` is a file of `training/finetune.py`."""

    score: str
    """What counts of the scores, `val_miou` say; larger is better."""
    groups: UserPath | None = None
    """JSON, scene -> group, of scenes that are no independent evidence, such as chips that overlap; null: each scene is
    evidence of its own."""


class RowConfig(Config):
    """One row of the table."""

    pretrain: Words | None = Field(default_factory=dict)
    """What is other in pretraining; null pretrains nothing: runs start from scratch, or have no model."""
    tune: Words = Field(default_factory=dict)
    """What is other in the downstream runs: {mode: logistic, index_statistics: true}."""
    tasks: tuple[str, ...] | None = None
    """Tasks that the row is judged by; null: all."""
    seeds: int | None = Field(default=None, ge=1)
    """The first so many of the study's seeds; null: all."""


class StudyConfig(Config):
    """A study."""

    name: str
    """Name of the MLflow run that the study's runs are shown below."""
    output: UserPath
    """Folder of the runs and of the report."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Of everything that is drawn: weights, order, crops, masks."""
    reference: str
    """The row that others are compared with, seed by seed."""
    pretrain: BaseConfig
    """The pretraining of all rows."""
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    """How encoders are judged, by name."""
    rows: dict[str, RowConfig] = Field(min_length=1)
    """The rows, by name, in the order of the table."""
    draws: int = Field(default=1000, ge=100)
    """Draws of the bootstrap over seeds and groups."""

    @model_validator(mode="after")
    def _known(self) -> StudyConfig:
        if self.reference not in self.rows:
            raise ValueError(str(unknown("row", self.reference, self.rows, "reference")))
        for row in self.rows.values():
            for task in row.tasks or ():
                if task not in self.tasks:
                    raise ValueError(str(unknown("task", task, self.tasks, "rows")))
        return self

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """Return the seeds of a row."""
        return self.seeds[: self.rows[row].seeds]

    def tasks_of(self, row: str) -> tuple[str, ...]:
        """Return the tasks of a row."""
        wanted = self.rows[row].tasks
        return tuple(self.tasks) if wanted is None else wanted

    def cells(self) -> list[Cell]:
        """Return all cells, seed by seed: when a study is stopped, what is there are whole pairs."""
        pairs = ((seed, row) for seed in self.seeds for row in self.rows)
        return [Cell(self, row, seed) for seed, row in pairs if seed in self.seeds_of(row)]


@dataclass(frozen=True)
class Step:
    """One run of a cell."""

    entry: Literal["pretrain", "finetune"]
    name: str
    """Of the run and its folder."""
    config: Path
    words: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A row with one seed."""

    study: StudyConfig
    row: str
    seed: int

    @property
    def name(self) -> str:
        """Of the pretraining; downstream runs have the task's behind it."""
        return f"{self.row}-s{self.seed}"

    def run(self, task: str) -> Path:
        """Return the folder of the cell's run of a task."""
        return self.study.output / f"{self.name}-{task}"

    def steps(self, scratch: Words) -> Iterator[Step]:
        """Yield the cell's runs in order; scratch: the model of rows that pretrain nothing."""
        row, base = self.study.rows[self.row], self.study.pretrain
        if row.pretrain is not None:
            yield self._step("pretrain", self.name, base, row.pretrain)
        start: Words = {"model": scratch, "init": None}
        if row.pretrain is not None:
            start = {"init": str(self.study.output / self.name)}
        for task in self.study.tasks_of(self.row):
            yield self._step("finetune", f"{self.name}-{task}", self.study.tasks[task], start | row.tune)

    def _step(self, entry: Literal["pretrain", "finetune"], name: str, base: BaseConfig, more: Words) -> Step:
        mine = {"name": name, "output": str(self.study.output), "seed": self.seed}
        mine["tracking.parent"] = self.study.name
        # `mine` last: no row's words may take another run's folder or seed
        return Step(entry, name, base.config, as_words(base.words, more, mine))


def as_words(*trees: Words) -> tuple[str, ...]:
    """Return what trees of keys say as `a.b=c` words; later trees win."""
    merged: Words = {}
    for tree in trees:
        # leaf by leaf: a row that sets one key of a group leaves the others
        merged |= dict(_leaves(tree))
    # JSON is YAML too
    return tuple(f"{key}={json.dumps(value)}" for key, value in merged.items())


def _leaves(tree: Words, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        # an empty mapping says something: all of it as it is by default
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
