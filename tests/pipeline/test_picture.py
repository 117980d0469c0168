"""The picture in `pipeline/__init__.py` shows the tree as it is."""

import re

import pytest

import pipeline
from pipeline.config import ROOT

PICTURE = (pipeline.__doc__ or "").split("```")[1]


def drawn(room: str) -> list[str]:
    """Return the lines of the picture that list the files of a room."""
    upper, lower = (part.splitlines() for part in PICTURE.split("└"))
    if room == "pipeline":
        return [line.replace("pipeline/", "") for line in lower[1:]]
    title = next(number for number, line in enumerate(upper) if "training/" in line)
    # a file's name stands two places to the right of its room's
    edge = upper[title].index("training/") + 1
    columns = slice(0, edge) if room == "preprocessing" else slice(edge, None)
    return [line[columns] for line in upper[title + 1 :]]


@pytest.mark.parametrize("room", ["pipeline", "preprocessing", "training"])
def test_the_picture_holds_every_file_and_nothing_else(room):
    files = [path.stem for path in (ROOT / room).glob("*.py") if path.stem != "__init__"]
    folders = [f"{path.parent.name}/*" for path in (ROOT / room).glob("*/__init__.py")]
    words = re.findall(r"[\w/*]+", "\n".join(drawn(room)).replace("(entries)", ""))
    assert sorted(words) == sorted(files + folders)


@pytest.mark.parametrize("room", ["preprocessing", "training"])
def test_the_entries_are_those_that_can_be_started(room):
    entries = [p.stem for p in (ROOT / room).glob("*.py") if '__name__ == "__main__"' in p.read_text()]
    marked = " ".join(line for line in drawn(room) if "(entries)" in line).replace("(entries)", "")
    assert sorted(marked.split()) == sorted(entries)
