"""Trainings as processes that are signalled, killed, starved and deprived of their disk: nothing finished is lost."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.errors import ConfigError
from tests.training.processes import (
    ROOT,
    SMALL,
    finish,
    free_port,
    rank_environment,
    run_cases,
    start,
    wait_for_step,
)
from training import journal, runs
from training.checkpoint import Store
from training.pretrain import PretrainConfig
from training.sealed import verify
from training.status import status
from training.world import World

KILLS = int(os.environ.get("KILLS") or ("20" if os.environ.get("LONG_TESTS") == "1" else "3"))
ENDLESS = ("steps=100000", "save_every_steps=50000", "optimiser.warmup_epochs=1")


def losses(run: Path) -> list[float]:
    lines = journal.read(run)
    assert [line.step for line in lines] == list(range(1, len(lines) + 1))
    return [line.metrics["loss"] for line in lines]


def wait_for_save(run: Path, process: subprocess.Popen[str], after: int) -> None:
    """Wait until a checkpoint past some steps is being written."""
    late = f".step-{after:08d}.partial"
    while process.poll() is None and not any(p.name >= late for p in run.glob("checkpoints/.step-*.partial")):
        time.sleep(0.0005)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Return the loader processes of a training: its forks."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    own = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    return [int(pid) for pid in listed if Path(f"/proc/{pid}/cmdline").read_bytes() == own]


def test_t01_t02_a_run_killed_at_random_steps_and_in_a_save_ends_as_if_it_was_not(
    shards: Path, tmp_path: Path, trained: Path
) -> None:
    run, draw, words = tmp_path / "killed", random.Random(7), ("name=killed", "save_every_steps=3")
    for kill in range(KILLS):
        process = start(shards, tmp_path, *words)
        done = max((line.step for line in journal.read(run)), default=0) // 3 * 3
        if kill == 1 and done < 17:
            wait_for_save(run, process, done + 1)  # T02
        else:
            wait_for_step(run, min(done + draw.randint(1, 5), 19), process)
        process.kill()
        process.communicate(timeout=60)
        assert not (run / "COMPLETE").exists()
    finish(start(shards, tmp_path, *words))
    assert losses(run) == losses(trained / "whole")
    assert list((run / "checkpoints").glob(".*")) == []


@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_t03_a_signal_saves_and_exits_85_and_the_same_command_goes_on(
    shards: Path, tmp_path: Path, number: signal.Signals, whole_group: bool, trained: Path
) -> None:
    process = start(shards, tmp_path, "name=stopped", "save_every_steps=1000", "data.workers=1")
    wait_for_step(tmp_path / "stopped", 3, process)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    finish(process, 85)
    assert (tmp_path / "stopped" / "INTERRUPTED").exists()
    out, _ = finish(start(shards, tmp_path, "name=stopped", "save_every_steps=1000"))
    assert "going on from" in out
    assert losses(tmp_path / "stopped") == losses(trained / "whole")
    assert not (tmp_path / "stopped" / "INTERRUPTED").exists()


@pytest.mark.parametrize("after_s", [0.5, 3.0])
def test_t04_a_signal_while_the_run_starts_saves_and_exits_85(
    shards: Path, tmp_path: Path, after_s: float, trained: Path
) -> None:
    process = start(shards, tmp_path, "name=early")
    time.sleep(after_s)
    os.kill(process.pid, signal.SIGUSR1)
    _, err = finish(process, 85)
    assert "stop: the step is finished and everything saved" in err
    assert (tmp_path / "early" / "INTERRUPTED").exists()
    assert losses(tmp_path / "early") == losses(trained / "whole")[: len(losses(tmp_path / "early"))]


def test_t04_a_signal_during_a_save_lets_it_end_and_saves_nothing_twice(shards: Path, tmp_path: Path) -> None:
    process = start(shards, tmp_path, "name=saving", "steps=1000", "save_every_steps=4")
    wait_for_save(tmp_path / "saving", process, 4)
    os.kill(process.pid, signal.SIGTERM)
    finish(process, 85)
    kept = sorted((tmp_path / "saving/checkpoints").glob("*step-*"))
    assert [list(verify(folder)) for folder in kept] == [[]] * len(kept)
    assert len(losses(tmp_path / "saving")) == int(kept[-1].name[-8:])


@pytest.mark.parametrize(
    ("policy", "background", "steps"),
    [("stop", False, range(3, 4)), ("stop", True, range(4, 20)), ("go_on", True, range(20, 21))],
)
def test_t07_a_disk_that_is_full_while_saving(
    shards: Path, tmp_path: Path, policy: str, background: bool, steps: range
) -> None:
    # one that is written meanwhile is found to have failed some steps later
    words = ("name=full", "save_every_steps=3", f"save_failure={policy}", f"save_async={background}")
    _, err = finish(start(shards, tmp_path, *words, limit_file_kb=3000), 2)
    assert "could not be written" in err
    assert "Make room" in err
    assert "Traceback" not in err
    assert err.count("is not saved, the run goes on") == (6 if policy == "go_on" else 0)
    assert len(losses(tmp_path / "full")) in steps
    assert list((tmp_path / "full" / "checkpoints").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one checkpoint of the small model, but not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_t07_free_space_is_looked_at_before_and_the_old_checkpoint_stays(
    shards: Path, small_disk: Path
) -> None:
    _, err = finish(
        start(shards, small_disk, "name=full", "save_every_steps=2", "tracking.close_timeout_s=1"), 2
    )
    assert "MB needed" in err
    assert "the one before is intact" in err
    found = Store(small_disk / "full", World()).newest()
    assert found is not None
    assert found.name == "step-00000002"


@pytest.mark.parametrize("word", ["optimiser.base_lr=0.5", "masking.ratio=0.5"])
def test_t09_what_changes_the_training_is_refused_on_resume_unless_allowed(
    shards: Path, trained: Path, tmp_path: Path, word: str
) -> None:
    shutil.copytree(trained / "whole", tmp_path / "whole", ignore=shutil.ignore_patterns("COMPLETE"))
    words = [f"output={tmp_path}", f"data.shards={shards}", *SMALL, "name=whole", word]
    key, _, value = word.partition("=")
    with pytest.raises(ConfigError, match=rf"{key}: \S+ -> {value}\)\. Give another name=.*resume=changed"):
        runs.prepare(load(PretrainConfig, None, words), World())
    assert runs.prepare(load(PretrainConfig, None, [*words, "resume=changed"]), World())


UNDER_ANOTHER_RULE = """
import sys
from training import pretrain, sets

