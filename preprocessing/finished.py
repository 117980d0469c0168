"""Whether an output holds a finished set, and what may be freed of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline import console
from pipeline import manifest as manifests
from pipeline.errors import CorruptDataError, MissingInputError, OutputError
from pipeline.lock import locked
from pipeline.manifest import Manifest
from preprocessing import archive, planning, quality, settings
from preprocessing.finding import Found
from preprocessing.jobs import WORK_FOLDER
from preprocessing.settings import ShardConfig


def is_fresh(output: Path) -> bool:
    """Say whether nothing was stored in an output yet, so that no number can change its meaning."""
    work = output / WORK_FOLDER
    return (
        archive.is_empty(output / archive.FOLDER)
        and not any(work.glob("*.json"))
        and not (output / manifests.NAME).exists()
    )


def is_finished(request: ShardConfig, found: Found) -> bool:
    """Say whether the output holds these scenes' shards by these settings, whole."""
    try:
        made = manifests.read(request.output)
    except (MissingInputError, CorruptDataError):
        return False
    # rejected ones among them: what did not change would be rejected again
    same = settings.read_sources(request.output) == found.sources and quality.as_reported(request.output)
    return same and made.settings == settings.comparable(request) and is_whole(request.output, made)


def is_whole(folder: Path, made: Manifest) -> bool:
    """Say whether all shards of a set are there in their size; `verify.py` looks deeper."""
    shards = [(folder / s.path, s.size_bytes) for part in made.splits.values() for s in part]
    return all(path.is_file() and path.stat().st_size == size for path, size in shards)


def already(request: ShardConfig) -> str:
    """Tell that nothing had to be done, and how to have rejected scenes tried again."""
    rejected = len(quality.read_rejected(request.output))
    again = f"{rejected} scenes were rejected; once their files are repaired, start again. "
    return (
        f"{request.output} is finished; nothing was done. {again if rejected else ''}"
        f"To check it: python preprocessing/verify.py {request.output}"
    )


def clean(request: ShardConfig) -> None:
    """Remove what only making a finished set needed; raises `OutputError` where the set is not finished."""
    try:
        made = manifests.read(request.output)
    except (MissingInputError, CorruptDataError) as error:
        raise OutputError(
            f"{request.output} holds no finished set ({error}): its archive is still needed. Finish it first."
        ) from error
    if not is_whole(request.output, made):
        raise OutputError(f"shards of {request.output} are missing: make them again before the archive goes.")
    # held: a run that goes on here reads both folders still
    with locked(request.output):
        folders = [request.output / name for name in (archive.FOLDER, WORK_FOLDER)]
        freed = sum(planning.folder_bytes(folder) for folder in folders)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    console.say(f"{request.output}: {planning.gigabytes(freed)} freed; the shards and reports are kept.")
