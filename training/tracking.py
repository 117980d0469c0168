"""MLflow, fed by a background thread from the journal, and read back for comparison.

Training never waits for the tracker: `log` appends to the journal and puts a line in a queue. Only steps that a
checkpoint has committed are sent, because MLflow cannot take a point back after a resume.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from pipeline.config import Config
from pipeline.console import LOG
from pipeline.errors import MissingInputError, MissingPackageError
from pipeline.manifest import write_atomically
from training import journal
from training.journal import Journal

_LINK = "mlflow.json"
GROUP = "group"
"""Kind of a run that only holds others together."""
_BATCH = 900  # MLflow takes 1 000 metrics a call


class TrackingConfig(Config):
    """Where runs are recorded."""

    experiment: str = "spectral"
    """MLflow experiment."""
    uri: str | None = None
    """Tracking server; null takes MLFLOW_TRACKING_URI, or else a sqlite file in the output folder."""
    parent: str | None = None
    """Run that this one is shown below in MLflow's pages, by name; it is made where it is not there."""
    close_timeout_s: float = Field(default=60.0, ge=0)
    """How long the end of a run waits for MLflow to take the rest; the journal keeps what it did not."""

    def resolve(self, output: Path) -> str:
        """Return the tracking address for runs below `output`."""
        return (
            self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output.resolve() / 'mlflow.db'}"
        )


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


class Tracker:
    """Journal and MLflow of one run; use as a context manager, on rank 0 (elsewhere it does nothing)."""

    def __init__(self, identity: RunIdentity, config: TrackingConfig, resumed_at: int, active: bool) -> None:
        self.identity, self.config, self.active = identity, config, active
        self._status = "FAILED"
        if active:
            self._journal = Journal(identity.run, resumed_at)
            self._feeder = _Feeder(identity, config)

    def __enter__(self) -> Self:
        if self.active:
            self._feeder.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self._journal.close()
            self._feeder.close(self._status)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; no network, no database."""
        if self.active:
            self._journal.append(step, metrics)

    def commit(self, step: int) -> None:
        """Let MLflow have everything up to `step`: a checkpoint holds it, so no resume will rewind it."""
        # only now: a point sent to MLflow cannot be taken back by a resume
        if self.active:
            self._feeder.put(lambda feeder: feeder.send_up_to(step))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Hand a file to MLflow."""
        if self.active:
            self._feeder.put(lambda feeder: feeder.send_file(path, folder))

    def finish(self, complete: bool) -> None:
        """Say how the run ended; without it an exit counts as failed."""
        self._status = "FINISHED" if complete else "KILLED"


class _Feeder(threading.Thread):
    """Sends to MLflow, one thing after the other; problems are told once and cost nothing else."""

    def __init__(self, identity: RunIdentity, config: TrackingConfig) -> None:
        super().__init__(name="mlflow-feeder", daemon=True)
        self.identity, self.config = identity, config
        self.uri = config.resolve(identity.run.parent)
        self._jobs: queue.Queue[Callable[[_Feeder], None] | None] = queue.Queue()
        self._client: Any = None
        self._run_id, self._sent = "", -1

    def put(self, job: Callable[[_Feeder], None]) -> None:
        """Queue a job."""
        self._jobs.put(job)

    def close(self, status: str) -> None:
        """Queue the end and wait for it, for a bounded time."""
        self.put(lambda feeder: feeder.end(status))
        self._jobs.put(None)
        self.join(self.config.close_timeout_s)
        if self.is_alive():
            LOG.warning(
                "MLflow at %s did not take everything in time; %s has it all.",
                self.uri,
                self.identity.run / journal.NAME,
            )

    def run(self) -> None:
        """Work through the queue."""
        self._guarded(_Feeder.open_run)
        while (job := self._jobs.get()) is not None:
            self._guarded(job)

    def _guarded(self, job: Callable[[_Feeder], None]) -> None:
        try:
            if self._client is None and job is not _Feeder.open_run:
                return
            job(self)
        except _all_errors() as error:
            LOG.warning(
                "not recorded in MLflow at %s: %s. The journal in %s is complete.",
                self.uri,
                (str(error) or type(error).__name__).splitlines()[0].rstrip("."),
                self.identity.run,
            )

    def open_run(self) -> None:
        """Create the MLflow run, or go on with the one this folder had at this address.

        A run that MLflow no longer has is made anew, and gets everything from the journal.
        """
        client = connect(self.uri)
        # the folder remembers its MLflow run: names are not unique there
        link = self.identity.run / _LINK
        known = json.loads(link.read_text()) if link.exists() else {}
        if known.get("uri") == self.uri and _has_run(client, known["run_id"]):
            self._run_id, self._sent = known["run_id"], known["sent"]
            client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._create(client)
        self._client = client
        self._remember()

    def _create(self, client: Any) -> str:
        experiment = _experiment_id(client, self.uri, self.config.experiment, self.identity.run.parent)
        tags = {"kind": self.identity.kind, "run_folder": str(self.identity.run), **self.identity.tags}
        if self.config.parent:
            tags["mlflow.parentRunId"] = _group(
                client, experiment, self.identity.run.parent / self.config.parent
            )
        run = client.create_run(experiment, run_name=self.identity.run.name, tags=tags)
        for key, value in self.identity.parameters.items():
            # parameters are immutable in MLflow, so they are written once, by the life that makes the run
            client.log_param(run.info.run_id, key, str(value)[:6000])
        return str(run.info.run_id)

    def send_up_to(self, step: int) -> None:
        """Send the journal's lines past the last one sent, up to `step`."""
        from mlflow.entities import Metric

        lines = [x for x in journal.read(self.identity.run) if self._sent < x.step <= step]
        points = [
            Metric(k, v, int(x.time_s * 1000), x.step)
            for x in lines
            for k, v in x.metrics.items()
            if math.isfinite(v)
        ]
        # sent again after a kill between here and _remember: the same values at the same steps
        for start in range(0, len(points), _BATCH):
            self._client.log_batch(self._run_id, metrics=points[start : start + _BATCH])
        self._sent = max(step, self._sent)
        self._remember()

    def send_file(self, path: Path, folder: str) -> None:
        """Send a file."""
        self._client.log_artifact(self._run_id, str(path), folder or None)

    def end(self, status: str) -> None:
        """Close the MLflow run."""
        self._client.set_terminated(self._run_id, status=status)

    def _remember(self) -> None:
        record = {"uri": self.uri, "run_id": self._run_id, "sent": self._sent}
        write_atomically(self.identity.run / _LINK, json.dumps(record).encode())


