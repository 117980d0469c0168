"""Checkpoints that are either whole or not there.

Protocol: temporary folder -> rank 0 writes what all gave -> MANIFEST.json with size and SHA-256 of every file ->
fsync -> rename -> pointer. A reader takes the newest that verifies and says why it fell back.

    RUN/checkpoints/step-00000100/weights.safetensors   full float32 weights
                                  moments.safetensors   AdamW's state, full too: it fits any number of ranks
                                  state.json            step, configuration, data contract, statistics
                                  MANIFEST.json         what must be there
    RUN/checkpoints/latest                              name of the newest
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config import Config
from pipeline.console import LOG
from pipeline.contract import BandStatistics, DataContract, NormalisationKind
from pipeline.errors import (
    ConfigError,
    ContractError,
    CorruptDataError,
    MissingInputError,
    OutputError,
    TrainingError,
)
from pipeline.manifest import write_atomically
from training.guards import COMPLETE
from training.provenance import Provenance
from training.sealed import MANIFEST, seal, sync, verify
from training.states import Snapshot, not_finite
from training.world import World

FORMAT_VERSION = 3
"""2: data, tables and projections are named by sensor or side, for models of several sensors. 3: AdamW's state is by
name as the weights are, not DeepSpeed's cut by ranks."""
_NAME = re.compile(r"step-\d{8,}")
_STATE, _LATEST = "state.json", "latest"
_WEIGHTS, _MOMENTS = "weights.safetensors", "moments.safetensors"


class SetRecord(Config):
    """A shard set that was read."""

    name: str
    """Its name."""
    path: str
    """Folder, as the run was given it."""
    digest: str
    """Identifier of its content."""
    samples: int
    """Samples of the split."""
    weight: float | None = None
    """Weight of its entry in `data.shards`; null: by number of samples."""
    provenance: Provenance | None = None
    """Sources and licences; null in checkpoints of before they were recorded."""


class DataRecord(Config):
    """What the weights expect of the images of a sensor; travels with them."""

    contract: DataContract
    """The data contract of the sensor's sets."""
    statistics: tuple[BandStatistics, ...]
    """One entry a band of `bands`, over all pixels of the training tiles of all sets."""
    bands: tuple[str, ...]
    """The bands the model reads, in order."""
    image_px: int
    """Side of the images in pixels."""
    normalise: NormalisationKind
    """Input normalisation, derived from `statistics`."""

    def rgb(self) -> list[int]:
        """Return the positions of the red, green and blue band, or the first band three times."""
        roles = {b.role: b.name for b in self.contract.bands}
        wanted = [roles.get(role) for role in ("red", "green", "blue")]
        found = [self.bands.index(n) for n in wanted if n in self.bands]
        return found if len(found) == 3 else [0, 0, 0]


class RunData(Config):
    """What a run reads."""

    sensors: dict[str, DataRecord]
    """What the weights expect, by sensor."""
    sets: tuple[SetRecord, ...] = ()
    """The shard sets, in the order of their samples."""
    order: int = 1
    """`training.order.RULE` of the run."""
    digest: str
    """Identifier of what is read, in which shares and by which rule."""

    def of(self, sensor: str) -> DataRecord:
        """Return the record of a sensor; raises `ContractError` for one the weights do not know."""
        if sensor not in self.sensors:
            raise ContractError(
                f"the weights know images of {', '.join(self.sensors)}, not of {sensor}: take shard sets of one of"
                " those sensors, or other weights."
            )
        return self.sensors[sensor]


class State(Config):
    """Everything but tensors that a checkpoint holds. Generators have no state to save: all draws are keyed."""

    format_version: int = FORMAT_VERSION
    """Version of the checkpoint's format."""
    kind: str
    """`pretrain` or a task's name."""
    step: int
    """Optimiser steps done."""
    ranks: int
    """Ranks that wrote it."""
    config: dict[str, Any]
    """The resolved configuration."""
    data: RunData
    """What the run reads, and what the weights expect of it."""


