"""One strict way from YAML and `a.b=c` words to frozen configuration models.

Models live beside their owner and derive from `Config`; this file only loads them. PyYAML's surprises are
closed here: duplicate keys are refused, `1e-4` is a number, `on` and `0123` are not turned into something else,
and no tag can build a Python object.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline import reference
from pipeline.errors import ConfigError, MissingInputError, did_you_mean
from pipeline.reference import Place, as_yaml

ROOT = Path(__file__).resolve().parent.parent
COMMAND_LINE = "the command line"
"""Where a configuration is from when there is no file."""

UserPath = Annotated[Path, AfterValidator(lambda path: path.expanduser())]
"""A path as people write it: `~` is expanded, relative paths are relative to the working directory."""


class Config(BaseModel):
    """Base of every configuration model: frozen, no unknown keys, docstrings become the reference."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2's plain scalars on PyYAML's safe loader, with duplicate keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            # PyYAML keeps the last one silently
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` stands here twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _StrictDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting also the words only our loader takes for numbers (`1e-4`)."""


_EXPONENT = r"(?:[eE][-+]?[0-9]+)"
# YAML 1.1 would read `on` as true, `0123` as 83 and `1e-4` as text
_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|false|True|False)$", "tfTF"),
    ("null", r"^(?:~|null|Null|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    (
        "float",
        rf"^[-+]?(?:[0-9][0-9_]*\.[0-9]*{_EXPONENT}?|\.[0-9]+{_EXPONENT}?|[0-9][0-9_]*{_EXPONENT})$",
        "-+0123456789.",
    ),
):
    for _reader_or_writer in (_StrictLoader, _StrictDumper):
        _reader_or_writer.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first)
        )


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML `text`; `where` names its origin in errors.

    Raises `ConfigError` with line and column for anything but plain, unambiguous YAML.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError) as error:  # a tag that lies (`!!int x`) is a ValueError
        mark = getattr(error, "problem_mark", None)
        at = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{at}: {problem}. Correct the file and start again.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file that holds a mapping; an empty file is an empty mapping.

    Raises `MissingInputError` where there is none, and `ConfigError` for what is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingInputError(f"no configuration at {path}. {_nearby(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    tree = parse_yaml(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, not `key: value` lines.")
    return tree


def _nearby(path: Path) -> str:
    """Name the configurations that stand where the missing one was looked for."""
    there = sorted(path.parent.glob("*.yaml")) or sorted((ROOT / "configs").glob("*/*.yaml"))
    return did_you_mean(str(path), [str(p) for p in there]).strip() or "Give the path of a YAML file."


def apply_words(tree: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return `tree` with every `a.b=c` word set; the value is YAML (`bands=[B02,B03]`, `seed=1`).

    Raises `ConfigError` for a word of another form, or one that reaches into a plain value.
    """
    result = dict(tree)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"`{word}` is not of the form key.subkey=value.")
        _set(result, key.split("."), parse_yaml(text, f"the word {word}"), word)
    return result


def _set(tree: dict[str, Any], keys: list[str], value: Any, word: str) -> None:
    head, *rest = keys
    if not rest:
        tree[head] = value
        return
    # a key set to nothing in the file may get keys by words
    branch = tree.get(head) or {}
    if not isinstance(branch, dict):
        raise ConfigError(f"`{word}`: `{head}` holds a value, not keys of its own.")
    tree[head] = dict(branch)
    _set(tree[head], rest, value, word)


def load(model: type[ConfigT], path: Path | None, words: Sequence[str] = ()) -> ConfigT:
    """Load `model` from a YAML file (or none) and `a.b=c` words, which win.

    Raises `ConfigError` naming the file or the word, the key path and, for a misspelt key, the nearest known one,
    and `MissingInputError` for a file that is not there.
    """
    tree = apply_words(read_yaml(path) if path else {}, words)
    where = str(path) if path else COMMAND_LINE
    return build(model, tree, where, words)


def build(model: type[ConfigT], tree: dict[str, Any], where: str, words: Sequence[str] = ()) -> ConfigT:
    """Validate a plain `tree` as `model`; all problems are told at once.

    Raises `ConfigError` that names `where` the tree is from, or the word among `words` that set the key.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        told: dict[str, dict[str, None]] = {}
        for problem in error.errors():
            place = _place(model, problem)
            # a union tells one problem for each of its members; in our words they are the same
            told.setdefault(_origin(place, where, words), {})[_explain(place, problem)] = None
        raise ConfigError("; ".join(f"{at}: {'; '.join(lines)}" for at, lines in told.items())) from error


def _place(model: type[BaseModel], problem: ErrorDetails) -> Place:
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        # an unknown key leads nowhere, and yet it is what must be named
        return replace(reference.locate(model, location[:-1]), path=location)
    # a list too short is wrong as a whole: its missing item is no key
    short = problem["type"] == "missing" and isinstance(location[-1], int)
    return reference.locate(model, location[:-1] if short else location)


def _origin(place: Place, where: str, words: Sequence[str]) -> str:
    """Say what set the value at a place: the last word that reaches it, or else the file."""
    path = [str(part) for part in place.path]
    # of words for the same key the last one wins
    for word in reversed(words):
        keys = word.partition("=")[0].split(".")
        if path[: len(keys)] == keys:
            return f"the word {word}"
    # checks of several keys cannot know which of them is wrong
    below = any(word.partition("=")[0].split(".")[: len(path)] == path for word in words)
    return f"{where} and {COMMAND_LINE}" if below and where != COMMAND_LINE else where


def _explain(place: Place, problem: ErrorDetails) -> str:
    """Turn one pydantic problem into `key.path: what is wrong, what to do`."""
    key = ".".join(str(part) for part in place.path)
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`.{did_you_mean(str(place.path[-1]), place.keys)}"
    if problem["type"] == "missing" and place.path == problem["loc"]:
        return f"`{key}` is not set: add it to the file or give {key}=... on the command line"
    if problem["type"] == "value_error":
        return f"`{key}`: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    found = problem["input"]
    return f"`{key}`: must be {place.takes}, not {repr(found) if isinstance(found, str) else as_yaml(found)}"


def dump(config: Config) -> str:
    """Write a configuration as YAML that `load` reads back to an equal one."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to `a.b` keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List `key: old -> new` for every flattened key in which two trees differ."""
    before, after = flatten(old), flatten(new)
    keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    return [f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in keys]
