"""What MLflow has recorded of runs, read back for comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import MissingInputError
from training.mlflow_client import GROUP, connect

_PAGE = 1000
"""Runs that MLflow is asked for at once."""


@dataclass(frozen=True)
class RecordedRun:
    """One run as MLflow tells it."""

    id: str
    """MLflow's own, unlike the name never given twice."""
    name: str
    kind: str
    """`pretrain` or a task's name."""
    status: str
    """MLflow's word: RUNNING, FINISHED, KILLED (interrupted and saved) or FAILED."""
    duration_s: float
    """From the first life's start to the last one's end; 0 while running."""
    folder: str
    """The run folder."""
    parameters: dict[str, str]
    metrics: dict[str, float]
    """Last value of each metric."""
    curves: dict[str, list[tuple[int, float]]]
    """(step, value) of the metrics asked for."""


def read_runs(uri: str, experiment: str, curves: Sequence[str]) -> list[RecordedRun]:
    """Read all runs of an experiment, oldest first, with the named metrics' histories.

    A `*` among them takes all but the machine's.
    Raises `MissingInputError` where nothing answers, within seconds, or where there is no such experiment.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise MissingInputError(f"no MLflow database at {uri}. Give --output the folder that holds the runs.")
    # a person waits for this
    client = connect(uri, retries=0, timeout_s=10)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(e.name for e in client.search_experiments()) or "none"
        raise MissingInputError(f"no experiment `{experiment}` at {uri}; there are: {names}.")
    runs = _all_runs(client, found.experiment_id)
    # what only holds others together has nothing to compare
    return [_recorded(client, run, curves) for run in runs if run.data.tags.get("kind") != GROUP]


def _all_runs(client: Any, experiment: str) -> Iterator[Any]:
    """Yield the runs of an experiment, oldest first."""
    page: str | None = ""
    order = ["attributes.start_time ASC"]
    while page is not None:
        runs = client.search_runs([experiment], order_by=order, max_results=_PAGE, page_token=page or None)
        yield from runs
        # the newest are on the last page: none may be left out
        page = runs.token or None


def _recorded(client: Any, run: Any, curves: Sequence[str]) -> RecordedRun:
    info, data = run.info, run.data
    # each history is a question of its own, and the machine's are dozens
    every = [m for m in data.metrics if not m.startswith("system/")] if "*" in curves else ()
    wanted = [name for name in dict.fromkeys((*curves, *every)) if name in data.metrics]
    histories = {name: client.get_metric_history(info.run_id, name) for name in wanted}
    return RecordedRun(
        id=info.run_id,
        name=info.run_name,
        kind=data.tags.get("kind", "?"),
        folder=data.tags.get("run_folder", ""),
        status=info.status,
        duration_s=((info.end_time or info.start_time) - info.start_time) / 1000,
        parameters=dict(data.params),
        metrics=dict(data.metrics),
        curves={name: sorted((p.step, p.value) for p in points) for name, points in histories.items()},
    )


def read_panels(uri: str, runs: Sequence[RecordedRun]) -> dict[str, dict[str, bytes]]:
    """Return the pictures of runs, by panel and then by the name of the run."""
    client = connect(uri, retries=0, timeout_s=10)
    found: dict[str, dict[str, bytes]] = {}
    # the client copies artifacts to a folder, wherever the server keeps them
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            for panel in client.list_artifacts(run.id, "panels"):
                path = Path(client.download_artifacts(run.id, panel.path, folder))
                found.setdefault(path.stem, {})[run.name] = path.read_bytes()
    return found
