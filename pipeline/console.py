"""How both rooms speak to people: entry scripts, progress with rate and time left, tables.

A terminal gets one live line; a file or a Slurm log gets a plain line every few seconds.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from pipeline.config import ROOT, Config
from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, MissingInputError, PipelineError
from pipeline.reference import listing

LOG = logging.getLogger("spectral")
# the log of a run of days must stay readable
PLAIN_INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Command:
    """One entry script's command line: what it does and where its default configuration is."""

    does: str
    """One sentence, shown by --help."""
    default: str
    """Default configuration, relative to the project root, or empty where one must be given."""
    examples: str
    """Lines shown under --help."""
    model: type[Config] | None = None
    """Configuration model, whose keys --keys lists."""

    def configured_by(self, model: type[Config]) -> Command:
        """Return the command with its configuration model, where that is declared after it."""
        return replace(self, model=model)

    def parser(self) -> argparse.ArgumentParser:
        """Return a parser that takes `[CONFIG.yaml] [a.b=c ...]`; entries may add options to it.

        With a model it also takes --keys, which lists every key with its default and meaning, and stops.
        """
        parser = argparse.ArgumentParser(
            description=self.does,
            epilog=f"examples:\n{self.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        shown = self.default or "none"
        parser.add_argument(
            "words",
            nargs="*",
            metavar="CONFIG | a.b=c",
            help=f"YAML file (default: {shown}) and values that win over it",
        )
        if self.model:
            text = f"keys of CONFIG, with the defaults of those it does not set:\n\n{listing(self.model)}"
            # argparse would fold the list into a paragraph
            parser.add_argument(
                "--keys",
                action=_Tell,
                const=text,
                nargs=0,
                help="list every key with its default and meaning",
            )
        return parser

    def split(self, words: Sequence[str]) -> tuple[Path, list[str]]:
        """Split words into the configuration's path and the `a.b=c` rest.

        Raises `MissingInputError` for two configurations.
        """
        # in any order: people append words to a command of yesterday
        files = [w for w in words if "=" not in w]
        if len(files) > 1:
            raise MissingInputError(
                f"one configuration at a time, not {' and '.join(files)}; values are written key=value."
            )
        path = Path(files[0]).expanduser() if files else ROOT / self.default
        return path, [w for w in words if "=" in w]


class _Tell(argparse.Action):
    """Writes a text and ends, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        say(str(self.const))
        parser.exit()


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run an entry's `main(argv)` and exit: deliberate errors become one clear line, never a traceback.

    `SPECTRAL_TRACEBACK=1` shows the traceback as well.
    """
    # libraries speak only when something is wrong
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    LOG.setLevel(logging.INFO)
    try:
        code = main(sys.argv[1:])
    except PipelineError as error:
        if os.environ.get("SPECTRAL_TRACEBACK"):
            LOG.exception("traceback on request")
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; start the same command again to go on.\n")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # `| head` has seen enough: no mistake, but not the whole either
        code = EXIT_FAILURE
    sys.stdout.flush()
    sys.exit(code)


def say(text: str) -> None:
    """Write one line to people."""
    # at once: in a Slurm log the last line is what one looks for after a kill
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass
class Progress:
    """Progress of a long work: `done/total  rate  time left  note`.

    Raises nothing: a closed terminal must not stop the work.
    """

    what: str
    total: int
    unit: str = "items"
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    done: int = 0
    """What an earlier run finished; it does not count in the rate."""
    live: bool = True
    """False keeps quiet, on ranks other than 0."""
    _start: float = field(default_factory=time.monotonic)
    _shown: float = 0.0

    def __post_init__(self) -> None:
        self._first = self.done

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more as done and show it when it is time to."""
        self.done += count
        now = time.monotonic()
        interval = LIVE_INTERVAL_S if self.stream.isatty() else PLAIN_INTERVAL_S
        if self.live and (now - self._shown >= interval or self.done >= self.total):
            self._shown = now
            self._write(note, end="\r" if self.stream.isatty() and self.done < self.total else "\n")

    def line(self, note: str = "") -> str:
        """Return the line as it would be shown now."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        # what an earlier run finished says nothing about the speed of this one
        rate = (self.done - self._first) / elapsed
        left = (self.total - self.done) / rate if rate > 0 else float("nan")
        share = 100 * self.done / max(self.total, 1)
        times = f"{clock(elapsed)} gone, {clock(left)} left"
        return f"{self.what}: {self.done}/{self.total} {self.unit} ({share:.0f} %), {rate:.3g}/s, {times}" + (
            f", {note}" if note else ""
        )

    def _write(self, note: str, end: str) -> None:
        try:
            clear = "\x1b[2K" if self.stream.isatty() else ""
            self.stream.write(clear + self.line(note) + end)
            self.stream.flush()
        # a closed terminal must not end hours of work
        except OSError:
            LOG.debug("progress output is closed")


def clock(seconds: float) -> str:
    """Format a duration in seconds as `m:ss` or `h:mm:ss`; `?` when it is not known."""
    if math.isnan(seconds):
        return "?"
    whole = int(seconds + 0.5)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a plain-text table; columns of numbers are aligned to the right.

    Every row has as many cells as the header; raises `ValueError` for others.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]

    def lay(cells: Sequence[str]) -> str:
        return "  ".join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)
        ).rstrip()

    return "\n".join([lay(header), "  ".join("-" * w for w in widths), *(lay(row) for row in rows)])


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%sx ") or "0")
    except ValueError:
        return text == "-"
    return True
