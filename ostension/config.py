"""Configurations as frozen dataclasses: strict reading, plain writing, a hash, and a list of what changed.

The dataclasses live beside the code that they configure; this file turns them into JSON trees and back.
Unknown keys fail, and so do values of another type: a setting that would have no effect is an error.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ostension.errors import ConfigError, nearest
from ostension.files import sha256_json

T = TypeVar("T")


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise a `ConfigError` about `key` unless `condition` holds; for use in `__post_init__`."""
    if not condition:
        raise ConfigError(f"{key} is {value!r}", expected=expected)


def to_tree(config: Any) -> Any:
    """A configuration as plain JSON values (tuples become lists, paths become strings)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_tree(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_tree(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_tree(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    return config


def from_tree(cls: type[T], tree: Any, source: object = None) -> T:
    """Build the dataclass `cls` from a JSON tree.

    A union of dataclasses is told apart by the `kind` field, a `Literal` in each of them.

    Raises:
        ConfigError: for unknown or missing keys, values of another type, or values that `cls` refuses.
    """
    return _read(cls, tree, "", source)


def config_hash(config: Any) -> str:
    """The SHA-256 of a configuration's JSON tree."""
    return sha256_json(to_tree(config))


def changed_keys(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys at which two JSON trees differ, each with its old and its new value (None where absent)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        changes: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            changes.update(changed_keys(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key)))
        return changes
    return {} if old == new else {prefix: (old, new)}


def _read(kind: Any, value: Any, key: str, source: object) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        if value in arguments and type(value) in {type(option) for option in arguments}:
            return value
        raise _wrong(key, value, "one of " + ", ".join(repr(option) for option in arguments), source)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value, key, source)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, key, source)
    if origin in (tuple, list):
        return _read_sequence(origin, arguments, value, key, source)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(key, value, "a table", source)
        return {name: _read(arguments[1], item, f"{key}.{name}", source) for name, item in value.items()}
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if kind is type(None) and value is None:
        return None
    raise _wrong(key, value, f"a value of type {getattr(kind, '__name__', kind)}", source)


def _read_dataclass(cls: type, tree: Any, key: str, source: object) -> Any:
    if dataclasses.is_dataclass(tree) and isinstance(tree, cls):
        return tree
    if not isinstance(tree, Mapping):
        raise _wrong(key, tree, f"a table with the settings of {cls.__name__}", source)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in tree:
        if name not in fields:
            close = ", ".join(repr(match) for match in nearest(str(name), fields))
            dotted = f"{key}.{name}" if key else name
            raise ConfigError(f"unknown setting {dotted!r}", source=source, expected=f"a known one; nearest: {close}")
    values = {name: _read(hints[name], value, f"{key}.{name}" if key else name, source) for name, value in tree.items()}
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"the setting {f'{key}.{name}' if key else name!r} is missing", source=source)
    try:
        return cls(**values)
    except ConfigError as error:
        if source is None or error.source is not None:
            raise
        raise ConfigError(error.what, source=source, expected=error.expected, fix=error.fix) from None


def _read_union(arguments: tuple, value: Any, key: str, source: object) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [option for option in arguments if option is not type(None)]
    tagged = [option for option in options if dataclasses.is_dataclass(option)]
    if len(tagged) > 1 and isinstance(value, Mapping):
        by_kind = {typing.get_args(typing.get_type_hints(option)["kind"])[0]: option for option in tagged}
        if not isinstance(value.get("kind"), str) or value["kind"] not in by_kind:
            raise _wrong(f"{key}.kind" if key else "kind", value.get("kind"), "one of " + ", ".join(map(repr, by_kind)), source)
        return _read(by_kind[value["kind"]], value, key, source)
    if len(options) == 1:
        return _read(options[0], value, key, source)
    for option in options:
        try:
            return _read(option, value, key, source)
        except ConfigError:
            continue
    raise _wrong(
        key, value, "one of the types " + ", ".join(getattr(option, "__name__", str(option)) for option in options), source
    )


def _read_sequence(origin: type, arguments: tuple, value: Any, key: str, source: object) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(key, value, "a list", source)
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(value) != len(arguments):
            raise _wrong(key, value, f"a list of {len(arguments)} values", source)
        return tuple(
            _read(kind, item, f"{key}[{i}]", source) for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
        )
    return origin(_read(arguments[0], item, f"{key}[{i}]", source) for i, item in enumerate(value))


def _wrong(key: str, value: Any, expected: str, source: object) -> ConfigError:
    return ConfigError(f"{key or 'the configuration'} is {value!r}", source=source, expected=expected)
