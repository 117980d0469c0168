"""The training loop: the same for pretraining and for every downstream task.

A `Work` says what a step is made of; this file runs it exactly, resumes it, saves it and stops it in good order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from pipeline.config import differences
from pipeline.console import LOG, Progress, say
from pipeline.errors import ConfigError, ContractError, OutputError, TrainingError
from pipeline.manifest import write_atomically
from training import budget, runs
from training.checkpoint import FORMAT_VERSION, RunData, State, Store, read_snapshot, read_state
from training.data import Batch
from training.engine import Engine, Recipe
from training.export import described, export
from training.feeding import Feed
from training.guards import COMPLETE, INTERRUPTED, STOP, mark
from training.ledger import Effort, Entry, Ledger
from training.model import count_parameters
from training.runs import PLAN, RunConfig
from training.saving import Saver
from training.schedule import learning_rate
from training.stream import ShardStream
from training.tracking import Tracker
from training.watch import Peers
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
    effort: Effort
    """What this rank's step takes."""


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

    def flops(self) -> int:
        """Return the operations of a step over all ranks; 0 where nobody counts."""

    def prepare(self, batch: Batch, engine: Engine) -> Prepared:
        """Make a batch ready for the engine."""

    def measure(self, step: int, engine: Engine) -> dict[str, float]:
        """Return scores due after `step`, or nothing; collective."""

    def finish(self, engine: Engine) -> str:
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
        # a few steps of a long recipe would otherwise all be warm-up
        return cls(total, min(round(config.optimiser.warmup_epochs * stream.steps_per_epoch), total // 2))


@dataclass(frozen=True)
class Session:
    """What takes part in one life of a run."""

    work: Work
    engine: Engine
    saver: Saver
    tracker: Tracker


def train(work: Work) -> bool:
    """Run or resume a training; True when it is complete, False when it was interrupted and saved."""
    config, world = work.config, work.world
    if not config.dry_run:
        world.require_same("data", work.data.model_dump(mode="json"))
    if world.main:
        _tell_plan(work)
    if config.dry_run:
        return True
    parameters = count_parameters(work.model)  # before ZeRO-3 takes them apart
    engine = make_engine(work)
    store = Store(config.folder, world, config.keep_last, config.keep_every_steps)
    start = _resume(work, engine, store)
    identity = runs.identity(config, work.kind, work.data, {"parameters": parameters, "ranks": world.size})
    with (
        STOP,
        Tracker(identity, config.tracking, start, world.main) as tracker,
        Saver(store, config, tracker.commit) as saver,
    ):
        complete = _loop(Session(work, engine, saver, tracker), start)
        _end(work, engine, tracker, complete)
    # a rank that ends with 85 makes srun kill the others: none may leave before rank 0 has told MLflow everything
    world.barrier()
    return complete


def _tell_plan(work: Work) -> None:
    """Tell what is going to be done and what it takes; in the run folder too, for who asks how far it is."""
    span, per_epoch = Span.of(work.config, work.stream), work.stream.steps_per_epoch
    say(work.plan())
    say(budget.told(budget.Load(work.model, span.total, per_epoch, work.flops()), work.config, work.world))
    if not work.config.dry_run:
        plan = {
            "kind": work.kind,
            "steps": span.total,
            "steps_per_epoch": per_epoch,
            "ranks": work.world.size,
        }
        write_atomically(work.config.folder / PLAN, json.dumps(plan).encode())


def make_engine(work: Work) -> Engine:
    """Put a work's model under DeepSpeed; collective."""
    config, accumulation = work.config, work.stream.accumulation
    micro, optimiser = config.batch.size // work.world.size // accumulation, config.optimiser
    recipe = Recipe(work.groups(), optimiser.betas, optimiser.clip_norm, micro, accumulation)
    engine = Engine(work.model, recipe, config.engine, work.world)
    # after DeepSpeed, which has made groups of ranks with a patience of their own
    work.world.limit(config.engine.timeout_s)
    return engine


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
    if state.data.digest != work.data.digest and work.config.resume == "auto":
        before, now = (
            {"rule of the order": d.order}
            | {s.path: s.model_dump(exclude={"path", "provenance"}) for s in d.sets}
            for d in (state.data, work.data)
        )
        raise ConfigError(
            f"{folder} was trained on other data than {work.config.data.names} ({'; '.join(differences(before, now))});"
            " resume=changed allows it."
        )
    engine.restore(read_snapshot(folder))
    if work.world.main:
        resized = (
            f", on {work.world.size} ranks instead of {state.ranks}" if state.ranks != work.world.size else ""
        )
        say(f"going on from {folder} at step {state.step}{resized}")
    return state.step


def _loop(session: Session, start: int) -> bool:
    """Train from step `start`; every rank leaves after the same step. Returns whether the run is complete."""
    work, engine = session.work, session.engine
    config, span = work.config, Span.of(work.config, work.stream)
    peak = config.optimiser.peak_lr(config.batch.size)
    progress = Progress(work.kind, span.total, "steps", done=start, live=work.world.main)
    ledger = Ledger(work, session.tracker, progress, engine.peak_flops())
    feed, peers = Feed(work.stream, range(start, span.total), config.data), Peers(config.guards, work.world)
    for batch in ledger.batches(iter(feed)):
        step, prepared = batch.step + 1, work.prepare(batch, engine)
        prepared = replace(prepared, losses=peers.timed(prepared.losses))
        lr = learning_rate(batch.step, peak, span.warmup, span.total)
        with work.world.named(f"step {step}"):
            report = engine.step(prepared, lr, STOP.received or bool(feed.problem) or session.saver.failed)
        # of the step before: by now the device has it, and has this one to go on with
        stop = ledger.close() or step == config.stop_at
        scores = work.measure(step, engine) | peers.compare(step, engine.module) | engine.observe()
        ledger.open(Entry(step, batch, report, scores, prepared.effort))
        if stop or step == span.total or step % config.save_every_steps == 0:
            # nothing is saved before it is known to be finite
            stop = ledger.close() or stop
            ledger.told = {"save_s": _save(session, step, stop or step == span.total)}
        # the same on all ranks, for what is read was agreed by all
        if stop:
            _require_fed(work.world, feed)
            return step == span.total
    return True


def _save(session: Session, step: int, last: bool) -> float:
    """Save; returns the seconds that training waited for it; collective."""
    began = time.perf_counter()
    with session.work.world.named(f"the save of step {step}"):
        session.saver.save(session.engine, _state(session.work, step), last)
    return time.perf_counter() - began


def _require_fed(world: World, feed: Feed) -> None:
    """Raise `TrainingError` on all ranks where the batches of one came to an end early."""
    told = {rank: str(problem) for rank, problem in enumerate(world.gather(feed.problem)) if problem}
    if told:
        raise TrainingError("; ".join(f"rank {rank}: {problem}" for rank, problem in told.items()))


def _state(work: Work, step: int) -> State:
    config = work.config.model_dump(mode="json")
    return State(kind=work.kind, step=step, ranks=work.world.size, config=config, data=work.data)


def _end(work: Work, engine: Engine, tracker: Tracker, complete: bool) -> None:
    """Leave the marker, last of all, and tell what comes next."""
    folder = work.config.folder
    told = f"interrupted; everything is saved in {folder}. The same command goes on."
    if complete:
        told = work.finish(engine)
        _register(work, tracker)
    tracker.finish(complete)
    if work.world.main:
        mark(folder, COMPLETE if complete else INTERRUPTED)
        say(told)


def _register(work: Work, tracker: Tracker) -> None:
    """Export the weights of a complete run, where they are to be registered."""
    if work.world.main and work.config.tracking.register_as:
        folder = work.config.folder
        try:
            out = export(folder, folder / "export", force=True)
            tracker.register(out, described(out))
        # the weights are saved: an export that waits for a word of a person is no failed training
        except (ContractError, OutputError) as error:
            LOG.warning(
                "not registered: %s `python training/export.py %s --register` does it.", error, folder
            )
