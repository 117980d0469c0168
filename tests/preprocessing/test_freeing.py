"""The archive may go: `keep_zarr: false` while a set is made, `--clean` afterwards. The shards are the same."""

import shutil

import pytest

from pipeline import manifest as manifests
from pipeline.errors import OutputError
from preprocessing import archive, packing, shard, verify


def shards(folder) -> dict[str, bytes]:
    names = [*folder.glob("*/*.tar"), folder / "manifest.json", folder / "quality.html"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in names}


def test_without_the_archive_the_shards_are_the_same(shard_set, shard_words, tmp_path, capsys):
    words = [*shard_words, f"output={tmp_path / 'set'}", "keep_zarr=false"]
    assert shard.main(words) == 0
    assert shards(tmp_path / "set") == shards(shard_set)
    assert not (tmp_path / "set" / archive.FOLDER).exists()
    assert verify.main([str(tmp_path / "set")]) == 0
    assert shard.main(words) == 0
    assert "nothing was done" in capsys.readouterr().out


def test_p19_without_the_archive_other_bands_are_refused_too(shard_words, tmp_path):
    words = [*shard_words, f"output={tmp_path / 'set'}", "keep_zarr=false"]
    shard.main(words)
    with pytest.raises(OutputError, match="bands: "):
        shard.main([*words, "bands=[B03,B04,B08,B11]"])


def test_p01_a_scene_whose_pixels_are_freed_is_not_redone_after_a_kill(shard_words, tmp_path, monkeypatch):
    words = [*shard_words, f"output={tmp_path / 'set'}", "keep_zarr=false"]

    class Killed(BaseException):
        pass

    def kill(job):
        raise Killed

    # as after SIGKILL between the last scene and the first shard
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(packing, "work", kill)
        shard.main(words)
    (segments,) = (tmp_path / "set/work").glob("*.segments")
    before = segments.stat().st_ino
    assert not list((tmp_path / "set" / archive.FOLDER).glob("S2*"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the work folder would be gone
        shard.main(words)
    assert segments.stat().st_ino == before
    assert (tmp_path / "set/manifest.json").exists()


def test_clean_frees_the_archive_of_a_finished_set(shard_set, shard_words, tmp_path, capsys):
    output = tmp_path / "set"
    shutil.copytree(shard_set, output)
    words = [*shard_words, f"output={output}"]
    assert shard.main([*words, "--clean"]) == 0
    assert "MB freed" in capsys.readouterr().out
    assert not (output / archive.FOLDER).exists()
    assert shards(output) == shards(shard_set)
    assert shard.main(words) == 0
    assert "nothing was done" in capsys.readouterr().out
    # what needs the pixels is made from the products again
    assert shard.main([*words, "min_clear=0.3"]) == 0
    assert manifests.read(output).samples("train") > 0


def test_clean_leaves_an_unfinished_set_alone(shard_set, shard_words, tmp_path):
    output = tmp_path / "set"
    shutil.copytree(shard_set, output)
    whole = output / "train/shard-000000.tar"
    moved = whole.rename(output / "elsewhere")
    with pytest.raises(OutputError, match=r"shards of .* are missing"):
        shard.main([*shard_words, f"output={output}", "--clean"])
    moved.rename(whole)
    (output / "manifest.json").unlink()
    with pytest.raises(OutputError, match="holds no finished set"):
        shard.main([*shard_words, f"output={output}", "--clean"])
    assert (output / archive.FOLDER).exists()
