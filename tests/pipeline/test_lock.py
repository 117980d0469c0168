import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from pipeline import lock
from pipeline.config import ROOT
from pipeline.errors import OutputError

HOLD = "import sys, time; from pathlib import Path; from pipeline.lock import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_p02_a_second_run_stops_naming_process_and_host(tmp_path, holder):
    with (
        pytest.raises(OutputError, match=f"process {holder.pid} on {socket.gethostname()}"),
        lock.locked(tmp_path),
    ):
        pass
    assert holder.poll() is None


def test_p02_the_lock_of_a_killed_run_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == holder.pid
    with lock.locked(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


def test_a_lock_is_free_again_after_use_and_after_an_error(tmp_path):
    with lock.locked(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), lock.locked(tmp_path):
        raise ZeroDivisionError
    with lock.locked(tmp_path):
        assert time.strftime("%Y") in (tmp_path / lock.NAME).read_text()


@pytest.fixture
def quick(monkeypatch):
    """Beats and the time to watch for them in tenths of seconds."""
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "WATCH_S", 0.6)


def leave(folder, **holder) -> None:
    """Leave the text of a holder that was killed."""
    (folder / lock.NAME).write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "then"} | holder))


def test_a_holder_touches_the_file(tmp_path, quick):
    with lock.locked(tmp_path):
        first = (tmp_path / lock.NAME).stat().st_mtime_ns
        time.sleep(0.2)
        assert (tmp_path / lock.NAME).stat().st_mtime_ns > first
    assert not [t for t in threading.enumerate() if t.name == "lock"]


def test_p02_another_hosts_lock_is_respected_while_it_is_touched_and_the_way_out_is_told(tmp_path, quick):
    leave(tmp_path)
    beats = "import os, sys, time\nfor _ in range(600): os.utime(sys.argv[1]); time.sleep(0.05)"
    process = subprocess.Popen([sys.executable, "-c", beats, str(tmp_path / lock.NAME)])
    try:
        with (
            pytest.raises(OutputError, match=r"process 1 on elsewhere since then.*remove .*\.lock"),
            lock.locked(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.wait()


def test_p02_what_a_killed_run_left_on_another_host_is_taken_over_after_a_while(tmp_path, quick, capsys):
    leave(tmp_path)
    start = time.monotonic()
    with lock.locked(tmp_path):
        assert time.monotonic() - start >= lock.WATCH_S
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert "names process 1 on elsewhere since then: watching" in capsys.readouterr().out


@pytest.mark.parametrize(("life", "watches"), [("1", False), ("0", True)])
def test_the_next_life_of_a_slurm_job_takes_over_at_once(tmp_path, quick, monkeypatch, capsys, life, watches):
    leave(tmp_path, job="77", life="0")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", life)
    with lock.locked(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["life"] == life
    assert ("watching" in capsys.readouterr().out) == watches


def test_a_garbled_lock_file_does_not_stop_a_run(tmp_path):
    (tmp_path / lock.NAME).write_text("{")
    with lock.locked(tmp_path):
        pass


@pytest.mark.parametrize("known", [True, False])
def test_without_locks_the_text_counts_on_one_host_too(tmp_path, quick, capsys, monkeypatch, known):
    def flock(descriptor, how):
        if not known:
            raise OSError(errno.ENOLCK, "no locks here")

    leave(tmp_path, host=socket.gethostname())
    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.locked(tmp_path):
        assert ("watching" in capsys.readouterr().out) == (not known)
