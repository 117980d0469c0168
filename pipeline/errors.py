"""Every error this project raises on purpose: what happened, where, and what to do about it.

Each class is also the builtin a caller would expect, so `except ValueError` keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_REJECTED = 3
# no shell, Python or signal gives this one a meaning: who sees it knows that everything is saved
EXIT_INTERRUPTED = 85


class PipelineError(Exception):
    """Base of all deliberate errors; `exit_code` is what an entry script returns for it."""

    exit_code = EXIT_FAILURE


class ConfigError(PipelineError, ValueError):
    """A configuration that cannot be used; the message names the file and the key to change."""

    exit_code = EXIT_USAGE


class UnknownNameError(ConfigError, KeyError):
    """A band, index, sensor, task or key that does not exist; carries a suggestion."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the repr of the message


class MissingInputError(PipelineError, FileNotFoundError):
    """A file, folder or archive that is needed and absent."""

    exit_code = EXIT_USAGE


class SceneError(PipelineError, ValueError):
    """One scene that cannot be used; the run quarantines it and goes on."""


class RejectedError(PipelineError):
    """More scenes were rejected than the configuration allows."""

    exit_code = EXIT_REJECTED


class CorruptDataError(PipelineError, OSError):
    """Stored data that is truncated, altered or incomplete."""


class LostDataError(MissingInputError, CorruptDataError):
    """Stored data that should be there and is not: its storage answers, and does not have it."""


class UnsafeDataError(PipelineError, ValueError):
    """Stored data that may be meant to do harm: never read, and never got round by taking other data instead."""


class ContractError(PipelineError, ValueError):
    """Data, weights and configuration that do not fit together."""

    exit_code = EXIT_USAGE


class OutputError(PipelineError, OSError):
    """The output folder cannot be used: occupied, locked, full, or of another configuration."""

    exit_code = EXIT_USAGE


class ClusterError(PipelineError, RuntimeError):
    """Dask workers that cannot be reached, used or relied on."""


class TrainingError(PipelineError, RuntimeError):
    """Training that must not go on: non-finite loss, ranks that disagree."""


class MissingPackageError(PipelineError, ImportError):
    """An optional package that is needed here and not installed; the message names the extra."""

    exit_code = EXIT_USAGE


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean ...?` for the closest of `known`, or the list of them.

    Matching ignores case, so `b08` finds `B08`.
    """
    names = [str(k) for k in known]
    # reversed: of names that differ in case only, the first wins
    folded = {n.casefold(): n for n in reversed(names)}
    # 0.6: one or two letters amiss; less would suggest what nobody meant
    close = difflib.get_close_matches(str(name).casefold(), list(folded), n=1, cutoff=0.6)
    if close:
        return f" Did you mean `{folded[close[0]]}`?"
    return f" Known: {', '.join(names)}." if names else ""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UnknownNameError:
    """Build the error for a `name` that no table holds, with the nearest known one."""
    at = f" in {where}" if where else ""
    return UnknownNameError(f"unknown {kind} `{name}`{at}.{did_you_mean(name, known)}")
