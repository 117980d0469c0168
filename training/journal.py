"""The journal of a run: an append-only file that is the truth about its metrics.

Each start of the run is a *life*; a resume rewinds to its checkpoint's step, and what an earlier life logged past
it no longer counts. MLflow is fed from here and can be fed again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = "journal.jsonl"


@dataclass(frozen=True)
class Line:
    """One logged step."""

    step: int
    time_s: float
    """Seconds since the epoch."""
    metrics: dict[str, float]


class Journal:
    """Appends to a run folder's journal; every line is flushed.

    Opening it begins a life: `resumed_at` is the step it goes on from, 0 for a new run. Raises `OSError` where the
    folder cannot be written.
    """

    def __init__(self, run: Path, resumed_at: int) -> None:
        self.path = run / NAME
        cut_short = _ends_within_a_line(self.path)
        self._stream = self.path.open("a", encoding="utf-8")
        # a kill in mid-write leaves half a line: without this it would swallow the record of the rewind
        if cut_short:
            self._stream.write("\n")
        self._write({"resumed_at": resumed_at, "time_s": time.time()})

    def append(self, step: int, metrics: Mapping[str, float]) -> Line:
        """Write the metrics of a step."""
        line = Line(step, time.time(), dict(metrics))
        self._write({"step": line.step, "time_s": line.time_s, "metrics": line.metrics})
        return line

    def _write(self, record: dict[str, object]) -> None:
        self._stream.write(json.dumps(record) + "\n")
        # not synced: a kill loses nothing, and a wait for the disk at every step would cost time
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def began_s(run: Path) -> float | None:
    """Return when a run's first life began, in seconds since the epoch; None without a journal."""
    path = run / NAME
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as stream:
        first = stream.readline()
    try:
        return float(json.loads(first)["time_s"])
    except (json.JSONDecodeError, KeyError):
        return None


def read(run: Path) -> list[Line]:
    """Return the lines that count, in order: those of later lives in place of what they rewound.

    Lines cut short by a kill are left out; no journal gives an empty list.
    """
    path = run / NAME
    lines: list[Line] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "resumed_at" in record:
            # what the earlier life did past its checkpoint is done again
            lines = [line for line in lines if line.step <= record["resumed_at"]]
        else:
            lines.append(Line(record["step"], record["time_s"], record["metrics"]))
    return lines