@dataclass(frozen=True)
class Store:
    """The checkpoints of one run folder."""

    run: Path
    world: World
    keep_last: int = 2
    keep_every: int | None = None
    """Steps of which every multiple stays for good."""

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.run / "checkpoints"

    def write(self, snapshot: Snapshot, state: State) -> None:
        """Write a checkpoint, on rank 0. The older ones stay until the new one is whole.

        Raises `OutputError` where it cannot be written, `TrainingError` where weights are not finite.
        """
        # a good checkpoint is never replaced by a bad one
        for name in not_finite(snapshot):
            raise TrainingError(
                f"{name} is not finite after step {state.step}: nothing is saved, the checkpoint before stays."
                " Lower optimiser.base_lr and give the same command again with resume=changed."
            )
        final = self.folder / f"step-{state.step:08d}"
        partial = self.folder / f".{final.name}.partial"
        with _told(final, partial):
            partial.mkdir(parents=True)
            _require_room(partial, snapshot.size_bytes)
            self._finish(partial, final, snapshot, state)

    def _finish(self, partial: Path, final: Path, snapshot: Snapshot, state: State) -> None:
        save_file(snapshot.weights, partial / _WEIGHTS)
        save_file(snapshot.moments, partial / _MOMENTS)
        (partial / _STATE).write_text(json.dumps(state.model_dump(mode="json"), indent=1))
        seal(partial, FORMAT_VERSION)
        # the same step again, after a resume: the older checkpoint stands until this moment
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        write_atomically(self.folder / _LATEST, final.name.encode())
        # the new names too: a power cut must not find the older ones removed and the new one not there
        sync(self.folder)
        # last of all: nothing is removed before something newer is whole
        self.prune()

    def prune(self) -> None:
        """Remove all but the newest and those that stay for good."""
        for old in self._newest_first()[self.keep_last :]:
            if not self.keep_every or step_of(old) % self.keep_every:
                shutil.rmtree(old)

    def newest(self, mend: bool = False) -> Path | None:
        """Return the newest checkpoint that verifies, or None; says why it passed over a newer one.

        mend: the run is going on in this folder, so what is half written is removed, and what is damaged gets
        another name and no longer counts as a checkpoint.
        Rank 0 looks and tells the others, so that all take the same. Raises `CorruptDataError` where checkpoints
        are there and none verifies.
        """
        name, problem = None, ""
        if self.world.main:
            try:
                name = self._look(mend)
            except OSError as error:
                problem = str(error)
        # told to all: the others would wait for rank 0 until their time is over
        found = self.world.gather((name, problem))[0]
        name, problem = found  # type: ignore[misc]
        if problem:
            raise OutputError(f"the checkpoints in {self.folder} cannot be looked through ({problem}).")
        if name == "":
            raise CorruptDataError(
                f"no checkpoint in {self.folder} verifies; move the folder away to start anew."
            )
        return self.folder / str(name) if name is not None else None

    def _look(self, mend: bool) -> str | None:
        for partial in self.folder.glob(".step-*.partial") if mend else ():
            # left by a run that was killed while saving
            shutil.rmtree(partial)
        damaged: list[Path] = []
        # newest first, by name: the pointer is for people and may be lost
        for candidate in self._newest_first():
            problem = next(verify(candidate), None)
            if problem is None:
                if mend:
                    self._put_aside(damaged)
                self._doubt_pointer(candidate.name)
                return candidate.name
            LOG.warning("checkpoint %s is passed over: %s", candidate, problem)
            damaged.append(candidate)
        return "" if damaged else None

    def _doubt_pointer(self, newest: str) -> None:
        """Say where the pointer names another checkpoint than the one that is taken."""
        pointer = self.folder / _LATEST
        named = pointer.read_bytes().decode(errors="replace") if pointer.exists() else "nothing"
        if named != newest:
            LOG.warning("%s names %r: %s is taken, the newest that verifies", pointer, named, newest)

    def _put_aside(self, damaged: Sequence[Path]) -> None:
        for candidate in damaged:
            aside = candidate.with_name(f"damaged-{candidate.name}")
            shutil.rmtree(aside, ignore_errors=True)
            # kept for people, but no longer one of those `keep_last` counts
            candidate.rename(aside)

    def _newest_first(self) -> list[Path]:
        # nothing but these names: a copy that somebody made is neither taken for the newest nor removed
        found = (p for p in self.folder.glob("step-*") if p.is_dir() and _NAME.fullmatch(p.name))
        return sorted(found, reverse=True)


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint from its folder's name."""
    return int(folder.name.removeprefix("step-"))


