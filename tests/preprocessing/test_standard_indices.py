"""Standard indices: spyndex itself is the oracle, on every sensor that has the bands."""

from __future__ import annotations

import re

import numpy as np
import pytest
import spyndex

from pipeline import formulas
from pipeline.errors import ConfigError, ContractError, UnknownNameError
from pipeline.formulas import formula
from pipeline.indices import INDICES
from pipeline.saliency import cell_statistics
from pipeline.sample import SCALE
from pipeline.sensors import SENSORS
from preprocessing import kernel, standard_indices
from preprocessing.kernel import Pixels
from preprocessing.standard_indices import LETTERS
from tests.preprocessing.test_settings import config

MSI = tuple(band.name for band in SENSORS["sentinel2"].bands)
OTHER_CONSTANTS = {"SAVI": {"L": 0.5}}
"""Where our own table means something else than spyndex's defaults."""
OTHER_NAMES = {"BSI": "BI"}
"""What spyndex calls an index of our own table."""


def usable(sensor: str = "sentinel2") -> dict[str, str]:
    """Texts of all of spyndex's indices that a sensor gives."""
    bands = [band.name for band in SENSORS[sensor].bands]
    found = {}
    for name in spyndex.indices:
        try:
            found[name] = standard_indices.index(name, sensor, bands).text
        except ContractError:
            continue
    return found


TEXTS = usable()


def oracle(name: str, bands: dict[str, np.ndarray]) -> np.ndarray:
    """What spyndex says, by its own letters and constants."""
    numbers = {key: one.default for key, one in spyndex.constants.items() if one.default is not None}
    wavelengths = {
        f"lambda{letter}": SENSORS["sentinel2"].resolve(role, MSI).centre_nm
        for letter, role in LETTERS.items()
    }
    given = {letter: bands[role] for letter, role in LETTERS.items()}
    wanted = spyndex.indices[name].bands
    known = numbers | wavelengths | given | OTHER_CONSTANTS.get(name, {})
    return np.asarray(spyndex.computeIndex(name, params={k: known[k] for k in wanted}), np.float64)


