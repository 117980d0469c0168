"""MLflow is fed from the journal without being waited for, and read back for comparison."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import MissingInputError
from tests.training.processes import free_port
from training.tracking import RecordedRun, RunIdentity, Tracker, TrackingConfig, connect, read_runs


def recorded(run: Path, uri: str) -> RecordedRun:
    found = {r.name: r for r in read_runs(uri, "spectral", ["loss"])}
    return found[run.name]


def track(run: Path, config: TrackingConfig, resumed_at: int, steps: range, committed: int) -> None:
    run.mkdir(parents=True, exist_ok=True)
    with Tracker(RunIdentity(run, "pretrain", {"seed": 1}), config, resumed_at, active=True) as tracker:
        for step in steps:
            tracker.log(step, {"loss": 1 / step})
        tracker.commit(committed)
        tracker.finish(complete=committed == steps[-1])


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_without_duplicates(tmp_path: Path) -> None:
    run, config = tmp_path / "out" / "run", TrackingConfig()
    uri = config.resolve(tmp_path / "out")
    track(run, config, 0, range(1, 9), committed=5)
    first = recorded(run, uri)
    assert (first.status, [s for s, _ in first.curves["loss"]]) == ("KILLED", [1, 2, 3, 4, 5])
    track(run, config, 5, range(6, 11), committed=10)
    assert len(read_runs(uri, "spectral", [])) == 1
    again = recorded(run, uri)
    assert again.curves["loss"] == [(s, 1 / s) for s in range(1, 11)]
    assert (again.status, again.parameters["seed"]) == ("FINISHED", "1")


def test_many_processes_create_one_database(tmp_path: Path) -> None:
    uri = TrackingConfig().resolve(tmp_path)
    code = f"from training.tracking import connect; connect({uri!r})"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(p.wait(120), p.stderr.read()) for p in started] == [(0, b"")] * 3  # type: ignore[union-attr]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on this host."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    store = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--default-artifact-root",
        str(tmp_path / "artifacts"),
    ]
    process = subprocess.Popen(
        [*command, *store], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while not answers(address) and time.monotonic() < deadline:
        time.sleep(0.3)
    yield address
    process.terminate()
    process.wait(30)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_tracking_server_by_environment(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    config = TrackingConfig()
    assert config.resolve(tmp_path) == server
    track(tmp_path / "run", config, 0, range(1, 4), committed=3)
    assert recorded(tmp_path / "run", server).curves["loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_t15_a_server_that_refuses_costs_the_training_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}", close_timeout_s=30)
    run = tmp_path / "run"
    run.mkdir()
    with Tracker(RunIdentity(run, "pretrain", {}), config, 0, active=True) as tracker:
        before = time.perf_counter()
        for step in range(1, 101):
            tracker.log(step, {"loss": 0.0})
        tracker.commit(100)
        spent = time.perf_counter() - before
    assert spent < 1
    assert "The journal in" in caplog.text or "did not take everything" in caplog.text
    assert len((run / "journal.jsonl").read_text().splitlines()) == 101
    for thread in threading.enumerate():
        if thread.name == "mlflow-feeder":
            thread.join(60)


def test_what_is_not_recorded_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no MLflow database"):
        read_runs(TrackingConfig().resolve(tmp_path), "spectral", [])
    connect(TrackingConfig().resolve(tmp_path))
    with pytest.raises(MissingInputError, match="no experiment `spectral`"):
        read_runs(TrackingConfig().resolve(tmp_path), "spectral", [])
