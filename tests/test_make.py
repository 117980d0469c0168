"""The commands of the Makefile that can be asked without an installation: clear lines before anything is done."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(sys.executable).parents[1]


def bash(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(
        ["bash", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line that a refused command wrote to stderr."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def test_make_alone_lists_its_commands() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert {line.split()[1] for line in listed.splitlines()} >= {
        "help",
        "setup",
        "demo",
        "test",
        "check",
        "ui",
        "clean",
    }


def test_setup_without_python_says_what_to_install(tmp_path: Path) -> None:
    line = one_line(bash(".ci/setup.sh", VENV=str(tmp_path / "venv"), PYTHON="python-that-is-not-there"))
    assert line.startswith(
        "setup: error: python-that-is-not-there not found: apt-get install python3 python3-venv"
    )


def interpreter(path: Path, answer: str) -> str:
    """Write an executable that stands for an interpreter this machine does not have."""
    path.write_text(f"#!/bin/bash\n{answer}\n")
    path.chmod(0o755)
    return str(path)


def test_setup_refuses_an_old_python(tmp_path: Path) -> None:
    old = interpreter(
        tmp_path / "python3.9", 'case $1 in --version) echo "Python 3.9.2" ;; *) exit 1 ;; esac'
    )
    line = one_line(bash(".ci/setup.sh", VENV=str(tmp_path / "venv"), PYTHON=old))
    assert line.startswith("setup: error: Python 3.9.2 is too old, 3.11 or later is needed: PYTHON=")


def test_setup_without_venv_names_the_package(tmp_path: Path) -> None:
    bare = interpreter(tmp_path / "python3", f'[[ $* != *ensurepip* ]] || exit 1; exec {sys.executable} "$@"')
    line = one_line(bash(".ci/setup.sh", VENV=str(tmp_path / "venv"), PYTHON=bare))
    assert line.endswith("cannot make environments: apt-get install python3-venv")


def torch_build(tmp_path: Path, **size_bytes: int) -> str:
    """Return what is said of a pip report over files of these names and sizes; sparse files cost no space."""
    items = []
    for name, size in size_bytes.items():
        path = tmp_path / f"{name}-1.0.whl"
        with path.open("wb") as file:
            file.truncate(size)
        items.append(
            {
                "metadata": {"name": name.replace("_", "-")},
                "download_info": {"url": path.as_uri()},
            }
        )
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"install": items}))
    command = [sys.executable, ROOT / ".ci/torch_build.py", report]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_small_build_of_torch_is_named_with_its_size(tmp_path: Path) -> None:
    said = torch_build(tmp_path, torch=200_000_000, sympy=6_000_000)
    assert said == (
        "setup: torch comes as the standard build: torch-1.0.whl, 206 MB to download (torch and 1 packages it needs)\n"
    )


def test_a_cuda_build_of_torch_comes_with_the_way_out(tmp_path: Path) -> None:
    said = torch_build(tmp_path, torch=500_000_000, nvidia_cublas=2_200_000_000)
    assert "torch comes as the CUDA build" in said
    assert "2.7 GB to download" in said
    assert "set TORCH_INDEX_URL" in said


def test_ui_names_what_is_missing(tmp_path: Path) -> None:
    assert "mlflow.db yet: make demo writes demo/runs" in one_line(bash(".ci/ui.sh", tmp_path, "5000"))
    assert "UI_PORT=web is no port number" in one_line(bash(".ci/ui.sh", tmp_path, "web"))


def test_ui_on_an_occupied_port_offers_another(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = one_line(bash(".ci/ui.sh", tmp_path, str(port)))
    assert line == f"ui: error: port {port} is in use: make ui UI_PORT={port + 1}, or stop what listens there"


@pytest.mark.slow
def test_ui_serves_the_runs(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["bash", str(ROOT / ".ci/ui.sh"), str(tmp_path), str(port)]
    with subprocess.Popen(command, env=os.environ | {"VENV": str(VENV)}, stdout=subprocess.DEVNULL) as server:
        try:
            assert health(f"http://127.0.0.1:{port}/health") == "OK"
        finally:
            server.terminate()


def health(url: str, timeout_s: float = 90) -> str:
    """Return what a starting server answers, once it does."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.3)
