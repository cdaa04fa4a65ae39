"""Configurations are read strictly and written plainly."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest

from ostension.config import changed_keys, config_hash, from_tree, require, to_tree
from ostension.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    kind: Literal["round"] = "round"
    radius: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
    kind: Literal["square"] = "square"
    side: int

    def __post_init__(self):
        require(self.side >= 1, "side", self.side, "1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    name: str
    shape: Round | Square
    size: tuple[int, int] = (4, 4)
    tags: tuple[str, ...] = ()
    limit: int | None = None


def test_a_tree_goes_there_and_back():
    drawing = Drawing(name="a", shape=Square(side=2), tags=("x", "y"), limit=3)
    assert from_tree(Drawing, to_tree(drawing)) == drawing


def test_a_union_is_told_apart_by_its_kind():
    assert from_tree(Drawing, {"name": "a", "shape": {"kind": "round", "radius": 2}}).shape == Round(radius=2.0)
    with pytest.raises(ConfigError, match="shape.kind is 'oval'; expected one of 'round', 'square'"):
        from_tree(Drawing, {"name": "a", "shape": {"kind": "oval"}})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "a", "shape": {"kind": "round", "radios": 2}}, "unknown setting 'shape.radios'.*nearest: 'radius'"),
        ({"shape": {"kind": "round"}}, "'name' is missing"),
        ({"name": 3, "shape": {"kind": "round"}}, "name is 3; expected a value of type str"),
        ({"name": "a", "shape": {"kind": "round"}, "size": [1]}, "size is .* a list of 2 values"),
        ({"name": "a", "shape": {"kind": "square", "side": True}}, "side is True"),
        ({"name": "a", "shape": {"kind": "square", "side": 0}}, "side is 0; expected 1 or more"),
        ([], "expected a table"),
    ],
)
def test_wrong_trees_are_refused_with_the_source_and_the_key(tree, message):
    with pytest.raises(ConfigError, match=message) as raised:
        from_tree(Drawing, tree, source="run.json")
    assert str(raised.value).startswith("run.json: ")


def test_the_hash_depends_on_values_and_not_on_their_order():
    first, second = Drawing(name="a", shape=Round()), Drawing(name="a", shape=Round(radius=2.0))
    assert config_hash(first) == config_hash({**dict(reversed(to_tree(first).items()))})
    assert config_hash(first) != config_hash(second)


def test_changed_keys_are_dotted_and_hold_both_values():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert changed_keys(old, new) == {"a.c": (2, 4), "d": (3, None), "e": (None, 5)}
