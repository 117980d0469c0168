import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.config import ROOT
from pipeline.errors import ClusterError, OutputError
from preprocessing import exclusive
from preprocessing.exclusive import Exclusive, Shared

HOLD = """
import sys, time
from pathlib import Path
from pipeline.lock import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def shared(tmp_path) -> Shared:
    made = Shared(tmp_path / "locks")
    made.open()
    return made


def held_by_another(shared: Shared, name: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLD, str(shared.locks), name]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_job_is_locked_while_it_is_worked_on_and_no_longer(shared):
    lock = shared.locks / "train-shard-000000.tar.lock"
    told = Exclusive(lambda job: (job, json.loads(lock.read_text())["pid"]), shared)(
        "train/shard-000000.tar", 7
    )
    assert told == (7, os.getpid())
    assert lock.read_text() == ""


def test_who_comes_later_waits_for_the_same_job_alone(shared):
    other = held_by_another(shared, "one.lock")
    assert Exclusive(str, shared)("two", 2) == "2"
    with ThreadPoolExecutor(1) as later:
        waiting = later.submit(Exclusive(str, shared), "one", 1)
        time.sleep(0.5)
        assert not waiting.done()
        # the lock of a killed worker is free at once
        other.kill()
        assert waiting.result(30) == "1"
    other.wait()


def test_a_job_that_is_never_let_go_is_told_with_its_holder(shared, monkeypatch):
    monkeypatch.setattr(exclusive, "PATIENCE_S", 0.3)
    other = held_by_another(shared, "one.lock")
    with pytest.raises(
        OutputError, match=rf"in use by process {other.pid} on .* remove {shared.locks}/one.lock"
    ):
        Exclusive(str, shared)("one", 1)
    other.kill()
    other.wait()


def test_an_error_of_the_work_lets_go_and_is_handed_on(shared):
    with pytest.raises(ZeroDivisionError):
        Exclusive(lambda job: 1 // job, shared)("one", 0)
    assert Exclusive(str, shared)("one", 1) == "1"


def test_work_is_refused_where_the_files_are_not_seen_or_the_run_is_over(shared, tmp_path):
    missing = Shared(shared.locks, (tmp_path / "scenes",), token=shared.token)
    with pytest.raises(ClusterError, match=r"worker on .* does not see .*/scenes"):
        Exclusive(str, missing)("one", 1)
    shared.close()
    with pytest.raises(ClusterError, match=r"does not see .*/locks"):
        Exclusive(str, shared)("one", 1)


def test_the_code_is_compared_as_it_was_when_first_asked(shared):
    mine = Shared(shared.locks, code=exclusive.code_digest(), token=shared.token)
    assert mine.problem() == ""
    assert "another version" in Shared(shared.locks, code="other", token=shared.token).problem()


def test_the_digest_of_the_code_is_of_both_rooms_files(tmp_path):
    command = "from preprocessing.exclusive import code_digest; print(code_digest())"

    def digest(folder: Path) -> str:
        words = [sys.executable, "-c", command]
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout

    for room in ("pipeline", "preprocessing"):
        subprocess.run(["cp", "-r", ROOT / room, tmp_path], check=True)
    assert digest(tmp_path) == digest(ROOT)
    for changed in ("pipeline/sample.py", "preprocessing/readers/oscd.py"):
        before = digest(tmp_path)
        with (tmp_path / changed).open("a") as stream:
            stream.write("# changed\n")
        assert digest(tmp_path) != before
