import hashlib
import json
from pathlib import Path

import pytest

from pipeline import manifest as manifests
from pipeline.contract import BandContract, BandStatistics, DataContract
from pipeline.errors import ContractError, CorruptDataError, MissingInputError
from pipeline.manifest import Manifest, Shard


def make(**changes) -> Manifest:
    band = BandContract(name="B04", role="red", centre_nm=665, width_nm=30, source_gsd_m=10)
    fixed = {
        "sensor": "sentinel2",
        "level": "L2A",
        "gsd_m": 10,
        "tile_px": 96,
        "cell_px": 8,
        "resampling": "bilinear",
    }
    contract = DataContract(**fixed, bands=(band,), indices=(), index_bands={})
    shards = tuple(Shard(path=f"train/{k}.tar", samples=4 - k, size_bytes=9, sha256="0" * 64) for k in (0, 1))
    values = {
        "name": "set",
        "contract": contract,
        "statistics": (BandStatistics(n=1, mean=0.1, std=0.2, low=0.0, high=1.0),),
        "splits": {"train": shards, "val": ()},
        "scenes": (),
        "settings": {"seed": 0},
        "code_version": "0",
        "notices": ("free",),
    }
    return Manifest(**values | changes)


def test_what_is_written_is_read_by_folder_or_path(tmp_path):
    path = manifests.write(make(), tmp_path)
    assert manifests.read(tmp_path) == manifests.read(path) == make()
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_samples_are_counted_by_split():
    assert (make().samples("train"), make().samples("val")) == (7, 0)
    with pytest.raises(ContractError, match="has no split `test`; it has train, val"):
        make().shards("test")


def test_the_digest_is_of_content_and_not_of_how_it_came_about():
    assert make().digest() == make(settings={"seed": 1}, code_version="9", name="other").digest()
    assert make().digest() != make(splits={"train": ()}).digest()


def test_a_missing_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(MissingInputError, match=r"no shard set at .*python preprocessing/shard\.py"):
        manifests.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 1, "name": 3}', "\udcff"])
def test_anything_else_is_no_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CorruptDataError, match="is not a manifest"):
        manifests.read(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    path = manifests.write(make(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(ContractError, match="has format 99; this version reads up to 2"):
        manifests.read(tmp_path)


def test_p03_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    manifests.write_atomically(path, b"old")
    with pytest.raises(TypeError):
        manifests.write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"


def test_checksums_are_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    assert manifests.sha256(tmp_path / "f") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_numbered_set_leads_to_the_sets_it_stands_beside(tmp_path, monkeypatch):
    folders = [manifests.numbered(tmp_path / "set", n) for n in (1, 2, 3)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        manifests.write(make(name=f"s{number}", earlier=tuple(f"s{n}" for n in range(number))), folder)
    assert [f.name for f in folders] == ["set", "set-002", "set-003"]
    assert [list(manifests.series(f)) for f in folders] == [folders[:1], folders[:2], folders]
    assert manifests.series(folders[2])[folders[1]].name == "s1"
    monkeypatch.chdir(folders[1])
    assert [f.name for f in manifests.series(Path())] == ["set", "set-002"]
    manifests.write(make(name="another"), folders[0])
    with pytest.raises(
        ContractError, match=r"set holds the set another, not s0, which .*set-002 stands beside"
    ):
        manifests.series(folders[1])
    folders[1].rename(tmp_path / "moved")
    with pytest.raises(ContractError, match=r"moved stands beside s0, and was renamed.*earlier: false"):
        manifests.series(tmp_path / "moved")
    manifests.write(make(name="s0"), folders[0])
    with pytest.raises(MissingInputError, match=r"no shard set at .*set-002"):
        manifests.series(folders[2])
