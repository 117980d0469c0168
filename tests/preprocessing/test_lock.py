import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from pipeline.config import ROOT
from pipeline.errors import OutputError
from preprocessing import lock

HOLD = "import sys, time; from pathlib import Path; from preprocessing.lock import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


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


def test_p02_another_hosts_lock_is_respected_and_the_way_out_is_told(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "then"}))
    with (
        pytest.raises(OutputError, match=r"process 1 on elsewhere since then.*remove .*\.lock"),
        lock.locked(tmp_path),
    ):
        pass


def test_a_garbled_lock_file_does_not_stop_a_run(tmp_path):
    (tmp_path / lock.NAME).write_text("{")
    with lock.locked(tmp_path):
        pass
