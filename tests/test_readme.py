"""README and the pages of docs/ cannot rot: every command is run, every file has its line, every path is there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pages import ROOT, blocks, commands, copy_project, pages
from tests.slurm.conftest import Slurm, slurm
from tests.training.processes import free_port

__all__ = ["slurm"]

SMALL = "steps=2 save_every_steps=100"
TINY = "model.size=tiny batch.size=4 batch.micro=null data.workers=0 panel_images=0"


COMMANDS = commands()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's files with this environment as its .venv: commands leave the project itself alone."""
    folder = copy_project(tmp_path_factory.mktemp("clone") / "project")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".ready").touch()
    return folder


def environment(clone: Path, **more: str) -> dict[str, str]:
    """Return the environment a user has after `source .venv/bin/activate`; setup itself is done."""
    path = f"{clone}/.venv/bin:{os.environ['PATH']}"
    # other tests run beside: more threads than cores wait for each other
    ours = os.environ | {"OMP_NUM_THREADS": "1"}
    return ours | {"PATH": path, "MAKEFLAGS": f"READY={clone}/.ready"} | more


def fill_in(command: str) -> str:
    """Put in what the pages leave to the reader, and keep trainings short."""
    command = command.replace("/path/to/archive", "demo/archive")
    command = command.replace("/path/to/labelled/shards", "demo/shards/sentinel2")
    command = command.replace("/path/to/landsat/shards", "demo/shards/landsat")
    trains = re.search(r"(pretrain|finetune)\.(py|sh)", command) and "--dry-run" not in command
    if trains and command == "sbatch slurm/pretrain.sh":
        return f"{command} {SMALL} {TINY}"
    return f"{command} {SMALL}" if trains else command


def run(command: str, clone: Path) -> str:
    """Run a command as a shell does and return what it printed; it must succeed."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=clone,
        env=environment(clone),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def probe(command: str, clone: Path, port: int) -> str:
    """Start a server, read its first page, stop it."""
    process = subprocess.Popen(
        shlex.split(command), cwd=clone, env=environment(clone, UI_PORT=str(port)), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return page(f"http://127.0.0.1:{port}/", process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def page(address: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{address} did not answer; exit code {process.poll()}")


def submit(command: str, clone: Path, slurm: Slurm) -> None:
    """Submit a job on the local Slurm and wait for it to complete."""
    log = clone / f"{len(list(clone.glob('*.log')))}.log"
    words = shlex.split(fill_in(command))
    number = slurm.sbatch(
        f"--output={log}", *words[1:], cwd=clone, PYTHON=f"{clone}/.venv/bin/python", OMP_NUM_THREADS="1"
    )
    state = slurm.wait(number, timeout_s=240)["JobState"]
    assert state == "COMPLETED", f"{command}\n{log.read_text()}"


@pytest.fixture
def runner(clone: Path, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Run a command in the way its kind asks for."""

    def by_kind(command: str) -> None:
        port = free_port()
        if command.startswith("sbatch "):
            submit(command, clone, request.getfixturevalue("slurm"))
        elif command == "make ui":
            assert "MLflow" in probe(command, clone, port)
        elif command.startswith("mlflow ui"):
            assert "MLflow" in probe(command.replace("5000", str(port)), clone, port)
        else:
            run(fill_in(command), clone)

    return by_kind


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(1260)
@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("make test", "make check")])
def test_every_command_works_in_the_order_of_the_text(command: str, runner: Callable[[str], None]) -> None:
    runner(command)


@pytest.mark.slow
def test_the_handler_reads_the_shards_that_the_commands_made(clone: Path) -> None:
    (block,) = blocks(pages()["docs/scenes.md"], "python")
    told = subprocess.run(
        [sys.executable, "-c", block], cwd=clone, capture_output=True, text=True, check=True
    ).stdout
    assert "(12, 96, 96)" in told.splitlines()[0]


@pytest.mark.slow
def test_the_demo_ends_with_runs_compared_and_better_than_chance(clone: Path) -> None:
    told = run("python training/compare.py --output demo/runs", clone)
    results = told.split("results\n")[1].splitlines()
    header, rows = results[0].split(), {line.split()[0]: line.split() for line in results[2:] if line}
    accuracy = header.index("val_accuracy")
    assert {"random", "saliency"} <= set(rows)
    assert float(rows["saliency-full"][accuracy]) > 0.5  # five classes
    assert (clone / "demo/runs/compare-loss.png").stat().st_size > 5000


def test_every_file_has_its_line() -> None:
    for room in ("pipeline", "preprocessing", "training"):
        section = pages()["docs/tour.md"].split(f"| `{room}/` | |")[1].split("\n\n")[0]
        listed = set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))
        there = {str(p.relative_to(ROOT / room)) for p in (ROOT / room).rglob("*.py")}
        there = {name.removesuffix("__init__.py") for name in there} - {""}
        assert listed == there


@pytest.mark.parametrize("page", pages())
def test_every_path_in_the_text_is_there(page: str) -> None:
    rooms = "configs|slurm|tests|pipeline|preprocessing|training|docs|\\.ci"
    named = re.findall(rf"`((?:{rooms})/[\w./-]*)`", pages()[page])
    made = {"slurm/site.env"}  # the reader's own
    assert [name for name in named if not (ROOT / name).exists() and name not in made] == []
