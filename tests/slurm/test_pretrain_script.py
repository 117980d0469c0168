"""slurm/pretrain.sh on a real Slurm of two nodes, and without Slurm; a stand-in script plays the training."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Slurm, wait_until

pytestmark = pytest.mark.slurm
STANDIN = ROOT / "tests/slurm/standin.py"
SCRIPT = "slurm/pretrain.sh"


@pytest.fixture
def submit(slurm: Slurm, tmp_path: Path):
    """Submit the script with the stand-in; the log goes to tmp_path/log."""

    def submit(*words: str, options: tuple[str, ...] = (), **variables: str) -> str:
        variables = {"TRAIN_ENTRY": str(STANDIN)} | variables
        options = (f"--output={tmp_path}/log", *options)
        return slurm.sbatch(*options, SCRIPT, f"folder={tmp_path}/run", *words, **variables)

    return submit


def told(tmp_path: Path, life: int = 0) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob(f"run/rank-*-life-{life}.json"))]


def wait_for_ranks(tmp_path: Path) -> None:
    wait_until(lambda: len(told(tmp_path)) == 2, f"two ranks: {log(tmp_path)}")


def log(tmp_path: Path) -> str:
    path = tmp_path / "log"
    return path.read_text() if path.exists() else ""


def test_two_nodes_with_one_task_each_meet_at_the_first_node(slurm: Slurm, submit, tmp_path: Path) -> None:
    number = submit("configs/pretrain/any.yaml", "a.b=c d")
    job = slurm.wait(number)
    assert job["JobState"] == "COMPLETED", log(tmp_path)
    ranks = told(tmp_path)
    assert [rank["RANK"] for rank in ranks] == ["0", "1"]
    assert {rank["SLURMD_NODENAME"] for rank in ranks} == {"node1", "node2"}
    assert {rank["LOCAL_RANK"] for rank in ranks} == {"0"}
    assert {rank["WORLD_SIZE"] for rank in ranks} == {"2"}
    # the virtual nodes' names resolve nowhere, so the address is Slurm's
    assert {rank["MASTER_ADDR"] for rank in ranks} == {"127.0.0.1"}
    assert {rank["MASTER_PORT"] for rank in ranks} == {str(20000 + int(number) * 10 % 12000)}
    assert {rank["OMP_NUM_THREADS"] for rank in ranks} == {"2"}
    assert {rank["cwd"] for rank in ranks} == {str(ROOT)}
    assert ranks[0]["words"] == [f"folder={tmp_path}/run", "configs/pretrain/any.yaml", "a.b=c d"]


def test_two_tasks_on_one_node_have_local_ranks_of_their_own(slurm: Slurm, submit, tmp_path: Path) -> None:
    slurm.wait(submit(options=("--nodes=1", "--ntasks-per-node=2")))
    assert [(rank["RANK"], rank["LOCAL_RANK"]) for rank in told(tmp_path)] == [("0", "0"), ("1", "1")]


def test_no_argument_leaves_the_default_configuration_to_the_entry(slurm: Slurm, tmp_path: Path) -> None:
    variables = {"TRAIN_ENTRY": str(STANDIN), "STANDIN_FOLDER": str(tmp_path / "run")}
    number = slurm.sbatch(f"--output={tmp_path}/log", SCRIPT, **variables)
    assert slurm.wait(number)["JobState"] == "COMPLETED", log(tmp_path)
    assert [rank["words"] for rank in told(tmp_path)] == [[], []]


def test_an_environment_that_is_not_exported_reaches_the_tasks_all_the_same(
    slurm: Slurm, tmp_path: Path
) -> None:
    export = (
        f"--export=TRAIN_ENTRY={STANDIN},PYTHON={sys.executable},SLURM_CONF={slurm.environment['SLURM_CONF']}"
    )
    number = slurm.sbatch(f"--output={tmp_path}/log", export, SCRIPT, f"folder={tmp_path}/run")
    assert slurm.wait(number)["JobState"] == "COMPLETED", log(tmp_path)
    assert len(told(tmp_path)) == 2


def test_t21_the_warning_before_the_time_limit_saves_and_requeues_once(
    slurm: Slurm, submit, tmp_path: Path
) -> None:
    number = submit("do=wait")
    wait_for_ranks(tmp_path)
    # what --signal=B:USR1@300 sends, and once more
    for _ in range(2):
        assert slurm.call("scancel", "--batch", "--signal=USR1", number).returncode == 0
    job = slurm.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log(tmp_path)
    assert [len(json.loads((tmp_path / f"run/signals-{rank}.json").read_text())) for rank in (0, 1)] == [1, 1]
    first, second = told(tmp_path, life=0)[0], told(tmp_path, life=1)[0]
    assert int(second["MASTER_PORT"]) == int(first["MASTER_PORT"]) + 1
    assert "interrupted with everything saved" in log(tmp_path)
    assert "complete:" in log(tmp_path)


@pytest.mark.parametrize("partition", ["normal", "abrupt"])
def test_t21_a_preempted_job_saves_and_goes_on_afterwards(
    slurm: Slurm, submit, tmp_path: Path, partition: str
) -> None:
    # with a time of grace, and without
    number = submit("do=wait", options=(f"--partition={partition}",))
    wait_for_ranks(tmp_path)
    urgent = slurm.sbatch(
        "--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent", "--wrap=true"
    )
    assert slurm.wait(urgent)["JobState"] == "COMPLETED"
    job = slurm.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log(tmp_path)


def test_t21_scancel_is_not_undone(slurm: Slurm, submit, tmp_path: Path) -> None:
    number = submit("do=wait")
    wait_for_ranks(tmp_path)
    slurm.call("scancel", number)
    job = slurm.wait(number)
    wait_until(lambda: "not requeued" in log(tmp_path), f"the script's word: {log(tmp_path)}")
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    assert (tmp_path / "run/INTERRUPTED").exists()
    assert not told(tmp_path, life=1)


def test_a_failed_run_fails_the_job(slurm: Slurm, submit, tmp_path: Path) -> None:
    job = slurm.wait(submit("do=fail"))
    # 143 where the other rank was still there to be killed
    assert (job["JobState"], job["Restarts"], job["ExitCode"] in ("7:0", "143:0")) == ("FAILED", "0", True)
    assert "ended with exit code" in log(tmp_path)


def test_t21_a_run_that_ends_well_but_unfinished_fails_the_job(slurm: Slurm, submit, tmp_path: Path) -> None:
    job = slurm.wait(submit("do=vanish"))
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0")
    assert "not taken for finished" in log(tmp_path)


def test_a_former_lifes_marker_does_not_requeue_a_run_that_fails(
    slurm: Slurm, submit, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/INTERRUPTED").touch()
    job = slurm.wait(submit("do=fail"))
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")


def test_t21_a_dead_node_requeues_the_job(slurm: Slurm, submit, tmp_path: Path) -> None:
    number = submit("do=wait")
    wait_for_ranks(tmp_path)
    lab = ["bash", str(ROOT / "tests/slurm/lab.sh")]
    slurm.call(*lab, "kill-node", "node2")
    # Slurm would find out by itself, in half a minute
    slurm.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=lost its power")
    wait_until(lambda: slurm.job(number)["Restarts"] == "1", "the job to be queued again")
    slurm.call(*lab, "start-node", "node2")
    slurm.call("scontrol", "update", "NodeName=node2", "State=RESUME")
    assert slurm.wait(number)["JobState"] == "COMPLETED", log(tmp_path)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[2,1]", "127.0.0.1"),
        ("gpu-[003,007-009],big1", "gpu-003"),
        ("a1-b[02-04]", "a1-b02"),
        ("alone", "alone"),
    ],
)
def test_t21_odd_lists_of_nodes_have_a_first_one(slurm: Slurm, nodes: str, first: str) -> None:
    # the laboratory's own is known by its address only
    told = slurm.call("bash", "-c", "source slurm/common.sh test; first_node", SLURM_JOB_NODELIST=nodes)
    assert (told.stdout, told.returncode) == (f"{first}\n", 0), told.stderr


def test_submitted_from_another_folder_it_says_where_to_go(slurm: Slurm, tmp_path: Path) -> None:
    number = slurm.sbatch(f"--output={tmp_path}/log", ROOT / SCRIPT, cwd=tmp_path)
    assert slurm.wait(number)["ExitCode"] == "2:0"
    assert (
        log(tmp_path) == "pretrain: error: submit from the project's root folder: sbatch slurm/pretrain.sh\n"
    )


def test_site_settings_are_sourced(slurm: Slurm, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm/site.env").write_text(f"export OMP_NUM_THREADS=1 TRAIN_ENTRY={STANDIN}\n")
    number = slurm.sbatch(f"--output={tmp_path}/log", SCRIPT, f"folder={tmp_path}/run", cwd=tmp_path)
    assert slurm.wait(number)["JobState"] == "COMPLETED", log(tmp_path)
    assert {rank["OMP_NUM_THREADS"] for rank in told(tmp_path)} == {"1"}


def without_slurm(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment = clean | {"PYTHON": sys.executable, "TRAIN_ENTRY": str(STANDIN)} | variables
    return subprocess.run(
        ["bash", ROOT / SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=60
    )


def test_without_slurm_it_is_the_entry_itself(tmp_path: Path) -> None:
    assert without_slurm(f"folder={tmp_path}/run").returncode == 0
    (rank,) = told(tmp_path)
    assert (rank["RANK"], rank["WORLD_SIZE"], rank["cwd"]) == (None, None, str(ROOT))
    assert without_slurm(f"folder={tmp_path}/run", "do=fail").returncode == 7


def test_a_missing_interpreter_is_one_clear_line() -> None:
    done = without_slurm(PYTHON="/nowhere/python")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"pretrain: error: /nowhere/python not found: run make setup, .*\n", done.stderr)