sets.RULE = 1
sys.exit(pretrain.main(sys.argv[1:]))
"""


def test_t09_a_run_of_another_order_of_samples_is_refused_on_resume_unless_allowed(
    shards: Path, tmp_path: Path
) -> None:
    words = ("name=ordered", "steps=6", "panel_images=0")
    given = [f"output={tmp_path}", f"data.shards={shards}", "data.image_px=48", *SMALL, *words, "stop_at=3"]
    older = [sys.executable, "-c", UNDER_ANOTHER_RULE, "configs/pretrain/demo.yaml", *given]
    assert subprocess.run(older, cwd=ROOT, capture_output=True, timeout=120).returncode == 85
    _, err = finish(start(shards, tmp_path, *words), 2)
    assert "was trained on other data" in err
    assert "(rule of the order: 1 -> 2); resume=changed allows it" in err
    assert len(losses(tmp_path / "ordered")) == 3
    out, _ = finish(start(shards, tmp_path, *words, "resume=changed"))
    assert "at step 3" in out
    assert len(losses(tmp_path / "ordered")) == 6


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shard set that lacks a shard of 8 samples, and of which one sample cannot be decoded."""
    copy = Path(shutil.copytree(shards, tmp_path / "damaged"))
    (copy / "train/shard-000002.tar").unlink()
    with tarfile.open(copy / "train/shard-000000.tar") as tar:
        at = tar.getmember("tile_00005.pixels.npy.blosc").offset_data + 5
    with (copy / "train/shard-000000.tar").open("r+b") as stream:
        stream.seek(at)
        stream.write(b"\xff")
    return copy


