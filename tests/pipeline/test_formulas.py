"""Formulas are read against a list and compiled; nothing else in a text is ever run."""

import numpy as np
import pytest

from pipeline import formulas
from pipeline.errors import ConfigError
from pipeline.formulas import FLOOR, formula


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "nir.real",
        "nir if red else 2",
        "nir ** red",
        "nir ** 99",
        "nir ** -1",
        "lambda: 1",
        "[nir]",
        "nir[0]",
        "nir @ red",
        "abs(nir)",
        "floored(nir, red)",
        "floored(*nir)",
        "floored",
        "nir; red",
        "'nir'",
        "True * nir",
        "1j * nir",
        "_nir",
        "nir < red",
        "f'{nir}'",
        "(x := nir)",
        "",
        "((" * 400,
        "nir + " * 300 + "red",
    ],
)
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(ConfigError, match="is no formula: it may hold band roles"):
        formula(text)


@pytest.mark.parametrize("text", ["1 + 2", " + ".join("abcdefg")])
def test_a_formula_is_of_one_to_six_bands(text):
    with pytest.raises(ConfigError, match="it may be of 1 to 6"):
        formula(text)


def test_a_formula_is_arithmetic_in_float32_on_its_names_in_order():
    found = formula("2.5 * (nir - red) / floored(nir + 6 * red - 7.5 * blue + 1) - -blue ** 2")
    assert found.names == ("nir", "red", "blue")
    nir, red, blue = np.random.default_rng(0).uniform(0.1, 0.6, (3, 40)).astype(np.float32)
    values = found.function(nir, red, blue)
    assert values.dtype == np.float32
    wide = nir.astype(float), red.astype(float), blue.astype(float)
    expected = 2.5 * (wide[0] - wide[1]) / np.maximum(wide[0] + 6 * wide[1] - 7.5 * wide[2] + 1, FLOOR)
    np.testing.assert_allclose(values, expected + wide[2] ** 2, rtol=2e-5)


def test_formulas_of_one_form_share_their_function():
    one, other = formula("(nir - red) / floored(nir + red)"), formula("(green - nir)/floored(green+nir)")
    assert one.function is other.function
    assert one.names != other.names
    # the same letters in another order are another form
    assert formula("(red - nir) / floored(nir + red)").function is not one.function


def test_whole_powers_take_negative_numbers_and_roots_none():
    x = np.float32([-0.3, 0, 0.04])
    np.testing.assert_allclose(formula("nir ** 3.0").function(x), x**3)
    np.testing.assert_allclose(formula("positive(nir) ** 0.5").function(x), [0, 0, 0.2], rtol=1e-6)


def test_helpers_keep_away_from_zero_and_within_one():
    x = np.float32([-5, -0.001, -0.0, 0.0, 0.001, 5])
    np.testing.assert_allclose(formulas.floored(x), [FLOOR] * 5 + [5])
    np.testing.assert_allclose(formulas.apart(x), [-5, -FLOOR, -FLOOR, FLOOR, FLOOR, 5])
    squashed = formulas.squashed(x)
    assert (np.abs(squashed) < 1).all()
    assert (np.diff(squashed) >= 0).all()
    assert (np.sign(squashed) == np.sign(x)).all()
