import json
import shutil
import tarfile

import pytest

from pipeline.errors import MissingInputError
from preprocessing import archive, verify


@pytest.fixture
def copy(shard_set, tmp_path):
    shutil.copytree(shard_set, tmp_path / "set")
    return tmp_path / "set"


def check(folder, capsys) -> tuple[int, list[str]]:
    code = verify.main([str(folder)])
    return code, [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong: ")]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def test_an_untouched_set_is_as_it_was_written(shard_set, capsys):
    assert check(shard_set, capsys) == (0, [])
    assert check(shard_set / "manifest.json", capsys) == (0, [])


@pytest.mark.parametrize("damage", [flip, cut, remove, empty])
def test_a_damaged_shard_is_named(copy, capsys, damage):
    damage(copy / "train/shard-000001.tar")
    code, wrong = check(copy, capsys)
    assert code == 1
    assert all("train/shard-000001.tar" in line for line in wrong)
    assert wrong


@pytest.mark.parametrize("damage", [flip, cut, remove, empty])
def test_p14_a_damaged_chunk_of_the_archive_is_named(copy, capsys, damage):
    (path,) = copy.glob(f"{archive.FOLDER}/*/mask/c/0/0")
    damage(path)
    code, wrong = check(copy, capsys)
    assert code == 1
    assert len(wrong) == 1
    assert "mask/c/0/0" in wrong[0]


def test_a_sample_with_a_missing_member_is_named(copy, capsys):
    path = copy / "train/shard-000000.tar"
    with tarfile.open(path) as old, tarfile.open(copy / "new.tar", "w") as new:
        members = old.getmembers()
        for member in members:
            if member is not members[0]:
                new.addfile(member, old.extractfile(member))
    (copy / "new.tar").replace(path)
    code, wrong = check(copy, capsys)
    assert code == 1
    assert any(members[0].name.partition(".")[0] in line and "cells.npy.blosc" in line for line in wrong)


def test_a_key_twice_and_a_wrong_count_are_told(copy, capsys):
    tree = json.loads((copy / "manifest.json").read_text())
    shards = tree["splits"]["train"]
    shards[1] = shards[0]
    (copy / "manifest.json").write_text(json.dumps(tree))
    code, wrong = check(copy, capsys)
    assert code == 1
    assert any("is there twice" in line for line in wrong)


def test_samples_of_another_shape_than_the_contract_are_told(copy, capsys):
    tree = json.loads((copy / "manifest.json").read_text())
    tree["contract"]["tile_px"] = 96
    (copy / "manifest.json").write_text(json.dumps(tree))
    code, wrong = check(copy, capsys)
    assert code == 1
    assert "has shapes (12, 48, 48)" in wrong[0]


def restate(copy, change) -> None:
    """Let a manifest say something else."""
    tree = json.loads((copy / "manifest.json").read_text())
    change(tree)
    (copy / "manifest.json").write_text(json.dumps(tree))


def test_statistics_that_are_not_of_the_samples_are_told(copy, capsys):
    restate(copy, lambda tree: tree["statistics"][3].update(mean=0.5))
    code, wrong = check(copy, capsys)
    assert code == 1
    assert len(wrong) == 2
    assert "manifest.json states band statistics that are not those of the training samples" in wrong[0]
    assert "histogram.npz is not that of the set beside it" in wrong[1]


def test_p14_a_damaged_histogram_is_named(copy, capsys):
    cut(copy / "histogram.npz")
    code, wrong = check(copy, capsys)
    assert (code, len(wrong)) == (1, 1)
    assert "histogram.npz cannot be read" in wrong[0]


def test_cells_that_are_not_of_the_pixels_are_told(copy, capsys):
    restate(
        copy, lambda tree: tree["contract"]["index_formulas"].update(NDVI="(nir - red) / (nir + red + 1)")
    )
    code, wrong = check(copy, capsys)
    assert code == 1
    assert len(wrong) == 54
    assert all("has other cells of NDVI than its pixels give" in line for line in wrong)


def test_a_set_of_format_1_is_checked_by_the_formulas_of_the_table(copy, capsys):
    def older(tree):
        tree["format_version"] = 1
        del tree["contract"]["index_formulas"]
        for scene in tree["scenes"]:
            del scene["statistics_px"]
        for band in tree["statistics"]:
            # of all values as they were
            del band["winsorised"]
            band["mean"], band["std"] = band["mean"] + 0.001, band["std"] + 0.01

    restate(copy, older)
    assert check(copy, capsys) == (0, [])


def test_the_archive_need_not_be_kept(copy, capsys):
    shutil.rmtree(copy / archive.FOLDER)
    assert check(copy, capsys) == (0, [])


def test_no_set_is_told(tmp_path):
    with pytest.raises(MissingInputError, match="no shard set at"):
        verify.main([str(tmp_path)])
