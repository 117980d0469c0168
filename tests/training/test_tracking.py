"""MLflow is fed from the journal without being waited for, and read back for comparison."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import MissingInputError
from tests.training.processes import ROOT, free_port
from training import journal
from training.mlflow_client import connect
from training.recorded import RecordedRun, read_runs
from training.tracking import RunIdentity, Tracker, TrackingConfig


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
    code = f"from training.mlflow_client import connect; connect({uri!r})"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(p.wait(120), p.stderr.read()) for p in started] == [(0, b"")] * 3  # type: ignore[union-attr]


def test_a_process_that_dies_making_the_database_leaves_nothing_half_made(tmp_path: Path) -> None:
    uri, part = TrackingConfig().resolve(tmp_path), tmp_path / "mlflow.db.part"
    code = f"from training.mlflow_client import connect; connect({uri!r})"
    dying = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (part.exists() and part.stat().st_size > 50_000):
        assert dying.poll() is None, "the database was made before it could be killed"
        time.sleep(0.005)
    dying.kill()
    dying.wait()
    assert part.exists()
    assert not (tmp_path / "mlflow.db").exists()
    # the tables of the dead one would be in the way of MLflow's migrations
    assert connect(uri).search_experiments()[0].name == "Default"


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


def life(output: Path, resumed_at: int, last: int) -> str:
    """Track `resumed_at + 1` to `last` in a process of its own, as every life is; returns what it warned."""
    code = (
        "import sys; from pathlib import Path; from tests.training.test_tracking import track, TrackingConfig; "
        f"track(Path({str(output / 'run')!r}), TrackingConfig(), {resumed_at}, range({resumed_at + 1}, {last + 1}), {last})"
    )
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr


def test_a_run_that_mlflow_lost_is_recorded_again_whole(tmp_path: Path) -> None:
    uri = TrackingConfig().resolve(tmp_path)
    assert life(tmp_path, 0, 5) == ""
    (tmp_path / "mlflow.db").unlink()
    assert life(tmp_path, 5, 8) == ""
    again = recorded(tmp_path / "run", uri)
    assert again.curves["loss"] == [(s, 1 / s) for s in range(1, 9)]
    assert (again.status, again.parameters["seed"]) == ("FINISHED", "1")
    connect(uri).delete_run(again.id)  # as the button in MLflow's pages does
    track(tmp_path / "run", TrackingConfig(), 8, range(9, 11), committed=10)
    assert recorded(tmp_path / "run", uri).curves["loss"] == [(s, 1 / s) for s in range(1, 11)]


def test_without_mlflow_a_training_goes_on_and_says_what_to_install(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["mlflow"] = sys.modules["sqlalchemy"] = None  # as if not installed
from pathlib import Path
from training.recorded import read_runs
from training.tracking import RunIdentity, Tracker, TrackingConfig
with Tracker(RunIdentity(Path({str(tmp_path)!r}), "pretrain", {{}}), TrackingConfig(), 0, True) as tracker:
    tracker.log(1, {{"loss": 1.0}})
    tracker.commit(1)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ended.stderr.count("\n"), "tracking needs mlflow; install it with" in ended.stderr) == (1, True)
    assert [line.step for line in journal.read(tmp_path)] == [1]


def test_an_address_that_does_not_answer_is_told_quickly(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_text("no database\n" * 100)
    code = """
import sys, time
import mlflow
from pipeline.errors import MissingInputError
from training.recorded import read_runs
before = time.perf_counter()
try:
    read_runs(sys.argv[1], "spectral", [])
except MissingInputError as error:
    print(time.perf_counter() - before, error)
"""
    told = {}
    # what other tests connected with stays in the environment
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    for uri in (f"http://127.0.0.1:{free_port()}", f"sqlite:///{tmp_path}/broken.db"):
        ended = subprocess.run(
            [sys.executable, "-c", code, uri], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
        )
        assert (ended.stdout.count("\n"), ended.stderr) == (1, "")
        seconds, told[uri[:4]] = ended.stdout.split(" ", 1)
        # left to themselves they ask for minutes
        assert float(seconds) < 30
    assert "Connection refused" in told["http"]
    assert "file is not a database" in told["sqli"]


def test_what_is_not_recorded_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no MLflow database"):
        read_runs(TrackingConfig().resolve(tmp_path), "spectral", [])
    connect(TrackingConfig().resolve(tmp_path))
    with pytest.raises(MissingInputError, match="no experiment `spectral`"):
        read_runs(TrackingConfig().resolve(tmp_path), "spectral", [])
