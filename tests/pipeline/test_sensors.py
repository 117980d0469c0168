import pytest

from pipeline.errors import ContractError, UnknownNameError
from pipeline.sensors import SENSORS, sensor


@pytest.mark.parametrize("one", SENSORS.values(), ids=lambda s: s.name)
def test_every_sensor_has_a_sound_band_table(one):
    assert SENSORS[one.name] is one
    names, roles = [b.name for b in one.bands], [b.role for b in one.bands]
    assert len(set(names)) == len(names)
    assert len(set(roles)) == len(roles)
    centres = [b.centre_nm for b in one.bands]
    assert centres == sorted(centres)
    assert all(
        400 < b.centre_nm < 2500 and 0 < b.width_nm < 300 and b.gsd_m in (10, 20, 30, 60) for b in one.bands
    )
    assert {"red", "green", "blue", "nir", "swir1"} <= set(roles)
    assert all(role in roles for stand_ins in one.fallbacks.values() for role in stand_ins)
    assert one.licence


def test_bands_come_in_the_order_they_are_named():
    assert [b.name for b in SENSORS["sentinel2"].select(["B12", "B02"])] == ["B12", "B02"]


def test_p09_misspelt_and_repeated_bands_are_refused():
    with pytest.raises(
        UnknownNameError, match=r"unknown band `b8a` in sensor sentinel2\. Did you mean `B8A`"
    ):
        SENSORS["sentinel2"]["b8a"]
    with pytest.raises(ContractError, match="bands B02 are listed twice"):
        SENSORS["sentinel2"].select(["B02", "B03", "B02"])


def test_a_role_is_played_by_its_band_or_its_stand_in():
    two = SENSORS["sentinel2"]
    assert two.resolve("nir", ["B8A", "B08"]).name == "B08"
    assert two.resolve("nir", ["B8A", "B04"]).name == "B8A"
    with pytest.raises(ContractError, match=r"no `nir` band among B04 .*add B08"):
        two.resolve("nir", ["B04"])


def test_landsat_numbers_mean_other_bands_in_each_family():
    assert SENSORS["landsat_oli"].resolve("nir", ["B4", "B5"]).name == "B5"
    assert SENSORS["landsat_tm"].resolve("nir", ["B4", "B5"]).name == "B4"


def test_an_unknown_sensor_is_told():
    with pytest.raises(UnknownNameError, match="Did you mean `landsat_oli`"):
        sensor("landsat_olli")
