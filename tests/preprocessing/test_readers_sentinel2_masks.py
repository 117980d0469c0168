"""What Sentinel-2's bands say of themselves: lost, defective and saturated pixels, as layers and as polygons."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from pipeline.errors import SceneError
from pipeline.sample import Flag
from pipeline.sensors import SENSORS
from preprocessing import masks, radiometry
from preprocessing.grids import Grid, read_grid
from preprocessing.readers import READERS, Request, discover
from preprocessing.readers.product import list_members
from preprocessing.readers.sentinel2_masks import QUALITY_FLAGS, QualityFiles
from preprocessing.rows import RowReader
from preprocessing.simulation import quality_masks
from preprocessing.simulation.aws import write_aws
from preprocessing.simulation.old_safe import write_old_safe
from preprocessing.simulation.safe import SafeOptions, write_safe

SENSOR = SENSORS["sentinel2"]
BANDS = ("B01", "B04", "B8A", "B11", "B12")
ASK = Request(SENSOR, BANDS)
POLYGON_FILES = [f"MSK_{kind}" for kind in ("TECQUA", "DEFECT", "NODATA", "SATURA")]


def flags_of(scene, wanted: str = "QUALIT|TECQUA|DEFECT|NODATA|SATURA") -> np.ndarray:
    """Return the flags of a scene's band masks on its grid."""
    layout = radiometry.lay_out(scene, None, None)
    flags = np.zeros(layout.target.shape_px, np.uint8)
    for mask, grid in zip(scene.masks, layout.masks, strict=True):
        if any(kind in mask.path for kind in wanted.split("|")):
            masks.add_flags(flags, mask, grid, (layout.target, "bilinear"))
    return flags


def test_the_layers_are_those_of_the_specification():
    assert tuple(QUALITY_FLAGS) == quality_masks.LAYERS
    lost = {kind for kind, flag in QUALITY_FLAGS.items() if flag == Flag.NODATA}
    assert lost == {"ANC_LOST", "MSI_LOST", "QT_DEFECTIVE_PIXELS", "QT_NODATA_PIXELS"}
    assert [kind for kind, flag in QUALITY_FLAGS.items() if flag == Flag.SATURATED] == [
        "QT_SATURATED_PIXELS_L1A"
    ]


@pytest.mark.parametrize("level", ["L1C", "L2A"])
@pytest.mark.parametrize("baseline", ["02.06", "05.10"])
def test_every_requested_band_brings_its_masks_in_either_form(tmp_path, level, baseline):
    scene = READERS["sentinel2"].open(write_safe(tmp_path, SafeOptions(192, 1, baseline, level)), ASK)
    names = [Path(mask.path).stem for mask in scene.masks[1:]]
    kinds = POLYGON_FILES if baseline == "02.06" else ["MSK_QUALIT"]
    assert names == [f"{kind}_{band}" for band in BANDS for kind in kinds]
    assert all(mask.checksum for mask in scene.masks)


@pytest.mark.parametrize("baseline", ["02.06", "05.10"])
def test_flaws_are_flagged_where_they_are_and_nothing_else(tmp_path, baseline):
    product = write_safe(tmp_path, SafeOptions(192, 1, baseline, "L1C", has_flaws=True))
    flags = flags_of(READERS["sentinel2"].open(product, ASK))
    expected = np.zeros((192, 192), np.uint8)
    expected[96:98] = Flag.NODATA  # a lost packet of B04, at 10 m
    expected[:, 96:100] = Flag.NODATA  # a dead column of B8A, at 20 m
    expected[:, 96:108] = Flag.NODATA  # no measurement in B01, at 60 m
    np.testing.assert_array_equal(flags & Flag.NODATA, expected)
    # B11 is saturated from column 96 on, and bilinear resampling carries it half a pixel of 20 m further
    saturated = (flags & Flag.SATURATED) != 0
    assert saturated[:, 96:100].all() and not saturated[:, :95].any() and not saturated[:, 101:].any()
    # pixels that are partially corrected, half of B11 and B12, are measurements
    assert not flags_of(READERS["sentinel2"].open(product, replace(ASK, bands=("B12",)))).any()


def test_only_bands_that_are_asked_for_count(tmp_path):
    product = write_safe(tmp_path, SafeOptions(192, has_flaws=True))
    assert not flags_of(READERS["sentinel2"].open(product, replace(ASK, bands=("B02", "B03")))).any()


