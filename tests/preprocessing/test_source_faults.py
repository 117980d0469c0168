"""Damaged Sentinel-2 products beside sound ones: each is named with its file and reason, the rest is done."""

import csv
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import manifest as manifests
from pipeline.config import ROOT
from pipeline.errors import RejectedError
from preprocessing import shard
from preprocessing.simulation.packed import zip_product
from preprocessing.simulation.products import PRODUCTS, Ground


def truncate(share: float) -> Callable[[Path], Path]:
    def damage(product: Path) -> Path:
        path = next(product.rglob("*_B04_10m.jp2"))
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        # without sums: the decoder itself must notice
        (product / "manifest.safe").unlink()
        return product

    return damage


def change_a_byte(product: Path) -> Path:
    path = next(product.rglob("*_B04_10m.jp2"))
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    return product


def remove(pattern: str) -> Callable[[Path], Path]:
    def damage(product: Path) -> Path:
        next(product.rglob(pattern)).unlink()
        return product

    return damage


def lead_elsewhere(product: Path) -> Path:
    packed = zip_product(product)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("../outside.jp2", b"x")
    return packed


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "p04 30 %": (truncate(0.3), r"_B04_10m.jp2 cannot be decoded|_B04_10m.jp2 cannot be opened"),
    "p04 50 %": (truncate(0.5), r"_B04_10m.jp2 cannot be decoded"),
    "p04 99 %": (truncate(0.99), r"_B04_10m.jp2 cannot be decoded"),
    "p04 empty": (truncate(0.0), r"_B04_10m.jp2 cannot be opened"),
    "p04 99 % in a zip": (
        lambda p: zip_product(truncate(0.99)(p)),
        r"/vsizip/.*_B04_10m.jp2 cannot be decoded",
    ),
    "p04 no band": (remove("*_B08_10m.jp2"), r"no file of band B08"),
    "p04 no fine file": (remove("*_B11_20m.jp2"), r"finest file of band B11 has 60 m pixels.*`gsd_m: 60`"),
    "p04 no mask": (remove("*_SCL_20m.jp2"), r"no scene classification"),
    "p04 no metadata": (remove("MTD_MSIL2A.xml"), r"neither MTD_MSIL2A.xml"),
    "p05": (change_a_byte, r"_B04_10m.jp2 is not what its product was published with: its SHA3-256"),
    "p05 in a zip": (
        lambda p: zip_product(change_a_byte(p)),
        r"/vsizip/.*_B04_10m.jp2 is not what its product",
    ),
    "p11": (lead_elsewhere, r"its member '../outside.jp2' leads out of the product"),
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """One sound product, and one with every fault; each of another day."""
    folder = tmp_path_factory.mktemp("faults")
    for seed, name in enumerate(("sound", *FAULTS), 1):
        product = PRODUCTS["sentinel2-l2a"].write(folder, Ground(192, seed), lambda image: None)
        if name != "sound":
            FAULTS[name][0](product)
    return folder


def run(archive: Path, output: Path, *words: str) -> int:
    common = ["tile_px=24", "split.val_share=0", "min_valid=0", "min_clear=0", "workers=0"]
    given = [str(ROOT / "configs/shard/demo_sentinel2.yaml"), f"scenes={archive}", f"output={output}"]
    return shard.main([*given, *common, *words])


def test_p04_p05_p11_every_damaged_product_is_quarantined_by_file_and_reason(archive, tmp_path):
    output, before = tmp_path / "set", sorted(tmp_path.parent.rglob("outside.jp2"))
    with pytest.raises(
        RejectedError, match=f"{len(FAULTS)} of {len(FAULTS) + 1} scenes were rejected"
    ) as error:
        run(archive, output)
    assert error.value.exit_code == 3
    assert run(archive, output, "max_rejected=12") == 0
    with (output / "rejected.csv").open() as stream:
        reasons = {Path(row["product"]).name: row["reason"] for row in csv.DictReader(stream)}
    days = {name: f"202406{day:02}T" for day, name in enumerate(FAULTS, 3)}
    for name, (_, told) in FAULTS.items():
        [reason] = [text for product, text in reasons.items() if f"_{days[name]}" in product]
        assert re.search(told, reason), f"{name}: {reason}"
    assert len(reasons) == len(FAULTS)
    made = manifests.read(output)
    assert [scene.id[11:19] for scene in made.scenes] == ["20240602"]
    assert made.samples("train") > 0
    assert sorted(tmp_path.parent.rglob("outside.jp2")) == before


def test_p04_a_mask_that_is_required_and_missing_quarantines_its_product(tmp_path):
    folder = tmp_path / "archive"
    for seed in (1, 2):
        product = PRODUCTS["sentinel2-l2a"].write(folder, Ground(192, seed), lambda image: None)
    remove("MSK_QUALIT_B08.jp2")(product)
    assert run(folder, tmp_path / "auto") == 0
    assert len(manifests.read(tmp_path / "auto").scenes) == 2
    assert run(folder, tmp_path / "set", "max_rejected=1", "quality_masks=required") == 0
    assert len(manifests.read(tmp_path / "set").scenes) == 1
    text = (tmp_path / "set/rejected.csv").read_text()
    assert product.name in text and "no quality mask of band B08 (MSK_QUALIT_B08.jp2" in text


def test_p05_a_repaired_product_joins(tmp_path):
    folder = tmp_path / "archive"
    for seed in (1, 2):
        product = PRODUCTS["sentinel2-l2a"].write(folder, Ground(192, seed), lambda image: None)
    sound = shutil.copytree(product, tmp_path / "sound")
    change_a_byte(product)
    assert run(folder, tmp_path / "set", "max_rejected=1") == 0
    assert len(manifests.read(tmp_path / "set").scenes) == 1
    shutil.copytree(sound, product, dirs_exist_ok=True)
    assert run(folder, tmp_path / "set", "max_rejected=1") == 0
    assert len(manifests.read(tmp_path / "set").scenes) == 2
