"""Packed products: read in place, byte for byte as the folder; archives that lead elsewhere or explode are refused."""

import io
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.config import ROOT
from pipeline.errors import SceneError
from pipeline.sensors import SENSORS
from preprocessing import locations, masks, radiometry, shard
from preprocessing.readers import Request, discover, landsat, sentinel2
from preprocessing.readers.packed import list_packed
from preprocessing.readers.product import product_name, read_member
from preprocessing.simulation.packed import tar_product, zip_product

S2 = Request(SENSORS["sentinel2"], ("B02", "B04"))
OLI = Request(SENSORS["landsat_oli"], ("B4", "B5"))
ZIP, TAR = "sentinel2-L2A-zip", "landsat-LC09-tar"
ODD_NAMES = [
    "../outside.txt",
    "a/../../outside.txt",
    "/tmp/outside.txt",
    "C:/outside.txt",
    "a\\..\\outside.txt",
    "a\nb.txt",
]


def add(archive: Path, name: str, data: bytes = b"x", mode: int = 0o644) -> None:
    """Add an entry to a zip or a tar as somebody who means harm would."""
    if archive.suffix == ".zip":
        info = zipfile.ZipInfo("placeholder")
        info.filename, info.external_attr = name, mode << 16
        with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(info, data, zipfile.ZIP_DEFLATED)
        return
    with tarfile.open(archive, "a") as packed:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        packed.addfile(info, io.BytesIO(data))


def open_found(product: Path, request: Request):
    [(reader, path)] = discover(product.parent, request)
    assert path == product
    return reader.open(path, request)


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize(("kind", "request_"), [(ZIP, S2), (TAR, OLI)])
def test_p11_a_member_that_leads_elsewhere_is_refused_and_nothing_is_written(
    copied, tmp_path, kind, request_, name
):
    product = copied(kind)
    add(product, name)
    before = tree(tmp_path)
    with pytest.raises(
        SceneError, match=r"refused, its member .* (absolute path|leads out|control characters)"
    ) as caught:
        open_found(product, request_)
    assert str(product) in str(caught.value) and "Fetch the product again" in str(caught.value)
    assert tree(tmp_path) == before
    assert not Path("/tmp/outside.txt").exists()


def test_p11_links_are_refused(copied):
    product = copied(ZIP)
    add(product, "GRANULE/link.jp2", b"/etc/hostname", stat.S_IFLNK | 0o777)
    with pytest.raises(SceneError, match=r"refused, its member 'GRANULE/link.jp2' is a link"):
        open_found(product, S2)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_p11_links_and_devices_in_a_tar_are_refused(copied, kind):
    product = copied(TAR)
    info = tarfile.TarInfo("odd.TIF")
    info.type, info.linkname = kind, "/etc/hostname"
    with tarfile.open(product, "a") as packed:
        packed.addfile(info)
    with pytest.raises(SceneError, match=r"refused, its member 'odd.TIF' is (a link|not a plain file)"):
        open_found(product, OLI)


def test_p11_enormous_expansion_is_refused_before_it_is_read(copied):
    product = copied(ZIP)
    add(product, "GRANULE/bomb.jp2", bytes(65 << 20))
    with pytest.raises(SceneError, match=r"bomb.jp2' would expand from \d+ to 68157440 bytes"):
        open_found(product, S2)


