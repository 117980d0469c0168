"""A Dask cluster that runs already, as somebody else starts it, for tests that connect to it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest


class Cluster:
    """A Dask cluster as somebody else starts it: by the command line, from another folder, without this project."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.file, self._folder, self._opened = folder / "scheduler.json", folder, opened
        self._number = 0
        self.scheduler = self.start(
            "scheduler", "--host=127.0.0.1", "--port=0", f"--scheduler-file={self.file}"
        )
        wait_until(lambda: self.file.exists() and self.address, "the scheduler")

    @property
    def address(self) -> str:
        text = self.file.read_text()
        return json.loads(text)["address"] if text.endswith("}") else ""

    def worker(self, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        return self.start(
            "worker", self.address, "--nthreads=1", "--no-nanny", "--memory-limit=0", *words, **variables
        )

    def start(self, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._number += 1
        log = self._opened.enter_context((self._folder / f"{self._number}.log").open("wb"))
        # from another folder: `-m` would find the project in this one
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", words[0], "--no-dashboard", *words[1:]],
            cwd=self._folder,
            env=clean | variables,
            stderr=log,
        )
        self._opened.callback(process.wait)
        self._opened.callback(process.kill)
        return process


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"waited 30 s for {what}"
        time.sleep(0.02)


@pytest.fixture
def elsewhere(tmp_path_factory) -> Iterator[Cluster]:
    """A scheduler of this test alone, as yet without workers."""
    with ExitStack() as opened:
        yield Cluster(tmp_path_factory.mktemp("cluster"), opened)
