"""What pretraining and fine-tuning have in common: the run folder, starting, resuming, ending.

RUN/config.yaml      the resolved configuration
RUN/plan.json        how many steps on how many ranks
RUN/identity.json    what MLflow is told of it, and RUN/packages.txt what was installed
RUN/journal.jsonl    every metric
RUN/checkpoints/     see `training.checkpoint`
RUN/panels/          pictures
RUN/COMPLETE or RUN/INTERRUPTED
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator

from pipeline import __version__
from pipeline.config import ROOT, Config, UserPath, differences, dump, flatten, load, parse_yaml
from pipeline.console import Command, say
from pipeline.errors import EXIT_DONE, EXIT_INTERRUPTED, ConfigError, OutputError
from pipeline.lock import locked
from pipeline.manifest import write_atomically
from training.checkpoint import RunData
from training.data import BatchConfig, DataConfig
from training.engine import EngineConfig
from training.guards import COMPLETE, clear_marks
from training.identity import DataSet, RunIdentity, run_of, tags
from training.schedule import OptimiserConfig
from training.tracking import TrackingConfig
from training.watch import GuardsConfig
from training.world import World

_FREE = ("output", "name", "stop_at", "resume", "tracking", "save_every_steps", "keep_last", "keep_every_steps",
         "data.workers", "data.verify", "data.damaged", "data.cache", "data.timeout_s", "data.shards", "panel_images", "panel_every_steps", "engine.timeout_s", "batch.micro",
         "engine.zero_stage", "guards", "save_async", "save_failure", "dry_run")  # fmt: skip
"""Keys that may change on the way: what is trained on, and what comes of it, stays the same."""
PLAN = "plan.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class RunConfig(Config):
    """What every training run is told."""

    name: str
    """Name of the run and of its folder below `output`."""
    output: UserPath = Path("runs")
    """Folder that holds the runs, their MLflow database and artifacts."""
    seed: int = Field(default=0, ge=0)
    """Decides initial weights, order of samples, augmentation and masks."""
    init: UserPath | None = None
    """Run, checkpoint or exported folder of weights to start from, optimiser and schedule anew; null starts from
    scratch."""
    resume: Literal["auto", "changed"] = "auto"
    """auto goes on from the newest checkpoint and refuses a changed configuration; changed allows it."""
    stop_at: int | None = Field(default=None, ge=1)
    """Save and stop after this step, as if interrupted; the schedule stays that of the whole run."""
    dry_run: bool = False
    """Tell what the run would be and take, and stop there (--dry-run); nothing is written."""
    save_every_steps: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep_last: int = Field(default=2, ge=2)
    """Newest checkpoints kept."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoints of every multiple of so many steps are kept for good; null keeps none but the newest."""
    save_async: bool = True
    """Write checkpoints while the training goes on, which waits for a copy of its state alone: on rank 0's host 12 bytes
    a parameter in 32 bits, until they are written. false waits for the disk too."""
    save_failure: Literal["stop", "go_on"] = "stop"
    """What becomes of a run whose checkpoint cannot be written, on a full disk say; the last one always stops it."""
    guards: GuardsConfig = GuardsConfig()
    """What the run is watched for."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the run is recorded."""
    data: DataConfig
    """The shard set and how it is presented."""
    batch: BatchConfig = BatchConfig()
    """Samples of a step."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """AdamW and its schedule."""
    engine: EngineConfig = EngineConfig()
    """DeepSpeed."""
    epochs: int = Field(default=200, ge=1)
    """Passes over the data."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps in all; null takes them from `epochs`."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a folder's name; use letters, digits, `.`, `_` and `-`")
        return name

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.output / self.name


RunConfigT = TypeVar("RunConfigT", bound=RunConfig)


def main(
    argv: Sequence[str], command: Command, model: type[RunConfigT], train: Callable[[RunConfigT, World], bool]
) -> int:
    """Run an entry: load the configuration, train, tell how it ended by the exit code."""
    command = command.configured_by(model)
    parser = command.parser()
    parser.add_argument("--run-folder", action="store_true", help="print the run folder and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="tell what the run would be and take, and stop"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: as if started as N processes")
    asked = parser.parse_intermixed_args(argv)
    path, words = command.split(asked.words)
    config = load(model, path, words)
    # batch scripts ask this before they start, to find the markers
    if asked.run_folder:
        say(str(config.folder))
        return EXIT_DONE
    world = World.from_env()
    if asked.dry_run:
        config, world = config.model_copy(update={"dry_run": True}), World(0, asked.ranks or world.size)
    try:
        complete = train(config, world)
    finally:
        world.close()
    return EXIT_DONE if complete else EXIT_INTERRUPTED


