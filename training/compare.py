"""Compare the runs of an experiment side by side, from what MLflow has recorded.

`python training/compare.py [EXPERIMENT] [--output RUNS]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run by path: `python training/compare.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.console import clock, run, say, table
from pipeline.errors import EXIT_DONE, MissingInputError, unknown
from training import panels
from training.recorded import RecordedRun, read_runs
from training.runs import tracker_hint
from training.tracking import TrackingConfig

_IDENTITY = ("name", "output", "stop_at", "tracking.experiment", "tracking.uri", "tracking.parent")
_SCORES = ("accuracy", "f1", "iou", "map")
"""Ends of the names of what is shown beside the loss, whatever split was scored; the rest is in MLflow."""
EXAMPLES = """\
  python training/compare.py --output runs
  python training/compare.py spectral --curve grad_norm --picture grad_norm.png
  python training/compare.py --uri http://127.0.0.1:5000"""
"""Shown under --help."""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        description="Compare the runs of an MLflow experiment: what differs, final metrics, time, loss curves.",
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "experiment",
        nargs="?",
        default=TrackingConfig().experiment,
        help="MLflow experiment (default: %(default)s)",
    )
    made.add_argument(
        "--output", type=Path, default=Path("runs"), help="folder that holds the runs (default: %(default)s)"
    )
    made.add_argument(
        "--uri", help="tracking server (default: MLFLOW_TRACKING_URI, else the database in --output)"
    )
    made.add_argument("--curve", default="loss", help="metric to draw over the steps (default: %(default)s)")
    made.add_argument("--picture", type=Path, help="where to draw it (default: OUTPUT/compare-METRIC.png)")
    return made


def distinct(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Return the runs under names that tell them apart: where a name is there twice, MLflow's id goes with it."""
    names = [run.name for run in runs]
    # several output folders that share a server may each hold a run of that name
    return [r if names.count(r.name) == 1 else replace(r, name=f"{r.name} ({r.id[:8]})") for r in runs]


def draw(runs: Sequence[RecordedRun], metric: str, picture: Path) -> str:
    """Draw a metric of all runs that have it over their steps; returns what to tell.

    Raises `UnknownNameError` for a metric that no run has, with the nearest one.
    """
    lines = {run.name: run.curves[metric] for run in runs if metric in run.curves}
    known = sorted({name for run in runs for name in run.metrics})
    if not known:
        return "no run has recorded a metric yet: nothing to draw."
    if not lines:
        raise unknown("metric", metric, known, "these runs")
    return f"{metric} over steps: {panels.curves(lines, metric, picture)}"


def differing(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the parameters in which runs differ, their identity apart."""
    keys = {key: None for run in runs for key in run.parameters}
    return [k for k in keys if k not in _IDENTITY and len({run.parameters.get(k) for run in runs}) > 1]


def differences(runs: Sequence[RecordedRun]) -> str:
    """Return one table: a parameter a row, a run a column; a dash where a run has no such parameter."""
    rows = [(key, *(_short(run.parameters.get(key, "-")) for run in runs)) for key in differing(runs)]
    return table(("differs", *(run.name for run in runs)), rows)


def results(runs: Sequence[RecordedRun]) -> str:
    """Return one table of the final metrics, time and throughput of every run."""
    scores = {m for run in runs for m in run.metrics if m.endswith(_SCORES)}
    metrics = ["loss", *sorted(scores)]
    header = ("run", "kind", "status", *metrics, "time", "samples/s")
    return table(header, [_result(run, metrics) for run in runs])


def _result(run: RecordedRun, metrics: Sequence[str]) -> tuple[str, ...]:
    scores = (f"{run.metrics[m]:.4f}" if m in run.metrics else "-" for m in metrics)
    # the median: the first steps warm up, the last ones save
    rates = sorted(value for _, value in run.curves.get("samples_per_s", []))
    rate = f"{rates[len(rates) // 2]:.0f}" if rates else "-"
    return run.name, run.kind, run.status.lower(), *scores, clock(run.duration_s), rate


def _short(text: str, most: int = 28) -> str:
    return text if len(text) <= most else "…" + text[-most + 1 :]


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code.

    Raises `MissingInputError` where no run is found, and `UnknownNameError` for a metric that none has.
    """
    asked = parser().parse_args(argv)
    config = TrackingConfig(experiment=asked.experiment, uri=asked.uri)
    uri = config.resolve(asked.output)
    runs = distinct(read_runs(uri, asked.experiment, [asked.curve, "samples_per_s"]))
    if not runs:
        raise MissingInputError(f"experiment `{asked.experiment}` at {uri} has no runs yet.")
    for kind in dict.fromkeys(recorded.kind for recorded in runs):
        say(f"\n{kind}\n{differences([r for r in runs if r.kind == kind])}")
    say(f"\nresults\n{results(runs)}\n")
    say(draw(runs, asked.curve, asked.picture or asked.output / f"compare-{asked.curve}.png"))
    say(f"open MLflow: {tracker_hint(uri)}")
    return EXIT_DONE


if __name__ == "__main__":
    run(main)
