from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, model_validator

from pipeline import config
from pipeline.config import Config, UserPath
from pipeline.errors import ConfigError, MissingInputError


class Inner(Config):
    """Part of a model."""

    rate: float = 0.1
    """A rate."""
    steps: int = Field(default=3, ge=1)
    """A count."""


class Model(Config):
    """A model with one of everything."""

    name: str = "x"
    """A name."""
    path: UserPath = Path("here")
    """A path."""
    bands: tuple[str, ...] = ()
    """Names."""
    inner: Inner = Inner()
    """A part."""
    maybe: Inner | None = None
    """A part that may be absent."""
    size: Literal["native"] | Annotated[float, Field(gt=0)] = "native"
    """A union."""
    pair: tuple[int, int] = (1, 2)
    """Two."""

    @model_validator(mode="after")
    def _bands_fit(self):
        if len(self.bands) > self.pair[1]:
            raise ValueError("more bands than pair allows; change one of them")
        return self


class Needy(Config):
    """A model with a key that must be given."""

    must: int
    """Required."""


def load(tmp_path, text: str, *words: str) -> Model:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(Model, path, words)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5E3", 1500.0),
        ("-2e2", -200.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("007", "007"),
        ("0123", "0123"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        ("12:30:45", "12:30:45"),
        ("[B02, B8A, 1]", ["B02", "B8A", 1]),
    ],
)
def test_p17_plain_words_mean_what_they_look_like(text, value):
    found = config.parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\nname: b\n", r"c\.yaml, line 2, column 1: the key `name` stands here twice"),
        ("inner:\n  rate: 1\n  rate: 2\n", "the key `rate` stands here twice"),
        ("nam: a\n", r"c\.yaml: unknown key `nam`\. Did you mean `name`"),
        ("inner: {stps: 2}\n", r"unknown key `inner\.stps`\. Did you mean `steps`"),
        ("maybe: {stps: 2}\n", r"unknown key `maybe\.stps`\. Did you mean `steps`"),
        ("inner: {steps: two}\n", r"`inner\.steps`: must be a whole number of at least 1, not 'two'$"),
        ("inner: {steps: 0}\n", r"`inner\.steps`: must be a whole number of at least 1, not 0$"),
        ("size: foo\n", r"c\.yaml: `size`: must be 'native' or a number greater than 0, not 'foo'$"),
        ("size: -3\n", r"c\.yaml: `size`: must be 'native' or a number greater than 0, not -3$"),
        ("pair: [1]\n", r"`pair`: must be a list \[a whole number, a whole number\], not \[1\]$"),
        ("pair: [1, x]\n", r"`pair\.1`: must be a whole number, not 'x'$"),
        ("name:\n", r"`name`: must be text, not null$"),
        ("inner: 3\n", r"`inner`: must be a group of keys \(rate, steps\), not 3$"),
        ("bands: [a, b, c]\n", r"c\.yaml: more bands than pair allows; change one of them$"),
        ("inner: {rate: .nan}\n", r"`inner\.rate`"),
        ("- a\n- b\n", r"holds list, not `key: value` lines"),
        ("name: [\n", r"c\.yaml, line"),
        ("name: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("? [a, b]\n: c\n", r"c\.yaml, line 1.*a key must be a word"),
        ("inner: {steps: !!int many}\n", r"c\.yaml"),
    ],
)
def test_p17_everything_else_is_refused_with_its_place(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, text)


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"`inner\.steps`.*; unknown key `nam`"):
        load(tmp_path, "nam: a\ninner: {steps: 0}\n")


def test_words_win_and_reach_into_parts(tmp_path):
    loaded = load(
        tmp_path,
        "name: a\ninner: {rate: 0.5}\n",
        "inner.steps=7",
        "bands=[B02,B03]",
        "name=1e3x",
        "maybe.rate=1e-2",
    )
    assert (loaded.name, loaded.inner, loaded.bands) == ("1e3x", Inner(rate=0.5, steps=7), ("B02", "B03"))
    assert loaded.maybe == Inner(rate=0.01)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("inner", "not of the form"),
        ("=1", "not of the form"),
        ("name.sub=1", "`name` holds a value"),
        ("inner.steps=two", r"inner\.steps"),
        ("name=[", "the word name="),
    ],
)
def test_words_that_do_not_fit_are_told(tmp_path, word, told):
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, "name: a\n", word)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["size=foo"], r"^the word size=foo: `size`: must be 'native' or [^;]*, not 'foo'$"),
        (["inner={steps: two}"], r"^the word inner=\{steps: two\}: `inner\.steps`"),
        (["nam=x"], r"^the word nam=x: unknown key `nam`\. Did you mean `name`"),
        (["inner.stps=1"], r"^the word inner\.stps=1: unknown key `inner\.stps`\. Did you mean `steps`"),
        # the last of two words wins, and is the one to blame
        (["pair=3", "pair=[x,1]"], r"^the word pair=\[x,1\]: `pair\.0`"),
        # a check of several keys
        (["bands=[a,b,c]"], r"c\.yaml and the command line: more bands than pair allows"),
        # what the file says is the file's
        (["name=x"], r"c\.yaml: `inner\.rate`: must be a number, not 'much'$"),
    ],
)
def test_the_word_is_named_that_set_the_value(tmp_path, words, told):
    text = "inner: {rate: much}\n" if words == ["name=x"] else "name: a\n"
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, text, *words)


def test_problems_of_file_and_words_are_told_each_with_its_place(tmp_path):
    told = r"c\.yaml: `inner\.rate`: .*; the word size=-1: `size`: .*; the word nam=x: unknown key `nam`"
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, "inner: {rate: much}\n", "size=-1", "nam=x")


def test_words_do_not_change_the_tree_they_are_applied_to():
    tree = {"inner": {"rate": 1}}
    assert config.apply_words(tree, ["inner.rate=2"]) == {"inner": {"rate": 2}}
    assert tree == {"inner": {"rate": 1}}


def test_a_missing_key_is_told_with_both_ways_to_give_it():
    with pytest.raises(ConfigError, match=r"the command line: `must` is not set: .* must=\.\.\."):
        config.load(Needy, None)


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "oscd.yaml").touch()
    with pytest.raises(
        MissingInputError, match=r"no configuration at .*oscdd\.yaml.*Did you mean .*oscd\.yaml"
    ):
        config.load(Model, tmp_path / "oscdd.yaml")


def test_a_file_that_is_no_text_is_told(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        config.load(Model, tmp_path / "c.yaml")


def test_p16_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.build(Model, {"path": "~/ü b"}, "test").path == tmp_path / "ü b"


@pytest.mark.parametrize(
    "name", ["x", "ü b", "1e-4", "on", "0123", "null", "1_000", "12", "a: b", "- x", "#"]
)
def test_dump_and_load_give_an_equal_model(tmp_path, name):
    model = Model(name=name, bands=("B02", "1e5"), inner=Inner(rate=1e-7, steps=9), maybe=Inner())
    assert load(tmp_path, config.dump(model)) == model


def test_models_are_frozen_and_their_docstrings_are_the_reference():
    with pytest.raises(ValueError, match="frozen"):
        Model().name = "y"
    assert Model.model_fields["bands"].description == "Names."


def test_differences_are_listed_by_key():
    old, new = {"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [2], "d": 2}, "e": {}}
    assert config.differences(old, new) == ["b.c: [1] -> [2]", "e: None -> {}"]
    assert config.differences(old, old) == []


def test_what_is_dumped_is_plain_yaml():
    assert yaml.safe_load(config.dump(Model()))["inner"] == {"rate": 0.1, "steps": 3}
