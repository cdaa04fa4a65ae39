"""House rules read off the syntax tree: import order, core dependencies, no methods importing each other."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ostension"
# A lower row never imports a higher one.
ROWS = [
    ("errors", "config", "registry", "files", "runtime", "runlog", "shapes", "world"),
    ("text", "image"),
    ("model",),
    ("formats", "losses"),
    ("data",),
    ("store",),
    ("train",),
    ("weights", "adapt"),
    ("evals",),
    ("curate",),
    ("serve", "export"),
    ("recipes",),
    ("cli", "__main__"),
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
CORE = {"torch", "numpy", "PIL", "safetensors", "regex", "ftfy", "tyro", "tqdm"}
# Read only by tests; shapes.py falls back to nothing without it.
OPTIONAL_AT_IMPORT = {("shapes.py", "jaxtyping")}
# The service is built of its extra's packages, and the command looks for them before it imports it. What clients and the
# process that computes import is not.
SERVICE = {"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"}
WITHOUT_SERVICE = {
    "client.py", "settings.py", "keys.py", "compute.py", "worker_main.py", "batcher.py", "pace.py", "__init__.py",
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Every imported module of a file, with whether it is imported at the top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                found.append((f"ostension.{alias.name}" if node.module == "ostension" else str(node.module), id(node) in top))
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_lower_row_never_imports_a_higher_one(path):
    if path.name == "__init__.py" and path.parent == PACKAGE:
        return
    for module, _ in imports_of(path):
        if module.startswith("ostension.") and module != "ostension.__version__":
            target = module.split(".")[1]
            assert RANK[target] <= RANK[part_of(path)], f"{part_of(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_core_packages_are_imported_when_a_module_is(path):
    for module, at_top in imports_of(path):
        root = module.split(".")[0]
        if at_top and root != "ostension" and root not in sys.stdlib_module_names:
            if part_of(path) == "serve" and path.name not in WITHOUT_SERVICE and root in SERVICE:
                continue
            assert root in CORE or (path.name, root) in OPTIONAL_AT_IMPORT, f"{path.name} imports {root} at its top level"


@pytest.mark.parametrize("path", sorted((PACKAGE / "adapt").glob("[a-z]*.py")), ids=lambda path: path.name)
def test_methods_never_import_each_other(path):
    for module, _ in imports_of(path):
        if module.startswith("ostension.adapt."):
            assert module.split(".")[2].startswith("_") or module.split(".")[2] == "base"


def test_no_module_imports_pickle_but_the_restricted_reader():
    unsafe = ("pickle", "dill", "joblib")
    users = {path.name for path in MODULES for module, _ in imports_of(path) if module.split(".")[0] in unsafe}
    assert users <= {"containers.py", "torchscript.py"}
