import numpy as np
import pytest

from pipeline.contract import BandContract, BandStatistics, DataContract, normalisation
from pipeline.errors import ContractError, UnknownNameError
from pipeline.sample import NODATA


def contract(**changes) -> DataContract:
    bands = tuple(
        BandContract(name=n, role=r, centre_nm=c, width_nm=30, source_gsd_m=10)
        for n, r, c in (("B03", "green", 560), ("B04", "red", 665), ("B08", "nir", 833))
    )
    fixed = {
        "sensor": "sentinel2",
        "level": "L2A",
        "gsd_m": 10,
        "tile_px": 96,
        "cell_px": 8,
        "resampling": "bilinear",
    }
    return DataContract(
        **fixed | {"bands": bands, "indices": ("NDVI",), "index_bands": {"NDVI": ("B08", "B04")}} | changes
    )


STATISTICS = (
    BandStatistics(n=9, mean=0.2, std=0.1, low=0.1, high=0.5),
    BandStatistics(n=9, mean=0.0, std=0.0, low=0.3, high=0.3),
)
PIXELS = np.array([[[1000, 3000, 9000, -500, NODATA]], [[3000, 3001, 2999, 0, NODATA]]], np.int16)


def test_bands_are_found_by_name():
    assert contract().band_names == ("B03", "B04", "B08")
    assert contract().band_positions(("B08", "B03")) == [2, 0]
    with pytest.raises(UnknownNameError, match="unknown band `B8` in the shard set of sensor sentinel2"):
        contract().band_positions(("B8",))


def test_a_band_twice_is_refused():
    with pytest.raises(ContractError, match="B04 are listed twice"):
        contract().band_positions(("B04", "B03", "B04"))


def test_flags_are_written_out():
    assert contract().flags == {
        "NODATA": 1,
        "SATURATED": 2,
        "CLOUD": 4,
        "SHADOW": 8,
        "CIRRUS": 16,
        "SNOW": 32,
    }


def test_equal_contracts_agree_and_others_are_told_apart():
    contract().require_equal(contract(), "a", "b")
    with pytest.raises(ContractError, match=r"a and b do not hold the same data: tile_px: 96 -> 128"):
        contract().require_equal(contract(tile_px=128), "a", "b")
    contract().require_equal(contract(tile_px=128), "a", "b", free=("tile_px",))


@pytest.mark.parametrize(
    ("level", "quantity"), [("L2A", "L2"), ("L2SP+L2SR", "L2"), ("L1GT+L1TP", "L1"), ("L1C+L2A", "L1+L2")]
)
def test_levels_hold_a_quantity(level, quantity):
    assert contract(level=level).quantity == quantity


def test_bands_that_differ_are_told_one_by_one():
    bands = contract().bands
    wider = contract(bands=(bands[0].model_copy(update={"centre_nm": 561.0}), *bands[1:]))
    with pytest.raises(ContractError, match=r"same data: band\.B03\.centre_nm: 560\.0 -> 561\.0\.$"):
        contract().require_equal(wider, "a", "b")
    with pytest.raises(ContractError, match=r"bands: \['B03', 'B04', 'B08'\] -> \['B08', 'B04', 'B03'\]\.$"):
        contract().require_equal(contract(bands=bands[::-1]), "a", "b")


def test_minmax_maps_quantiles_to_0_and_1_and_clips():
    x = normalisation("minmax", STATISTICS)(PIXELS)
    np.testing.assert_allclose(x[0, 0], [0, 0.5, 1, 0, 0], atol=1e-6)


def test_a_constant_band_stays_finite():
    for kind in ("minmax", "standardise"):
        assert np.isfinite(normalisation(kind, STATISTICS)(PIXELS)).all()


def test_standardise_subtracts_the_mean_and_does_not_clip():
    x = normalisation("standardise", STATISTICS)(PIXELS)
    np.testing.assert_allclose(x[0, 0], [-1, 1, 7, -2.5, 0], atol=1e-5)


def test_none_is_reflectance():
    x = normalisation("none", STATISTICS)(PIXELS)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[0, 0], [0.1, 0.3, 0.9, -0.05, 0], atol=1e-6)
