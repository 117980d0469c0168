"""Configuration models in plain words: what a key takes, and the list of all keys, for terminals and for the docs.

Both are read from the model's JSON schema, so what a field's type, bounds and docstring say is told to people as it
is, in errors and under `--keys`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
WIDTH = 100

_PLAIN = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}
_BOUNDS = {
    "exclusiveMinimum": "greater than",
    "minimum": "at least",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
    # bounds on a union pydantic leaves by its own names
    "gt": "greater than",
    "ge": "at least",
    "lt": "less than",
    "le": "at most",
}


@dataclass(frozen=True)
class Key:
    """One key of a configuration, as people write it."""

    path: str
    """Parts joined by points: `data.image_px`."""
    default: str
    """As one would type it, or `...` where there is none."""
    takes: str
    """Type and bounds in words, and whether the key must be given."""
    says: str
    """The field's docstring."""


@dataclass(frozen=True)
class Place:
    """Where a location within a model leads: as far along it as there are keys."""

    path: tuple[str | int, ...]
    """The part of the location that names keys and positions in lists."""
    takes: str
    """What belongs there, in words."""
    keys: tuple[str, ...]
    """The keys that are known there; empty for a plain value."""


def locate(model: type[BaseModel], location: Sequence[str | int]) -> Place:
    """Follow a pydantic error's location into a model; the names of union members at its end are left out."""
    root = model.model_json_schema()
    node, path = root, []
    # pydantic appends to the location which member of a union it tried: no key, so the walk ends there
    for part in location:
        below = _step(node, part, root)
        if below is None:
            break
        node = below
        path.append(part)
    known = [name for option in _options(node, root) for name in option.get("properties", {})]
    return Place(tuple(path), _words(node, root), tuple(known))


def keys(model: type[BaseModel]) -> list[Key]:
    """Return every key of a model and of the models in it, in the order they are declared."""
    root = model.model_json_schema()
    return list(_keys(_Group(root), root))


def as_yaml(value: Any) -> str:
    """Write a plain value as one would type it after `key=`."""
    if isinstance(value, list):
        return f"[{','.join(as_yaml(item) for item in value)}]"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def listing(model: type[BaseModel]) -> str:
    """Return all keys of a model as text: `key=default`, what it takes, and below that what it means."""
    indent = " " * 4
    return "\n".join(
        f"{key.path}={key.default}  # {key.takes}\n"
        + textwrap.fill(key.says, WIDTH, initial_indent=indent, subsequent_indent=indent)
        for key in keys(model)
    )


def markdown(model: type[BaseModel], but: type[BaseModel] | None = None) -> str:
    """Return all keys as a table for the docs; but: a model whose own keys, as they are there, are left out."""
    known = keys(but) if but else []
    rows = (
        (f"`{key.path}`", f"`{key.default}`" if key.default else "", key.takes, key.says)
        for key in keys(model)
        if key not in known
    )
    lines = (" | ".join(_cell(text) for text in row) for row in rows)
    return "\n".join(
        ["| key | default | takes | meaning |", "|---|---|---|---|", *(f"| {x} |" for x in lines)]
    )


def _cell(text: str) -> str:
    # a docstring's line break would end the row, and a bar the cell
    return " ".join(text.split()).replace("|", r"\|")


@dataclass(frozen=True)
class _Group:
    """A model on the way down through the models in it."""

    schema: Schema
    prefix: str = ""
    defaults: Schema = field(default_factory=dict)
    """What the field that holds it gives its keys, before their own defaults."""
    optional: str = ""
    """The key without which the group is not there; empty where it always is."""


def _keys(group: _Group, root: Schema) -> Iterator[Key]:
    for name, node in group.schema.get("properties", {}).items():
        path, default = group.prefix + name, group.defaults.get(name, node.get("default", ...))
        options = _options(node, root)
        parts = [option for option in options if "properties" in option]
        # a group that is always there is told by its keys alone
        if not parts or default is None:
            must = name in group.schema.get("required", ())
            needed = f"; must be given{' with ' if group.optional else ''}{group.optional}" if must else ""
            shown = "..." if default is ... else as_yaml(default)
            yield Key(path, shown, _words(node, root) + needed, node.get("description", ""))
        given = default if isinstance(default, dict) else {}
        for part in parts:
            yield from _keys(
                _Group(part, f"{path}.", given, path if default is None else group.optional), root
            )
        for item in _items(options, root):
            yield from _keys(_Group(item, f"{path}[].", optional=path), root)


def _items(options: Sequence[Schema], root: Schema) -> list[Schema]:
    """Return the groups of keys that a list may hold."""
    held = [option for node in options for option in _options(node.get("items", {}), root)]
    return [option for option in held if "properties" in option]


def _resolve(node: Schema, root: Schema) -> Schema:
    # older pydantic wraps a reference that has a default into allOf
    reference = (node.get("allOf") or [node])[0].get("$ref")
    definition: Schema = root["$defs"][reference.rpartition("/")[2]] if reference else node
    return definition


def _options(node: Schema, root: Schema) -> list[Schema]:
    """Return what a node may be: itself, or the members of its union."""
    node = _resolve(node, root)
    return [_resolve(option, root) for option in node.get("anyOf", [node])]


def _step(node: Schema, part: str | int, root: Schema) -> Schema | None:
    # the first member that has it: our unions hold one group of keys at most
    for option in _options(node, root):
        below = option.get("properties", {}).get(part, option.get("additionalProperties"))
        if isinstance(part, int) and option.get("type") == "array":
            fixed = option.get("prefixItems", [])
            below = fixed[part] if part < len(fixed) else option.get("items")
        if isinstance(below, dict):
            return below
    return None


def _words(node: Schema, root: Schema) -> str:
    options = [_option_words(option, root) for option in _options(node, root)]
    return _either(options) + (_bounds(node) if len(options) > 1 else "")


def _option_words(node: Schema, root: Schema) -> str:
    choices = node.get("enum", [node["const"]] if "const" in node else [])
    if choices:
        return _either([repr(choice) for choice in choices])
    if "properties" in node:
        return f"a group of keys ({', '.join(node['properties'])})"
    if isinstance(node.get("additionalProperties"), dict):
        return f"keys of your choice, each with {_words(node['additionalProperties'], root)}"
    if node.get("type") == "array":
        return _list_words(node, root)
    if node.get("format") == "path":
        return "a path"
    pattern = f" that matches {node['pattern']}" if "pattern" in node else ""
    return _PLAIN.get(node.get("type", ""), "anything") + pattern + _bounds(node)


def _list_words(node: Schema, root: Schema) -> str:
    fixed = node.get("prefixItems")
    if fixed:
        return f"a list [{', '.join(_words(item, root) for item in fixed)}]"
    least = f", {node['minItems']} or more" if node.get("minItems") else ""
    return f"a list of {_words(node.get('items', {}), root)}{least}"


def _bounds(node: Schema) -> str:
    found = " and ".join(f"{words} {node[name]:g}" for name, words in _BOUNDS.items() if name in node)
    return f"{' of' if found.startswith('at') else ''} {found}" if found else ""


def _either(choices: Sequence[str]) -> str:
    # members of a union may differ in what words do not tell
    *most, last = dict.fromkeys(choices)
    return f"{', '.join(most)} or {last}" if most else last