def replaced(run: Path) -> list[float]:
    return [line.metrics["replaced_share"] for line in journal.read(run)]


def test_t16_a_run_without_its_damaged_samples_is_the_same_however_it_is_cut_up(
    damaged: Path, tmp_path: Path
) -> None:
    words = [f"output={tmp_path}", f"data.shards={damaged}", *SMALL, "panel_images=0", "data.damaged=replace",
             "guards.max_replaced=0.9"]  # fmt: skip
    cut = [*words, "name=cut", "data.workers=2"]
    cases = [("pretrain", [*words, "name=whole"]), ("pretrain", [*cut, "stop_at=7"]), ("pretrain", cut)]
    assert run_cases(tmp_path, cases) == [True, False, True]
    # an epoch of 5 steps visits all 40 samples, of which 9 are others
    assert sum(replaced(tmp_path / "whole")) * 8 == 4 * 9
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert replaced(tmp_path / "cut") == replaced(tmp_path / "whole")
    counts = [line.metrics["replaced_samples"] for line in journal.read(tmp_path / "cut")]
    assert (counts[-1], counts) == (36.0, sorted(counts))
    assert dict(status(tmp_path / "cut"))["replaced"].startswith("36 samples")
    assert run_cases(tmp_path, [("pretrain", [*words, "name=pair"])], ranks=2) == [True]
    assert losses(tmp_path / "pair") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert replaced(tmp_path / "pair") == replaced(tmp_path / "whole")


