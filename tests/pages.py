"""The pages people read, and what they hold: fenced blocks, links, anchors."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# the order of reading is the order in which their commands run: later ones build on what earlier ones made
FIRST = ("README.md", "docs/scenes.md", "docs/training.md", "docs/slurm.md")
AT_THE_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def pages() -> dict[str, str]:
    """Return the text of every page by its path, in the order of reading."""
    rest = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
    names = [*FIRST, *(name for name in (*rest, *AT_THE_ROOT) if name not in FIRST)]
    return {name: (ROOT / name).read_text() for name in names if (ROOT / name).exists()}


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Return every command of every page, each once, in the order of reading."""
    found = [block for text in pages().values() for block in blocks(text, "bash")]
    return list(dict.fromkeys(line for block in found for line in block.splitlines()))


def copy_project(folder: Path) -> Path:
    """Copy the project's files, without what git ignores, to a folder that commands may write to; returns it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder
