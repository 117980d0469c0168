"""The throw-away local Slurm, and what tests ask of it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "tests/slurm/lab.sh"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


@dataclass(frozen=True)
class Slurm:
    """A running local cluster of two virtual nodes."""

    environment: dict[str, str]

    def call(
        self, *words: str | Path, cwd: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to this cluster and return what it printed."""
        environment = self.environment | variables
        return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)

    def sbatch(self, *words: str | Path, cwd: Path = ROOT, **variables: str) -> str:
        """Submit and return the job's number."""
        done = self.call("sbatch", "--parsable", *words, cwd=cwd, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm knows of a job."""
        text = self.call("scontrol", "--oneliner", "show", "job", number).stdout
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait(self, number: str, timeout_s: float = 60) -> dict[str, str]:
        """Wait until a job has ended for good, and return what Slurm knows of it."""
        wait_until(lambda: self.job(number)["JobState"] in ENDED, f"job {number} to end", timeout_s)
        return self.job(number)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Poll a condition; fail with `what` was waited for."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.1)


def _free_ports(count: int) -> int:
    """Return the first of `count` neighbouring free ports."""
    for first in range(17900 + os.getpid() % 1000, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A local Slurm, started once for all tests."""
    search = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=search) is None]
    if missing:
        reason = f"no local Slurm ({', '.join(missing)} not found): apt-get install slurmctld slurmd slurm-client munge"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-")) / "lab"
    # OMP_NUM_THREADS: Dask's nanny leaves it in the environment of whoever started workers
    foreign = ("SLURM", "SBATCH", "SRUN", "OMP_NUM_THREADS")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    lab = clean | {"LAB_DIR": str(folder), "LAB_PORT": str(_free_ports(3))}
    try:
        started = subprocess.run(["bash", LAB, "start"], env=lab, capture_output=True, text=True, timeout=60)
        assert started.returncode == 0, started.stderr
        yield Slurm(lab | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable})
    finally:
        subprocess.run(["bash", LAB, "stop"], env=lab, timeout=60, check=False)
        shutil.rmtree(folder.parent, ignore_errors=True)
