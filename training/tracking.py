"""MLflow, fed by a background thread from the journal, and read back for comparison.

Training never waits for the tracker: `log` appends to the journal and puts a line in a queue. Only steps that a
checkpoint has committed are sent, because MLflow cannot take a point back after a resume.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from pipeline.config import Config
from pipeline.console import LOG
from pipeline.errors import MissingInputError
from pipeline.manifest import write_atomically
from training import journal, mlflow_client
from training.journal import Journal

_LINK = "mlflow.json"


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
        except mlflow_client.all_errors() as error:
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
        client = mlflow_client.connect(self.uri)
        # the folder remembers its MLflow run: names are not unique there
        link = self.identity.run / _LINK
        known = json.loads(link.read_text()) if link.exists() else {}
        if known.get("uri") == self.uri and mlflow_client.has_run(client, known["run_id"]):
            self._run_id, self._sent = known["run_id"], known["sent"]
            client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._create(client)
        self._client = client
        self._remember()

    def _create(self, client: Any) -> str:
        experiment = mlflow_client.experiment_id(
            client, self.uri, self.config.experiment, self.identity.run.parent
        )
        tags = {"kind": self.identity.kind, "run_folder": str(self.identity.run), **self.identity.tags}
        if self.config.parent:
            tags["mlflow.parentRunId"] = mlflow_client.group_id(
                client, experiment, self.identity.run.parent / self.config.parent
            )
        run = client.create_run(experiment, run_name=self.identity.run.name, tags=tags)
        for key, value in self.identity.parameters.items():
            # parameters are immutable in MLflow, so they are written once, by the life that makes the run
            client.log_param(run.info.run_id, key, str(value)[:6000])
        return str(run.info.run_id)

    def send_up_to(self, step: int) -> None:
        """Send the journal's lines past the last one sent, up to `step`."""
        lines = [x for x in journal.read(self.identity.run) if self._sent < x.step <= step]
        # sent again after a kill between here and _remember: the same values at the same steps
        mlflow_client.send_metrics(self._client, self._run_id, lines)
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
    except mlflow_client.tracker_errors() as error:
        raise MissingInputError(
            f"MLflow at {feeder.uri} did not take it ({mlflow_client.first_cause(error)})."
        ) from error
