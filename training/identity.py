"""What a run is, told to MLflow once: kept in the run folder, so that a later sync tells what the run itself would have.

RUN/identity.json   kind, flat parameters, tags, shard sets, the run it belongs to
RUN/packages.txt    every installed package with its version
"""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.config import ROOT, flatten, read_yaml
from pipeline.manifest import NAME as MANIFEST
from pipeline.manifest import write_atomically
from training import journal

NAME, PACKAGES, LINK = "identity.json", "packages.txt", "mlflow.json"
_QUALITY = ("quality.json", "quality.html", MANIFEST)
"""Of a shard set, where it is a folder."""
_LARGEST_BYTES = 50_000_000
"""A file above this stays where it is: MLflow is no store of data."""


@dataclass(frozen=True)
class DataSet:
    """A shard set that a run reads."""

    name: str
    path: str
    """Folder or address."""
    digest: str
    """Of its content."""
    samples: int
    """Of the split that is trained on."""


@dataclass(frozen=True)
class RunIdentity:
    """What MLflow is told about a run once."""

    run: Path
    """The run folder; its parent is the output folder and its name the run's."""
    kind: str
    """`pretrain` or a task's name."""
    parameters: Mapping[str, object]
    """Flat configuration."""
    tags: Mapping[str, str] = field(default_factory=dict)
    sets: tuple[DataSet, ...] = ()
    parent: Path | None = None
    """Folder of the run that this one is shown below."""

    def keep(self) -> None:
        """Write it into the run folder, and beside it what is installed."""
        record = {
            "kind": self.kind,
            "parameters": dict(self.parameters),
            "tags": dict(self.tags),
            "sets": [asdict(one) for one in self.sets],
            # whole: a later sync may start from another folder
            "parent": str(self.parent.resolve()) if self.parent else None,
        }
        write_atomically(self.run / NAME, json.dumps(record, indent=1, default=str).encode())
        write_atomically(self.run / PACKAGES, "".join(f"{line}\n" for line in packages()).encode())

    @classmethod
    def of(cls, run: Path) -> RunIdentity:
        """Read what was kept; of a folder of before it was, what its configuration tells."""
        if not (run / NAME).exists():
            return cls(run, "?", flatten(read_yaml(run / "config.yaml")))
        record: dict[str, Any] = json.loads((run / NAME).read_text())
        sets = tuple(DataSet(**one) for one in record["sets"])
        parent = Path(record["parent"]) if record["parent"] else None
        return cls(run, record["kind"], record["parameters"], record["tags"], sets, parent)

    def files(self) -> Iterator[tuple[Path, str]]:
        """Yield the files that MLflow gets and the folder that each has there: those of the run and of its data."""
        own = (
            p for p in self.run.iterdir() if p.name not in (journal.NAME, LINK) and not p.name.startswith(".")
        )
        found = [(path, "") for path in own] + [(path, "panels") for path in (self.run / "panels").glob("*")]
        for one in self.sets:
            # sets of one name may lie in several folders
            place = f"data/{one.name}-{one.digest[:6]}"
            found += [(Path(one.path) / name, place) for name in _QUALITY]
        # empty ones are markers and locks
        yield from sorted((p, f) for p, f in found if p.is_file() and 0 < p.stat().st_size <= _LARGEST_BYTES)

    def checkpoint(self) -> dict[str, Any]:
        """Return the newest checkpoint's list of files with sizes and checksums; nothing where there is none."""
        newest = max(self.run.glob("checkpoints/step-*/MANIFEST.json"), default=None)
        if newest is None:
            return {}
        return {"checkpoint": str(newest.parent.relative_to(self.run)), **json.loads(newest.read_text())}


def run_of(location: Path) -> Path:
    """Return the run folder of a run or of one of its checkpoints."""
    # by both names: a run may be called step-anything, and runs may lie in a folder called checkpoints
    folder = location.resolve()
    inside = folder.parent.name == "checkpoints" and folder.name.startswith("step-")
    return folder.parent.parent if inside else location


def tags(entry: str) -> dict[str, str]:
    """Return who runs what: the code's commit, where MLflow's pages look for it, and versions."""
    ours = {f"version.{p}": _version(p) for p in ("torch", "deepspeed", "mlflow", "numpy")}
    return ours | {
        "mlflow.source.name": entry,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git_commit(),
        "mlflow.user": _user(),
        "python": platform.python_version(),
        "code_version": __version__,
    }


def git_commit() -> str:
    """Return the commit of the project's checkout, with `-dirty` where files were changed; `unknown` outside of one."""
    # no tag is taken, so that the commit itself is told; `rev-parse` would not say -dirty
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    asked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def packages() -> list[str]:
    """Return `name==version` of all that is installed."""
    return sorted({f"{d.name}=={d.version}" for d in distributions()}, key=str.lower)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _user() -> str:
    try:
        return getpass.getuser()
    # a container's user id may have no name
    except (KeyError, OSError):
        return "unknown"
