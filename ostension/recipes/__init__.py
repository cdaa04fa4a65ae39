"""Complete runs by name: a public module of this package is a recipe, and its docstring's first line says what it trains.

A recipe has `recipe() -> Pretraining` and `smoke() -> Pretraining`, the same run small enough to only show that it runs.
A module may offer several: it has a literal table `OFFERS` of names with a line each, and `recipe(name)`, `smoke(name)`.
It may also say, with `pairs()` or `pairs(name)`, how many pairs of data the run is meant for; `--plan` counts with it.
`ostension train --recipe NAME` finds them all; nothing else lists them.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from ostension.errors import unknown_name
from ostension.registry import ModuleRegistry

if TYPE_CHECKING:
    from ostension.train.pretraining import Pretraining


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One complete run.

    Attributes:
        recipe: makes the run.
        smoke: makes its small form.
        pairs: of the data that it is meant for; None where it brings its own.
    """

    name: str
    recipe: Callable[[], Pretraining]
    smoke: Callable[[], Pretraining]
    pairs: int | None


class RecipeRegistry:
    """Recipes by name; listing reads sources and imports nothing."""

    def __init__(self, package: str):
        self._modules = ModuleRegistry(package, "recipe")

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._lines())

    def summary(self, name: str) -> str:
        """A recipe's line."""
        return self._lines()[name][1]

    def load(self, name: str) -> Recipe:
        """The recipe called `name`; imports its module.

        Raises:
            ConfigError: for an unknown name, with the nearest three.
        """
        lines, name = self._lines(), name.replace("_", "-")
        if name not in lines:
            raise unknown_name("recipe", name, lines)
        found = importlib.import_module(f"{self._modules.package}.{lines[name][0].replace('-', '_')}")
        arguments = (name,) if hasattr(found, "OFFERS") else ()
        recipe, smoke = (functools.partial(getattr(found, part), *arguments) for part in ("recipe", "smoke"))
        return Recipe(name, recipe, smoke, _pairs(found, arguments))

    @functools.cache  # noqa: B019  # there is one registry, for the life of the process
    def _lines(self) -> dict[str, tuple[str, str]]:
        """For every recipe its module and its line."""
        found = {}
        for module in self._modules.names():
            offers = _offers(self._modules.source(module))
            for name, line in ({module: self._modules.summary(module)} if offers is None else offers).items():
                assert name not in found, f"two recipes are called {name}"
                found[name] = (module, line)
        return found


def _pairs(module: ModuleType, arguments: tuple[str, ...]) -> int | None:
    return module.pairs(*arguments) if hasattr(module, "pairs") else None


def _offers(source: str) -> dict[str, str] | None:
    """The module's table of several recipes, if it has one."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == ["OFFERS"]:
            return ast.literal_eval(node.value)
    return None


RECIPES = RecipeRegistry("ostension.recipes")