def reflectance(low: float, high: float, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {role: rng.uniform(low, high, 400) for role in LETTERS.values()}


def bare(text: str) -> str:
    """A text without guards and bounds."""
    return re.sub("|".join(formulas.HELPERS), "", text)


def test_nearly_all_of_spyndex_is_there():
    # the others are of radar, heat, kernels, yellow light, and one of nm (S2REP)
    assert len(TEXTS) == 238
    assert {"AWEIsh", "BAI", "CIG", "CRSWIR", "FAI", "MCARI", "NDREI", "OSAVI"} <= TEXTS.keys()
    assert len(usable("landsat_oli")) == 189
    assert len(usable("landsat_tm")) == 184


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_without_guards_every_index_is_spyndexs_own(name):
    bands = reflectance(0.05, 0.6)
    found = formula(bare(TEXTS[name]))
    with np.errstate(invalid="ignore"):
        values, expected = found.function(*(bands[role] for role in found.names)), oracle(name, bands)
    # constants are float32, everything else float64 here; a term near 0 keeps no digits
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_guards_change_nothing_on_bright_ground_and_keep_the_rest_finite(name):
    bands = reflectance(0.3, 0.6)
    text = TEXTS[name]
    found = formula(text.removeprefix("squashed"))
    with np.errstate(invalid="ignore"):
        values, expected = found.function(*(bands[role] for role in found.names)), oracle(name, bands)
    near = np.isclose(values, expected, rtol=1e-4, atol=1e-4)
    # differences of two bands may be small on any ground, and negative under a root
    differs = any(word in text for word in ("apart", "positive", "7.5 * blue"))
    assert near.mean() > (0.5 if differs else 0.99)
    index = standard_indices.index(name, "sentinel2", MSI)
    for low, high in ((-0.2, 0.05), (-0.2, 1.6), (0, 0)):
        wide = reflectance(low, high, 1)
        result = index(*(wide[role].astype(np.float32) for role in index.roles))
        assert np.isfinite(result).all()
        assert np.abs(result).max() <= 1


@pytest.mark.parametrize("name", sorted(INDICES))
def test_our_own_table_means_what_spyndex_means_by_the_name(name):
    # blue of ground and not of clouds: EVI's denominator is to be above 0
    bands = reflectance(0.1, 0.4) | {"blue": reflectance(0.05, 0.1)["blue"]}
    found = formula(INDICES[name].text)
    values, expected = (
        found.function(*(bands[role] for role in found.names)),
        oracle(OTHER_NAMES.get(name, name), bands),
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert standard_indices.index(name, "sentinel2", MSI) is INDICES[name]


@pytest.mark.parametrize("name", ["AWEIsh", "BAI", "MCARI2", "TWI", "CSIwoSWIR", "IBI", "AVI"])
def test_one_to_six_bands_are_compiled_to_the_same_numbers(name):
    index = standard_indices.index(name, "sentinel2", MSI)
    rng = np.random.default_rng(2)
    stack = rng.integers(-300, 7000, (len(index.roles), 32, 48)).astype(np.int16)
    counted = rng.random((32, 48)) > 0.2
    plain = cell_statistics(index(*(stack.astype(np.float32) * np.float32(SCALE))), counted, 8)
    found = kernel.cell_statistics(index, Pixels(stack, range(len(stack))), counted, 8)
    np.testing.assert_allclose(found, plain, rtol=0, atol=2e-6)


def test_what_leaves_minus_one_to_one_is_squashed_in_the_same_order():
    assert TEXTS["SR"] == "squashed(nir / floored(red))"
    assert TEXTS["GNDVI"] == "(nir - green) / floored(nir + green)"
    nir, red = np.float32([0.1, 0.2, 0.4]), np.float32(0.1)
    ratio = standard_indices.index("SR", "sentinel2", MSI)(nir, red)
    np.testing.assert_allclose(ratio, nir / (nir + red), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "sensor", "told"),
    [
        ("NBRT1", "sentinel2", r"needs T \(Thermal Infrared\), which no band of Sentinel-2 MSI gives"),
        ("VVVHR", "sentinel2", "needs V[VH], which no band"),
        ("kNDVI", "sentinel2", "needs kN[NR], which no band"),
        ("NIRvP", "sentinel2", r"needs PAR \(Photosynthetically Active Radiation\)"),
        ("NDREI", "landsat_oli", r"needs RE1 \(Red Edge 1\), which no band of Landsat 8-9 OLI gives"),
        ("S2REP", "sentinel2", "S2REP is 70.* on ordinary ground"),
    ],
)
def test_what_a_sensor_cannot_give_is_told(name, sensor, told):
    with pytest.raises(ContractError, match=told):
        standard_indices.index(name, sensor, [band.name for band in SENSORS[sensor].bands])


def test_landsats_near_infrared_serves_for_both_of_spyndexs():
    bands = ["B2", "B3", "B4", "B5", "B6", "B7"]
    made = config(sensor="landsat_oli", bands=bands, indices=["GNDVI", "NBRplus", "FAI"])
    assert made.index_bands("GNDVI") == ("B5", "B3")
    assert made.index_bands("NBRplus") == ("B7", "B5", "B3", "B2")
    assert made.fallbacks() == ("nir_narrow is B5 (nir): no nir_narrow band was asked for",)
    # the band's own wavelengths, 864.67, 654.59 and 1608.86 nm
    assert str(round((864.67 - 654.59) / (1608.86 - 654.59), 6)) in made.index("FAI").text


def test_names_are_checked_with_the_configuration():
    with pytest.raises(ConfigError, match=r"`indices`: unknown index `GNDVY`\. Did you mean `GNDVI`"):
        config(indices=["GNDVY"])
    with pytest.raises(ConfigError, match=r"`indices`: no `rededge1` band among .*: add B05 to `bands`"):
        config(indices=["NDREI"])
    with pytest.raises(UnknownNameError, match=r"Known: NDVI, .* and the 280 of spyndex"):
        standard_indices.index("qqqqqqqqqq", "sentinel2", MSI)
