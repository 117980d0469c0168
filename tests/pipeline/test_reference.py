from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from pipeline import reference
from pipeline.config import Config, UserPath, parse_yaml


class Part(Config):
    """A part."""

    rate: float = Field(default=0.5, gt=0, le=1)
    """A rate."""
    classes: tuple[str, ...] = Field(min_length=1)
    """Names."""


class Plain(Config):
    """A part with defaults."""

    low: float = 0.1
    high: int = Field(default=3, lt=9)


class Model(Config):
    """One of everything."""

    gsd_m: Literal["native"] | Annotated[float, Field(gt=0)] = "native"
    """Pixel size."""
    most: int | float = Field(default=1e4, ge=0)
    kind: Literal[0, 1, 2] = 1
    betas: tuple[float, float] = (0.9, 0.95)
    place: UserPath = Path("here")
    name: str = Field(pattern=r"^\d$")
    on: bool = True
    plain: Plain = Plain(low=0.2)
    part: Part | None = None
    """A part that may be absent."""
    counts: dict[str, int] = Field(default_factory=dict)
    parts: tuple[Plain | None, ...] = ()


def test_every_key_is_listed_as_it_would_be_typed_with_what_it_takes():
    assert [(k.path, k.default, k.takes) for k in reference.keys(Model)] == [
        ("gsd_m", "native", "'native' or a number greater than 0"),
        ("most", "10000", "a whole number or a number of at least 0"),
        ("kind", "1", "0, 1 or 2"),
        ("betas", "[0.9,0.95]", "a list [a number, a number]"),
        ("place", "here", "a path"),
        ("name", "...", r"text that matches ^\d$; must be given"),
        ("on", "true", "true or false"),
        ("plain.low", "0.2", "a number"),
        ("plain.high", "3", "a whole number less than 9"),
        ("part", "null", "a group of keys (rate, classes) or null"),
        ("part.rate", "0.5", "a number greater than 0 and at most 1"),
        ("part.classes", "...", "a list of text, 1 or more; must be given with part"),
        ("counts", "...", "keys of your choice, each with a whole number"),
        ("parts", "[]", "a list of a group of keys (low, high) or null"),
        ("parts[].low", "0.1", "a number"),
        ("parts[].high", "3", "a whole number less than 9"),
    ]


def test_the_listing_holds_the_docstrings():
    text = reference.listing(Model)
    assert "gsd_m=native  # 'native' or a number greater than 0\n    Pixel size.\n" in text
    assert "part.rate=0.5  # a number greater than 0 and at most 1\n    A rate.\n" in text


class More(Model):
    """Two keys more."""

    files: str = Field(default="", pattern="^(a|b)?$")
    """First line,
    second line."""
    name: str = "another"


def test_the_table_for_the_docs_has_a_row_a_key_and_leaves_out_what_another_model_has():
    head, _, *rows = reference.markdown(More, Model).splitlines()
    assert head == "| key | default | takes | meaning |"
    assert rows == [
        "| `name` | `another` | text |  |",
        r"| `files` |  | text that matches ^(a\|b)?$ | First line, second line. |",
    ]
    assert len(reference.markdown(More).splitlines()) == 2 + len(reference.keys(More))


@pytest.mark.parametrize(
    ("location", "path", "takes"),
    [
        ((), (), "a group of keys"),
        (("gsd_m", "literal['native']"), ("gsd_m",), "'native' or a number"),
        (("betas", 1), ("betas", 1), "a number"),
        (("part", "classes", 3), ("part", "classes", 3), "text"),
        (("part", "unknown"), ("part",), "a group of keys (rate, classes) or null"),
        (("counts", "a"), ("counts", "a"), "a whole number"),
    ],
)
def test_a_location_leads_as_far_as_there_are_keys(location, path, takes):
    found = reference.locate(Model, location)
    assert found.path == path
    assert found.takes.startswith(takes)


def test_the_keys_of_a_place_are_known_through_a_union():
    assert reference.locate(Model, ("part",)).keys == ("rate", "classes")
    assert reference.locate(Model, ("gsd_m",)).keys == ()


@pytest.mark.parametrize("value", [None, True, 3, 0.0002, 1e4, [1, "a"], "text"])
def test_what_is_shown_can_be_typed(value):
    assert parse_yaml(reference.as_yaml(value), "here") == value
