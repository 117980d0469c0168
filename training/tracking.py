"""MLflow, fed by a background thread from the journal, and read back for comparison.

Training never waits for the tracker: `log` appends to the journal and puts a line in a queue. Only steps that a
checkpoint has committed are sent, because MLflow cannot take a point back after a resume.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from pipeline.config import Config, read_yaml
from pipeline.console import LOG
from pipeline.errors import MissingInputError
from pipeline.manifest import write_atomically
from training import journal, mlflow_client
from training.identity import LINK, RunIdentity
from training.journal import Journal
from training.machine import Sampler


class TrackingConfig(Config):
    """Where runs are recorded."""

    experiment: str = "spectral"
    """MLflow experiment."""
    uri: str | None = None
    """Tracking server; null takes MLFLOW_TRACKING_URI, or else a sqlite file in the output folder."""
    parent: str | None = None
    """Run that this one is shown below in MLflow's pages, by name; it is made where it is not there. Null takes the one
    whose weights it starts from, or that one's own parent: stages and fine-tunes stand below one."""
    system_metrics_s: float = Field(default=10.0, ge=0)
    """Seconds between samples of processor, memory, disk, network and GPUs; 0 takes none."""
    close_timeout_s: float = Field(default=60.0, ge=0)
    """How long the end of a run waits for MLflow to take the rest; the journal keeps what it did not."""

    register_as: str | None = Field(default=None, pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
    """Name in MLflow's model registry under which the weights of a complete run become a version; null leaves that to
    `export.py --register`."""

    @classmethod
    def of(cls, run: Path) -> TrackingConfig:
        """Read that of a run folder; raises `MissingInputError` where it is none."""
        if not (run / "config.yaml").exists():
            raise MissingInputError(f"{run} is no run folder: it has no config.yaml.")
        return cls.model_validate(read_yaml(run / "config.yaml").get("tracking", {}))

    def resolve(self, output: Path) -> str:
        """Return the tracking address for runs below `output`."""
        return (
            self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output.resolve() / 'mlflow.db'}"
        )