def test_t16_a_run_that_would_lack_too_much_ends_and_one_that_stopped_goes_on_when_told(
    damaged: Path, tmp_path: Path
) -> None:
    words = ("name=few", "panel_images=0", "save_every_steps=1")
    _, err = finish(start(damaged, tmp_path, *words), 2)
    assert "train/shard-000002.tar is missing" in err
    _, err = finish(start(damaged, tmp_path, *words, "data.damaged=replace"), 1)
    assert "20.0% of the samples are missing or damaged, more than guards.max_replaced=0.01" in err
    assert err.count("shard-000002.tar is missing") == 2  # warned of, and what ended it
    allowed = ("data.damaged=replace", "guards.max_replaced=0.21")
    _, err = finish(start(damaged, tmp_path, *words, *allowed), 1)
    # 8.4 an epoch, and an epoch has 9
    ended = re.search(r"9 of \d+ samples up to step ([1-5]) were missing or damaged", err)
    assert ended, err
    assert err.count("tile_00005") == 1
    assert "Traceback" not in err
    assert len(losses(tmp_path / "few")) == int(ended[1]) - 1
    finish(start(damaged, tmp_path, *words, "data.damaged=replace", "guards.max_replaced=0.5"))
    assert len(losses(tmp_path / "few")) == 20


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_t12_a_loader_process_that_dies_or_hangs_ends_the_run_saved_with_the_shard_named(
    shards: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(shards, tmp_path, "name=fed", *ENDLESS, "data.workers=1", "data.timeout_s=3")
    wait_for_step(tmp_path / "fed", 3, process)
    (worker,) = workers(process)
    os.kill(worker, number)
    _, err = finish(process, 1)
    assert f"which reads {shards}/train/shard-00000" in err
    assert "a loader process failed at step" in err
    assert "Traceback" not in err
    found = Store(tmp_path / "fed", World()).newest()
    assert found is not None
    assert int(found.name[-8:]) == len(losses(tmp_path / "fed")) >= 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_t13_a_peer_that_dies_or_hangs_is_told_by_rank_and_step(
    shards: Path, tmp_path: Path, number: signal.Signals
) -> None:
    port, words = free_port(), ("name=pair", *ENDLESS, "engine.timeout_s=6")
    ranks = [start(shards, tmp_path, *words, **rank_environment(rank, 2, port)) for rank in range(2)]
    wait_for_step(tmp_path / "pair", 2, ranks[0])
    os.kill(ranks[1].pid, number)
    struck = time.monotonic()
    _, err = finish(ranks[0], 1)
    assert time.monotonic() - struck < 60
    ranks[1].kill()
    ranks[1].communicate()
    last = len(losses(tmp_path / "pair"))
    assert any(f"rank 0 of 2 lost another rank in step {step}" in err for step in range(last, last + 4)), err
    assert "Traceback" not in err


def test_t10_t14_two_ranks_skip_together_and_refuse_to_start_unlike(shards: Path, tmp_path: Path) -> None:
    words = [f"output={tmp_path}", f"data.shards={shards}", *SMALL, "panel_images=0"]
    broken = [*words, "name=broken", "optimiser.base_lr=1e30", "guards.max_skipped=3"]
    apart = [*words, "name=apart", "@1 optimiser.base_lr=0.5", "@1 masking.ratio=0.5"]
    skipped, refused, code, data = run_cases(
        tmp_path,
        [
            ("pretrain", broken),
            ("pretrain", apart),
            ("code", ["@1 model.py=changed"]),
            ("data", ["@1 digest=other"]),
        ],
        ranks=2,
    )
    assert "4 steps in a row were not finite" in str(skipped)
    noted = [json.loads(line) for line in (tmp_path / "broken/noted.jsonl").read_text().splitlines()]
    assert [len(n["keys"]) for n in noted if n["why"] == "skipped"] == [8] * 4
    assert list((tmp_path / "broken").glob("checkpoints/step-*")) == []
    assert "rank 1: optimiser.base_lr: 0.03 -> 0.5, masking.ratio: 0.75 -> 0.5" in str(refused)
    assert (
        "not all ranks were started with the code of rank 0 (rank 1: model.py: 'same' -> 'changed')"
        in str(code)
    )
    assert "rank 1: digest: 'same' -> 'other'" in str(data)


SOAK = """
import gc, json, os, sys, threading
from pathlib import Path
import psutil
from pipeline.config import load
from training import loop
from training.pretrain import PretrainConfig, pretrain
from training.world import World

me, seen = psutil.Process(), []

class Ledger(loop.Ledger):
    def open(self, entry):
        super().open(entry)
        if entry.step % int(sys.argv[1]) == 0:
            gc.collect()
            seen.append((me.memory_info().rss, me.num_threads(), me.num_fds()))

loop.Ledger = Ledger
assert pretrain(load(PretrainConfig, None, sys.argv[2:]), World())
print("SEEN", json.dumps(seen))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_soak_leaves_memory_threads_and_handles_flat(shards: Path, tmp_path: Path) -> None:
    steps = 10_000 if os.environ.get("LONG_TESTS") == "1" else 100
    words = [f"output={tmp_path}", f"data.shards={shards}", *SMALL, "panel_images=0", "name=soak",
             "data.image_px=16", "batch.size=4", f"steps={steps}", f"save_every_steps={steps // 4}"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SOAK, str(steps // 20), *words],
        cwd=ROOT,
        # so small a model is slower on two threads
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.split("SEEN ")[1])
    memory, threads, handles = zip(*seen[4:], strict=True)
    # MLflow's client and its database are loaded on the way
    assert max(memory) < 1.1 * memory[0] + 30e6, memory
    assert max(threads) <= threads[0] + 2, threads
    assert max(handles) <= handles[0] + 4, handles
    assert (tmp_path / "soak" / journal.NAME).stat().st_size < steps * 1000
    assert len(done.stdout) + len(done.stderr) < 20_000