@pytest.mark.parametrize("write", [write_aws, write_old_safe])
def test_other_layouts_hold_them_under_other_names(tmp_path, write):
    write(tmp_path, SafeOptions(192, baseline="02.06", level="L1C", has_flaws=True))
    reader, path = discover(tmp_path, ASK)[0]
    flags = flags_of(reader.open(path, ASK))
    assert (flags[96:98] & Flag.NODATA).all() and not (flags[:90, :90] & Flag.NODATA).any()


def test_masks_of_the_buckets_have_no_prefix():
    files = QualityFiles({"qi/QUALIT_B02.jp2": "a", "qi/CLASSI_B00.jp2": "b", "qi/DETFOO_B02.jp2": "c"})
    assert [mask.path for mask in (*files.of_band("B02"), *files.clouds())] == ["a", "b"]


def test_p04_a_mask_is_missed_only_where_it_is_required(copied):
    product = copied("sentinel2-L1C")
    next(product.rglob("MSK_QUALIT_B8A.jp2")).unlink()
    reader, required = READERS["sentinel2"], replace(ASK, quality_masks="required")
    assert len(reader.open(product, ASK).masks) == len(BANDS)
    with pytest.raises(
        SceneError, match=r"no quality mask of band B8A \(MSK_QUALIT_B8A.jp2.*quality_masks: auto"
    ):
        reader.open(product, required)
    others = replace(required, bands=("B04", "B11"))
    assert len(reader.open(product, others).masks) == 3
    assert len(reader.open(product, replace(ASK, quality_masks="off")).masks) == 1
    next(product.rglob("MSK_CLASSI_B00.jp2")).unlink()
    with pytest.raises(SceneError, match="no cloud mask"):
        reader.open(product, others)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_p04_a_truncated_mask_is_told(copied, share):
    product = copied("sentinel2-L2A")
    (product / "manifest.safe").unlink()
    path = next(product.rglob("MSK_QUALIT_B04.jp2"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SceneError, match=r"MSK_QUALIT_B04.jp2 cannot be (opened|decoded)"):
        flags_of(READERS["sentinel2"].open(product, ASK))


def test_p05_a_changed_byte_of_a_mask_is_found(copied):
    product = copied("sentinel2-L2A")
    path = next(product.rglob("MSK_QUALIT_B04.jp2"))
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(SceneError, match=r"MSK_QUALIT_B04.jp2 is not what its product"):
        flags_of(READERS["sentinel2"].open(product, ASK))


def test_empty_masks_are_decoded_once_and_never_again(tmp_path, monkeypatch):
    decoded, window = [], RowReader.window
    monkeypatch.setattr(RowReader, "window", lambda self, box: decoded.append(self.path) or window(self, box))
    for seed in (1, 2):
        flags_of(READERS["sentinel2"].open(write_safe(tmp_path, SafeOptions(192, seed)), ASK))
    assert not [path for path in decoded if "20240603" in path.split("_")[2]]


def test_real_masks_tell_of_defective_columns_and_of_partial_correction(real_data):
    """B10 has 4 107 defective pixels; in B12 12 366 are corrected in part, which are measurements."""
    [product] = (real_data / "sentinel2_safe").glob("*.SAFE")
    files = QualityFiles(list_members(product))
    counts = {}
    for band in ("B01", "B10", "B12"):
        [mask] = files.of_band(band)
        own = read_grid(mask.path)
        counts[band] = np.bincount(masks.mask_flags(mask, own, own).ravel(), minlength=2).tolist()[1:]
    assert counts == {"B01": [0], "B10": [4107], "B12": [0]}


def test_real_polygons_tell_of_a_dead_column(real_data):
    [product] = (real_data / "sentinel2_l1c_aws").glob("*.zip")
    scene = READERS["sentinel2_aws"].open(product, Request(SENSOR, ("B12",)))
    [name] = [mask.path for mask in scene.masks if "DEFECT" in mask.path]
    assert name.endswith("qi/MSK_DEFECT_B12.gml")
    [source] = [mask for mask in scene.masks if mask.path == name]
    coarse = radiometry.lay_out(scene, None, None).target
    # the product's images are downsampled: its own pixels are 20 m
    fine = Grid(coarse.crs, Affine(20, 0, coarse.transform.c, 0, -20, coarse.transform.f), 5490, 5490)
    flags = masks.mask_flags(source, fine, fine)
    assert set(np.unique(flags)) == {0, int(Flag.NODATA)}
    # a detector's column, one or two pixels of 20 m wide, from the tile's upper to its lower edge
    wide = (flags != 0).sum(1)
    assert wide.min() >= 1 and wide.max() <= 3
