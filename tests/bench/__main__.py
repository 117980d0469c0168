"""Run the benchmarks and print one table: `python -m tests.bench [NAME ...]`, or `make bench`."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

# one thread each: ratios of single cores, whatever the machine has
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from pipeline.console import run, say, table
from tests.bench import loader, preprocessing, training
from tests.bench.measure import HEADER, REPETITIONS, Ratio

BENCHES = preprocessing.BENCHES | loader.BENCHES | training.BENCHES
NEED_REAL_DATA = preprocessing.NEED_REAL_DATA + loader.NEED_REAL_DATA


def main(argv: list[str]) -> int:
    """Run the benchmarks asked for; returns the exit code, which says nothing about goals."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHES)}")
    asked = parser.parse_args(argv).names or list(BENCHES)
    found: list[Ratio] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in asked:
            if name not in BENCHES:
                parser.error(f"no benchmark {name}: there are {', '.join(BENCHES)}")
            if name in NEED_REAL_DATA and not preprocessing.REAL_DATA.exists():
                say(
                    f"{name}: left out, there is no real imagery at {preprocessing.REAL_DATA} (REAL_DATA names another)"
                )
                continue
            say(f"{name}: {BENCHES[name].__doc__}")
            found += BENCHES[name](Path(folder))
    say(f"\n{table(HEADER, [one.row() for one in found])}")
    say(
        f"medians of {REPETITIONS} turns; CPU seconds of one process, wall seconds where processes are compared"
    )
    return 0


if __name__ == "__main__":
    run(lambda argv: main(list(argv)))
