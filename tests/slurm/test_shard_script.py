"""slurm/shard.sh on a real Slurm: what it starts, and sharding on two nodes that is killed, warned and requeued."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline import manifest as manifests
from preprocessing import archive, shard
from tests.preprocessing.conftest import write_oscd

from .conftest import ROOT, Slurm, wait_until

pytestmark = pytest.mark.slurm
STANDIN = str(ROOT / "tests/slurm/standin.py")
TWO_NODES = ("--nodes=2", "--cpus-per-task=1", "slurm/shard.sh")
CITIES = 4


def told(folder: Path, life: int = 0) -> dict[str, str]:
    """Return what the one task of the entry was told."""
    (path,) = (folder / "run").glob(f"rank-*-life-{life}.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("words", "added"), [((), ["workers=3"]), (("workers=0",), []), (("dask.address=host:1",), [])]
)
def test_on_one_node_the_entry_has_a_worker_a_cpu_unless_told_otherwise(
    slurm: Slurm, tmp_path: Path, words: tuple[str, ...], added: list[str]
) -> None:
    command = ["--cpus-per-task=3", "slurm/shard.sh", f"folder={tmp_path}/run", *words]
    job = slurm.wait(slurm.sbatch(f"--output={tmp_path}/log", *command, SHARD_ENTRY=STANDIN))
    assert (job["JobState"], job["NumNodes"]) == ("COMPLETED", "1"), (tmp_path / "log").read_text()
    assert told(tmp_path)["words"] == [*added, f"folder={tmp_path}/run", *words]


def test_it_hands_on_the_entrys_exit_code_and_ends_what_it_started(slurm: Slurm, tmp_path: Path) -> None:
    number = slurm.sbatch(
        f"--output={tmp_path}/log", *TWO_NODES, f"folder={tmp_path}/run", "do=fail", SHARD_ENTRY=STANDIN
    )
    job = slurm.wait(number)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "7:0"), (tmp_path / "log").read_text()
    assert told(tmp_path)["WORLD_SIZE"] == "1"
    address, workers, *_ = told(tmp_path)["words"]
    assert address.startswith("dask.address=tcp://127.0.0.1:")
    assert workers == "workers=2"
    wait_until(lambda: not left_of(number), "its processes to end")


def left_of(number: str) -> list[str]:
    """Return the command lines of a job's processes that live."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_JOB_ID={number}\0" in (process / "environ").read_text(errors="replace"):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it ended meanwhile
    return found


def test_before_the_time_limit_it_is_requeued_once_and_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    words = [*TWO_NODES, f"folder={tmp_path}/run", "do=wait"]
    number = slurm.sbatch(f"--output={tmp_path}/log", *words, SHARD_ENTRY=STANDIN)
    wait_until(lambda: bool(list(tmp_path.glob("run/rank-*"))), "the entry to begin")
    # what --signal=B:USR1@60 sends
    slurm.call("scancel", "--batch", "--signal=USR1", number)
    job = slurm.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), (tmp_path / "log").read_text()
    # each life has a scheduler of its own
    assert told(tmp_path, life=1)["words"][0] != told(tmp_path, life=0)["words"][0]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What eight small scenes are sharded with; `output` is left to the test."""
    folder = tmp_path_factory.mktemp("cities")
    city = write_oscd(folder / "one").parent
    for number in range(CITIES):
        shutil.copytree(city, folder / f"images/city{number}")
    shutil.rmtree(folder / "one")
    keys = [
        "tile_px=48",
        "split.val_share=0",
        "shard_mb=1",
        "min_valid=0",
        "min_clear=0",
        "duplicates=keep",
    ]
    return [str(ROOT / "configs/shard/oscd.yaml"), f"scenes={folder}", *keys]


@pytest.fixture(scope="module")
def clean(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of the set as one process makes it, with their SHA-256."""
    output = tmp_path_factory.mktemp("clean")
    assert shard.main([*words, f"output={output}", "workers=0"]) == 0
    return sums(output)


def sums(output: Path) -> dict[str, str]:
    files = [*output.glob("*/*.tar"), output / "manifest.json", output / "quality.json"]
    return {str(path.relative_to(output)): manifests.sha256(path) for path in files}


def scenes_done(output: Path) -> dict[Path, int]:
    """Return the finished scenes, each with what tells one that was made again."""
    return {p: p.stat().st_ino for p in (output / archive.FOLDER).glob(f"*/{archive.MARKER}")}


def workers_at_work(output: Path) -> set[int]:
    """Return the worker processes that hold a scene, as their locks say."""
    texts = [path.read_text() for path in (output / "work/locks").glob("oscd_*.lock")]
    return {json.loads(text)["pid"] for text in texts if text.endswith("}")}


@pytest.mark.slow
def test_p01_two_nodes_make_the_same_bytes_though_a_worker_is_killed(
    slurm: Slurm, words: list[str], clean: dict[str, str], tmp_path: Path
) -> None:
    number = slurm.sbatch(f"--output={tmp_path}/log", *TWO_NODES, *words, f"output={tmp_path}/set")
    wait_until(lambda: len(workers_at_work(tmp_path / "set")) == 2, f"two workers: {tmp_path}/log")
    nodes = {node_of(pid) for pid in workers_at_work(tmp_path / "set")}
    os.kill(max(workers_at_work(tmp_path / "set")), signal.SIGKILL)
    job = slurm.wait(number, timeout_s=120)
    assert (job["JobState"], nodes) == ("COMPLETED", {"node1", "node2"}), (tmp_path / "log").read_text()
    assert sums(tmp_path / "set") == clean
    assert not left_of(number)


def node_of(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next(v.partition("=")[2] for v in variables if v.startswith("SLURMD_NODENAME="))


@pytest.mark.slow
def test_p01_requeued_in_mid_run_it_goes_on_where_it_was(
    slurm: Slurm, words: list[str], clean: dict[str, str], tmp_path: Path
) -> None:
    number = slurm.sbatch(f"--output={tmp_path}/log", *TWO_NODES, *words, f"output={tmp_path}/set")
    wait_until(lambda: bool(scenes_done(tmp_path / "set")), f"a scene: {tmp_path}/log")
    slurm.call("scontrol", "requeue", number)
    wait_until(lambda: slurm.job(number)["Restarts"] == "1", "the job to be queued again")
    before = scenes_done(tmp_path / "set")
    assert 0 < len(before) < 2 * CITIES
    job = slurm.wait(number, timeout_s=120)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), (tmp_path / "log").read_text()
    assert before.items() <= scenes_done(tmp_path / "set").items()
    assert sums(tmp_path / "set") == clean
