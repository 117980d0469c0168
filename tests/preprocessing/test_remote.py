import re
import shutil
import socket
import time
from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline.config import ROOT
from pipeline.errors import ClusterError, ConfigError, MissingInputError
from preprocessing import remote, shard
from preprocessing.cluster import Pool
from preprocessing.exclusive import Shared
from preprocessing.remote import DaskConfig
from preprocessing.settings import ShardConfig
from tests.preprocessing.elsewhere import Cluster, elsewhere

__all__ = ["elsewhere"]


@pytest.fixture
def shared(tmp_path) -> Shared:
    return Shared(tmp_path / "work/locks", (tmp_path,))


def words(**dask: str) -> list[str]:
    return [str(ROOT / "configs/shard/default.yaml"), *(f"dask.{key}={value}" for key, value in dask.items())]


def test_one_way_to_name_the_scheduler(tmp_path):
    with pytest.raises(
        ConfigError, match=r"`dask.address`: `dask.scheduler_file` names the scheduler already"
    ):
        configs.load(ShardConfig, *_split(words(address="host:1", scheduler_file=str(tmp_path))))
    assert not configs.load(ShardConfig, *_split(words())).dask.is_given


def _split(command: list[str]) -> tuple[Path, list[str]]:
    return Path(command[0]), command[1:]


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"address"'])
def test_a_scheduler_file_that_does_not_tell_is_one_line_with_exit_code_2(tmp_path, shared, content):
    file = tmp_path / "scheduler.json"
    if content is not None:
        file.write_text(content)
    with (
        pytest.raises(MissingInputError, match=r"scheduler\.json \(`dask\.scheduler_file`: ") as error,
        Pool(0, shared, DaskConfig(scheduler_file=file)),
    ):
        pass
    assert error.value.exit_code == 2


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "nowhere.invalid:8786", "nonsense://here:1"])
def test_a_scheduler_that_does_not_answer_is_told_in_bounded_time(shared, monkeypatch, address):
    monkeypatch.setattr(remote, "CONNECT_S", 0.5)
    with socket.socket() as silent:  # listens for nobody
        silent.bind(("127.0.0.1", 0))
        place = address.format(port=silent.getsockname()[1])
        begin = time.monotonic()
        with (
            pytest.raises(ClusterError, match="no Dask scheduler answers at " + re.escape(place)),
            Pool(0, shared, DaskConfig(address=place)),
        ):
            pass
    assert time.monotonic() - begin < 10


def test_a_cluster_without_workers_is_told_before_the_finished_set_is_touched(
    elsewhere, shard_words, shard_set, tmp_path, monkeypatch
):
    monkeypatch.setattr(remote, "WORKERS_S", 0.5)
    shutil.copytree(shard_set, tmp_path / "set")
    again = [*shard_words, f"output={tmp_path / 'set'}", "shard_mb=1", f"dask.address={elsewhere.address}"]
    with pytest.raises(ClusterError, match="has no worker"):
        shard.main(again)
    assert (tmp_path / "set/manifest.json").exists()


def refused(elsewhere: Cluster, shared: Shared) -> str:
    with pytest.raises(ClusterError) as error, Pool(0, shared, DaskConfig(address=elsewhere.address)):
        pass
    return str(error.value)


def test_a_worker_that_does_not_see_the_files_is_refused(elsewhere, tmp_path, monkeypatch):
    elsewhere.worker()
    monkeypatch.chdir(tmp_path)
    # a path that leads every process to a place of its own, as a disk of its own would
    own = Path("/proc/self/cwd")
    told = refused(elsewhere, Shared(own / "work/locks"))
    assert re.search(
        r"tcp://127.0.0.1:\d+ does not see /proc/self/cwd/work/locks: workers need the same", told
    )
    (tmp_path / "scenes").mkdir()
    told = refused(elsewhere, Shared(tmp_path / "locks", (own / "scenes",)))
    assert "does not see /proc/self/cwd/scenes" in told
    assert not list(tmp_path.glob("locks/run-*"))


def test_a_worker_with_other_packages_is_refused(elsewhere, shared, tmp_path):
    other = tmp_path / "site/numcodecs-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numcodecs\nVersion: 0.1\n")
    elsewhere.worker(PYTHONPATH=str(other.parent))
    assert re.search(
        r"tcp://127.0.0.1:\d+ has numcodecs 0\.1 and not [\d.]+: start it", refused(elsewhere, shared)
    )


def test_a_worker_that_has_loaded_another_version_of_the_project_is_refused(elsewhere, shared, tmp_path):
    for room in ("pipeline", "preprocessing"):
        shutil.copytree(ROOT / room, tmp_path / "old" / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "old/preprocessing/cutting.py").open("a") as stream:
        stream.write("# changed\n")
    elsewhere.worker("--preload=preprocessing.exclusive", PYTHONPATH=str(tmp_path / "old"))
    assert "has loaded another version of the project" in refused(elsewhere, shared)


def test_a_worker_that_cannot_load_the_project_is_refused(elsewhere, shared, tmp_path, monkeypatch):
    # another module of that name hides the package that may be installed
    (tmp_path / "other").mkdir()
    (tmp_path / "other/preprocessing.py").touch()
    elsewhere.worker(PYTHONPATH=str(tmp_path / "other"))
    monkeypatch.setattr(remote, "ROOT", tmp_path / "not mounted there")
    assert re.search(
        r"cannot load the project \(No module named 'preprocessing.exclusive'.*\): it must see",
        refused(elsewhere, shared),
    )
