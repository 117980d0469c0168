import io
import json
import tarfile

import numpy as np
import pytest

from pipeline import histogram as histograms
from pipeline import sample as samples
from pipeline.sample import Sample
from preprocessing import spool
from preprocessing.spool import Spool, SpoolWriter


def make_sample(key: str, value: int = 1, label: int | None = None) -> Sample:
    pixels = np.full((2, 16, 16), value, np.int16)
    cells = np.zeros((1, 2, 2, 3), np.float32)
    return Sample(key, pixels, np.zeros((16, 16), np.uint8), cells, {"scene": "s"}, label)


def write_spool(folder, scene: str = "s", count: int = 3, digest: str = "d") -> Spool:
    writer = SpoolWriter(folder, scene)
    for number in range(count):
        writer.add(
            make_sample(f"{scene}_{number:05d}_00000", number), "train" if number % 3 else "val", "lz4"
        )
    made = Spool(
        scene, digest, 10.0, "L2A", "r", "2020", "free", ("note",), {"cloud": 2}, tuple(writer.segments)
    )
    writer.finish(made, histograms.empty(2))
    return made


def test_a_segment_is_a_piece_of_tar_with_sorted_members_and_no_traces_of_who_wrote_it():
    data = spool.segment(make_sample("a" * 80, label=4), "lz4")
    with tarfile.open(fileobj=io.BytesIO(data + bytes(1024))) as tar:
        members = tar.getmembers()
    names = [m.name for m in members]
    assert names == sorted(names)
    assert f"{'a' * 80}.label.cls" in names
    assert {(m.mtime, m.uid, m.gid, m.uname, m.pax_headers == {}) for m in members} == {(0, 0, 0, "", True)}


@pytest.mark.parametrize("codec", samples.CODECS)
def test_equal_samples_are_equal_bytes(codec):
    noise = np.random.default_rng(0).integers(0, 9000, (12, 96, 96)).astype(np.int16)
    one = Sample(
        "k", noise, np.zeros((96, 96), np.uint8), np.zeros((3, 12, 12, 3), np.float32), {"b": 1, "a": 2}
    )
    assert len({spool.segment(one, codec) for _ in range(20)}) == 1


def test_what_was_spooled_is_read_back(tmp_path):
    made = write_spool(tmp_path)
    assert spool.read(tmp_path, "s") == made
    assert made.tiles == {"val": 1, "train": 2, "cloud": 2}
    assert len(spool.read_histogram(tmp_path, "s")) == 2
    data = spool.data_path(tmp_path, "s").read_bytes()
    second = made.segments[1]
    with tarfile.open(fileobj=io.BytesIO(data[second.offset :][: second.size_bytes] + bytes(1024))) as tar:
        members = {m.name.partition(".")[2]: tar.extractfile(m).read() for m in tar.getmembers()}
    assert (samples.decode(second.key, members, "here").pixels == 1).all()


def test_an_unfinished_or_damaged_spool_does_not_exist(tmp_path):
    assert spool.read(tmp_path, "s") is None
    writer = SpoolWriter(tmp_path, "s")
    writer.add(make_sample("s_0_0"), "train", "lz4")
    writer.close()
    assert spool.read(tmp_path, "s") is None  # no record yet
    write_spool(tmp_path)
    path = spool.data_path(tmp_path, "s")
    path.write_bytes(path.read_bytes()[:-1])
    assert spool.read(tmp_path, "s") is None


def test_starting_anew_forgets_the_old_record(tmp_path):
    write_spool(tmp_path)
    SpoolWriter(tmp_path, "s").close()
    assert spool.read(tmp_path, "s") is None


def test_a_record_of_another_version_does_not_count(tmp_path):
    write_spool(tmp_path)
    record = tmp_path / "s.json"
    tree = json.loads(record.read_text())
    assert spool.read(tmp_path, "s") is not None
    tree["spool"]["segments"] = [s | {"colour": 1} for s in tree["spool"]["segments"]]
    record.write_text(json.dumps(tree))
    assert spool.read(tmp_path, "s") is None


@pytest.mark.parametrize("which", ["s.segments", "s.histogram.npy"])
def test_a_small_spool_that_was_torn_does_not_exist(tmp_path, which):
    write_spool(tmp_path)
    data = bytearray((tmp_path / which).read_bytes())
    # of equal length: what a machine that goes down leaves of a file it never wrote
    data[-5:] = bytes(5) if data[-5:] != bytes(5) else b"torn!"
    (tmp_path / which).write_bytes(data)
    assert spool.read(tmp_path, "s") is None


def test_histograms_are_read_one_by_one_as_they_were(tmp_path):
    counts = np.random.default_rng(0).integers(0, 2, (3, 65_536))
    writer = SpoolWriter(tmp_path, "s")
    writer.finish(Spool("s", "d", 10.0, "L2A", "r", "", "", (), {}, ()), counts)
    held = spool.Histograms(tmp_path, ["s"])
    assert list(held) == ["s"] and len(held) == 1
    found = histograms.empty(3)
    histograms.add(found, held["s"])
    assert (found == counts).all()


@pytest.mark.parametrize("size", [0, 1, 511, 8**11 - 1])
def test_a_tar_header_is_the_one_tarfile_writes(size):
    member = tarfile.TarInfo("A_b-c_00010_00020.pixels.npy.blosc")
    member.size = size
    assert spool.tar_header(member.name, size) == member.tobuf(tarfile.USTAR_FORMAT)
