"""`manifest.json`: the shards of a set with their checksums, and the data contract they keep."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.config import Config
from pipeline.contract import BandStatistics, DataContract
from pipeline.errors import ContractError, CorruptDataError, MissingInputError
from pipeline.indices import INDICES

FORMAT_VERSION = 2
"""2 states the formulas of the indices, and what mean and deviation are of; 1 is still read."""
NAME = "manifest.json"
SplitBy = Literal["ground", "set", "scene"]


class Shard(Config):
    """One shard file."""

    path: str
    """Relative to the manifest's folder, with forward slashes."""
    samples: int
    """Number of samples."""
    size_bytes: int
    """File size in bytes."""
    sha256: str
    """Checksum of the file."""


class SceneRecord(Config):
    """One scene that contributed."""

    id: str
    """Scene identifier; the first part of its samples' keys."""
    reader: str
    """Which reader read it."""
    acquired: str
    """Acquisition time, ISO 8601, UTC where known."""
    level: str
    """Processing level."""
    tiles: dict[str, int]
    """Samples in each split, and tiles dropped by reason."""
    licence: str = ""
    """Licence and required notice of its source."""
    unlabelled: int = 0
    """Samples that carry no label: all of them where the set has no classes."""
    statistics_px: int = 0
    """Pixels a band that it gave to the statistics; 0 where none of its tiles is for training, or its values cannot be
    reflectance."""
    notes: tuple[str, ...] = ()
    """What a person should know (a fallback band, an offset found applied)."""


class SplitRecord(Config):
    """Who divided the samples into splits."""

    by: SplitBy = "ground"
    """`ground`: by place; `set`: the set's own lists, its official split; `scene`: a draw, no official split."""
    seed: int = 0
    """Of the division by ground or the draw."""
    files: dict[str, str] = Field(default_factory=dict)
    """Lists that decided: file name -> SHA-256."""


class Manifest(Config):
    """Everything a reader of a shard set needs to know."""

    format_version: int = FORMAT_VERSION
    """Version of this file's format."""
    name: str
    """Name of the set."""
    contract: DataContract
    """What the numbers mean."""
    statistics: tuple[BandStatistics, ...]
    """One entry a band, over the training split."""
    splits: dict[str, tuple[Shard, ...]]
    """Shards by split (`train`, `val`)."""
    scenes: tuple[SceneRecord, ...]
    """Where the samples come from."""
    split: SplitRecord = SplitRecord()
    """Who divided the samples."""
    settings: dict[str, Any]
    """The configuration that made the set."""
    code_version: str
    """Version of the project that made it."""
    notices: tuple[str, ...]
    """Licence and attribution that travel with the data."""
    earlier: tuple[str, ...] = ()
    """Names of the sets this one stands beside, oldest first: it holds the scenes that came after them."""

    def samples(self, split: str) -> int:
        """Return the number of samples of a split."""
        return sum(s.samples for s in self.shards(split))

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of a split; raises `ContractError` where the set has none of that name."""
        if split not in self.splits:
            raise ContractError(
                f"shard set {self.name} has no split `{split}`; it has {', '.join(self.splits)}."
            )
        return self.splits[split]

    def digest(self) -> str:
        """Return a short identifier of the set's content: contract, statistics and shard checksums."""
        # settings and scenes may be told differently for the same bytes
        tree = self.model_dump(mode="json", include={"contract", "statistics", "splits"})
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def write(manifest: Manifest, folder: Path) -> Path:
    """Write `manifest.json` into `folder` atomically and durably; returns its path."""
    # sorted: sets that are equal have equal files
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    return write_atomically(folder / NAME, text.encode())


def write_atomically(path: Path, data: bytes, sync: bool = True) -> Path:
    """Write a file so that under its final name it is either complete or absent; returns `path`.

    sync: force it to disk first; without, it can be lost or torn where the machine itself goes down.
    """
    # in the same folder: a rename is atomic only within a file system
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        if sync:
            os.fsync(stream.fileno())
    temporary.replace(path)
    return path


def read(location: Path) -> Manifest:
    """Read a manifest, given its path or its folder.

    Raises `MissingInputError` where there is none, `ContractError` for a newer format and `CorruptDataError`
    for anything that is no manifest.
    """
    path = location / NAME if location.is_dir() else location
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(
            f"no shard set at {location} ({NAME} is missing). Make one with `python preprocessing/shard.py`."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path} is not a manifest ({error}). Make the shard set again.") from error
    # before it is validated: what a newer format adds would look like a misspelt key
    _check_version(tree, path)
    try:
        return Manifest.model_validate(_brought_up(tree))
    except ValidationError as error:
        raise CorruptDataError(
            f"{path} is not a manifest: {error.errors()[0]['msg']}. Make it again."
        ) from error


def numbered(output: Path, number: int) -> Path:
    """Return the folder of the `number`-th set of a growing archive: OUTPUT, OUTPUT-002, OUTPUT-003."""
    return output if number == 1 else output.with_name(f"{output.name}-{number:03d}")


def series(location: Path) -> dict[Path, Manifest]:
    """Return the sets that the one at `location` stands beside, oldest first, and that one, by their folders.

    What a numbered set stands beside never changes, so a location means the same data for ever; sets that came
    after it are not among them. Raises `ContractError` where the folders are no longer named as they were made, or
    hold other sets.
    """
    made, folder = read(location), location if location.is_dir() else location.parent
    # `.` has no name to take a number from
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    ending = f"-{len(made.earlier) + 1:03d}" if made.earlier else ""
    if not folder.name.endswith(ending):
        raise ContractError(
            f"{folder} stands beside {', '.join(made.earlier)}, and was renamed: they cannot be found from its name."
            " Name it as it was made, or list all sets, each with earlier: false."
        )
    first = folder.with_name(folder.name.removesuffix(ending))
    older = {numbered(first, n): name for n, name in enumerate(made.earlier, 1)}
    return {at: _named(at, name, folder) for at, name in older.items()} | {folder: made}


def _named(folder: Path, name: str, later: Path) -> Manifest:
    made = read(folder)
    if made.name != name:
        raise ContractError(
            f"{folder} holds the set {made.name}, not {name}, which {later} stands beside. Put it back, or list all"
            " sets, each with earlier: false."
        )
    return made


def require_together(sets: Mapping[str, Manifest], free: Collection[str] = ()) -> None:
    """Raise `ContractError` with a list of what differs unless all sets hold the same data, to be trained on together.

    sets: by what to call them, their paths for instance. free: fields of the contract that may differ. Statistics
    may; so may levels that hold the same quantity (Landsat's L1TP and L1GT).
    """
    contracts = {name: made.contract for name, made in sets.items()}
    (first, ours), *others = (
        (name, c.model_copy(update={"level": c.quantity})) for name, c in contracts.items()
    )
    for name, theirs in others:
        ours.require_equal(theirs, f"the shard sets {first}", name, free)


def _check_version(tree: Any, path: Path) -> None:
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ContractError(
            f"{path} has format {version}; this version reads up to {FORMAT_VERSION}. Update the project."
        )


def _brought_up(tree: Any) -> Any:
    """Return the tree of an older format as this one would state it."""
    contract = tree.get("contract") if isinstance(tree, dict) and tree.get("format_version") == 1 else None
    if isinstance(contract, dict) and isinstance(contract.get("indices"), list):
        # all that format 1 knew were those of the table
        texts = {name: INDICES[name].text for name in contract["indices"] if name in INDICES}
        return {**tree, "contract": {**contract, "index_formulas": texts}}
    return tree


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
