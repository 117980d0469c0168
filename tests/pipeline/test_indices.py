import numpy as np
import pytest

from pipeline.errors import UnknownNameError
from pipeline.formulas import FLOOR
from pipeline.indices import INDICES, index
from pipeline.sensors import SENSORS


@pytest.mark.parametrize("one", INDICES.values(), ids=lambda i: i.name)
@pytest.mark.parametrize("sensor", SENSORS.values(), ids=lambda s: s.name)
def test_every_index_can_be_computed_from_every_sensor_and_stays_in_range(one, sensor):
    names = [b.name for b in sensor.bands]
    assert [sensor.resolve(role, names).role for role in one.roles] == list(one.roles)
    bands = np.random.default_rng(0).uniform(-0.3, 1.6, (len(one.roles), 50, 50)).astype(np.float32)
    values = one(*bands)
    assert values.dtype == np.float32
    assert values.shape == (50, 50)
    assert np.abs(values).max() <= 1


@pytest.mark.parametrize(
    ("name", "bands", "value"),
    [
        ("NDVI", {"nir": 0.5, "red": 0.1}, 0.4 / 0.6),
        ("NDWI", {"green": 0.08, "nir": 0.02}, 0.6),
        ("NDBI", {"swir1": 0.3, "nir": 0.2}, 0.2),
        ("MNDWI", {"green": 0.1, "swir1": 0.05}, 1 / 3),
        ("NBR", {"nir": 0.3, "swir2": 0.1}, 0.5),
    ],
)
def test_formulas(name, bands, value):
    one = index(name)
    arguments = [np.float32(bands[role]) for role in one.roles]
    assert one(*arguments) == pytest.approx(value, rel=1e-5)


def test_dark_water_gives_no_structure_and_negative_sums_no_nonsense():
    ndvi = index("NDVI")
    dark = ndvi(np.float32([0.001, 0.0, -0.02]), np.float32([0.0, 0.0, -0.01]))
    np.testing.assert_allclose(dark, [0.001 / FLOOR, 0, -0.01 / FLOOR], rtol=1e-5)


def test_an_unknown_index_is_told():
    with pytest.raises(UnknownNameError, match="Did you mean `NDVI`"):
        index("ndvi")
