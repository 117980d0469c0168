"""Run a study: rows that differ in pretraining, several seeds each, judged by the same tasks; then tell what it shows.

`python training/study.py STUDY.yaml [a.b=c ...]`
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run by path: `python training/study.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # read when torch loads: OpenMP threads that spin while they wait are 6 times slower on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.guards import STOP

    # torch takes seconds to load, and a signal in that time would end a job that could be requeued
    STOP.listen()

from pipeline.config import ROOT, load
from pipeline.console import Command, Progress, run, say, table
from pipeline.errors import EXIT_DONE, EXIT_FAILURE, EXIT_INTERRUPTED, ConfigError, MissingInputError, unknown
from pipeline.manifest import write_atomically
from training import scored
from training.downstream import FinetuneConfig
from training.evidence import Comparison, Evidence, OfScene
from training.finetune import finetune
from training.guards import COMPLETE, STOP
from training.pretrain import PretrainConfig, pretrain
from training.protocol import Cell, Step, StudyConfig, TaskConfig, Words, as_words
from training.sets import WITH_LABELS, open_families
from training.tasks import task
from training.world import World

COMMAND = Command(
    "Run a study: every row of a table with several seeds, judged by the same tasks, and its report. What is done is"
    " kept: the same command goes on, and rows can be added.",
    "configs/ablation/s2mae.yaml",
    """  python training/study.py configs/ablation/sigmae.yaml pretrain.words.data.shards=/path/to/shards
  python training/study.py configs/ablation/sigmae.yaml --list        the cells: what would run
  python training/study.py configs/ablation/sigmae.yaml --jobs 2      two cells at a time
  python training/study.py configs/ablation/sigmae.yaml --cell 3      one cell, of an array of jobs
  python training/study.py configs/ablation/sigmae.yaml --report      the table of what is done
  bash slurm/ablation.sh configs/ablation/sigmae.yaml                 all of it as an array, then the report""",
    StudyConfig,
)
HEADER = ("row", "seeds", "score [95 %]", "against the reference [95 %]", "better in", "shown")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = COMMAND.parser()
    one = made.add_mutually_exclusive_group()
    one.add_argument("--list", action="store_true", help="list the cells and their runs, and stop")
    one.add_argument("--cell", metavar="N", help="run one cell only: its number, from 0, or its name")
    one.add_argument("--cells", action="store_true", help="print the number of cells, and stop")
    one.add_argument("--report", action="store_true", help="tell what is done so far, and stop")
    made.add_argument("--jobs", type=_count, default=1, metavar="N", help="cells at a time (default: 1)")
    return made


def _count(text: str) -> int:
    """Read a number of cells; argparse tells its user of a `ValueError`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least one cell must run, not {number}")
    return number


def work(cell: Cell, tell: Callable[[str], None]) -> bool:
    """Do all runs of a cell that are not done; False where one was interrupted and saved.

    Raises what the runs raise.
    """
    world = World.from_env()
    for step in cell.steps(_scratch(cell.study)):
        if not (cell.study.output / step.name / COMPLETE).exists() and not _do(
            step, cell.study.output, world
        ):
            return False
        tell(step.name)
    return True


def _scratch(study: StudyConfig) -> Words:
    """Return the model that the study pretrains, for rows that start from scratch."""
    base = load(PretrainConfig, study.pretrain.config, as_words(study.pretrain.words))
    tree: Words = base.model.model_dump(mode="json")
    return tree


def _do(step: Step, output: Path, world: World) -> bool:
    """Do one run; what it tells goes into a file of its own."""
    log = output / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # appended: the same command goes on, and keeps what earlier lives said
    with log.open("a") as stream, redirect_stdout(stream):
        if step.entry == "pretrain":
            return pretrain(load(PretrainConfig, step.config, step.words), world)
        return finetune(load(FinetuneConfig, step.config, step.words), world)


def run_all(study: StudyConfig, asked: Sequence[str], jobs: int) -> int:
    """Run all cells, `jobs` at a time, each in a process of its own; returns the exit code.

    A cell that fails is told, and the others go on: one bad row must not cost a night. asked: the words of this
    command, for the cells'.
    """
    cells = study.cells()
    progress = Progress(study.name, len(cells), "cells")
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    # what a person has set wins
    environment = {"OMP_NUM_THREADS": threads} | os.environ

    def one(number: int) -> int:
        if STOP.received:
            return EXIT_INTERRUPTED
        command = [sys.executable, str(ROOT / "training/study.py"), *asked, "--cell", cells[number].name]
        log = study.output / "logs" / f"{cells[number].name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            code = _wait(
                subprocess.Popen(
                    command, env=environment, stdout=stream, stderr=stream, start_new_session=True
                )
            )
        note = f"ended with code {code}, see {log}" if code else "done"
        progress.advance(note=f"{cells[number].name} {note}")
        return code

    # threads only wait: each cell is a process
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(one, range(len(cells))))
    if EXIT_INTERRUPTED in codes:
        return EXIT_INTERRUPTED
    return EXIT_FAILURE if any(codes) else EXIT_DONE


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for a cell's process, and let it save where this one is asked to stop; returns its exit code."""
    told = False
    while child.poll() is None:
        # a session of its own: else it would hear the terminal too, and a second signal ends it unsaved
        if STOP.received and not told:
            child.send_signal(signal.SIGUSR1)
            told = True
        time.sleep(0.2)
    return int(child.returncode)