class Tracker:
    """Journal and MLflow of one run; use as a context manager, on rank 0 (elsewhere it does nothing)."""

    def __init__(self, identity: RunIdentity, config: TrackingConfig, resumed_at: int, active: bool) -> None:
        self.identity, self.config, self.active = identity, config, active
        self._status = "FAILED"
        if active:
            identity.keep()
            self._journal = Journal(identity.run, resumed_at)
            self._feeder = _Feeder(identity, config)
            self._sampler = Sampler(identity.run, config.system_metrics_s)

    def __enter__(self) -> Self:
        if self.active:
            self._feeder.start()
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self._sampler.close()
            # before the feeder, which sends what the journal holds
            self._journal.close()
            self._feeder.close(self._status)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, and what the machine did since the last; no network, no database."""
        if self.active:
            self._journal.append(step, {**metrics, **self._sampler.take()})

    def commit(self, step: int) -> None:
        """Let MLflow have everything up to `step`: a checkpoint holds it, so no resume will rewind it."""
        # only now: a point sent to MLflow cannot be taken back by a resume
        if self.active:
            self._feeder.put(lambda feeder: feeder.send_up_to(step))

    def register(self, export: Path, tags: Mapping[str, str]) -> None:
        """Make an exported folder a version of the model that `register_as` names."""
        name = self.config.register_as
        if self.active and name:
            self._feeder.put(lambda feeder: feeder.register(export, name, tags))

    def finish(self, complete: bool) -> None:
        """Say how the run ended; without it an exit counts as failed."""
        self._status = "FINISHED" if complete else "KILLED"


class _Feeder(threading.Thread):
    """Sends to MLflow, one thing after the other; a problem is told once and costs nothing else.

    Where MLflow does not answer, the next checkpoint tries again: what it lacks is read from the run folder.
    """

    def __init__(self, identity: RunIdentity, config: TrackingConfig) -> None:
        # daemon: a server that hangs must not keep a finished run alive
        super().__init__(name="mlflow-feeder", daemon=True)
        self.identity, self.config = identity, config
        self.uri = config.resolve(identity.run.parent)
        self._jobs: queue.Queue[Callable[[_Feeder], None] | None] = queue.Queue()
        self._client: Any = None
        self._run_id, self._sent, self._key = "", -1, ""
        self._described = False
        self._had: dict[Path, tuple[int, int]] = {}
        self._told = ""

    def put(self, job: Callable[[_Feeder], None]) -> None:
        """Queue a job."""
        self._jobs.put(job)

    def close(self, status: str) -> None:
        """Queue the end and wait for it, for a bounded time."""
        ended_s = time.time()
        self.put(lambda feeder: feeder.end(status, ended_s))
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
        self._guarded(_Feeder.describe)
        while (job := self._jobs.get()) is not None:
            self._guarded(job)

    def _guarded(self, job: Callable[[_Feeder], None]) -> None:
        try:
            job(self)
            self._told = ""
        except mlflow_client.all_errors() as error:
            problem = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            if problem != self._told:
                self._told = problem
                LOG.warning(
                    "not recorded in MLflow at %s: %s. The journal in %s is complete.",
                    self.uri,
                    problem,
                    self.identity.run,
                )

    def open_run(self) -> None:
        """Create the MLflow run, or go on with the one this folder had at this address; once.

        A run that MLflow no longer has is made anew, and gets everything from the journal.
        """
        if self._client is not None:
            return
        client = mlflow_client.connect(self.uri)
        # the folder remembers its MLflow run: names are not unique there
        link = self.identity.run / LINK
        known = json.loads(link.read_text()) if link.exists() else {}
        self._key = known.get("key") or uuid.uuid4().hex
        # a run's id means something at its own server alone
        here = known.get("uri") == self.uri and known.get("run_id")
        if here and mlflow_client.has_run(client, known["run_id"]):
            self._run_id, self._sent = known["run_id"], known["sent"]
        else:
            # before the run is made: a life that is killed in between finds it again by its key
            self._remember()
            self._run_id = self._created(client)
        client.update_run(self._run_id, status="RUNNING")
        self._client = client
        self._remember()

    def _created(self, client: Any) -> str:
        run, output = self.identity.run, self.identity.run.parent
        experiment = mlflow_client.experiment_id(client, self.uri, self.config.experiment, output)
        found = mlflow_client.run_with_tag(client, experiment, "run_key", self._key)
        if found:
            return found
        tags = {"kind": self.identity.kind, "run_folder": str(run.resolve()), "run_key": self._key}
        if self.identity.parent:
            tags["mlflow.parentRunId"] = mlflow_client.parent_id(client, experiment, self.identity.parent)
        began_s = journal.began_s(run) or time.time()
        named = {"run_name": run.name, "start_time": int(began_s * 1000)}
        made = client.create_run(experiment, tags=tags | dict(self.identity.tags), **named)
        return str(made.info.run_id)

    def describe(self) -> None:
        """Send what the run is: parameters, data, files; once a life."""
        self.open_run()
        if not self._described:
            mlflow_client.describe(self._client, self._run_id, self.identity)
            self._send_files()
            self._described = True

    def send_up_to(self, step: int) -> None:
        """Send the journal's lines past the last one sent, up to `step`, and the newest checkpoint's manifest."""
        self.describe()
        lines = [x for x in journal.read(self.identity.run) if self._sent < x.step <= step]
        # sent again after a kill between here and _remember: the same values at the same steps
        mlflow_client.send_metrics(self._client, self._run_id, lines)
        self._sent = max(step, self._sent)
        self._remember()
        self._send_files()  # panels that were drawn on the way
        saved = self.identity.checkpoint()
        if saved:
            self._client.log_dict(self._run_id, saved, "checkpoint/manifest.json")

    def _send_files(self) -> None:
        """Send the files of the run folder that are new or changed since the last time."""
        for path, folder in self.identity.files():
            state = path.stat()
            if self._had.get(path) != (state.st_mtime_ns, state.st_size):
                self._client.log_artifact(self._run_id, str(path), folder or None)
                self._had[path] = (state.st_mtime_ns, state.st_size)

    def register(self, export: Path, name: str, tags: Mapping[str, str]) -> None:
        """Make an exported folder of the run a version of a registered model."""
        self.describe()
        mlflow_client.register(self._client, self._run_id, export, name, tags)

    def end(self, status: str, at_s: float) -> None:
        """Send what the end at a time has left, and close the MLflow run."""
        self.describe()
        self._send_files()
        self._client.set_terminated(self._run_id, status=status, end_time=int(at_s * 1000))

    def _remember(self) -> None:
        record = {"uri": self.uri, "run_id": self._run_id, "sent": self._sent, "key": self._key}
        write_atomically(self.identity.run / LINK, json.dumps(record).encode())


def send_all(identity: RunIdentity, config: TrackingConfig, step: int, status: str) -> None:
    """Let MLflow have what a run is and its journal up to `step` now, and wait for it; `status` is how it ended.

    Raises what `connect` raises.
    """
    feeder = _Feeder(identity, config)
    try:
        feeder.send_up_to(step)
        feeder.end(status, max((x.time_s for x in journal.read(identity.run)), default=time.time()))
    except mlflow_client.tracker_errors() as error:
        raise MissingInputError(
            f"MLflow at {feeder.uri} did not take it ({mlflow_client.first_cause(error)})."
        ) from error


def register(run: Path, export: Path, name: str, tags: Mapping[str, str]) -> str:
    """Make an exported folder a version of a registered model, where its run is recorded; returns what to tell.

    Raises `MissingInputError` where it is not recorded, or MLflow does not answer.
    """
    uri = TrackingConfig.of(run).resolve(run.parent)
    known = json.loads((run / LINK).read_text()) if (run / LINK).exists() else {}
    if known.get("uri") != uri or not known.get("run_id"):
        raise MissingInputError(
            f"{run} is not recorded in MLflow at {uri}. Run `python training/sync.py {run}` first."
        )
    try:
        version = mlflow_client.register(mlflow_client.connect(uri), known["run_id"], export, name, tags)
    except mlflow_client.tracker_errors() as error:
        raise MissingInputError(
            f"MLflow at {uri} did not take it ({mlflow_client.first_cause(error)})."
        ) from error
    return f"registered as version {version} of {name} at {uri}"
