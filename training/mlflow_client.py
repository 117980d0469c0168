"""MLflow's client: the one file that imports it. Addresses, its errors, a new database, experiments and groups."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import MissingInputError, MissingPackageError
from pipeline.manifest import sha256
from training.identity import RunIdentity
from training.journal import Line
from training.names import COMPARED, COMPARED_BY

GROUP = "group"
"""Kind of a run that only holds others together."""
VIEW = "comparison"
"""Key of the saved view: `viewStateShareKey=comparison` in an address, Comparison in the list of views."""
_COLUMNS = [
    *(f"attributes.`{name}`" for name in ("Dataset",)),
    *(f"params.`{name}`" for name in COMPARED_BY),
    *(f"metrics.`{name}`" for name in COMPARED),
]
_VIEW = {
    # the pages of MLflow put traces of language models first otherwise
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {
            "name": VIEW.capitalize(),
            "createdAt": 0,
            "updatedAt": 0,
            "state": json.dumps({"selectedColumns": _COLUMNS}),
        }
    ),
}
# what MLflow takes in a call, and of a value
_BATCH, _PARAMS, _LONGEST, _CARD = 900, 100, 6000, 5000


def tracker_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises when a server or a database does not do as asked."""
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return (OSError,)
    return (MlflowException, SQLAlchemyError, OSError)


def all_errors() -> tuple[type[Exception], ...]:
    """Everything a tracker may do to us, its absence included: none of it may stop a training."""
    return (*tracker_errors(), ImportError, ValueError, KeyError, RuntimeError)


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
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        # several first runs at once would each try to create the tables
        with _locked(uri) as database:
            if database and not database.exists():
                _create_database(database)
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except tracker_errors() as error:
        raise MissingInputError(
            f"no MLflow answers at {uri} ({first_cause(error)}). Start the server, or correct the address"
            " (`tracking.uri`, --uri or MLFLOW_TRACKING_URI)."
        ) from error
    return client


def first_cause(error: BaseException) -> str:
    """Return in one line what the operating system said below the layers that wrap it, or else the error."""
    inner = error.__cause__ or error.__context__
    while inner:
        error = inner if isinstance(inner, OSError) else error
        inner = inner.__cause__ or inner.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def has_run(client: Any, run_id: str) -> bool:
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
def _locked(uri: str) -> Iterator[Path | None]:
    """Hold the lock of a sqlite file and give its path; of any other address, hold nothing."""
    # sqlite's own form, `file:/path?mode=ro`, names a database that is there, and maybe a folder without writing
    if not uri.startswith("sqlite:///") or "?" in uri:
        yield None
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield database


def _create_database(database: Path) -> None:
    """Make MLflow's tables in a file beside `database` and put it in place whole.

    A process that dies between the some sixty migrations would else leave a file that MLflow can never use again.
    """
    from mlflow.tracking import MlflowClient

    part = database.with_name(f"{database.name}.part")
    part.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{part}").search_experiments(max_results=1)
    part.replace(database)


def send_metrics(client: Any, run_id: str, lines: Sequence[Line]) -> None:
    """Send a journal's lines; what is not finite stays in the journal alone."""
    from mlflow.entities import Metric

    points = [
        Metric(name, value, int(line.time_s * 1000), line.step)
        for line in lines
        for name, value in line.metrics.items()
        if math.isfinite(value)
    ]
    for start in range(0, len(points), _BATCH):
        client.log_batch(run_id, metrics=points[start : start + _BATCH])


def experiment_id(client: Any, uri: str, name: str, output: Path) -> str:
    """Return the id of an experiment, which is made where it is not there; its pages get a view to compare by."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # MLflow would put artifacts below the working directory
        local = (output.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        found = client.get_experiment(client.create_experiment(name, artifact_location=local))
    for key, value in _VIEW.items():
        # changed in MLflow's pages, it stays so
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def run_with_tag(client: Any, experiment: str, tag: str, value: str) -> str:
    """Return the id of an experiment's run with a tag, or nothing."""
    found = client.search_runs([experiment], filter_string=f"tags.`{tag}` = '{value}'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def parent_id(client: Any, experiment: str, folder: Path) -> str:
    """Return the id of the run that others stand below: that of a folder, or a group that is made in its place."""
    # by folder: a name may be given twice
    place = str(folder.resolve())
    found = run_with_tag(client, experiment, "run_folder", place)
    if found:
        return found
    made = client.create_run(experiment, run_name=folder.name, tags={"kind": GROUP, "run_folder": place})
    # it has no life of its own that could end
    client.set_terminated(made.info.run_id, status="FINISHED")
    return str(made.info.run_id)


def describe(client: Any, run_id: str, identity: RunIdentity) -> None:
    """Tell parameters and data of a run; what MLflow has already stays as it is."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    # parameters are immutable in MLflow: those of the life that made the run stand
    known = client.get_run(run_id).data.params
    params = [Param(k, str(v)[:_LONGEST]) for k, v in identity.parameters.items() if k not in known]
    for start in range(0, len(params), _PARAMS):
        client.log_batch(run_id, params=params[start : start + _PARAMS])
    inputs = [
        DatasetInput(
            Dataset(
                name=one.name,
                digest=one.digest,
                source_type="local" if "://" not in one.path else "http",
                source=json.dumps({"uri": one.path} if "://" not in one.path else {"url": one.path}),
                profile=json.dumps({"num_rows": one.samples}),
            ),
            [InputTag("mlflow.data.context", "training")],
        )
        for one in identity.sets
    ]
    if inputs:
        client.log_inputs(run_id, inputs)


def register(client: Any, run_id: str, export: Path, name: str, tags: Mapping[str, str]) -> str:
    """Make an exported folder of a run a version of a registered model, described by its card; returns the version.

    What has the same tags already stays the version that it is.
    """
    for known in client.search_model_versions(f"name = '{name}'"):
        if tags.items() <= known.tags.items():
            return str(known.version)
    # a folder for each step: a later export of the run must not change what an earlier version holds
    place = f"model/step-{tags['step']}"
    client.log_artifacts(run_id, str(export), place)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    summed = {**tags, "sha256": sha256(export / "model.safetensors")}
    made = client.create_model_version(name, source, run_id, tags=summed, description=_card(export))
    return str(made.version)


def _card(export: Path) -> str:
    """Return the model card of an export without what is for programs, as far as MLflow's databases take it."""
    text = (export / "README.md").read_text(encoding="utf-8").split("---\n", 2)[-1]
    more = "\n\nThe rest is in README.md among the files."
    return text if len(text) <= _CARD else text[: _CARD - len(more)] + more