def _require_room(folder: Path, size_bytes: int) -> None:
    """Raise `OSError` where a disk has no room for so much: better before the first byte than in the middle."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise OSError(
            errno.ENOSPC, f"{size_bytes / 1e6:.1f} MB needed, {free_bytes / 1e6:.1f} MB free on this disk"
        )


@contextmanager
def _told(final: Path, partial: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into one clear line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(
            f"checkpoint {final} could not be written ({str(error).splitlines()[0]}); the one before is intact."
            " Make room, then give the same command again."
        ) from error


def read_state(folder: Path) -> State:
    """Read a checkpoint's state; raises `ContractError` for a newer format."""
    tree = json.loads((folder / _STATE).read_text())
    if tree.get("format_version", 0) > FORMAT_VERSION:
        raise ContractError(
            f"{folder} has format {tree['format_version']}; this version reads up to {FORMAT_VERSION}."
        )
    return State.model_validate(_brought_up(tree))


def _brought_up(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a state of any format with its data as today's: in format 1 they were one set's."""
    old = dict(tree["data"])
    if "contract" not in old:
        return tree
    return tree | {"data": {"digest": old.pop("digest"), "sensors": {old["contract"]["sensor"]: old}}}


def read_weights(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """Read the weights whose names start with `prefix`, which is taken off; older formats under today's names."""
    state = read_state(folder)
    # tensor by tensor: who wants the encoder need not read the decoder
    with safe_open(folder / _WEIGHTS, "pt") as stream:
        names = [n for n in stream.keys() if n.startswith(prefix)]  # noqa: SIM118 - not a dict
        return {_name_now(n, state)[len(prefix) :]: stream.get_tensor(n) for n in names}


def read_snapshot(folder: Path) -> Snapshot:
    """Read what training goes on from."""
    return Snapshot(load_file(folder / _WEIGHTS), load_file(folder / _MOMENTS))


def _name_now(name: str, state: State) -> str:
    """Return what a weight of a checkpoint is called today."""
    if state.format_version > 1:
        return name
    ((sensor, record),) = state.data.sensors.items()
    side = record.image_px // state.config["model"]["patch_px"]
    tables = {"spatial": f"spatial.{side}.weight", "spectral": f"spectral.{sensor}.weight"}
    stem, _, last = name.rpartition(".")
    if stem.endswith(".positions"):
        return f"{stem}.{tables[last]}"
    return f"{stem}.shared.{last}" if stem in ("encoder.embed", "decoder.leave") else name


def find(location: Path) -> Path:
    """Return the checkpoint meant by a finished run's folder or by a checkpoint's folder.

    Raises `MissingInputError` where there is none, `CorruptDataError` where it is damaged, and `ConfigError` where
    the run is not complete: half-trained weights are taken only when they are asked for by name.
    """
    found = newest(location)
    if found != location and not (location / COMPLETE).exists():
        raise ConfigError(
            f"the run in {location} is not complete: let it go on to its end, or give {found} to take it as it is."
        )
    return found


def newest(location: Path) -> Path:
    """Return the checkpoint meant by its own folder, or the newest of a run that may not be complete.

    Raises `MissingInputError` where there is none, `CorruptDataError` where it is damaged.
    """
    if (location / MANIFEST).exists():
        for problem in verify(location):
            raise CorruptDataError(f"{location}: {problem}. Take another checkpoint of that run.")
        return location
    found = Store(location, World()).newest()
    if found is None:
        raise MissingInputError(f"no checkpoint in {location}. Give a run folder that pretraining wrote.")
    return found
