import io
import subprocess
import sys

import pytest
import yaml
from pydantic import Field

from pipeline import console
from pipeline.config import ROOT, Config, flatten
from pipeline.console import Command, Progress
from pipeline.errors import ConfigError, MissingInputError, RejectedError

CONFIGS = {
    "preprocessing/shard.py": "shard",
    "training/pretrain.py": "pretrain",
    "training/finetune.py": "finetune",
}
COMMAND = Command("Do a thing.", "configs/shard/default.yaml", "  do thing")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def run(body: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run an entry whose `main` is `body`."""
    code = f"from pipeline import console, errors\ndef main(argv):\n    {body}\nconsole.run(main)"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_default_configuration_is_relative_to_the_project_and_words_are_sorted_out():
    assert COMMAND.split([]) == (ROOT / "configs/shard/default.yaml", [])
    path, words = COMMAND.split(["a.b=1", "x.yaml", "c=[1,2]"])
    assert (str(path), words) == ("x.yaml", ["a.b=1", "c=[1,2]"])


def test_two_configurations_are_refused():
    with pytest.raises(MissingInputError, match=r"a\.yaml and b\.yaml"):
        COMMAND.split(["a.yaml", "b.yaml"])


def test_help_shows_what_the_default_is_and_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        COMMAND.parser().parse_args(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Do a thing." in out
    assert "configs/shard/default.yaml" in out
    assert "do thing" in out


class Settings(Config):
    """Two keys."""

    tile_px: int = Field(default=96, gt=0)
    """Side of a tile in pixels."""
    scenes: str
    """Folder the products are in."""


def test_all_keys_are_listed_on_request_and_help_says_how(capsys):
    parser = COMMAND.configured_by(Settings).parser()
    assert "--keys" in parser.format_help()
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["some.yaml", "--keys", "tile_px=1"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    assert "\ntile_px=96  # a whole number greater than 0\n    Side of a tile in pixels.\n" in told
    assert "\nscenes=...  # text; must be given\n    Folder the products are in.\n" in told


def test_a_command_without_a_model_has_no_keys_to_list():
    assert "--keys" not in COMMAND.parser().format_help()


@pytest.mark.parametrize("entry", ["preprocessing/shard.py", "training/pretrain.py", "training/finetune.py"])
def test_every_entry_lists_its_keys(entry):
    done = subprocess.run(
        [sys.executable, entry, "--keys"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    listed = [line.partition("=")[0] for line in lines if line and not line.startswith((" ", "keys of"))]
    named = yaml.safe_load((ROOT / "configs" / CONFIGS[entry] / "default.yaml").read_text())
    # what the ready configurations set is listed, and everything listed says what it means
    assert set(flatten(named)) <= set(listed)
    assert len(listed) == len(set(listed)) > 20
    assert sum(line.startswith("    ") and not line.isspace() for line in lines) >= len(listed)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError, 2), (MissingInputError, 2), (RejectedError, 3)], ids=lambda e: str(e)
)
def test_deliberate_errors_are_one_line_and_a_code(error, code):
    done = run(f"raise errors.{error.__name__}('what, where, what to do')")
    assert (done.returncode, done.stderr, done.stdout) == (code, "error: what, where, what to do\n", "")


def test_a_traceback_can_be_asked_for():
    done = run("raise errors.ConfigError('x')", SPECTRAL_TRACEBACK="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_mistakes_of_the_program_keep_their_traceback():
    done = run("return 1 // 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_an_interruption_says_how_to_go_on():
    done = run("raise KeyboardInterrupt")
    assert done.returncode == 85
    assert "start the same command again" in done.stderr


def test_arguments_and_the_exit_code_go_through():
    done = run("console.say(','.join(argv)); return 7", "a=1", "b")
    assert (done.returncode, done.stdout) == (7, "a=1,b\n")


def test_progress_tells_rate_and_time_left():
    progress = Progress("scenes", 20, "scenes", io.StringIO())
    progress._start -= 10
    progress.advance(5, "note")
    line = progress.line("note")
    assert line.startswith("scenes: 5/20 scenes (25 %), 0.5/s, 0:10 gone, 0:30 left")
    assert line.endswith(", note")


def test_what_was_done_before_does_not_count_in_the_rate():
    progress = Progress("steps", 100, "steps", io.StringIO(), done=50)
    progress._start -= 10
    progress.advance(10)
    assert "60/100 steps (60 %), 1/s" in progress.line()


def test_a_log_gets_few_plain_lines_and_always_the_last():
    stream = io.StringIO()
    progress = Progress("x", 1000, stream=stream)
    for _ in range(1000):
        progress.advance()
    lines = stream.getvalue().splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[-1].startswith("x: 1000/1000")
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_one_live_line():
    stream = Terminal()
    progress = Progress("x", 2, stream=stream)
    progress.advance()
    progress.advance()
    assert stream.getvalue().count("\n") == 1
    assert "\r" in stream.getvalue()


def test_progress_survives_a_closed_terminal_and_keeps_quiet_when_told():
    Progress("x", 1, stream=Closed()).advance()
    quiet = io.StringIO()
    Progress("x", 1, stream=quiet, live=False).advance()
    assert quiet.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (float("nan"), "?")]
)
def test_clock(seconds, text):
    assert console.clock(seconds) == text


def test_numbers_are_aligned_right_and_words_left():
    text = console.table(["band", "mean"], [["B02", "0.5"], ["B8A", "12.25"]])
    assert text.splitlines() == ["band   mean", "----  -----", "B02     0.5", "B8A   12.25"]


def test_a_table_without_rows_is_its_head():
    assert console.table(["a", "b"], []).splitlines() == ["a  b", "-  -"]
