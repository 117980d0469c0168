import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ClusterError, SceneError
from preprocessing import cluster, remote, shard
from preprocessing.cluster import Pool
from preprocessing.exclusive import Shared
from preprocessing.remote import DaskConfig
from tests.preprocessing.elsewhere import elsewhere, wait_until

__all__ = ["elsewhere"]


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def refuse(number: int) -> int:
    raise SceneError(f"scene {number} is damaged")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep_in(folder: Path) -> int:
    """Leave the times at which this work began and ended."""
    began = time.time()
    (folder / f"began-{os.getpid()}").touch()
    time.sleep(2)
    (folder / f"took-{os.getpid()}").write_text(json.dumps([began, time.time()]))
    return os.getpid()


@pytest.fixture
def shared(tmp_path) -> Shared:
    return Shared(tmp_path / "work/locks", (tmp_path,))


def test_no_workers_means_this_process(shared):
    with Pool(0, shared) as pool:
        assert list(pool.run(square, [1, 2, 3], str)) == [(n**2, os.getpid()) for n in (1, 2, 3)]
        with pytest.raises(SceneError, match="scene 1"):
            list(pool.run(refuse, [1], str))
    assert not shared.locks.exists()


@pytest.mark.slow
def test_worker_processes_do_all_jobs_and_hand_on_errors(shared):
    with Pool(2, shared) as pool:
        results = list(pool.run(square, list(range(20)), str))
        assert sorted(value for value, _ in results) == [n**2 for n in range(20)]
        pids = {pid for _, pid in results}
        assert os.getpid() not in pids
        with pytest.raises(SceneError, match="scene 1"):
            list(pool.run(refuse, [1], str))
        with pytest.raises(ClusterError, match=r"the work on tile-7 ended 4 .* fewer `workers`"):
            list(pool.run(die, [7], lambda n: f"tile-{n}"))


@pytest.mark.slow
def test_a_cluster_that_is_there_makes_the_same_set_from_another_folder(
    elsewhere, shard_words, shard_set, tmp_path, monkeypatch, capsys
):
    worker = elsewhere.worker()
    monkeypatch.chdir(tmp_path)
    words = [*shard_words, "output=set", f"dask.scheduler_file={elsewhere.file}", "workers=3"]
    assert shard.main(words) == 0
    assert "dask: 1 workers on 1 hosts so far, scheduler" in capsys.readouterr().out
    names = [p.relative_to(shard_set) for p in [*shard_set.glob("*/*.tar"), shard_set / "manifest.json"]]
    assert len(names) > 2
    assert {(tmp_path / "set" / n).read_bytes() == (shard_set / n).read_bytes() for n in names} == {True}
    # it is somebody else's: still there, and for the next run too
    assert (worker.poll(), elsewhere.scheduler.poll()) == (None, None)
    assert shard.main([*words[:-2], f"dask.address={elsewhere.address}", "shard_mb=1"]) == 0


def forget_workers() -> None:
    """Have the scheduler take its workers for lost, as it does with one that is silent for too long."""

    # made here it travels by value: the scheduler cannot import these tests
    async def forget(dask_scheduler) -> None:
        for address in list(dask_scheduler.workers):
            await dask_scheduler.remove_worker(address, stimulus_id="test", close=False)

    remote.distributed().get_client().run_on_scheduler(forget)


@pytest.mark.slow
def test_a_lost_worker_that_lives_and_its_successor_take_turns(elsewhere, shared, tmp_path):
    lost = elsewhere.worker()
    with Pool(0, shared, DaskConfig(address=elsewhere.address)) as pool, ThreadPoolExecutor(1) as asking:
        found = asking.submit(lambda: list(pool.run(sleep_in, [tmp_path], lambda _: "scene")))
        wait_until(lambda: (tmp_path / f"began-{lost.pid}").exists(), "the work to begin")
        elsewhere.worker()
        forget_workers()
        (other,) = found.result(60)
    first, second = sorted(json.loads(path.read_text()) for path in tmp_path.glob("took-*"))
    assert other != lost.pid
    assert first[1] <= second[0]


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["workers", "scheduler"])
def test_a_cluster_that_ends_in_mid_work_is_told(elsewhere, shared, tmp_path, monkeypatch, ends):
    monkeypatch.setattr(cluster, "LOOK_S", 1)
    worker = elsewhere.worker()
    with Pool(0, shared, DaskConfig(address=elsewhere.address)) as pool, ThreadPoolExecutor(1) as asking:
        found = asking.submit(lambda: list(pool.run(sleep_in, [tmp_path], lambda _: "scene")))
        wait_until(lambda: list(tmp_path.glob("began-*")), "the work to begin")
        monkeypatch.setattr(remote, "WORKERS_S", 0.5)
        (worker if ends == "workers" else elsewhere.scheduler).kill()
        with pytest.raises(ClusterError, match="has no worker" if ends == "workers" else "scheduler is gone"):
            found.result(60)