@contextmanager
def held(config: RunConfig, world: World) -> Iterator[None]:
    """Hold the run folder, which is made where it is not there; collective.

    Two trainings in one folder would mix their journals and overwrite each other's checkpoints. Raises
    `OutputError` on all ranks where another process holds it, or where it cannot be made.
    """
    with ExitStack() as holding:
        problem = ""
        if world.main:
            try:
                holding.enter_context(locked(config.folder))
            except OutputError as error:
                problem = str(error)
            except OSError as error:
                problem = (
                    f"cannot write to the run folder {config.folder} ({error}); choose another `output`."
                )
        # told to all: the others would wait for rank 0 until their time is over
        told = world.gather(problem)[0]
        if told:
            raise OutputError(str(told))
        yield


def prepare(config: RunConfig, world: World) -> bool:
    """Record the configuration in the run folder; return False where the run is already complete.

    Raises `ConfigError` where the folder holds a run of another configuration, or ranks differ.
    """
    world.require_same("configuration", config.model_dump(mode="json"))
    # nodes with copies of their own may lie a version behind
    world.require_same("code", {"version": __version__} | code_digests())
    recorded = config.folder / "config.yaml"
    # only a run that has saved something can be continued wrongly
    if any((config.folder / "checkpoints").glob("step-*")) and config.resume == "auto":
        _require_unchanged(parse_yaml(recorded.read_text(), str(recorded)), config)
    complete = (config.folder / COMPLETE).exists() and config.resume == "auto"
    world.barrier()  # all have looked before rank 0 writes
    if world.main and not complete:
        write_atomically(recorded, dump(config).encode())
        clear_marks(config.folder)
    world.barrier()
    return not complete


def _require_unchanged(before: dict[str, Any], config: RunConfig) -> None:
    changed = [d for d in differences(before, config.model_dump(mode="json")) if not d.startswith(_FREE)]
    if changed:
        raise ConfigError(
            f"{config.folder} holds a run of another configuration ({'; '.join(changed)}). Give another name=..., or"
            " resume=changed to go on all the same."
        )


def identity(config: RunConfig, kind: str, data: RunData, extra: Mapping[str, object]) -> RunIdentity:
    """Describe a run for MLflow: flat configuration, versions, commit, the sets it reads, what it belongs to."""
    parameters = flatten(config.model_dump(mode="json")) | {"data_digest": data.digest} | dict(extra)
    sets = tuple(DataSet(s.name, s.path, s.digest, s.samples) for s in data.sets)
    entry = "training/pretrain.py" if kind == "pretrain" else "training/finetune.py"
    return RunIdentity(config.folder, kind, parameters, tags(entry), sets, _parent(config))


def _parent(config: RunConfig) -> Path | None:
    """Return the folder of the run that this one is shown below."""
    if config.tracking.parent:
        return config.output / config.tracking.parent
    if config.init is None:
        return None
    origin = run_of(config.init)
    # weights may lie alone, without the run they are of
    return (RunIdentity.of(origin).parent or origin) if (origin / "config.yaml").exists() else None


def code_digests() -> dict[str, str]:
    """Return what identifies the code that runs, file by file."""
    files = (path for room in ("pipeline", "training") for path in sorted((ROOT / room).rglob("*.py")))
    return {str(p.relative_to(ROOT)): hashlib.sha256(p.read_bytes()).hexdigest()[:12] for p in files}


def tracker_hint(uri: str) -> str:
    """Return the line that opens MLflow on what is recorded at `uri`."""
    mlflow = Path(sys.executable).with_name("mlflow")
    program = os.path.relpath(mlflow) if mlflow.is_relative_to(Path.cwd()) else "mlflow"
    return (
        f"{program} ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else f"open {uri} in a browser"
    )
