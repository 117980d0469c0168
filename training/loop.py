"""The training loop: the same for pretraining and for every downstream task.

A `Work` says what a step is made of; this file runs it exactly, resumes it, saves it and stops it in good order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from pipeline.config import differences
from pipeline.console import Progress, say
from pipeline.errors import ConfigError, ContractError
from training import runs
from training.checkpoint import FORMAT_VERSION, RunData, State, Store, read_state
from training.data import Batch
from training.engine import Engine, Recipe, StepResult
from training.guards import COMPLETE, INTERRUPTED, STOP, mark
from training.model import count_parameters
from training.runs import RunConfig
from training.schedule import learning_rate
from training.stream import ShardStream
from training.tracking import Tracker
from training.world import World


@dataclass(frozen=True)
class Prepared:
    """A batch, ready for the engine."""

    losses: Iterator[Tensor]
    """One micro-batch's summed losses, one a term, computed when asked for."""
    counted: tuple[float, ...]
    """Items that each term sums over, on this rank."""
    observed: dict[str, float]
    """What to log beside the loss; the same names on every rank."""


class Work(Protocol):
    """What one kind of training does in the loop."""

    kind: str
    world: World
    stream: ShardStream
    data: RunData

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""

    @property
    def model(self) -> nn.Module:
        """The model to train."""

    def groups(self) -> list[dict[str, object]]:
        """Return the optimiser's parameter groups."""

    def plan(self) -> str:
        """Tell what the run is going to be."""

    def prepare(self, batch: Batch, engine: Engine) -> Prepared:
        """Make a batch ready for the engine."""

    def measure(self, step: int, engine: Engine) -> dict[str, float]:
        """Return scores due after `step`, or nothing; collective."""

    def finish(self, engine: Engine, tracker: Tracker) -> str:
        """Leave pictures and tables of a complete run; return what to tell a person; collective."""


@dataclass(frozen=True)
class Span:
    """How long a run is, in steps."""

    total: int
    warmup: int

    @classmethod
    def of(cls, config: RunConfig, stream: ShardStream) -> Span:
        """Count the steps of a run; warm-up is at most half of it."""
        total = config.steps or config.epochs * stream.steps_per_epoch
        return cls(total, min(round(config.optimiser.warmup_epochs * stream.steps_per_epoch), total // 2))


@dataclass(frozen=True)
class Session:
    """What takes part in one life of a run."""

    work: Work
    engine: Engine
    store: Store
    tracker: Tracker


def train(work: Work) -> bool:
    """Run or resume a training; True when it is complete, False when it was interrupted and saved."""
    config, world = work.config, work.world
    world.require_same("data", work.data.digest)
    micro = config.batch.size // world.size // work.stream.accumulation
    recipe = Recipe(
        work.groups(), config.optimiser.betas, config.optimiser.clip_norm, micro, work.stream.accumulation
    )
    if world.main:
        say(work.plan())
    parameters = count_parameters(work.model)  # before ZeRO-3 takes them apart
    engine = Engine(work.model, recipe, config.engine, world)
    store = Store(config.folder, world, config.keep_last)
    start = _resume(work, engine, store)
    extra = {"parameters": parameters, "ranks": world.size, "data_digest": work.data.digest}
    identity = runs.identity(config, work.kind, extra)
    with STOP, Tracker(identity, config.tracking, start, world.main) as tracker:
        complete = _loop(Session(work, engine, store, tracker), start)
        _end(work, engine, tracker, complete)
    # a rank that ends with 85 makes srun kill the others: none may leave before rank 0 has told MLflow everything
    world.barrier()
    return complete


def _resume(work: Work, engine: Engine, store: Store) -> int:
    """Load the newest checkpoint that verifies; return the step to go on from, 0 for a new run."""
    folder = store.newest(mend=True)
    if folder is None:
        return 0
    state = read_state(folder)
    if state.format_version < FORMAT_VERSION:
        raise ContractError(
            f"{folder} was written by an older version: its weights can be used, but its training cannot go on. Give"
            " another name=... for a new run."
        )
    # a ZeRO state is cut by ranks; loading it on others would fail later and less clearly
    if state.ranks != work.world.size:
        raise ConfigError(
            f"{folder} was written by {state.ranks} ranks, not {work.world.size}; start {state.ranks} ranks."
        )
    if state.data.digest != work.data.digest and work.config.resume == "auto":
        before, now = (
            {s.path: s.model_dump(exclude={"path"}) for s in d.sets} for d in (state.data, work.data)
        )
        raise ConfigError(
            f"{folder} was trained on other data than {work.config.data.names} ({'; '.join(differences(before, now))});"
            " resume=changed allows it."
        )
    engine.load(folder / "engine")
    if work.world.main:
        say(f"going on from {folder} at step {state.step}")
    return state.step


def _loop(session: Session, start: int) -> bool:
    """Train from step `start`; every rank leaves after the same step. Returns whether the run is complete."""
    work, engine, tracker = session.work, session.engine, session.tracker
    config, span = work.config, Span.of(work.config, work.stream)
    progress = Progress(work.kind, span.total, "steps", done=start, live=work.world.main)
    peak = config.optimiser.peak_lr(config.batch.size)
    began = time.perf_counter()
    for batch in work.stream.batches(start, span.total, config.data.workers):
        loaded, step = time.perf_counter(), batch.step + 1
        prepared = work.prepare(batch, engine)
        lr = learning_rate(batch.step, peak, span.warmup, span.total)
        result = engine.step(prepared, lr, STOP.received or step == config.stop_at)
        if step == start + 1:
            _require_counted(result, config)
        now = time.perf_counter()
        metrics = _measured(result, config.batch.size, loaded - began, now - began)
        if len(work.data.sensors) > 1:
            metrics[f"loss_{batch.sensor}"] = result.loss
        tracker.log(step, metrics | result.observed | work.measure(step, engine))
        progress.advance(note=f"loss {result.loss:.4f}, lr {lr:.2e}")
        # the same on all ranks, for result.stop was agreed by all
        if result.stop or step == span.total or step % config.save_every_steps == 0:
            session.store.save(engine, _state(work, step))
            tracker.commit(step)
        if result.stop:
            return step == span.total
        began = time.perf_counter()
    return True


def _require_counted(result: StepResult, config: RunConfig) -> None:
    """Raise `ContractError` where nothing in a run's first batch counts: it would train on nothing, silently."""
    if not result.counted:
        raise ContractError(
            f"no sample of the first batch from {config.data.names} counts: none has a label, or none has enough"
            " valid pixels. Look at the set with preprocessing/show.py and verify.py."
        )


def _measured(result: StepResult, samples: int, waited_s: float, whole_s: float) -> dict[str, float]:
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "samples_per_s": samples / whole_s,
        "data_wait_share": waited_s / whole_s,
    }


def _state(work: Work, step: int) -> State:
    config = work.config.model_dump(mode="json")
    return State(kind=work.kind, step=step, ranks=work.world.size, config=config, data=work.data)


def _end(work: Work, engine: Engine, tracker: Tracker, complete: bool) -> None:
    """Leave the marker, last of all, and tell what comes next."""
    folder = work.config.folder
    told = f"interrupted; everything is saved in {folder}. The same command goes on."
    if complete:
        told = work.finish(engine, tracker)
        tracker.artifact(folder / "config.yaml")
    tracker.finish(complete)
    if work.world.main:
        mark(folder, COMPLETE if complete else INTERRUPTED)
        say(told)