def send_all(identity: RunIdentity, config: TrackingConfig, step: int, status: str) -> None:
    """Let MLflow have the journal up to `step` now, and wait for it; `status` is how the run ended.

    Raises what `connect` raises.
    """
    feeder = _Feeder(identity, config)
    try:
        feeder.open_run()
        feeder.send_up_to(step)
        feeder.end(status)
    except _tracker_errors() as error:
        raise MissingInputError(f"MLflow at {feeder.uri} did not take it ({_first_cause(error)}).") from error


def _tracker_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises when a server or a database does not do as asked."""
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return (OSError,)
    return (MlflowException, SQLAlchemyError, OSError)


def _all_errors() -> tuple[type[Exception], ...]:
    """Everything a tracker may do to us, its absence included: none of it may stop a training."""
    return (*_tracker_errors(), ImportError, ValueError, KeyError, RuntimeError)


def connect(uri: str, retries: int = 2, timeout_s: int = 20) -> Any:
    """Return an `MlflowClient` of a tracking address; a new sqlite file gets its tables once, under a lock.

    `retries` and `timeout_s` count for each request to a server, unless MLflow's own variables are set. Raises
    `MissingPackageError` without mlflow, and `MissingInputError` where nothing at the address answers.
    """
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingPackageError(
            "tracking needs mlflow; install it with `make setup`, or `pip install mlflow`."
        ) from error
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout_s))
    try:
        # several first runs at once would each try to create the tables
        with _locked(uri):
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except _tracker_errors() as error:
        raise MissingInputError(
            f"no MLflow answers at {uri} ({_first_cause(error)}). Start the server, or correct the address"
            " (`tracking.uri`, --uri or MLFLOW_TRACKING_URI)."
        ) from error
    return client


def _first_cause(error: BaseException) -> str:
    """Return in one line what the operating system said below the layers that wrap it, or else the error."""
    inner = error.__cause__ or error.__context__
    while inner:
        error = inner if isinstance(inner, OSError) else error
        inner = inner.__cause__ or inner.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _has_run(client: Any, run_id: str) -> bool:
    """Say whether MLflow has a run: not after its database was removed, or the run deleted in MLflow's pages."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        # anything else, a refused connection say, tells nothing about the run
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return bool(found.info.lifecycle_stage == "active")


@contextmanager
def _locked(uri: str) -> Iterator[None]:
    if not uri.startswith("sqlite:///"):
        yield
        return
    # sqlite's own form, `file:/path?mode=ro`, is no path yet
    place = uri.removeprefix("sqlite:///").partition("?")[0].removeprefix("file:")
    lock = Path(place).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _experiment_id(client: Any, uri: str, name: str, output: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # MLflow would put artifacts below the working directory
    local = (output.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, artifact_location=local))


def _group(client: Any, experiment: str, folder: Path) -> str:
    """Return the id of the run that holds others together, which is made where it is not there."""
    # by folder: a name may be given twice
    asked = f"tags.kind = '{GROUP}' and tags.run_folder = '{folder}'"
    found = client.search_runs([experiment], filter_string=asked, max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"kind": GROUP, "run_folder": str(folder)}
    made = client.create_run(experiment, run_name=folder.name, tags=tags)
    # it has no life of its own that could end
    client.set_terminated(made.info.run_id, status="FINISHED")
    return str(made.info.run_id)
