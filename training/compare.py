"""Compare the runs of an experiment side by side, from what MLflow has recorded.

`python training/compare.py [EXPERIMENT] [--output RUNS]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

if not __package__:  # run by path: `python training/compare.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.console import clock, run, say, table
from pipeline.errors import EXIT_DONE, ConfigError, MissingInputError, unknown
from pipeline.manifest import write_atomically
from training import panels
from training.page import Shown, page, scores_of
from training.recorded import RecordedRun, read_panels, read_runs
from training.runs import tracker_hint
from training.seeds import IDENTITY, settings, told
from training.tracking import TrackingConfig

EXAMPLES = """\
  python training/compare.py --output runs
  python training/compare.py spectral --curve grad_norm --picture grad_norm.png
  python training/compare.py --output runs --where kind=pretrain 'name=tri*' --html compared.html
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
    made.add_argument(
        "--curve", help="metric to draw over the steps (default: loss, or else the first score)"
    )
    made.add_argument("--picture", type=Path, help="where to draw it (default: OUTPUT/compare-METRIC.png)")
    made.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=PATTERN",
        help="only runs whose parameter, name, kind or status is so; * stands for anything",
    )  # fmt: skip
    made.add_argument(
        "--html", type=Path, metavar="FILE", help="write all of it as one page that needs nothing else"
    )
    return made


def chosen(runs: Sequence[RecordedRun], where: Sequence[str]) -> list[RecordedRun]:
    """Return the runs that every KEY=PATTERN is true of.

    Raises `ConfigError` for other words, `UnknownNameError` for a key that no run has.
    """
    for word in where:
        key, equals, pattern = word.partition("=")
        if not equals:
            raise ConfigError(f"--where takes KEY=PATTERN, not `{word}`: --where masking.strategy=saliency.")
        facts = [{**r.parameters, "name": r.name, "kind": r.kind, "status": r.status.lower()} for r in runs]
        known = sorted({name for each in facts for name in each})
        if runs and key not in known:
            raise unknown("key", key, known, "--where")
        runs = [r for r, each in zip(runs, facts, strict=True) if fnmatchcase(each.get(key, ""), pattern)]
    return list(runs)


def distinct(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Return the runs under names that tell them apart: where a name is there twice, MLflow's id goes with it."""
    names = [run.name for run in runs]
    # several output folders that share a server may each hold a run of that name
    return [r if names.count(r.name) == 1 else replace(r, name=f"{r.name} ({r.id[:8]})") for r in runs]


def draw(runs: Sequence[RecordedRun], metric: str | None, picture: Path | None) -> str:
    """Draw a metric of all runs that have it over their steps; returns what to tell.

    metric: None takes the loss, or else the first score that a run has. picture: a file, or the folder it goes to.
    Raises `UnknownNameError` for a metric that no run has, with the nearest one.
    """
    known = sorted({name for run in runs for name in run.metrics})
    if not known:
        return "no run has recorded a metric yet: nothing to draw."
    if metric is None:
        metric = next((m for m in scores_of(runs) if m in known), known[0])
    if metric not in known:
        raise unknown("metric", metric, known, "these runs")
    lines = {run.name: run.curves[metric] for run in runs if metric in run.curves}
    without = [run.name for run in runs if metric not in run.curves]
    left_out = f" (without {', '.join(without)}, which have no {metric})" if without else ""
    place = picture if picture and not picture.is_dir() else (picture or Path()) / f"compare-{metric}.png"
    return f"{metric} over steps{left_out}: {panels.curves(lines, metric, place)}"


def differing(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the parameters in which runs differ, their identity apart."""
    keys = {key: None for run in runs for key in run.parameters}
    return [k for k in keys if k not in IDENTITY and len({run.parameters.get(k) for run in runs}) > 1]


def differences(runs: Sequence[RecordedRun]) -> str:
    """Return one table: a parameter a row, a run a column; a dash where a run has no such parameter."""
    rows = [(key, *(_short(run.parameters.get(key, "-")) for run in runs)) for key in differing(runs)]
    return table(("differs", *(run.name for run in runs)), rows)


def results(runs: Sequence[RecordedRun]) -> str:
    """Return one table of the final metrics, time and throughput of every run."""
    metrics = scores_of(runs)
    header = ("run", "kind", "status", *metrics, "time", "samples/s")
    return table(header, [_result(run, metrics) for run in runs])


def _result(run: RecordedRun, metrics: Sequence[str]) -> tuple[str, ...]:
    scores = (f"{run.metrics[m]:.4f}" if m in run.metrics else "-" for m in metrics)
    # the median: the first steps warm up, the last ones save
    rates = sorted(value for _, value in run.curves.get("samples_per_s", []))
    rate = f"{rates[len(rates) // 2]:.0f}" if rates else "-"
    return run.name, run.kind, run.status.lower(), *scores, clock(run.duration_s), rate


def over_seeds(runs: Sequence[RecordedRun]) -> str:
    """Return one table of the settings with several seeds: means and 95 % intervals; nothing where there is none."""
    several = [setting for setting in settings(runs) if len(setting.runs) > 1]
    metrics = scores_of([run for setting in several for run in setting.runs])
    rows = [(_short(s.name), str(len(s.runs)), *(told(s.estimate(m)) for m in metrics)) for s in several]
    return table(("runs", "seeds", *metrics), rows) if rows else ""


def write_page(runs: Sequence[RecordedRun], uri: str, experiment: str, path: Path) -> str:
    """Write the comparison as one HTML file; returns what to tell."""
    by_kind = {
        kind: [run for run in runs if run.kind == kind] for kind in dict.fromkeys(r.kind for r in runs)
    }
    differs = {kind: differing(members) for kind, members in by_kind.items()}
    made = page(Shown(experiment, runs, differs, read_panels(uri, runs)))
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"page: {write_atomically(path, made.encode())}"


def _short(text: str, most: int = 28) -> str:
    # the end is shown: it is where paths and names of runs differ
    return text if len(text) <= most else "…" + text[-most + 1 :]


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code.

    Raises `MissingInputError` where no run is found, and `UnknownNameError` for a metric that none has.
    """
    asked = parser().parse_args(argv)
    config = TrackingConfig(experiment=asked.experiment, uri=asked.uri)
    uri = config.resolve(asked.output)
    # the page draws whatever there is
    curves = ["*"] if asked.html or asked.curve is None else [asked.curve, "samples_per_s"]
    recorded = read_runs(uri, asked.experiment, curves)
    if not recorded:
        raise MissingInputError(f"experiment `{asked.experiment}` at {uri} has no runs yet.")
    runs = distinct(chosen(recorded, asked.where))
    if not runs:
        raise MissingInputError(f"none of the {len(recorded)} runs is {' and '.join(asked.where)}.")
    for kind in dict.fromkeys(one.kind for one in runs):
        say(f"\n{kind}\n{differences([r for r in runs if r.kind == kind])}")
    say(f"\nresults\n{results(runs)}\n")
    if seeded := over_seeds(runs):
        say(f"over seeds, mean and 95 % interval\n{seeded}\n")
    say(draw(runs, asked.curve, asked.picture or asked.output))
    if asked.html:
        say(write_page(runs, uri, asked.experiment, asked.html))
    say(f"open MLflow: {tracker_hint(uri)}")
    return EXIT_DONE


if __name__ == "__main__":
    run(main)
