"""Shards read by position; damaged or foreign ones are refused by name."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline import manifest as manifests
from pipeline.errors import (
    ContractError,
    CorruptDataError,
    LostDataError,
    MissingInputError,
    PipelineError,
    UnsafeDataError,
)
from training.offsets import find_offsets
from training.reader import Care, ShardReader


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shard set that a test may damage."""
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def first_shard(folder: Path) -> Path:
    return sorted((folder / "train").glob("*.tar"))[0]


def test_every_sample_is_found_under_its_number(shards: Path) -> None:
    reader = ShardReader(shards, "train")
    assert len(reader) == 40
    found = [reader.read(number) for number in range(40)]
    assert [s.key for s in found] == [f"tile_{n:05d}" for n in range(40)]
    assert found[7].pixels.shape == (6, 48, 48)
    assert found[7].label == 7 % 3


def test_stock_tools_read_the_same_pixels(shards: Path) -> None:
    import webdataset
    from numcodecs import Blosc

    def decode(key: str, data: bytes) -> object:
        return np.load(io.BytesIO(Blosc().decode(data))) if key.endswith("blosc") else None

    stock = next(iter(webdataset.WebDataset(str(first_shard(shards)), shardshuffle=False).decode(decode)))
    ours = ShardReader(shards, "train").read(0)
    assert stock["__key__"] == ours.key
    assert (stock["pixels.npy.blosc"] == ours.pixels).all()


def test_t16_a_truncated_shard_is_named(copy: Path) -> None:
    path = first_shard(copy)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CorruptDataError, match=r"shard-000000\.tar.*bytes"):
        ShardReader(copy, "train")


def test_t16_a_flipped_byte_is_found_by_checksum(copy: Path) -> None:
    path = first_shard(copy)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptDataError, match=r"shard-000000\.tar.*checksum"):
        ShardReader(copy, "train", Care("sha256"))


def test_t16_a_missing_shard_is_named(copy: Path) -> None:
    first_shard(copy).unlink()
    with pytest.raises(LostDataError, match=r"shard-000000\.tar is missing"):
        ShardReader(copy, "train")


def rewrite(path: Path, folder: Path, replace: dict[str, tuple[str, bytes] | None]) -> None:
    """Rewrite a shard with some members renamed and replaced, or left out; keeps the manifest in step."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            kept = replace.get(name, (name, data))
            if kept is not None:
                info = tarfile.TarInfo(kept[0])
                info.size = len(kept[1])
                tar.addfile(info, io.BytesIO(kept[1]))
    tree = json.loads((folder / "manifest.json").read_text())
    tree["splits"]["train"][0] |= {"size_bytes": path.stat().st_size, "sha256": manifests.sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(tree))


def test_t17_a_missing_member_is_named_with_shard_and_key(copy: Path) -> None:
    rewrite(first_shard(copy), copy, {"tile_00000.mask.npy.blosc": None})
    with pytest.raises(CorruptDataError, match=r"shard-000000\.tar.*tile_00000.*mask"):
        ShardReader(copy, "train").read(0)


def test_t17_bytes_that_are_no_array_are_named(copy: Path) -> None:
    rewrite(
        first_shard(copy),
        copy,
        {"tile_00000.cells.npy.blosc": ("tile_00000.cells.npy.blosc", b"rubbish" * 9)},
    )
    with pytest.raises(CorruptDataError, match=r"tile_00000\.cells\.npy\.blosc"):
        ShardReader(copy, "train").read(0)


@pytest.mark.parametrize("name", ["tile_00000.pickle", "tile_00000.weights.pth", "../outside.json"])
def test_t19_a_member_that_other_readers_would_execute_or_follow_is_refused(copy: Path, name: str) -> None:
    rewrite(first_shard(copy), copy, {"tile_00000.json": (name, b"{}")})
    with (
        first_shard(copy).open("rb") as stream,
        pytest.raises(UnsafeDataError, match="do not use this file"),
    ):
        find_offsets(stream, "the shard")
    # nothing is read in its place either
    for care in (Care(), Care(damaged="replace")):
        with pytest.raises(UnsafeDataError, match=r"shard-000000\.tar.*do not use this file"):
            ShardReader(copy, "train", care).read(0)


def test_t19_a_shard_outside_of_the_set_is_refused(copy: Path) -> None:
    tree = json.loads((copy / "manifest.json").read_text())
    tree["splits"]["train"][0]["path"] = "../../etc/passwd"
    (copy / "manifest.json").write_text(json.dumps(tree))
    for care in (Care(), Care(damaged="replace")):
        with pytest.raises(UnsafeDataError, match="outside the set"):
            ShardReader(copy, "train", care)


@pytest.mark.parametrize(
    ("location", "split", "kind", "says"),
    [
        ("nowhere", "train", MissingInputError, "no shard set at"),
        ("", "test", ContractError, "no split `test`"),
    ],
)
def test_what_is_not_there_is_told(
    shards: Path, location: str, split: str, kind: type[PipelineError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        ShardReader(shards / location if location else shards, split)
