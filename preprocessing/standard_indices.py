"""Any of spyndex's 280 standard indices by name, on the bands of our own sensors.

The one file that imports spyndex, which is optional, at first use. An index comes out of it as a text in band roles
with all its constants and guards (`pipeline.formulas`), which the manifest records: whoever reads a set needs no
spyndex. Names of our own table mean the same there and come first.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from pipeline import formulas
from pipeline.errors import ContractError, MissingPackageError, UnknownNameError, did_you_mean
from pipeline.formulas import FLOOR
from pipeline.indices import INDICES, Index
from pipeline.sensors import Sensor, sensor
from preprocessing.simulation.spectra import MATERIALS

LETTERS = {
    "A": "coastal", "B": "blue", "G": "green", "R": "red", "RE1": "rededge1", "RE2": "rededge2", "RE3": "rededge3",
    "N": "nir", "N2": "nir_narrow", "WV": "water_vapour", "S1": "swir1", "S2": "swir2",
}  # fmt: skip
"""Spyndex's letter -> band role. Its own map of sensors is not used: it has no N for Landsat 8 and 9."""
WAVELENGTH = "lambda"
"""Before a letter: the band's centre wavelength in nm, which spyndex leaves to its caller."""
INSTALL = "pip install -c constraints.txt -e '.[spyndex]'"
BOUNDED = 0.99
"""An index is clipped where this share of ordinary ground lies within [-1, 1], and squashed where not."""
LEAST_SPREAD = 0.01
"""Between the quartiles of ordinary ground, after squashing."""


def index(name: str, sensor_name: str, bands: Sequence[str]) -> Index:
    """Return the index called `name`, of our table or of spyndex, for the bands of a sensor that are stored.

    Raises `UnknownNameError` with the nearest name of both, `MissingPackageError` where only spyndex could know it and
    is not installed, and `ContractError` where the bands do not give it.
    """
    return INDICES[name] if name in INDICES else _standard(name, sensor_name, tuple(bands))


# remembered: an index is asked for with every strip of every scene
@lru_cache(maxsize=512)
def _standard(name: str, sensor_name: str, bands: tuple[str, ...]) -> Index:
    spyndex = _spyndex(name)
    if name not in spyndex.indices:
        raise _unknown(name, list(spyndex.indices))
    found = spyndex.indices[name]
    known = partial(_meaning, found.short_name, spyndex, sensor(sensor_name), bands)
    text = ast.unparse(guarded(_Substitute(known).visit(ast.parse(found.formula, mode="eval").body)))
    return Index(name, str(found.long_name), bounded(name, text))


def _unknown(name: str, standard: Sequence[str]) -> UnknownNameError:
    near = did_you_mean(name, [*INDICES, *standard])
    # no list of 280 on the screen
    known = f" Known: {', '.join(INDICES)}, and the {len(standard)} of spyndex."
    return UnknownNameError(f"unknown index `{name}`.{near if 'Did you mean' in near else known}")


def _spyndex(name: str) -> Any:
    try:
        import spyndex
    except ImportError as error:
        near = did_you_mean(name, INDICES)
        raise MissingPackageError(
            f"the table has no index `{name}`.{near} If it is one of spyndex's, install that: {INSTALL}"
        ) from error
    return spyndex


def _meaning(
    index_name: str, spyndex: Any, instrument: Sensor, bands: tuple[str, ...], name: str
) -> ast.expr:
    """Return what a name in one of spyndex's formulas stands for: a band role or a number."""
    role = LETTERS.get(name.removeprefix(WAVELENGTH), "")
    if role in {band.role for band in instrument.bands} | instrument.fallbacks.keys():
        # where the band is not among those that are stored, the error says what to add
        band = instrument.resolve(role, bands)
        return ast.Name(role) if name in LETTERS else ast.Constant(band.centre_nm)
    constant = spyndex.constants.get(name)
    if constant is not None and constant.default is not None:
        return ast.Constant(constant.default)
    described = spyndex.bands.get(name) or constant
    what = (
        f"{name} ({described.long_name if name in spyndex.bands else described.description})"
        if described
        else name
    )
    raise ContractError(
        f"spyndex's index {index_name} needs {what}, which no band of {instrument.title} gives: leave it out."
    )


class _Substitute(ast.NodeTransformer):
    """Puts band roles and numbers in the place of spyndex's names, and computes what is of numbers alone."""

    def __init__(self, meaning: Callable[[str], ast.expr]) -> None:
        self._meaning = meaning

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace a name."""
        return self._meaning(node.id)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """Compute the negative of a number."""
        return _folded(self.generic_visit(node))

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Compute what is of two numbers."""
        return _folded(self.generic_visit(node))


_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: pow
}  # fmt: skip


def _folded(tree: ast.AST) -> ast.AST:
    """Return the number that an operation on numbers gives; anything else as it is."""
    match tree:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=float() | int() as x)):
            return ast.Constant(-x)
        case ast.BinOp(
            op=kind,
            left=ast.Constant(value=float() | int() as a),
            right=ast.Constant(value=float() | int() as b),
        ):
            return ast.Constant(_OPERATIONS[type(kind)](a, b))
    return tree


