"""Where a run is, from its folder alone: `python training/status.py RUN ...`; nothing is changed or asked of anybody."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run by path: `python training/status.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.console import clock, run, say, table
from pipeline.errors import EXIT_DONE, MissingInputError
from pipeline.lock import NAME as LOCK
from training import journal
from training.guards import COMPLETE, INTERRUPTED
from training.journal import Line

_EXAMPLES = """examples:
  python training/status.py runs/pretrain
  python training/status.py runs/*"""
_RECENT = 50
_QUIET_S = 600.0
PLAN, CONFIG, NOTED = "plan.json", "config.yaml", "noted.jsonl"


def status(folder: Path) -> list[tuple[str, str]]:
    """Return what a run folder tells; raises `MissingInputError` where it is none."""
    if not (folder / CONFIG).exists():
        raise MissingInputError(f"{folder} is no run folder: it has no {CONFIG}.")
    lines, plan = journal.read(folder), _read(folder / PLAN)
    return [
        ("run", str(folder)),
        ("state", _state(folder, lines)),
        *_progress(lines, plan),
        *_checkpoints(folder),
        *_noted(lines),
        *_replaced(lines),
    ]


def _read(path: Path) -> dict[str, int]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _state(folder: Path, lines: Sequence[Line]) -> str:
    if (folder / COMPLETE).exists():
        return "complete"
    if (folder / INTERRUPTED).exists():
        return "interrupted with everything saved; the same command goes on"
    lock = folder / LOCK
    holder = json.loads((lock.read_text() if lock.exists() else "") or "{}")
    if not holder:
        return "ended without a marker: its log tells why; the same command goes on from the last checkpoint"
    # before the first step there is no silence to judge: loading may take long
    quiet_s = time.time() - lines[-1].time_s if lines else 0.0
    # a killed process cannot clear its name: only silence tells
    silent = f"; no step for {clock(quiet_s)}: it may be dead" if quiet_s > _QUIET_S else ""
    job = f", job {holder['job']}" if "job" in holder else ""
    return f"running as process {holder.get('pid')} on {holder.get('host')}{job}{silent}"


def _progress(lines: Sequence[Line], plan: dict[str, int]) -> Iterator[tuple[str, str]]:
    if not lines:
        yield "step", f"none yet of {plan.get('steps', '?')}"
        return
    last, total = lines[-1], plan.get("steps")
    of = f" of {total} ({last.step / total:.0%})" if total else ""
    epoch = f", epoch {last.step / plan['steps_per_epoch']:.1f}" if plan.get("steps_per_epoch") else ""
    # 0: the clock of the host that wrote it may be ahead
    yield "step", f"{last.step}{of}{epoch}, {clock(max(time.time() - last.time_s, 0))} ago"
    for name in ("loss", "grad_norm", "lr", "samples_per_s", "peak_share"):
        values = [x.metrics[name] for x in lines[-_RECENT:] if name in x.metrics]
        if values:
            yield (
                name,
                f"{values[-1]:.4g} (median of the last {len(values)}: {statistics.median(values):.4g})",
            )
    recent = lines[-_RECENT:]
    if total and len(recent) > 1 and total > last.step:
        each_s = (recent[-1].time_s - recent[0].time_s) / (len(recent) - 1)
        yield "time left", clock(each_s * (total - last.step))


def _checkpoints(folder: Path) -> Iterator[tuple[str, str]]:
    found = sorted(p for p in (folder / "checkpoints").glob("step-*") if p.is_dir())
    size_bytes = sum(f.stat().st_size for p in found for f in p.rglob("*") if f.is_file())
    names = ", ".join(p.name for p in found[-3:]) or "none"
    yield "checkpoints", f"{len(found)}, {size_bytes / 1e9:.2f} GB; newest: {names}"
    damaged = len(list((folder / "checkpoints").glob("damaged-*")))
    if damaged:
        yield "damaged", f"{damaged} put aside"


def _noted(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    # the counter begins anew with each life
    skipped = sum("skipped_steps" in x.metrics for x in lines)
    jumps = sum("loss_spike" in x.metrics for x in lines)
    if skipped or jumps:
        yield "noted", f"{skipped} steps skipped, {jumps} losses that jumped; {NOTED} names their samples"
    saves_s = [x.metrics["save_s"] for x in lines if "save_s" in x.metrics]
    if saves_s:
        spent_s = lines[-1].time_s - lines[0].time_s
        yield (
            "saving",
            f"{statistics.median(saves_s):.2f} s each, {sum(saves_s) / max(spent_s, 1e-9):.2%} of the time",
        )


def _replaced(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    count = next(
        (x.metrics["replaced_samples"] for x in reversed(lines) if "replaced_samples" in x.metrics), 0
    )
    if count:
        yield "replaced", f"{count:.0f} samples, others stood in for them; {NOTED} names what is damaged"


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python training/status.py",
        description=(__doc__ or "").split("\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    for folder in parser.parse_args(argv).runs:
        say(table(("what", "where it is"), status(folder)) + "\n")
    return EXIT_DONE


if __name__ == "__main__":
    run(main)
