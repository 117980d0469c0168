"""Signals set a flag, the second one ends; markers exclude each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.processes import ROOT
from training.guards import COMPLETE, INTERRUPTED, SIGNALS, StopSignal, clear_marks, mark


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.received
        os.kill(os.getpid(), number)
        assert stop.received
    assert signal.getsignal(number) == before


def test_t03_a_second_signal_ends_at_once() -> None:
    code = (
        "import os, signal\n"
        "from training.guards import StopSignal\n"
        "with StopSignal():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('too late', flush=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stdout.split("\n")[:1] == ["still here"]
    assert "too late" not in ended.stdout
    assert ended.returncode == -signal.SIGTERM


def test_what_listened_before_goes_on_listening() -> None:
    stop = StopSignal()
    before = signal.getsignal(signal.SIGUSR1)
    with stop:
        with stop:
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.received
    assert signal.getsignal(signal.SIGUSR1) == before


def test_listening_needs_nothing_that_takes_time_to_load() -> None:
    code = "import sys, training.guards; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_markers_exclude_each_other(tmp_path: Path) -> None:
    mark(tmp_path, INTERRUPTED)
    mark(tmp_path, COMPLETE)
    assert [p.name for p in tmp_path.iterdir()] == [COMPLETE]
    clear_marks(tmp_path)
    assert list(tmp_path.iterdir()) == []
