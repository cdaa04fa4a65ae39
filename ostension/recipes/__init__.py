"""Complete runs by name: a public module of this package is a recipe, and its docstring's first line says what it trains.

A recipe has `recipe() -> Pretraining` and `smoke() -> Pretraining`, the same run small enough to only show that it runs.
`ostension train --recipe NAME` finds it; nothing else lists it.
"""

from __future__ import annotations

from ostension.registry import ModuleRegistry

RECIPES = ModuleRegistry("ostension.recipes", "recipe")
