"""Formulas of spectral indices as text, `(nir - red) / floored(nir + red)`, and as functions of them.

A text is read against a list of what a formula may hold and compiled; it is never run as a program, for it may come
out of somebody else's manifest. It is the whole truth about an index: names are band roles, every guard against small
denominators stands in it, and nothing but numpy is needed to compute it again.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

Array = NDArray[np.float32]
FLOOR = 0.02
"""Smallest denominator, in reflectance: over dark water a tiny one turns sensor noise into structure."""
LONGEST = 1_000
"""Characters of a text: the longest of spyndex's 280 has a quarter of them."""
MOST_BANDS = 6
"""Bands of one formula; the compiled statistics have a form for each number up to here."""
HIGHEST_POWER = 9


def floored(x: Array) -> Array:
    """Return a denominator that is above 0 for any ground, at least `FLOOR`."""
    # negative reflectance is legal, so a sum can be tiny or below zero
    at_least: Array = np.maximum(x, np.float32(FLOOR))
    return at_least


def apart(x: Array) -> Array:
    """Return a denominator that may have either sign, at least `FLOOR` away from 0."""
    away: Array = np.copysign(np.maximum(np.abs(x), np.float32(FLOOR)), x)
    return away


def positive(x: Array) -> Array:
    """Return what a root is taken of: 0 where it is negative."""
    root_of: Array = np.maximum(x, np.float32(0))
    return root_of


def squashed(x: Array) -> Array:
    """Return x / (1 + |x|): any number to between -1 and 1, in the same order and with the same sign."""
    within: Any = x / (np.float32(1) + np.abs(x))
    return within  # type: ignore[no-any-return]


HELPERS: dict[str, Callable[[Array], Array]] = {f.__name__: f for f in (floored, apart, positive, squashed)}
"""What a formula may call: each takes one argument and is compiled with the formula."""


@dataclass(frozen=True)
class Formula:
    """A text that was read."""

    text: str
    names: tuple[str, ...]
    """Its band roles, in order of appearance: the arguments of `function`."""
    function: Callable[..., Array]
    """One float32 array a role, to one of the same shape."""


@lru_cache(maxsize=1024)
def formula(text: str) -> Formula:
    """Read and compile a text; raises `ConfigError` for anything but arithmetic on at most six names."""
    tree = read(text)
    names = names_of(tree)
    if not 1 <= len(names) <= MOST_BANDS:
        raise ConfigError(f"formula `{text}` is of {len(names)} bands; it may be of 1 to {MOST_BANDS}.")
    form = ast.unparse(_Renamed(names).visit(tree))
    return Formula(text, names, _compiled(form, len(names)))


@lru_cache(maxsize=1024)
def _compiled(form: str, count: int) -> Callable[..., Array]:
    """Return one function for all formulas of a form, `(b0 - b1) / floored(b0 + b1)`: statistics compile it once."""
    numbers = _Numbers()
    body = numbers.visit(ast.parse(form, mode="eval").body)
    arguments = ast.arguments([], [ast.arg(f"b{k}") for k in range(count)], None, [], [], None, [])
    made = ast.FunctionDef("formula", arguments, [ast.Return(body)], [])
    module = ast.fix_missing_locations(ast.Module([made], []))
    # the function's code is taken out of the module's, so that nothing is run to make it
    code = next(c for c in compile(module, "<formula>", "exec").co_consts if isinstance(c, CodeType))
    return FunctionType(code, {**HELPERS, **numbers.known}, "formula")


def read(text: str) -> ast.expr:
    """Return the expression of a text; raises `ConfigError` where it holds more than a formula may."""
    try:
        tree = ast.parse(text, mode="eval").body if len(text) <= LONGEST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not _is_formula(tree):
        raise ConfigError(
            f"`{text[:80]}` is no formula: it may hold band roles, numbers, + - * / ** and {', '.join(HELPERS)}."
        )
    return tree


def names_of(tree: ast.expr) -> tuple[str, ...]:
    """Return the names of an expression's variables in order of appearance."""
    if isinstance(tree, ast.Name):
        return (tree.id,)
    found = [name for part in parts(tree) for name in names_of(part)]
    return tuple(dict.fromkeys(found))


def parts(tree: ast.expr) -> list[ast.expr]:
    """Return what an operation or call works on, from left to right."""
    if isinstance(tree, ast.BinOp):
        return [tree.left, tree.right]
    if isinstance(tree, ast.UnaryOp):
        return [tree.operand]
    return tree.args if isinstance(tree, ast.Call) else []


def _is_formula(tree: ast.expr) -> bool:
    match tree:
        case ast.Name(id=name):
            return name not in HELPERS and not name.startswith("_")
        case ast.Constant():
            return _number(tree) is not None
        case ast.BinOp(op=ast.Pow(), left=base, right=power):
            return _is_formula(base) and 0 < (_number(power) or 0) <= HIGHEST_POWER
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div()):
            pass
        case ast.UnaryOp(op=ast.USub()):
            pass
        case ast.Call(func=ast.Name(id=name), args=[_], keywords=[]) if name in HELPERS:
            pass
        case _:
            return False
    return all(map(_is_formula, parts(tree)))


def _number(tree: ast.expr) -> float | None:
    """Return the value of a number; None for anything else."""
    value = tree.value if isinstance(tree, ast.Constant) else None
    # True is a number to Python
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class _Renamed(ast.NodeTransformer):
    """Calls bands by their number."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace a band's name; helpers keep theirs."""
        return ast.Name(f"b{self._names.index(node.id)}") if node.id in self._names else node


class _Numbers(ast.NodeTransformer):
    """Gives every number a name: one of Python's own would make the compiled loop run in float64."""

    def __init__(self) -> None:
        self.known: dict[str, np.float32] = {}

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """Replace a number."""
        name = f"_{len(self.known)}"
        # what `read` let through is a number
        self.known[name] = np.float32(_number(node) or 0)
        return ast.Name(name, ast.Load())

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Leave whole powers as they are."""
        power = _number(node.right)
        # a whole power takes negative numbers, and is compiled to products
        if isinstance(node.op, ast.Pow) and power is not None and power == int(power):
            return ast.BinOp(self.visit(node.left), ast.Pow(), ast.Constant(int(power)))
        return self.generic_visit(node)
