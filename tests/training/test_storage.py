"""Shards on object storage: fetched once a node, verified, kept within bounds, and asked for again."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import CorruptDataError, MissingInputError, MissingPackageError
from training.data import Batch, BatchConfig, DataConfig, make_view
from training.sets import Part, Source, open_families
from training.storage import Bucket
from training.stream import ShardStream
from training.world import World

S3_SERVER = [
    sys.executable,
    "-c",
    "from moto.server import main; import sys; main(sys.argv[1:])",
    "-H",
    "127.0.0.1",
]
# answers like any web server, but ends the body of each shard after half of it as often as the last word says
HTTP_SERVER = """
import http.server, sys
left = int(sys.argv[2])
class Handler(http.server.SimpleHTTPRequestHandler):
    def copyfile(self, source, target):
        global left
        data = source.read()
        cut = self.path.endswith(".tar") and left > 0
        left -= cut
        target.write(data[: len(data) // 2] if cut else data)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers on a port, killed at the end."""
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    )
    try:
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            try:
                http.client.HTTPConnection("127.0.0.1", port, timeout=5).request("GET", "/")
                break
            except OSError:
                time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def web(folder: Path, port: int, cuts: int = 0):
    return running([sys.executable, "-c", HTTP_SERVER, str(port), str(cuts)], port, folder)


def s3(folder: Path, port: int):
    return running([*S3_SERVER, "-p", str(port)], port, folder)


def upload(folder: Path) -> None:
    """Put a shard set into the bucket `sets`, which is made."""
    import fsspec

    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("sets")
    names = ["manifest.json", "histogram.npz", *(str(p.relative_to(folder)) for p in folder.rglob("*.tar"))]
    for name in names:
        files.put_file(str(folder / name), f"sets/{folder.name}/{name}")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port that S3 is expected at."""
    port = free_port()
    given = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
    for name, value in (given | {"DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return port


def opened(where: str, cache: Path, **limits: float) -> Source:
    config = DataConfig.model_validate({"shards": where, "cache": {"folder": cache, **limits}})
    return open_families(config)[0].sources[0]


def same(found: Source, local: Path, numbers: range) -> bool:
    (like,) = open_families(DataConfig(shards=local))[0].sources
    pairs = ((found.read(n), like.read(n)) for n in numbers)
    return all(a.key == b.key and np.array_equal(a.pixels, b.pixels) for a, b in pairs)


def test_shards_in_a_bucket_are_fetched_once_and_read_when_it_is_gone(
    shards: Path, bucket: int, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with s3(tmp_path, bucket):
        upload(shards)
        source = opened(f"s3://sets/{shards.name}", cache, patience_s=1)
        # nothing but the manifest is fetched before it is read
        assert not list(cache.glob("*.tar"))
        assert same(source, shards, range(20))
        assert len(list(cache.glob("*.tar"))) == 2
    assert same(opened_again(source, cache), shards, range(16))
    with pytest.raises(
        MissingInputError, match=r"s3://sets/made/train/shard-000002\.tar.*could not be for 1 s"
    ):
        source.read(39)


def opened_again(source: Source, cache: Path) -> Source:
    """The same set without what its process holds open."""
    (reader,) = source.readers
    reader._files = type(reader._files)()
    return source


def test_a_server_that_is_back_in_time_is_gone_on_with(shards: Path, tmp_path: Path) -> None:
    port, done = free_port(), threading.Event()
    with web(shards.parent, port):
        source = opened(f"http://127.0.0.1:{port}/{shards.name}", tmp_path / "cache", patience_s=40)
        assert same(source, shards, range(4))

    def come_back() -> None:
        time.sleep(1.5)
        with web(shards.parent, port):
            done.wait(60)

    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        assert same(source, shards, range(40))
    finally:
        done.set()
        thread.join()


def test_a_bucket_that_stands_still_for_a_while_is_waited_for(
    shards: Path, bucket: int, tmp_path: Path
) -> None:
    with s3(tmp_path, bucket) as server:
        upload(shards)
        source = opened(f"s3://sets/{shards.name}", tmp_path / "cache")
        server.send_signal(signal.SIGSTOP)
        threading.Timer(1.5, server.send_signal, [signal.SIGCONT]).start()
        assert same(source, shards, range(40))


def test_a_shard_that_breaks_off_is_asked_for_again(shards: Path, tmp_path: Path) -> None:
    port = free_port()
    with web(shards.parent, port, cuts=2):
        source = opened(f"http://127.0.0.1:{port}/{shards.name}/manifest.json", tmp_path, patience_s=30)
        assert same(source, shards, range(16))
    assert not list(tmp_path.glob("*.partial"))


def test_t16_a_shard_that_arrives_altered_or_not_at_all_is_named(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "served" / "copy"))
    altered, gone, _ = sorted((copy / "train").glob("*.tar"))
    data = bytearray(altered.read_bytes())
    data[2000] ^= 1
    altered.write_bytes(bytes(data))
    gone.unlink()
    port = free_port()
    with web(copy.parent, port):
        source = opened(f"http://127.0.0.1:{port}/copy", tmp_path / "cache", patience_s=30)
        with pytest.raises(CorruptDataError, match=r"http://.*/copy/train/shard-000000\.tar.*checksum"):
            source.read(0)
        # what is not there is not waited for
        with pytest.raises(MissingInputError, match=r"shard-000001\.tar cannot be read"):
            source.read(16)
        with pytest.raises(MissingInputError, match=r"nowhere/manifest\.json cannot be read"):
            opened(f"http://127.0.0.1:{port}/nowhere", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_t16_what_lies_damaged_on_object_storage_may_be_replaced_and_what_is_out_of_reach_not(
    shards: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "served" / "copy"))
    altered, short, _ = sorted((copy / "train").glob("*.tar"))
    data = bytearray(altered.read_bytes())
    data[2000] ^= 1
    altered.write_bytes(bytes(data))
    os.truncate(short, 9000)
    port, cache = free_port(), {"folder": tmp_path / "cache", "patience_s": 60}
    given = {"shards": f"http://127.0.0.1:{port}/copy", "damaged": "replace", "cache": cache, "image_px": 32}
    with web(copy.parent, port):
        began_s = time.monotonic()
        batch, made = stepped(given)
        # what is too short each time is not asked for until patience is over
        assert time.monotonic() - began_s < 30
        assert {int(key[-5:]) // 16 for key in batch.keys} == {2}
        wrong = {text.partition("/train/")[2][:16]: text for text in batch.replaced}
        assert "does not have its recorded checksum" in wrong["shard-000000.tar"]
        assert "9000 of" in wrong["shard-000001.tar"]
        altered.unlink()
        again, _ = stepped(given)
        assert (again.keys, again.ids.tolist()) == (batch.keys, batch.ids.tolist())
        assert any("shard-000000.tar cannot be read" in text for text in again.replaced)
    # the storage is gone: nothing stands in for what may be whole
    made.parts[0].family.sources[0].readers[0].lost.clear()
    shutil.rmtree(cache["folder"])
    with pytest.raises(MissingInputError, match=r"cannot be read .*could not be for 1 s"):
        stepped(given | {"cache": {**cache, "patience_s": 1}}, made)


def stepped(given: dict[str, object], known: ShardStream | None = None) -> tuple[Batch, ShardStream]:
    """Return the batch of all samples of a set in object storage, and the stream; `known` has read its manifest."""
    config = DataConfig.model_validate(given)
    if known is not None:
        (reader,) = known.parts[0].family.sources[0].readers
        reader.storage = Bucket(str(given["shards"]), config.cache)
        opened_again(known.parts[0].family.sources[0], config.cache.made())
        return known[0], known
    (family,) = open_families(config)
    part = Part(family, replace(make_view(family.contract, config, 8), seed=3))
    made = ShardStream([part], BatchConfig(size=40), World(), "replace")
    return made[0], made


def read_all(address: str, cache: Path, limit_gb: float, first: int) -> list[int]:
    """Read samples of all shards from one on and round, as a loader process does; return what was kept after each."""
    source, kept = opened(address, cache, limit_gb=limit_gb), []
    for number in range(first, first + len(source), 8):
        source.read(number % len(source))
        kept.append(sum(path.stat().st_size for path in cache.glob("*.tar")))
        opened_again(source, cache)
    return kept


def test_the_cache_stays_within_its_limit_with_several_processes(
    make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    made = make_shards("many", train=range(64))
    sizes = [path.stat().st_size for path in (made / "train").glob("*.tar")]
    port, cache, limit = free_port(), tmp_path / "cache", 2.5 * max(sizes)
    with web(made.parent, port), ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        read = partial(read_all, f"http://127.0.0.1:{port}/many", cache, limit / 1e9)
        kept = [size for sizes in pool.map(read, (0, 20, 40)) for size in sizes]
    # one that just came may be there before another leaves, in each process
    assert max(kept) <= limit + 3 * max(sizes)
    assert sum(path.stat().st_size for path in cache.glob("*.tar")) <= limit


def test_p18_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingPackageError, match=r"s3://sets/made/manifest\.json needs s3fs.*\.\[remote\]"):
        opened("s3://sets/made", tmp_path)


def test_t19_other_addresses_are_paths_and_nothing_is_executed(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no shard set at pipe:touch"):
        opened(f"pipe:touch {tmp_path}/executed", tmp_path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"shards": ["s3:///nothing", 3]})


def test_a_damaged_index_in_the_cache_is_made_again(shards: Path, tmp_path: Path) -> None:
    assert same(opened(str(shards), tmp_path), shards, range(3))
    (kept, *_) = tmp_path.glob("*.npz")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    assert same(opened(str(shards), tmp_path), shards, range(3))
    assert kept.read_bytes() == whole


def test_addresses_are_recorded_as_they_are_written() -> None:
    config = DataConfig.model_validate({"shards": "s3://sets/made"})
    assert json.loads(config.model_dump_json())["shards"] == "s3://sets/made"
    assert config.names == "s3://sets/made"