def guarded(tree: ast.expr) -> ast.expr:
    """Return a formula whose denominators stay away from 0, and whose roots are of what is not negative.

    Over dark water a tiny denominator turns noise into structure, as in our own table; a root of a negative number is
    taken for 0, as the authors of such indices say (AVI: Rikimaru et al. 2002).
    """
    match tree:
        case ast.BinOp(left=a, op=ast.Div(), right=b):
            return ast.BinOp(guarded(a), ast.Div(), denominator(b))
        case ast.BinOp(left=a, op=ast.Pow(), right=ast.Constant(value=float() | int() as power)):
            # reflectance itself may be below 0
            base = guarded(a) if power == int(power) else _call("positive", guarded(a))
            return ast.BinOp(base, ast.Pow(), ast.Constant(power))
        case ast.BinOp(left=a, op=kind, right=b):
            return ast.BinOp(guarded(a), kind, guarded(b))
        case ast.UnaryOp(op=kind, operand=a):
            return ast.UnaryOp(kind, guarded(a))
    return tree


def denominator(tree: ast.expr) -> ast.expr:
    """Return a denominator that stays away from 0: factor by factor, each by the floor in its own power."""
    match tree:
        case ast.Constant():
            return tree
        case ast.BinOp(left=a, op=ast.Mult() | ast.Div() as kind, right=b):
            return ast.BinOp(denominator(a), kind, denominator(b))
        case ast.BinOp(left=a, op=ast.Pow(), right=ast.Constant(value=float() | int() as power)):
            whole = power == int(power) or is_positive(a)
            return ast.BinOp(denominator(a) if whole else _floored(a), ast.Pow(), ast.Constant(power))
    return _floored(tree) if is_positive(tree) else _call("apart", guarded(tree))


def _floored(tree: ast.expr) -> ast.expr:
    """Return at least the floor, or its square where the term is a sum of squares."""
    scale = FLOOR ** (1 - max(_degree(tree), 1))
    if scale == 1:
        return _call("floored", guarded(tree))
    large = ast.BinOp(ast.Constant(scale), ast.Mult(), guarded(tree))
    return ast.BinOp(_call("floored", large), ast.Div(), ast.Constant(scale))


def _call(helper: str, argument: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(helper), [argument], [])


def is_positive(tree: ast.expr) -> bool:
    """Say whether a term is above 0 for all positive reflectance, as its form shows."""
    match tree:
        case ast.Name():
            return True
        case ast.Constant(value=float() | int() as number):
            return number >= 0
        case ast.BinOp(op=ast.Pow(), left=base, right=ast.Constant(value=float() | int() as power)):
            return power % 2 == 0 or is_positive(base)
        case ast.BinOp(op=ast.Add() | ast.Mult() | ast.Div(), left=a, right=b):
            return is_positive(a) and is_positive(b)
    return False


def _degree(tree: ast.expr) -> float:
    """Return with which power of reflectance a term goes to 0."""
    match tree:
        case ast.Name():
            return 1
        case ast.BinOp(op=ast.Pow(), left=base, right=ast.Constant(value=float() | int() as power)):
            return _degree(base) * power
        case ast.BinOp(op=kind, left=a, right=b):
            one, other = _degree(a), _degree(b)
            joined = {ast.Mult: one + other, ast.Div: one - other, ast.Add: min(one, other)}
            # a difference is 0 where its parts are equal
            return joined.get(type(kind), max(one, other))
    return 0


def bounded(name: str, text: str) -> str:
    """Return a text whose values lie within [-1, 1], where saliency compares indices.

    What ordinary ground keeps there is left as it is, and clipped beyond like every index. What leaves it (ratios,
    counts of nm) is squashed by x / (1 + |x|), which keeps order and sign: N/R so becomes N/(N + R), which is what a
    normalised difference says. Raises `ContractError` where squashing leaves no differences.
    """
    found = formulas.formula(text)
    ground = ordinary_ground()
    values = found.function(*(ground[role] for role in found.names))
    if np.mean(np.abs(values) <= 1) >= BOUNDED:
        return text
    low, high = np.quantile(formulas.squashed(values), [0.25, 0.75])
    if high - low < LEAST_SPREAD:
        ends = "to".join(f" {v:.4g} " for v in np.quantile(values, [0.01, 0.99]))
        raise ContractError(
            f"spyndex's index {name} is{ends}on ordinary ground: within [-1, 1], where saliency compares indices,"
            " nothing of its differences would be left. Leave it out."
        )
    return f"squashed({text})"


@lru_cache(maxsize=1)
def ordinary_ground() -> dict[str, formulas.Array]:
    """Return reflectance by band role of mixtures of two materials, dark and bright."""
    bands = {band.role: band.centre_nm for band in sensor("sentinel2").bands}
    table = np.array([[material.at(bands[role]) for role in LETTERS.values()] for material in MATERIALS])
    pairs = [a * share + b * (1 - share) for a in table for b in table for share in (0.0, 0.3, 0.5)]
    mixed = np.concatenate([np.array(pairs) * light for light in (0.7, 1.0, 1.3)]).astype(np.float32)
    return dict(zip(LETTERS.values(), mixed.T, strict=True))