def evidence(study: StudyConfig, name: str) -> Evidence:
    """Return what the finished runs of a task say; raises `MissingInputError` where there are none."""
    judged, found = study.tasks[name], dict[str, dict[int, OfScene]]()
    for cell in study.cells():
        if name in study.tasks_of(cell.row) and (cell.run(name) / COMPLETE).exists():
            found.setdefault(cell.row, {})[cell.seed] = scored.read(cell.run(name))
    if study.reference not in found:
        raise MissingInputError(
            f"no run of `{study.reference}` is done for task {name} in {study.output}: run the study first."
        )
    groups = json.loads(judged.groups.read_text()) if judged.groups else None
    return Evidence(found, groups and {str(k): str(v) for k, v in groups.items()}, _score(judged))


def _score(judged: TaskConfig) -> Callable[[Sequence[scored.Tally]], float]:
    """Return the score that counts, of tallies put together."""
    config = load(FinetuneConfig, judged.config, as_words(judged.words))
    (family,) = open_families(config.data, WITH_LABELS)
    made, metric = task(config.task)(family.contract), judged.score.removeprefix(f"{config.val_split}_")

    def score(tallies: Sequence[scored.Tally]) -> float:
        scores = made.scores(made.join(tallies))
        if metric not in scores:
            raise unknown("score", metric, scores, f"tasks.{config.task}")
        return scores[metric]

    return score


def report(study: StudyConfig) -> str:
    """Return the tables of all tasks, and leave them in the study's folder as report.txt and report.json."""
    told, kept = [], dict[str, Any]()
    for name, judged in study.tasks.items():
        found = evidence(study, name)
        rows = found.compare(study.reference, study.draws)
        told.append(
            f"{name}: {judged.score} of {len(found.groups)} groups, against {study.reference}\n"
            + table(HEADER, [_told(row) for row in rows])
        )
        kept[name] = {
            "score": judged.score,
            "groups": len(found.groups),
            "rows": [asdict(row) for row in rows],
        }
    write_atomically(study.output / "report.json", json.dumps(kept, indent=1).encode())
    text = "\n\n".join(told)
    write_atomically(study.output / "report.txt", f"{text}\n".encode())
    return text


def _told(row: Comparison) -> tuple[str, ...]:
    if row.difference is None:
        return row.row, str(row.seeds), row.score.told(), "-", "-", "-"
    shown = "yes" if row.difference.shown else "no"
    return (
        row.row,
        str(row.seeds),
        row.score.told(),
        row.difference.told("+"),
        f"{row.better} of {row.pairs}",
        shown,
    )


def _list(study: StudyConfig) -> str:
    rows, scratch = [], _scratch(study)
    for number, cell in enumerate(study.cells()):
        for step in cell.steps(scratch):
            done = "done" if (study.output / step.name / COMPLETE).exists() else "to do"
            rows.append((str(number), step.name, done, f"training/{step.entry}.py {step.config}"))
    return table(("cell", "run", "state", "entry"), rows)


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    asked = parser().parse_intermixed_args(argv)
    path, words = COMMAND.split(asked.words)
    study = load(StudyConfig, path, words)
    if asked.cells:
        say(str(len(study.cells())))
        return EXIT_DONE
    if asked.list:
        say(_list(study))
        return EXIT_DONE
    if asked.cell is not None:
        return _one(study, asked.cell)
    code = EXIT_DONE if asked.report else run_all(study, asked.words, asked.jobs)
    if code != EXIT_INTERRUPTED:
        say(f"{report(study)}\nkept in {study.output}/report.txt and report.json")
        say(f"compare: python training/compare.py --output {study.output}")
    return code


def _one(study: StudyConfig, asked: str) -> int:
    # by name too: a row that is added while a study runs must not give numbers another meaning
    cells = {name: cell for n, cell in enumerate(study.cells()) for name in (str(n), cell.name)}
    if asked not in cells:
        raise ConfigError(
            f"there is no cell {asked}: the study has cells 0 to {len(cells) // 2 - 1} (--list)."
        )
    return EXIT_DONE if work(cells[asked], say) else EXIT_INTERRUPTED


if __name__ == "__main__":
    run(main)
