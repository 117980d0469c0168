"""Few labels: a share of the training samples, drawn once by their keys and recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.errors import ContractError
from pipeline.keys import hash_text
from pipeline.manifest import write_atomically
from pipeline.sample import Label
from training.checkpoint import RunData
from training.reader import ShardReader
from training.sets import Family, Source

DRAWN = "drawn.json"


@dataclass(frozen=True)
class FewLabels(Source):
    """Some samples of a source, in their order."""

    numbers: tuple[int, ...] = ()
    """Which, in the row of all."""
    keys: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.numbers)

    @property
    def shards(self) -> list[int]:
        """Drawn samples of each shard that has any: they are in the order of the row."""
        ends = np.cumsum(super().shards)
        counted = np.bincount(np.searchsorted(ends, self.numbers, side="right"))
        return [int(count) for count in counted if count]

    @property
    def lost(self) -> int:
        """None: what is in damaged shards was not drawn."""
        return 0

    def labels(self) -> Iterator[Label | None]:
        """Yield the labels of the drawn samples."""
        drawn = set(self.numbers)
        yield from (label for number, label in enumerate(super().labels()) if number in drawn)

    def _find(self, number: int) -> tuple[ShardReader, int]:
        return super()._find(self.numbers[number])


@dataclass(frozen=True)
class Draw:
    """What is drawn of the training samples of a run."""

    fraction: float
    seed: int
    keys: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Identifier of the drawn samples."""
        return hashlib.sha256("\n".join(self.keys).encode()).hexdigest()[:16]

    def record(self, folder: Path) -> None:
        """Write the keys into a run's folder."""
        tree = {"fraction": self.fraction, "seed": self.seed, "digest": self.digest, "keys": self.keys}
        write_atomically(folder / DRAWN, json.dumps(tree, indent=0).encode())

    def mark(self, data: RunData) -> RunData:
        """Return a run's record whose identifier tells this draw from others."""
        both = hashlib.sha256(f"{data.digest} {self.digest}".encode()).hexdigest()[:16]
        return data.model_copy(update={"digest": both})


def draw(family: Family, fraction: float, seed: int) -> tuple[Family, Draw]:
    """Return a family with a share of its labelled samples: of each class alike where a sample has one class, at
    least one of each; the same for any number of ranks.

    Raises `ContractError` where no sample is labelled.
    """
    drawn = tuple(_few(source, fraction, seed) for source in family.sources)
    keys = tuple(chain(*(source.keys for source in drawn)))
    if not keys:
        names = ", ".join(source.name for source in drawn)
        raise ContractError(f"no sample of {names} carries a label to draw from: shard it with `labels`.")
    return replace(family, sources=drawn), Draw(fraction, seed, keys)


def _few(source: Source, fraction: float, seed: int) -> FewLabels:
    # of a damaged shard neither keys nor labels are known, and nothing is drawn
    keys = [key or "" for reader in source.readers for key in reader.keys()]  # noqa: SIM118 - no dict
    groups: dict[int, list[int]] = {}
    for number, label in enumerate(source.labels()):
        if label is not None:
            groups.setdefault(label if isinstance(label, int) else 0, []).append(number)
    numbers = sorted(chain(*(_share([keys[n] for n in g], g, fraction, seed) for g in groups.values())))
    return FewLabels(source.readers, source.weight, tuple(numbers), tuple(keys[n] for n in numbers))


def _share(keys: list[str], numbers: list[int], fraction: float, seed: int) -> list[int]:
    """Return a share of the numbers, in the order of a hash of their keys."""
    # half up: `round` makes 2 of 2.5 and 4 of 3.5
    count = max(int(len(numbers) * fraction + 0.5), 1)
    by_hash = sorted(zip(keys, numbers, strict=True), key=lambda pair: hash_text("fraction", seed, pair[0]))
    # the first of one order: a larger share of the same seed holds the smaller one
    return [number for _, number in by_hash[:count]]
