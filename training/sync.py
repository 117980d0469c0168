"""A run into MLflow, its journal and its files, after a server that was away has come back: `python training/sync.py RUN ...`.

What MLflow has already is not sent again, and what it has lost is sent whole: giving it twice changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by path: `python training/sync.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.console import run, say
from pipeline.errors import EXIT_DONE
from pipeline.lock import locked
from training import journal
from training.guards import COMPLETE, INTERRUPTED
from training.identity import RunIdentity
from training.tracking import TrackingConfig, send_all

_EXAMPLES = """examples:
  python training/sync.py runs/pretrain
  MLFLOW_TRACKING_URI=http://mlflow.example:5000 python training/sync.py runs/*"""


def sync(folder: Path) -> int:
    """Send what MLflow lacks of a run that is not going on; returns the last step that it has then.

    Raises `MissingInputError` where there is no run or no MLflow, `OutputError` where the run is going on.
    """
    config = TrackingConfig.of(folder)
    status = "KILLED" if (folder / INTERRUPTED).exists() else "FAILED"
    with locked(folder):  # its own life feeds MLflow itself
        last = max((line.step for line in journal.read(folder)), default=0)
        send_all(
            RunIdentity.of(folder),
            config,
            last,
            "FINISHED" if (folder / COMPLETE).exists() else status,
        )
    say(f"{folder}: MLflow at {config.resolve(folder.parent)} has steps up to {last}")
    return last


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python training/sync.py",
        description=(__doc__ or "").split("\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    for folder in parser.parse_args(argv).runs:
        sync(folder)
    return EXIT_DONE


if __name__ == "__main__":
    run(main)
