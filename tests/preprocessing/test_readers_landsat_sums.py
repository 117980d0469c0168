"""Landsat files against the sums that their STAC Items and MD5 lists state."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from pipeline.errors import SceneError
from pipeline.sensors import SENSORS
from preprocessing import checksums
from preprocessing.readers import Request, discover
from preprocessing.readers.landsat import open_scene
from preprocessing.scenes import Checksum

OLI = Request(SENSORS["landsat_oli"], ("B4", "B5"))
KINDS = ("landsat-LC09", "landsat-LC08-L1TP", "landsat-LC09-tar")


def verify(scene) -> None:
    for source in (*scene.bands, *scene.masks):
        checksums.verify(source.path, source.checksum)


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def item_of(product: Path) -> Path:
    return next(product.glob("*_stac.json"))


def listed(product: Path, form: str) -> None:
    """Take the Item away and list MD5 sums instead, in one of the forms that tools write."""
    item_of(product).unlink()
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in product.iterdir()}
    lines = (form.format(name=name, sum=value) for name, value in sums.items())
    (product / f"{product.name}_MD5.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_what_its_item_states(products, kind):
    scene = open_scene(products[kind], OLI)
    assert {source.checksum.algorithm for source in (*scene.bands, *scene.masks)} == {"SHA2-512"}
    verify(scene)


@pytest.mark.parametrize("layer", ["B5.TIF", "QA_PIXEL.TIF", "QA_RADSAT.TIF"])
@pytest.mark.parametrize(
    "form", ["item", "{sum}  {name}", "{name} {sum}", "{sum} *./{name}", "{name}: {sum}"]
)
def test_p05_a_changed_byte_of_an_image_is_found(copied, layer, form):
    product = copied("landsat-LC09")
    if form != "item":
        listed(product, form)
    verify(open_scene(product, OLI))
    change(next(product.glob(f"*_{layer}")))
    told = "SHA2-512" if form == "item" else "MD5"
    with pytest.raises(
        SceneError, match=rf"{layer} is not what its product was published with: its {told} sum"
    ):
        verify(open_scene(product, OLI))


def test_p05_changed_metadata_is_found(copied):
    product = copied("landsat-LC09")
    path = next(product.glob("*_MTL.txt"))
    path.write_text(path.read_text().replace("2.75e-05", "2.76e-05"))
    with pytest.raises(
        SceneError, match=r"_MTL.txt is not what .* take away the file that states it .*stac.json"
    ):
        open_scene(product, OLI)
    item_of(product).unlink()
    assert open_scene(product, OLI).bands[0].scale == 2.76e-05


@pytest.mark.parametrize("text", ["{", "[]", '{"assets": 1}', '{"assets": {"a": {"file:checksum": "1340"}}}'])
def test_an_item_that_cannot_be_read_is_named(copied, text):
    product = copied("landsat-LC09")
    item_of(product).write_text(text)
    with pytest.raises(SceneError, match=r"_SR_stac.json: not a STAC Item .* take this file away"):
        open_scene(product, OLI)


def test_items_without_sums_and_sums_of_unknown_kinds_are_not_compared(copied):
    product = copied("landsat-LC09")
    tree = json.loads(item_of(product).read_text())
    tree["assets"]["SR_B4.TIF"].pop("file:checksum")
    tree["assets"]["SR_B5.TIF"]["file:checksum"] = "90e4021044a8995dd50b6657a037a7839304535b"
    item_of(product).write_text(json.dumps(tree))
    assert [band.checksum for band in open_scene(product, OLI).bands] == [None, None]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1114a94a8fe5ccb19ba61c4c0873d391e987982fbbd3", "SHA-1"),
        ("12209F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08", "SHA2-256"),
        ("d50110098f6bcd4621d373cade4e832627b4f6", "MD5"),
        ("1340" + hashlib.sha512(b"test").hexdigest(), "SHA2-512"),
        ("1620" + hashlib.sha3_256(b"test").hexdigest(), "SHA3-256"),
        ("1440" + hashlib.sha3_512(b"test").hexdigest(), "SHA3-512"),
        ("12149f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b", None),
        ("1220abcd", None),
        ("", None),
    ],
)
def test_multihashes_tell_their_kind(text, kind):
    """The first and third are the specification's own examples, of the bytes `test`."""
    found = checksums.from_multihash(text)
    assert (found and found.algorithm) == kind
    if found:
        checksums.check(b"test", found, "here")
        with pytest.raises(SceneError, match="here is not what"):
            checksums.check(b"tent", found, "here")


def test_long_sums_are_told_in_short():
    with pytest.raises(SceneError) as caught:
        checksums.check(b"test", Checksum("SHA2-512", "0" * 128), "here")
    assert not re.search("[0-9a-f]{17}", str(caught.value))


def test_real_products_of_2020_state_no_sums(real_data):
    request = Request(SENSORS["landsat_oli"], ("B4",))
    found = discover(real_data / "landsat_c2", request)
    assert len(found) == 3
    assert all(next(path.glob("*_SR_stac.json")) for _, path in found)
    assert {reader.open(path, request).bands[0].checksum for reader, path in found} == {None}
