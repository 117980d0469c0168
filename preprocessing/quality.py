"""What became of the scenes of a run: tiles kept and dropped by reason, scenes rejected."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, CorruptDataError
from pipeline.manifest import SceneRecord, write_atomically
from preprocessing import settings
from preprocessing.duplicates import Decision

REPORT = "quality.json"
SCENES = "scenes.jsonl"
DUPLICATES = "duplicates.csv"
REJECTED = "rejected.csv"
OPENING = "opening"
"""Stands for the digest where a product could not be opened: that is tried every time."""


@dataclass(frozen=True)
class Rejection:
    """A scene that could not be used."""

    product: str
    reason: str
    tried: str = ""
    """Digest of the files and settings it was tried with; empty where a person wrote the line."""


def write_rejected(folder: Path, rejections: Sequence[Rejection]) -> None:
    """Write `rejected.csv` (product, reason, tried), also when nothing was rejected.

    People may edit it: a product whose line is removed is tried again, one whose line is added is left out.
    """
    text = io.StringIO()
    # reasons hold commas and quotes
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["product", "reason", "tried"])
    writer.writerows([r.product, r.reason, r.tried] for r in rejections)
    write_atomically(folder / REJECTED, text.getvalue().encode())


def read_rejected(folder: Path) -> list[Rejection]:
    """Return what `rejected.csv` of an earlier run says, with what people changed in it.

    Raises `ConfigError` where it lost its header.
    """
    path = folder / REJECTED
    if not path.exists():
        return []
    # people edit it with spreadsheets, which put a mark at the beginning
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        if rows.fieldnames is None or "product" not in rows.fieldnames:
            raise ConfigError(f"{path} has no column `product`: restore its first line, or remove the file.")
        return [Rejection(r["product"], r.get("reason") or "by hand", r.get("tried") or "") for r in rows]


def digest_of(rejections: Sequence[Rejection]) -> str:
    """Identify which products were rejected: a report names only the first of many."""
    return settings.digest(sorted({r.product for r in rejections}))


def as_reported(folder: Path) -> bool:
    """Say whether `rejected.csv` still names what the report says, or people edited it."""
    try:
        tree = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        return bool(tree["rejected_digest"] == digest_of(read_rejected(folder)))
    except (FileNotFoundError, ValueError, KeyError):
        return False


def write_scenes(folder: Path, scenes: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Write `scenes.jsonl`, a line a scene, as they come: all of a large set would not fit into memory."""
    # under its name only once it is whole
    temporary = folder / f".{SCENES}.partial"
    with temporary.open("w", encoding="utf-8") as stream:
        for name, numbers in scenes:
            stream.write(json.dumps({"scene": name} | numbers) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / SCENES)


def read_scenes(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the scenes of a set with their numbers; raises `CorruptDataError` where their file cannot be read."""
    try:
        with (folder / SCENES).open(encoding="utf-8") as stream:
            for line in stream:
                numbers = json.loads(line)
                yield numbers.pop("scene"), numbers
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CorruptDataError(
            f"{folder / SCENES} cannot be read ({error}); it says which ground the set holds. Restore it."
        ) from error


def write_duplicates(folder: Path, decisions: Sequence[Decision]) -> None:
    """Write `duplicates.csv`: what became of every scene of an acquisition that another shows too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scene", "product", "of", "new_share", "kept"])
    writer.writerows([d.scene, d.product, " ".join(d.of), f"{d.new_share:.4f}", d.kept] for d in decisions)
    write_atomically(folder / DUPLICATES, text.getvalue().encode())


def total_tiles(scenes: Sequence[SceneRecord]) -> dict[str, int]:
    """Sum tiles over scenes, by split and by reason for dropping."""
    total: dict[str, int] = {}
    for scene in scenes:
        for name, number in scene.tiles.items():
            total[name] = total.get(name, 0) + number
    return dict(sorted(total.items()))
