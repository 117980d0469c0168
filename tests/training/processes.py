"""Trainings as real processes, for the tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    "batch.size=8", "model.size=tiny", "masking.strategy=saliency", "masking.ratio=0.75", "masking.lambda_max=0.5",
    "optimiser.base_lr=0.03", "optimiser.warmup_epochs=1", "steps=20", "save_every_steps=10", "panel_images=2",
)  # fmt: skip
"""Words of a pretraining that takes about two seconds."""

Case = tuple[str, Sequence[str]]


def run_cases(folder: Path, cases: Sequence[Case], ranks: int = 1) -> list[object]:
    """Run trainings one after the other in `ranks` real processes; returns what each came to."""
    plan = folder / f"cases-{ranks}-{len(cases)}.json"
    plan.write_text(json.dumps([[entry, list(words)] for entry, words in cases]))
    script = Path(__file__).with_name("cases.py")
    started = [
        subprocess.Popen([sys.executable, str(script), str(plan)], env=rank_environment(rank, ranks, port), text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for port in [free_port()]
        for rank in range(ranks)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=280)[0] for process in started]
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(outputs)
    return [json.loads(line[5:]) for line in outputs[0].splitlines() if line.startswith("CASE ")]


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the environment that srun gives a task, by plain variables."""
    ours = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return os.environ | {k: str(v) for k, v in ours.items()} | {"OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    shards: Path, output: Path, *words: str, limit_file_kb: int | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start the pretraining entry by path, with the small configuration and `words`.

    limit_file_kb: size from which on no file can grow, as on a disk that is full.
    """
    given = [f"output={output}", f"data.shards={shards}", "data.image_px=48", *SMALL, *words]
    command = [sys.executable, "training/pretrain.py", "configs/pretrain/demo.yaml", *given]
    if limit_file_kb:
        command = ["bash", "-c", f"ulimit -f {limit_file_kb}; trap '' XFSZ; exec \"$@\"", "limited", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    # a group of its own, as a task of a job has: the tests signal all of it
    return subprocess.Popen(command, cwd=ROOT, text=True, env=variables, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until the journal of a run that is going on holds a step."""
    journal, mark = run / "journal.jsonl", f'"step": {step},'
    while process.poll() is None and not (journal.exists() and mark in journal.read_text()):
        time.sleep(0.01)


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """Wait for a process, require its exit code, and return what it wrote to stdout and stderr."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return out, err
