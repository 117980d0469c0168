"""Scenes in strips: the same samples whatever the strips are, each JPEG 2000 block decoded once, tiles over edges."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from pipeline import manifest, sample
from pipeline.config import ROOT
from pipeline.errors import MissingInputError
from preprocessing import packing, shard, simulate, strips
from preprocessing.archive import FOLDER, SceneWriter, StoredScene
from preprocessing.rows import RowReader

CONFIG = str(ROOT / "configs/shard/demo_sentinel2.yaml")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """One Sentinel-2 scene of 384 px at 10 m, with 20 m and 60 m bands in JPEG 2000."""
    folder = tmp_path_factory.mktemp("strips") / "in"
    simulate.main([str(folder), "--size-px", "384", "--products", "sentinel2-l2a"])
    return folder


def run(archive, output, *words):
    with redirect_stdout(io.StringIO()):
        shard.main(
            [CONFIG, f"scenes={archive}", f"output={output}", "workers=0", "split.val_share=0", *words]
        )
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*.tar"))}


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory):
    return run(archive, tmp_path_factory.mktemp("whole") / "out", "stride_px=40", "tile_px=64", "min_valid=0")


@pytest.mark.parametrize("strip_px", [100, 128, 250])
def test_strips_do_not_show(archive, whole, tmp_path, monkeypatch, strip_px):
    monkeypatch.setattr(strips, "STRIP_PX", strip_px)
    words = ("stride_px=40", "tile_px=64", "min_valid=0", "keep_zarr=false")
    assert run(archive, tmp_path / "out", *words) == whole


def test_each_jp2_block_is_decoded_once(archive, tmp_path, monkeypatch):
    read, found = RowReader._read, {}

    def counted(self, low, high):
        found.setdefault((self.path, self._layers), []).append((low, high))
        block = self._source.block_shapes[0][0]
        assert low % block == 0
        assert high % block == 0 or high == self._source.height
        return read(self, low, high)

    monkeypatch.setattr(RowReader, "_read", counted)
    monkeypatch.setattr(strips, "STRIP_PX", 100)  # ends in the middle of blocks of every size
    run(archive, tmp_path / "out", "keep_zarr=false")
    assert sum(path.endswith(".jp2") for path, _ in found) >= 12
    for windows in found.values():
        assert windows[0][0] == 0
        assert [end for _, end in windows[:-1]] == [start for start, _ in windows[1:]]


def test_a_shard_of_the_archive_is_written_at_once(archive, tmp_path, monkeypatch):
    """Two strips in one shard would lose pixels: Zarr reads, changes and writes it back."""
    monkeypatch.setattr(strips, "STRIP_PX", 100)
    with pytest.raises(ValueError, match="no whole shards"):
        run(archive, tmp_path / "out")


def test_large_scenes_are_stored_strip_by_strip(archive, tmp_path, monkeypatch):
    monkeypatch.setattr("preprocessing.archive.SHARD_PX", 128)
    monkeypatch.setattr("preprocessing.archive.CHUNK_PX", 64)
    monkeypatch.setattr(strips, "STRIP_PX", 128)
    written, write = [], SceneWriter.write
    monkeypatch.setattr(
        SceneWriter,
        "write",
        lambda self, name, rows, part: (written.append(rows), write(self, name, rows, part))[1],
    )
    one = run(archive, tmp_path / "small")
    monkeypatch.undo()
    assert {(rows.start, rows.stop) for rows in written} == {(0, 128), (128, 256), (256, 384)}
    assert one == run(archive, tmp_path / "large")
    (name,) = (p.parent.name for p in (tmp_path / "small" / FOLDER).glob("*/zarr.json"))
    small, large = (StoredScene(tmp_path / size / FOLDER / name) for size in ("small", "large"))
    for array in ("reflectance", "mask", "cells"):
        np.testing.assert_array_equal(small.read(array), large.read(array))


@pytest.mark.parametrize(
    ("edge", "starts"), [("drop", [0, 160]), ("shift", [0, 160, 224]), ("pad", [0, 160, 320])]
)
def test_tiles_at_the_edges(archive, tmp_path, edge, starts):
    words = ("tile_px=160", f"edge={edge}", "min_valid=0", "min_clear=0")
    run(archive, tmp_path / "out", *words)
    made = manifest.read(tmp_path / "out")
    found = [
        sample.decode(key, members, "a shard")
        for part in made.splits["train"]
        for key, members in packing.read_shard(tmp_path / "out" / part.path)
    ]
    assert {one.info["row"] for one in found} == {one.info["col"] for one in found} == set(starts)
    (name,) = (p.parent.name for p in (tmp_path / "out" / FOLDER).glob("*/zarr.json"))
    stored = StoredScene(tmp_path / "out" / FOLDER / name)
    for one in found:
        rows, columns = (slice(one.info[k], min(one.info[k] + 160, 384)) for k in ("row", "col"))
        inside = stored.read("reflectance", slice(None), rows, columns)
        np.testing.assert_array_equal(one.pixels[:, : inside.shape[1], : inside.shape[2]], inside)
        assert (one.pixels[:, inside.shape[1] :] == sample.NODATA).all()
        assert (one.mask[:, inside.shape[2] :] == sample.Flag.NODATA).all()
        assert not one.cells[:, inside.shape[1] // 8 :].any()
        assert one.info["valid_share"] == pytest.approx((one.mask & sample.Flag.NODATA == 0).mean())


def test_an_image_smaller_than_a_tile_needs_padding(archive, tmp_path):
    words = ("min_clear=0", "labels=null")
    run(archive, tmp_path / "padded", "tile_px=512", "edge=pad", "min_valid=0.3", *words)
    assert manifest.read(tmp_path / "padded").splits["train"][0].samples == 1
    with pytest.raises((ValueError, MissingInputError), match="no training tile is left"):
        run(archive, tmp_path / "dropped", "tile_px=512", *words)
