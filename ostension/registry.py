"""Things found by their file name: a folder of modules or of records is the list of what there is.

Adding a method, a benchmark or a preset touches one file, because nothing else lists them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from ostension.errors import unknown_name


class ModuleRegistry:
    """Modules of one package by name; importing happens on `load`, never on listing.

    Private modules (leading underscore) and those in `without` are not listed.
    """

    def __init__(self, package: str, kind: str, without: tuple[str, ...] = ()):
        self.package, self.kind, self.without = package, kind, frozenset(without)

    def names(self) -> list[str]:
        """The public names, sorted, with dashes for underscores."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations is not None
        found = {path.stem for folder in spec.submodule_search_locations for path in Path(folder).glob("*.py")}
        return sorted(name.replace("_", "-") for name in found if not name.startswith("_") and name not in self.without)

    def summary(self, name: str) -> str:
        """The first line of a module's docstring, read from its source without importing it."""
        return (ast.get_docstring(ast.parse(self.source(name))) or "").split("\n", 1)[0]

    def source(self, name: str) -> str:
        """A module's source; empty where there is no such module."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations is not None
        for folder in spec.submodule_search_locations:
            path = Path(folder) / f"{name.replace('-', '_')}.py"
            if path.is_file():
                return path.read_text(encoding="utf-8")
        return ""

    def load(self, name: str) -> ModuleType:
        """Import the module called `name`.

        Raises:
            ConfigError: for an unknown name, with the nearest three.
        """
        known = self.names()
        if name.replace("_", "-") not in known:
            raise unknown_name(self.kind, name, known)
        return importlib.import_module(f"{self.package}.{name.replace('-', '_')}")


class RecordRegistry:
    """Records (one TOML file each) of one folder by name."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind = folder, kind

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.toml"))

    def path(self, name: str) -> Path:
        """The record's file.

        Raises:
            ConfigError: for an unknown name, with the nearest three.
        """
        known = self.names()
        if name not in known:
            raise unknown_name(self.kind, name, known)
        return self.folder / f"{name}.toml"
