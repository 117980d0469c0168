"""Small scenes in memory: the same samples as by way of the archive, and none of its files."""

import pytest

from pipeline.config import ROOT
from preprocessing import archive, memory, shard
from tests.preprocessing.patches import write_eurosat
from tests.preprocessing.test_readers_oscd_pairs import BANDS, write_city

CONFIGS = ROOT / "configs/shard"


def shard_bytes(output):
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*.tar"))}


@pytest.fixture
def pair_words(tmp_path):
    write_city(tmp_path / "in", "alpha")
    bands = f"bands=[{','.join(BANDS)}]"
    return [
        str(CONFIGS / "oscd_change.yaml"),
        f"scenes={tmp_path / 'in'}",
        bands,
        "split.val_share=0",
        "tile_px=48",
    ]


@pytest.fixture
def patch_words(tmp_path):
    write_eurosat(tmp_path / "in", ("Forest", "River"), 3)
    return [str(CONFIGS / "eurosat_ms.yaml"), f"scenes={tmp_path / 'in'}"]


@pytest.mark.parametrize("kind", ["pair_words", "patch_words"])
def test_shards_are_byte_for_byte_those_made_through_the_archive(kind, tmp_path, request, monkeypatch):
    words = request.getfixturevalue(kind)
    shard.main([*words, f"output={tmp_path / 'kept'}", "keep_zarr=true"])
    shard.main([*words, f"output={tmp_path / 'held'}", "keep_zarr=false"])
    monkeypatch.setattr(memory, "MOST_PX", 100)
    shard.main([*words, f"output={tmp_path / 'freed'}", "keep_zarr=false"])
    assert shard_bytes(tmp_path / "kept") == shard_bytes(tmp_path / "held") == shard_bytes(tmp_path / "freed")
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("kept", "held", "freed")]
    assert len(set(manifests)) == 1
    assert len(list((tmp_path / "kept" / archive.FOLDER).glob("*/zarr.json"))) > 0
    assert not list((tmp_path / "held" / archive.FOLDER).glob("*/zarr.json"))
    assert not (tmp_path / "held" / "work").exists()
