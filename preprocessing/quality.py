"""What became of the scenes of a run: tiles kept and dropped by reason, scenes rejected."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.manifest import SceneRecord, write_atomically

REPORT = "quality.json"
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
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        if rows.fieldnames is None or "product" not in rows.fieldnames:
            raise ConfigError(f"{path} has no column `product`: restore its first line, or remove the file.")
        return [Rejection(r["product"], r.get("reason") or "by hand", r.get("tried") or "") for r in rows]


def as_reported(folder: Path) -> bool:
    """Say whether `rejected.csv` still names what the report says, or people edited it."""
    try:
        tree = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        told = {r["product"] for r in tree["rejected"]}
    except (FileNotFoundError, ValueError, KeyError):
        return False
    return told == {r.product for r in read_rejected(folder)}


def total_tiles(scenes: Sequence[SceneRecord]) -> dict[str, int]:
    """Sum tiles over scenes, by split and by reason for dropping."""
    total: dict[str, int] = {}
    for scene in scenes:
        for name, number in scene.tiles.items():
            total[name] = total.get(name, 0) + number
    return dict(sorted(total.items()))
