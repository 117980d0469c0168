"""Folders that tell whether they are whole: a list of their files with sizes and checksums, written last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.manifest import sha256, write_atomically

MANIFEST = "MANIFEST.json"


def seal(folder: Path, format_version: int) -> None:
    """Write down what a folder holds, and let the disk have all of it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    # the data before the list of it: what the list names must outlive a power cut
    for path in (*files, *(p for p in folder.rglob("*") if p.is_dir())):
        sync(path)
    listed = {
        str(p.relative_to(folder)): {"size_bytes": p.stat().st_size, "sha256": sha256(p)} for p in files
    }
    write_atomically(
        folder / MANIFEST, json.dumps({"format_version": format_version, "files": listed}, indent=1).encode()
    )
    # the folder too: syncing a file does not keep its name
    sync(folder)


def sync(path: Path) -> None:
    """Let the disk have a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what a sealed folder says of its files, by name: `size_bytes` and `sha256`."""
    files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text())["files"]
    return files


def verify(folder: Path) -> Iterator[str]:
    """Yield what is wrong with a checkpoint: nothing where it is whole."""
    try:
        expected_files = listed(folder)
    # a list that is cut short is damage like any other: readers take an older checkpoint
    except (OSError, json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        yield f"{MANIFEST} cannot be read ({error})"
        return
    for name, expected in expected_files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != expected["size_bytes"]:
            yield f"{name} has {path.stat().st_size} bytes, not {expected['size_bytes']}"
        elif sha256(path) != expected["sha256"]:
            yield f"{name} does not have its recorded checksum"
