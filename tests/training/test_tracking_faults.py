"""T15: whatever MLflow does, the training does not wait for it, the journal is whole, and a later sync is exact."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.training.processes import ROOT, free_port
from training import journal
from training.mlflow_client import connect
from training.recorded import read_runs
from training.sync import main as sync
from training.tracking import RunIdentity, Tracker, TrackingConfig

CODE = """
import sys, time
from pathlib import Path
from training.tracking import RunIdentity, Tracker, TrackingConfig
run, uri, first, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
spent, began = 0.0, time.perf_counter()
with Tracker(RunIdentity(run, "pretrain", {"seed": 1}), TrackingConfig(uri=uri, close_timeout_s=2), first, True) as tracker:
    for step in range(first + 1, last + 1):
        time.sleep(0.005)
        before = time.perf_counter()
        tracker.log(step, {"loss": 1 / step})
        if step % 10 == 0:
            tracker.commit(step)
        spent = max(spent, time.perf_counter() - before)
    began = time.perf_counter()
    tracker.finish(True)
print(spent, time.perf_counter() - began, flush=True)
import json
import os
os._exit(0)  # a thread that still waits for the server must not keep the test
"""


def life(run: Path, uri: str, first: int, last: int) -> tuple[float, float]:
    """Log steps in a process of its own; returns the longest call and the time that the end took."""
    quick = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "PYTHONPATH": str(ROOT),
    }
    words = [sys.executable, "-W", "ignore", "-c", CODE, str(run), uri, str(first), str(last)]
    done = subprocess.run(
        words, cwd=run.parent, env=os.environ | quick, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    longest_s, ending_s = map(float, done.stdout.split())
    return longest_s, ending_s


@contextmanager
def hanging(_folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Failing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def failing(_folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def refusing(_folder: Path) -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def locked(folder: Path) -> Iterator[str]:
    uri = TrackingConfig().resolve(folder)
    connect(uri)
    with closing(sqlite3.connect(folder / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield uri


@contextmanager
def read_only(folder: Path) -> Iterator[str]:
    connect(TrackingConfig().resolve(folder))
    # what a file system that is mounted read-only does, for root too
    yield f"sqlite:///file:{folder.resolve()}/mlflow.db?mode=ro&uri=true"


@pytest.mark.parametrize("way", [hanging, failing, refusing, locked, read_only])
def test_t15_a_tracker_that_does_not_do_its_part_costs_no_step_and_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[Path], Iterator[str]]
) -> None:
    # MLflow makes a folder of what it takes for the database's path
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    with ExitStack() as stack:
        longest_s, ending_s = life(run, stack.enter_context(way(tmp_path)), 0, 40)  # type: ignore[arg-type]
    # no connection, no statement: a line in a file
    assert longest_s < 0.5
    assert ending_s < 6
    assert [line.step for line in journal.read(run)] == list(range(1, 41))
    # it comes back: the next life, from a rewind, and a sync give all of it once
    uri = TrackingConfig().resolve(tmp_path)
    life(run, uri, 30, 50)
    (run / "config.yaml").write_text(f"tracking: {{uri: '{uri}'}}\n")
    (run / "COMPLETE").touch()
    assert sync([str(run), str(run)]) == 0
    (found,) = [r for r in read_runs(uri, "spectral", ["loss"]) if r.name == "run"]
    assert found.curves["loss"] == [(s, 1 / s) for s in range(1, 51)]
    assert found.status == "FINISHED"


@pytest.mark.slow
def test_t15_a_server_that_dies_in_the_run_gets_the_rest_later_and_nothing_twice(tmp_path: Path) -> None:
    run, port, address = tmp_path / "run", free_port(), ""
    run.mkdir()
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]  # fmt: skip

    def serve() -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        server = subprocess.Popen(words, cwd=tmp_path, **quiet)  # type: ignore[call-overload]
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return server  # type: ignore[no-any-return]
            time.sleep(0.1)
        raise AssertionError("MLflow did not start")

    server = serve()
    life(run, address, 0, 20)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    longest_s, _ = life(run, address, 15, 60)
    assert longest_s < 0.5
    server = serve()
    try:
        (run / "config.yaml").write_text(f"tracking: {{uri: '{address}'}}\n")
        assert sync([str(run)]) == 0
        (found,) = read_runs(address, "spectral", ["loss"])
        assert found.curves["loss"] == [(s, 1 / s) for s in range(1, 61)]
        assert found.status == "FAILED"  # no marker tells that it is complete
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def test_t15_what_comes_back_in_the_run_gets_all_of_it_at_the_next_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, config = tmp_path / "run", TrackingConfig(system_metrics_s=0)
    run.mkdir()
    # no database, and a folder stands where it is to be made
    (tmp_path / "mlflow.db.part").mkdir()
    with Tracker(RunIdentity(run, "pretrain", {"seed": 1}), config, 0, active=True) as tracker:
        for step in range(1, 5):
            tracker.log(step, {"loss": 1 / step})
        tracker.commit(2)
        while "not recorded in MLflow" not in caplog.text:
            time.sleep(0.05)
        (tmp_path / "mlflow.db.part").rmdir()
        tracker.commit(4)
        tracker.finish(True)
    (found,) = read_runs(config.resolve(tmp_path), "spectral", ["loss"])
    assert found.curves["loss"] == [(s, 1 / s) for s in range(1, 5)]
    assert (found.status, caplog.text.count("not recorded")) == ("FINISHED", 1)


def test_t15_a_life_that_dies_before_it_knows_its_run_is_found_again(tmp_path: Path) -> None:
    run, config = tmp_path / "run", TrackingConfig(system_metrics_s=0)
    run.mkdir()
    for last in (1, 2):
        with Tracker(RunIdentity(run, "pretrain", {"seed": 1}), config, 0, active=True) as tracker:
            tracker.log(last, {"loss": 1.0})
            tracker.commit(last)
        # the answer that named the run never came
        link = json.loads((run / "mlflow.json").read_text())
        (run / "mlflow.json").write_text(json.dumps(link | {"run_id": "", "sent": -1}))
    assert len(read_runs(config.resolve(tmp_path), "spectral", [])) == 1
