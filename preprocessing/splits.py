"""Which split a scene belongs to, where ground does not decide: lists that come with a set, or a draw.

A draw by scene is no set's official split, and the manifest says so.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from pipeline import manifest
from pipeline.config import Config, UserPath
from pipeline.errors import ConfigError, MissingInputError, SceneError
from pipeline.keys import hash_text
from pipeline.manifest import SplitBy, SplitRecord
from preprocessing.scenes import Scene

_OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}
_IMAGE_ENDING = re.compile(r"\.(tiff?|jpe?g|png|zip)$", re.IGNORECASE)


class SplitConfig(Config):
    """How scenes and ground are divided between training and validation."""

    by: SplitBy = "ground"
    """`ground`: by place; `set`: as the set's own lists say; `scene`: drawn by scene or group, no official split."""
    val_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of ground blocks, or of scenes drawn, given to validation; 0 makes training tiles only."""
    block_m: float = Field(default=10_000, gt=0)
    """Side of a ground block on the global equal-area grid, in metres."""
    buffer_m: Literal["tile"] | Annotated[float, Field(ge=0)] = "tile"
    """Least distance between a training tile and validation ground, in metres; `tile` is the side of a tile."""
    seed: int = 0
    """Chooses which blocks, or which scenes, validate."""
    files: dict[str, UserPath] = Field(default_factory=dict)
    """Of `set`: split -> list of its scenes (`train: /path/to/train.txt`): text, or csv by its first column."""
    groups: UserPath | None = None
    """Of `scene`: JSON object, scene -> group; scenes of a group stay together."""


@dataclass(frozen=True)
class Lists:
    """The lists a configuration names, read."""

    config: SplitConfig
    splits: dict[str, str] = field(default_factory=dict)
    """Name -> split."""
    groups: dict[str, str] | None = None
    """Name -> group."""

    def place(self, scene: Scene) -> Scene:
        """Return the scene with its split; it stays empty where ground decides or no list has the scene.

        Raises `SceneError` for a scene without a group where groups are asked for.
        """
        if self.config.by == "ground":
            return replace(scene, given=replace(scene.given, split=""))
        # lists speak of scenes as their set does, not by our ids
        name = scene.given.name or scene.id
        if self.config.by == "set":
            found = self.splits.get(name) if self.config.files else scene.given.split
            return replace(scene, given=replace(scene.given, split=usual_name(found or "")))
        # a hash and not a generator: a scene's side does not depend on what else is there
        drawn = hash_text(self.config.seed, self._group(name)) < self.config.val_share * 2.0**64
        return replace(scene, given=replace(scene.given, split="val" if drawn else "train"))

    def _group(self, name: str) -> str:
        if self.groups is None:
            return name
        if name not in self.groups:
            raise SceneError(f"{self.config.groups} has no group for {name}; add it, or leave the scene out.")
        return self.groups[name]


def usual_name(split: str) -> str:
    """Return the name a split has here: `val` for `validation`."""
    return _OTHER_NAMES.get(split.lower(), split)


def read(config: SplitConfig, source: str = "") -> Lists:
    """Read the lists a configuration names; raises `MissingInputError` for an absent one.

    source: where the set's lists can be had, for that message.
    """
    splits: dict[str, str] = {}
    for split, path in config.files.items():
        for name in _names(path, _text(path, f"split.files.{split}", source)):
            # a sample that trains and validates would make every score worthless
            if splits.setdefault(name, split) != split:
                raise ConfigError(
                    f"{name} is in the list of `{splits[name]}` and in that of `{split}` ({path}): keep one."
                )
    if config.groups is None:
        return Lists(config, splits)
    text = _text(config.groups, "split.groups", source)
    try:
        groups = {str(name): str(group) for name, group in json.loads(text).items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{config.groups} (split.groups) is no JSON object: name -> group ({error})."
        ) from error
    return Lists(config, splits, groups)


def _text(path: Path, key: str, source: str) -> str:
    try:
        # a spreadsheet's mark at the beginning would be a letter of the first name
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        get = f" It can be had at {source}." if source else " Fetch it from where the set is published."
        raise MissingInputError(
            f"cannot read the list {path} of {key} ({error}).{get} Without it only `split.by=scene` works, which is"
            " no official split."
        ) from error


def _names(path: Path, text: str) -> Iterable[str]:
    """Yield the names in a list, without folders and endings of images."""
    if path.suffix.lower() == ".csv":
        rows = [row[0] for row in csv.reader(text.splitlines()) if row]
    else:
        # published lists are lines or one comma-separated line
        rows = re.split(r"[,\n]", text)
    for row in rows:
        name = _IMAGE_ENDING.sub("", PurePosixPath(row.strip()).name)
        if name:
            yield name


def tables(path: Path) -> list[Path]:
    """Return the tables a path names: itself, or the csv files of a folder."""
    return [path] if path.is_file() else sorted(path.glob("*.csv"))


def record(config: SplitConfig, table: Path | None = None) -> SplitRecord:
    """Say for the manifest who divided the samples, with the checksum of every list; `table`: the set's own."""
    files = [*config.files.values(), *filter(None, [config.groups])]
    # the set's own table decides as much as a list that is named
    if config.by == "set" and table is not None:
        files += tables(table)
    return SplitRecord(by=config.by, seed=config.seed, files={f.name: manifest.sha256(f) for f in files})
