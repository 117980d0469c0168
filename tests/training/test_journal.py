"""The journal keeps what counts, over any number of lives."""

from __future__ import annotations

from pathlib import Path

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


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4))
    path = tmp_path / journal.NAME
    path.write_text(path.read_text()[:-20])
    assert [line.step for line in journal.read(tmp_path)] == [1, 2]
    write(tmp_path, 2, range(3, 5))
    assert [line.step for line in journal.read(tmp_path)] == [1, 2, 3, 4]


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert journal.read(tmp_path) == []
