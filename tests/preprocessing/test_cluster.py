import os
import signal

import pytest

from pipeline.errors import PipelineError, SceneError
from preprocessing.cluster import Pool


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def refuse(number: int) -> int:
    raise SceneError(f"scene {number} is damaged")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_no_workers_means_this_process():
    with Pool(0) as pool:
        assert list(pool.run(square, [1, 2, 3])) == [(n**2, os.getpid()) for n in (1, 2, 3)]
        with pytest.raises(SceneError, match="scene 1"):
            list(pool.run(refuse, [1]))


@pytest.mark.slow
def test_worker_processes_do_all_jobs_and_hand_on_errors():
    with Pool(2) as pool:
        results = list(pool.run(square, list(range(20))))
        assert sorted(value for value, _ in results) == [n**2 for n in range(20)]
        pids = {pid for _, pid in results}
        assert os.getpid() not in pids
        with pytest.raises(SceneError, match="scene 1"):
            list(pool.run(refuse, [1]))
        with pytest.raises(PipelineError, match="fewer `workers`"):
            list(pool.run(die, [1]))
