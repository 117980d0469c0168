import json
import shutil

import pytest

from pipeline import config as configs
from pipeline import histogram as histograms
from pipeline import manifest as manifests
from pipeline.errors import ConfigError, ContractError, CorruptDataError
from preprocessing import packing, shard


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def keys(folder) -> set[str]:
    return {key for path in folder.glob("*/*.tar") for key, _ in packing.read_shard(path)}


@pytest.fixture
def series(products, tmp_path):
    """An archive with one city, sharded; and a way to add another, moved on the ground."""
    import rasterio
    from affine import Affine

    def add(name: str, shift_m: float = 0.0):
        folder = tmp_path / "archive/images" / name
        shutil.copytree(products["oscd"].parent, folder)
        for path in folder.rglob("*.tif"):
            with rasterio.open(path, "r+") as raster:
                raster.transform = Affine.translation(shift_m, 0) * raster.transform
        return folder

    add("a")
    words = [str(configs.ROOT / "configs/shard/oscd.yaml"), f"scenes={tmp_path / 'archive'}"]
    words += [f"output={tmp_path / 'set'}", "tile_px=48", "split.val_share=0", "min_valid=0", "min_clear=0"]
    return add, words, tmp_path


def test_new_scenes_make_a_numbered_set_beside_the_old_which_is_not_touched(series, capsys):
    add, words, folder = series
    assert shard.main([*words, "--grow"]) == 0  # nothing is there yet: the first set
    before = contents(folder / "set")
    add("b", shift_m=50_000)
    assert shard.main([*words, "--grow"]) == 0
    add("c", shift_m=90_000)
    assert shard.main([*words, "--grow"]) == 0
    assert contents(folder / "set") == before
    sets = [manifests.read(folder / name) for name in ("set", "set-002", "set-003")]
    assert [{s.id for s in m.scenes} for m in sets] == [{f"oscd_{c}_1", f"oscd_{c}_2"} for c in "abc"]
    assert [m.name for m in sets] == ["oscd", "oscd-002", "oscd-003"]
    assert [m.earlier for m in sets] == [(), ("oscd",), ("oscd", "oscd-002")]
    folders = [folder / name for name in ("set", "set-002", "set-003")]
    manifests.require_together({str(f): m for f, m in zip(folders, sets, strict=True)})
    for location in (folder / "set-003", folder / "set-003/manifest.json"):
        assert manifests.series(location) == dict(zip(folders, sets, strict=True))
    assert list(manifests.series(folder / "set")) == folders[:1]
    capsys.readouterr()
    assert shard.main([*words, "--grow"]) == 0
    assert "no scene is new to oscd, oscd-002, oscd-003" in capsys.readouterr().out


def test_p13_ground_that_an_earlier_set_holds_is_not_cut_again(series):
    add, words, folder = series
    shard.main(words)
    add("same")
    add("moved", shift_m=50_000)
    assert shard.main([*words, "--grow"]) == 0
    assert {key.split("_")[1] for key in keys(folder / "set-002")} == {"moved"}
    tree = json.loads((folder / "set-002/quality.json").read_text())
    assert set(tree["scenes"]["oscd_same_1"]["tiles"]) == {"duplicate"}


def test_a_set_of_other_settings_cannot_stand_beside(series):
    add, words, _ = series
    shard.main(words)
    add("b", shift_m=50_000)
    with pytest.raises(ConfigError, match=r"by the same settings: tile_px: 48 -> 96"):
        shard.main([*words, "tile_px=96", "--grow"])


def test_an_interrupted_numbered_set_is_gone_on_with(series):
    add, words, folder = series
    shard.main(words)
    add("b", shift_m=50_000)
    shard.main([*words, "--grow"])
    whole = (folder / "set-002/manifest.json").read_bytes()
    (folder / "set-002/manifest.json").unlink()
    shard.main([*words, "--grow"])
    assert (folder / "set-002/manifest.json").read_bytes() == whole
    assert not (folder / "set-003").exists()


def test_sets_that_do_not_fit_are_told_apart(series, shard_set):
    _, words, folder = series
    shard.main(words)
    with pytest.raises(ContractError, match=r"the shard sets oscd and demo do not hold the same data"):
        manifests.require_together(
            {"oscd": manifests.read(folder / "set"), "demo": manifests.read(shard_set)}
        )
    one = manifests.read(folder / "set")
    other = one.model_copy(update={"contract": one.contract.model_copy(update={"level": "L1GT+L1TP"})})
    manifests.require_together({"one": one, "other": other})
    surface = one.model_copy(update={"contract": one.contract.model_copy(update={"level": "L2A"})})
    with pytest.raises(ContractError, match=r"level: 'L1' -> 'L2'"):
        manifests.require_together({"one": one, "surface": surface})


def test_statistics_of_sets_together_are_those_of_one_set_of_all_scenes(series, shard_set, tmp_path):
    add, words, folder = series
    shard.main(words)
    add("b", shift_m=50_000)
    shard.main([*words, "--grow"])
    shard.main([*words, f"output={tmp_path / 'all'}"])
    sets = manifests.series(folder / "set-002")
    assert histograms.merged(sets) == manifests.read(tmp_path / "all").statistics
    shutil.copy(shard_set / histograms.NAME, folder / "set")
    with pytest.raises(CorruptDataError, match=r"histogram\.npz is not that of the set beside it"):
        histograms.merged(sets)


def test_licences_and_notices_travel_with_the_set(series, shard_set):
    made = manifests.read(shard_set)
    assert all(s.licence.startswith("Contains modified Copernicus") for s in made.scenes)
    # the legal notice of the data asks for their years
    years = {s.licence.replace("Sentinel data", "Sentinel data 2024") for s in made.scenes}
    assert set(made.notices) == years
