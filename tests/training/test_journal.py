"""The journal keeps what counts, over any number of lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import journal
from training.journal import Journal


def write(run: Path, resumed_at: int, steps: range) -> None:
    opened = Journal(run, resumed_at)
    for step in steps:
        opened.append(step, {"loss": step + resumed_at / 100})
    opened.close()


def test_a_later_life_takes_the_place_of_what_it_rewound(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 8))
    write(tmp_path, 5, range(6, 10))
    lines = journal.read(tmp_path)
    assert [line.step for line in lines] == list(range(1, 10))
    assert [line.metrics["loss"] for line in lines] == [1, 2, 3, 4, 5, 6.05, 7.05, 8.05, 9.05]


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_cut_short_by_a_kill_does_not_swallow_the_rewind(tmp_path: Path, cut: int) -> None:
    write(tmp_path, 0, range(1, 6))
    path = tmp_path / journal.NAME
    path.write_text(path.read_text()[:-cut])
    whole = [1, 2, 3, 4, 5] if cut == 1 else [1, 2, 3, 4]  # the last byte is the end of the line
    assert [line.step for line in journal.read(tmp_path)] == whole
    write(tmp_path, 2, range(3, 6))
    lines = journal.read(tmp_path)
    assert [line.step for line in lines] == [1, 2, 3, 4, 5]
    assert [line.metrics["loss"] for line in lines] == [1, 2, 3.02, 4.02, 5.02]


def test_a_life_that_ended_well_leaves_no_empty_line(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 3))
    write(tmp_path, 2, range(3, 5))
    assert all((tmp_path / journal.NAME).read_text().splitlines())


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert journal.read(tmp_path) == []
