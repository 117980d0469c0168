"""Shard sets read together: which belong together, whether they may be, and the statistics of all."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline import histogram as histograms
from pipeline import manifest as manifests
from pipeline.config import differences
from pipeline.console import LOG
from pipeline.contract import BandContract, BandStatistics, DataContract, NormalisationKind
from pipeline.errors import ConfigError, ContractError, unknown
from pipeline.manifest import Manifest
from pipeline.sample import Label, Sample, Scratch
from training.checkpoint import DataRecord, RunData, SetRecord
from training.data import DataConfig, ShardSet, View
from training.order import RULE
from training.provenance import Provenance
from training.reader import Care, ShardReader
from training.storage import Bucket, Folder, Storage, beside, fetch_series

WITHOUT_LABELS = frozenset({"tile_px", "classes", "label_kind"})
"""Fields of the contract in which sets may differ that are trained on without labels."""
WITH_LABELS = frozenset({"tile_px"})
"""The same where labels count; tiles of any size give crops of one."""


@dataclass(frozen=True)
class Source:
    """Sets under one weight, their samples in one row."""

    readers: tuple[ShardReader, ...]
    weight: float | None = None
    """None: by number of samples."""

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(r) for r in self.readers))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._ends[-1]

    @property
    def name(self) -> str:
        """The folders, for people."""
        return ", ".join(r.name for r in self.readers)

    def _find(self, number: int) -> tuple[ShardReader, int]:
        """Return the set of sample `number` of the row, and its number there."""
        place = bisect.bisect_right(self._ends, number)
        reader = self.readers[place]
        return reader, number - (self._ends[place] - len(reader))

    @property
    def shards(self) -> list[int]:
        """Samples of each shard of the row."""
        return [shard.samples for r in self.readers for shard in r.shards]

    def read(self, number: int, scratch: Scratch | None = None) -> Sample:
        """Read and decode sample `number` of the row, into memory that is used again where it is given."""
        reader, inside = self._find(number)
        return reader.read(inside, scratch)

    def key(self, number: int) -> str:
        """Return the key of sample `number` of the row."""
        reader, inside = self._find(number)
        return reader.key(inside)

    def labels(self) -> Iterator[Label | None]:
        """Yield the labels of all samples of the row, without reading their images."""
        for reader in self.readers:
            yield from reader.labels()

    def place(self, number: int) -> str:
        """Return the shard that sample `number` of the row lies in."""
        reader, inside = self._find(number)
        return reader.place(inside)

    @property
    def lost(self) -> int:
        """Samples of the row that lie in shards that are known to be damaged."""
        return sum(r.shards[place].samples for r in self.readers for place in r.lost)


@dataclass(frozen=True)
class Family:
    """The sets of one sensor: their samples mean the same, and mix within a step."""

    sources: tuple[Source, ...]
    contract: DataContract
    """Of all of them: the smallest tile, the levels of all, classes only where they are the same."""

    @property
    def sets(self) -> dict[Path, Manifest]:
        """The manifests by folder."""
        return {r.folder: r.manifest for s in self.sources for r in s.readers}

    def __len__(self) -> int:
        """Return the number of samples."""
        return sum(map(len, self.sources))

    def statistics(self) -> tuple[BandStatistics, ...]:
        """Return the statistics of every stored band over all pixels of the training tiles.

        Those of several sets are merged exactly, from their histograms: a set counts by its pixels and not by its
        weight, so that the input of a model does not change with the weights.
        """
        # one set states its own: the histogram need not be there to train on it alone
        (first, *others) = self.sets.values()
        return histograms.merged(self.sets) if others else first.statistics


@dataclass(frozen=True)
class Part:
    """The samples of a sensor, and how they are looked at."""

    family: Family
    view: View

    @property
    def bands(self) -> tuple[BandContract, ...]:
        """The bands of the view, in its order."""
        return tuple(self.family.contract.bands[i] for i in self.view.bands)

    def record(self, normalise: NormalisationKind) -> DataRecord:
        """Return what weights trained on these samples expect of their input."""
        measured = self.family.statistics()
        return DataRecord(
            contract=self.family.contract,
            statistics=tuple(measured[i] for i in self.view.bands),
            bands=tuple(b.name for b in self.bands),
            image_px=self.view.image_px,
            normalise=normalise,
        )


def run_data(parts: Sequence[Part], normalise: NormalisationKind) -> RunData:
    """Return the record of all that a run reads."""
    sources = [s for part in parts for s in part.family.sources]
    sets = tuple(_set_record(r, s.weight) for s in sources for r in s.readers)
    # weights, order and rule decide which samples a step sees
    shares = json.dumps([RULE, [[s.weight, [r.manifest.digest() for r in s.readers]] for s in sources]])
    return RunData(
        sensors={p.family.contract.sensor: p.record(normalise) for p in parts},
        sets=sets,
        order=RULE,
        digest=hashlib.sha256(shares.encode()).hexdigest()[:16],
    )


def _set_record(reader: ShardReader, weight: float | None) -> SetRecord:
    made = reader.manifest
    return SetRecord(
        name=made.name,
        path=reader.name,
        digest=made.digest(),
        samples=len(reader),
        weight=weight,
        provenance=Provenance.of(made),
    )


def open_families(config: DataConfig, free: Collection[str] = WITHOUT_LABELS) -> tuple[Family, ...]:
    """Open the sets of a training, in families by sensor, in the order they are given.

    Raises `ContractError` naming two manifests and their differences where sets of one sensor do not agree in all
    but `free` fields of the contract, and where two sets hold the same sample.
    """
    sources = [_open(one, config.split, config) for one in config.shards]
    by_sensor: dict[str, list[Source]] = {}
    for source in sources:
        by_sensor.setdefault(source.readers[0].manifest.contract.sensor, []).append(source)
    _check_bands(config, list(by_sensor))
    families = tuple(_family(found, free, config) for found in by_sensor.values())
    require_distinct([r for s in sources for r in s.readers])
    return families


def open_split(config: DataConfig, split: str) -> Source:
    """Open another split of all sets as one row, each sample once whatever the weights.

    Raises `ContractError` where no set has samples of it, and `CorruptDataError` for a damaged shard whatever the
    configuration: of what is scored nothing is replaced.
    """
    found = {folder: one for shard_set in config.shards for folder, one in _found(shard_set, config).items()}
    return Source(tuple(_readers(found, split, Care(config.verify))))


def _open(one: ShardSet, split: str, config: DataConfig) -> Source:
    return Source(tuple(_readers(_found(one, config), split, config.care)), one.weight)


def _found(one: ShardSet, config: DataConfig) -> dict[Path, tuple[Manifest, Storage]]:
    """Return manifest and storage of a set, and of those before it that it stands for, by folder."""
    where, cache = one.path, config.cache
    path = fetch_series(where, one.earlier, cache) if isinstance(where, str) else where
    sets = manifests.series(path) if one.earlier else {_folder(path): manifests.read(path)}
    if isinstance(where, str):
        return {f: (made, Bucket(beside(where, f.name), cache)) for f, made in sets.items()}
    return {f: (made, Folder(f, cache)) for f, made in sets.items()}


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def first_sensor(config: DataConfig) -> str:
    """Return the sensor of the set that is given first."""
    # the last is the set itself; those before it are what it stands beside
    return list(_found(config.shards[0], config).values())[-1][0].contract.sensor


def _readers(sets: Mapping[Path, tuple[Manifest, Storage]], split: str, care: Care) -> Iterator[ShardReader]:
    """Yield readers of the sets that have samples of a split: not every scene that is added has some of each."""
    filled = {f: one for f, one in sets.items() if sum(s.samples for s in one[0].splits.get(split, ()))}
    # none has any: the reader of the last one says what is wrong
    for folder, (made, storage) in (filled or dict([list(sets.items())[-1]])).items():
        yield ShardReader(folder, split, care, made, storage)


def _family(sources: list[Source], free: Collection[str], config: DataConfig) -> Family:
    sets = {r.name: r.manifest for s in sources for r in s.readers}
    manifests.require_together(sets, free)
    contracts = [made.contract for made in sets.values()]
    tiles_px = {name: made.contract.tile_px for name, made in sets.items()}
    if len(set(tiles_px.values())) > 1 and config.image_px is None:
        told = ", ".join(f"{px} px in {name}" for name, px in tiles_px.items())
        raise ConfigError(f"tiles differ ({told}): set data.image_px to a crop that all of them give.")
    weighted = sources[0].weight is not None
    # without weights one long row: each sample once an epoch, whichever set it is of
    together = sources if weighted else [Source(tuple(r for s in sources for r in s.readers))]
    return Family(tuple(together), _joined(contracts))


def _joined(contracts: Sequence[DataContract]) -> DataContract:
    first = contracts[0]
    labels = {(c.label_kind, c.classes) for c in contracts}
    return first.model_copy(
        update={
            "tile_px": min(c.tile_px for c in contracts),
            "level": "+".join(sorted({level for c in contracts for level in c.level.split("+")})),
            "classes": first.classes if len(labels) == 1 else (),
        }
    )


def _check_bands(config: DataConfig, sensors: Sequence[str]) -> None:
    if isinstance(config.bands, dict):
        for name in config.bands:
            if name not in sensors:
                raise unknown("sensor", name, sensors, "data.bands")
    elif config.bands and len(sensors) > 1:
        raise ConfigError(
            f"the sets are of sensors {', '.join(sensors)}: name bands by sensor,"
            f" data.bands={{{sensors[0]}: [{','.join(config.bands)}], ...}}, or leave data.bands out to take all."
        )


def require_distinct(readers: Sequence[ShardReader]) -> None:
    """Raise `ContractError` naming samples that two sets both hold: they would share their masks and count twice.

    Shards are compared by checksum and scenes by name; keys are read only where two sets have scenes in common.
    """
    for ours, theirs in itertools.combinations(readers, 2):
        twice = {s.sha256 for s in ours.shards} & {s.sha256 for s in theirs.shards}
        # the splits of one set share scenes, and no sample
        if not twice and (ours.folder == theirs.folder or not ours.scenes & theirs.scenes):
            continue
        keys = sorted({key for key in ours.keys() if key} & set(theirs.keys()))  # noqa: SIM118 - no dict
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ContractError(
                f"the sets {ours.name} and {theirs.name} both hold the samples {', '.join(keys[:3])}{more}."
                " Leave one of them out of data.shards."
            )


def warn_of_shared_ground(family: Family) -> None:
    """Warn where sets were divided into splits by different rules: one's validation may be another's training
    ground.
    """
    by_ground = {f: made for f, made in family.sets.items() if made.split.by == "ground"}
    rules = {folder: made.settings.get("split", {}) for folder, made in by_ground.items()}
    for folder, rule in rules.items():
        first = next(iter(rules))
        found = differences(rules[first], rule)
        if found:
            LOG.warning(
                "%s and %s were divided into splits by other rules (%s): validation tiles of one may lie on training"
                " ground of the other",
                first,
                folder,
                "; ".join(found),
            )