def test_p11_many_members_that_expand_together_are_refused(tmp_path):
    product = tmp_path / "S2A_MSIL2A_many.SAFE.zip"
    with zipfile.ZipFile(product, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(5):
            packed.writestr(f"x/{number}.jp2", bytes(20 << 20))
    with pytest.raises(SceneError, match=r"refused, it would expand from \d+ to 104857600 bytes"):
        list_packed(product)


def test_one_name_twice_is_refused(copied):
    product = copied(TAR)
    with tarfile.open(product) as packed:
        name = packed.getnames()[0]
    add(product, name)
    with pytest.raises(SceneError, match=f"holds '{name}' twice"):
        open_found(product, OLI)


@pytest.mark.parametrize(("kind", "request_"), [(ZIP, S2), (TAR, OLI)])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_p04_a_truncated_archive_is_refused_not_overlooked(copied, kind, request_, share):
    product = copied(kind)
    os.truncate(product, int(product.stat().st_size * share))
    with pytest.raises(SceneError, match=product.stem.split(".")[0]):
        open_found(product, request_)


def test_a_compressed_tar_is_refused_with_the_remedy(copied):
    product = copied(TAR)
    folder = product.parent / "unpacked"
    shutil.unpack_archive(product, folder)
    packed = Path(shutil.make_archive(str(product.parent / product.stem), "gztar", folder))
    shutil.rmtree(folder)
    product.unlink()
    with pytest.raises(SceneError, match=r"not a whole, uncompressed tar .*Unpack or gunzip it"):
        open_found(packed, OLI)


@pytest.mark.parametrize(("kind", "request_"), [(ZIP, S2), (TAR, OLI)])
def test_p16_packed_products_under_odd_paths_and_names_are_read(copied, tmp_path, kind, request_):
    product = copied(kind)
    odd = tmp_path / "höme {dir} (2)" / f"my scène{product.suffix}"
    odd.parent.mkdir()
    product.rename(odd)
    scene = open_found(odd, request_)
    assert locations.file_on_disk(scene.bands[0].path) == odd
    with rasterio.open(scene.bands[0].path) as raster:
        assert raster.read(1).any()


@pytest.mark.parametrize("name", ["un{paired", "un}paired"])
def test_a_path_with_an_unpaired_brace_is_refused_with_the_remedy(copied, tmp_path, name):
    product = copied(ZIP)
    odd = product.rename(product.with_name(f"{name}.SAFE.zip"))
    with pytest.raises(SceneError, match=r"unpaired brace cannot be read in place. Rename it"):
        open_found(odd, S2)


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_names_that_start_with_a_dot_and_a_slash_and_foreign_files(tmp_path, ending):
    product = tmp_path / f"p{ending}"
    for name in ("./Ä/a.txt", "./Ä/sub/b.txt", "__MACOSX/Ä/._a.txt", "Ä/.DS_Store"):
        name = name if ending == ".zip" else name.replace("Ä", "A")
        add(product, name, name.encode())
    assert list(list_packed(product)) == ["a.txt", "sub/b.txt"]
    assert read_member(product, "sub/b.txt").endswith(b"/sub/b.txt")


def test_a_damaged_member_is_told_when_it_is_read(copied):
    product = copied(ZIP)
    with zipfile.ZipFile(product) as packed:
        info = next(i for i in packed.infolist() if i.filename.endswith("MTD_MSIL2A.xml"))
    data = bytearray(product.read_bytes())
    data[info.header_offset + 400] ^= 1
    product.write_bytes(data)
    with pytest.raises(SceneError, match=r"cannot read MTD_MSIL2A.xml"):
        open_found(product, S2)


def test_locations_without_an_archive_are_themselves():
    for path in ("/a/b.tif", "relative.tif", "/vsicurl/https://host/x.tif", "/vsizip/odd.zip/x.tif"):
        assert locations.split(path) == (Path(path), "")


# ---- packed and unpacked are the same


def make(archive: Path, output: Path, config: str, *more: str) -> dict[str, bytes]:
    words = ["tile_px=24", "split.val_share=0", "min_valid=0", "min_clear=0", "workers=0"]
    given = [str(ROOT / f"configs/shard/{config}.yaml"), f"scenes={archive}", f"output={output}"]
    assert shard.main([*given, *words, *more]) == 0
    return {p.name: p.read_bytes() for p in output.glob("train/*.tar")}


@pytest.mark.parametrize(
    ("folder", "packed", "config"),
    [("sentinel2-L2A", ZIP, "demo_sentinel2"), ("landsat-LC09", TAR, "demo_landsat")],
)
def test_shards_of_folder_and_archive_are_the_same_bytes(products, tmp_path, folder, packed, config):
    shards = [make(products[kind].parent, tmp_path / kind, config) for kind in (folder, packed)]
    assert shards[0] == shards[1]
    assert sum(map(len, shards[0].values())) > 10_000


def test_a_tile_with_polygons_gives_the_same_bytes_packed(copied, products, tmp_path):
    zip_product(copied("sentinel2_aws-L1C"))
    archives = [products["sentinel2_aws-L1C"].parent, tmp_path / "sentinel2_aws-L1C"]
    words = ["reader=sentinel2_aws", "bands=[B02,B03,B04,B08,B10,B11]", "labels=null"]
    shards = [
        make(archive, tmp_path / f"set{n}", "demo_sentinel2", *words) for n, archive in enumerate(archives)
    ]
    assert shards[0] == shards[1]


def of_scene(product: Path, request: Request):
    scene = open_found(product, request)
    layout = radiometry.lay_out(scene, None, None)
    flags = [masks.mask_flags(m, g, layout.target) for m, g in zip(scene.masks, layout.masks, strict=True)]
    return [image.pixels for image in radiometry.band_images(layout, "bilinear")] + flags


def test_real_landsat_packed_is_the_same(real_data, tmp_path):
    product = sorted((real_data / "landsat_c2").glob("LC08*T1"))[0]
    copy = shutil.copytree(product, tmp_path / product.name)
    packed = of_scene(tar_product(copy), OLI)
    scene = landsat.open_scene(product, OLI)
    layout = radiometry.lay_out(scene, None, None)
    for image, pixels in zip(radiometry.band_images(layout, "bilinear"), packed, strict=False):
        np.testing.assert_array_equal(image.pixels, pixels)
    assert len(packed) == 4


def test_real_safe_packed_is_the_same(real_data, tmp_path):
    """Of the real product only what is read: the others would take a minute to pack."""
    [product] = (real_data / "sentinel2_safe").glob("*.SAFE")
    copy = tmp_path / product.name
    for path in (
        *product.glob("*.xml"),
        product / "manifest.safe",
        *product.rglob("*_B0[34]_60m.jp2"),
        *product.rglob("*_SCL_60m.jp2"),
    ):
        (copy / path.relative_to(product)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy / path.relative_to(product))
    request = Request(SENSORS["sentinel2"], ("B03", "B04"), gsd_m=60)
    packed = of_scene(zip_product(copy), request)
    scene = sentinel2.open_scene(product, request)
    layout = radiometry.lay_out(scene, None, None)
    for image, pixels in zip(radiometry.band_images(layout, "bilinear"), packed, strict=False):
        np.testing.assert_array_equal(image.pixels, pixels)
    assert len(packed) == 3


def test_a_changed_zip_is_made_again(copied, tmp_path, capsys):
    product = copied(ZIP)
    make(product.parent, tmp_path / "set", "demo_sentinel2")
    capsys.readouterr()
    make(product.parent, tmp_path / "set", "demo_sentinel2")
    assert "nothing was done" in capsys.readouterr().out
    os.utime(product, ns=(1, 1))
    make(product.parent, tmp_path / "set", "demo_sentinel2")
    assert f"{product_name(product)} changed" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "request_"), [(ZIP, S2), (TAR, OLI)])
def test_p15_many_archives_leave_no_file_open(copied, kind, request_):
    product = copied(kind)
    held = []
    for number in range(30):
        folder = product.parent / f"{number}"
        folder.mkdir()
        os.link(product, folder / product.name)
        assert of_scene(folder / product.name, request_)
        held.append(len(list(Path("/proc/self/fd").iterdir())))
    assert held[-1] <= held[2]
