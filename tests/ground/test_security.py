"""What the package never does, read off its syntax trees; and that its dependencies are those that it names.

The behaviour itself is tested where it belongs: pickles with code in tests/formats and tests/train, hostile pictures in
tests/image, hostile shards in tests/data, the service in tests/faults. Here are the doors that nobody may open later on.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ostension.config import from_tree
from ostension.errors import OstensionError
from ostension.model.config import ModelConfig

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ostension"
MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
CORE = {"torch", "numpy", "pillow", "safetensors", "regex", "ftfy", "tyro", "tqdm"}


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call of the package: its file, the name as written ("np.load"), the call."""
    return [
        (name, ast.unparse(node.func), node)
        for name, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)
    ]  # fmt: skip


def imported(tree) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def given(call: ast.Call, name: str):
    """A keyword's literal value, or None."""
    value = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    return value.value if isinstance(value, ast.Constant) else None


def offenders(rule) -> list[str]:
    return [f"{name}:{call.lineno}: {ast.unparse(call)[:80]}" for name, what, call in calls() if rule(what, call)]


def test_no_text_is_ever_run_as_code():
    """Neither a configuration nor a file can make the package evaluate, compile or shell out."""
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv"}
    assert not offenders(lambda what, call: what in forbidden)
    assert not offenders(lambda what, call: what.startswith("subprocess.") and given(call, "shell") not in (None, False))


def test_pickles_are_read_with_weights_only_and_arrays_without_objects():
    assert not offenders(lambda what, call: what == "torch.load" and given(call, "weights_only") is not True)
    assert not offenders(lambda what, call: what.startswith("torch.jit.") and what.endswith("load"))
    readers = ("pickle.load", "pickle.loads", "marshal.load", "marshal.loads", "shelve.open", "yaml.load")
    assert not offenders(lambda what, call: what in readers)
    assert not offenders(lambda what, call: given(call, "allow_pickle") is True)
    assert not offenders(lambda what, call: given(call, "trust_remote_code") is True)


def test_archives_are_never_unpacked_to_the_disk():
    """Names inside archives are labels, never paths: there is no call that would write a member where its name says."""
    assert not offenders(lambda what, call: what.endswith((".extractall", ".unpack_archive")) or what == "unpack_archive")
    readers = {name for name, tree in TREES.items() if imported(tree) & {"tarfile", "zipfile"}}
    assert readers and not [name for name, what, _ in calls() if name in readers and what.endswith(".extract")]


def test_pictures_are_opened_by_chosen_decoders_only():
    """Pillow tries every format it knows, one of which starts Ghostscript, unless it is told which."""
    assert not offenders(
        lambda what, call: what in ("Image.open", "PIL.Image.open") and not any(word.arg == "formats" for word in call.keywords)
    )


def test_the_network_is_reached_in_few_places():
    """Whatever fetches an address that others choose has to go through `data.fetch`."""
    clients = {"urllib.request", "http.client", "requests", "httpx", "aiohttp", "urllib3"}
    users = {name for name, tree in TREES.items() if {one.split(":")[0] for one in imported(tree)} & clients}
    # sets/fetch.py: addresses of published data sets from the records of the package, checked by size and SHA-256.
    # serve/client.py: the address of the user's own service.
    assert users <= {"data/fetch.py", "data/sets/fetch.py", "serve/client.py"}


HOSTILE = (
    "__import__('os').system('touch MARKER')", "!!python/object/apply:os.system ['touch MARKER']", "${oc.env:HOME}",
    "$(touch MARKER)", "`touch MARKER`", "os.system", "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "file:///etc/passwd",
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_configurations_are_data_and_nothing_in_them_is_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = {"activation": {"_component_": text}}
    for tree in ({"_target_": text}, {"name": text, "kind": text}, {"name": text}, inside, [text], text):
        with pytest.raises(OstensionError):
            from_tree(ModelConfig, json.loads(json.dumps(tree)), source="config.json")
    assert not list(tmp_path.iterdir())


def test_a_module_in_the_working_folder_is_not_taken_for_a_recipe_a_method_or_a_command(tmp_path):
    for name in ("evil", "os", "zero_shot", "recipes"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    for words in ("train evil", "adapt evil", "adapt ../evil", "train evil:main", "evil"):
        command = [sys.executable, "-P", "-m", "ostension", *words.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, (words, done.stderr)
    assert not (tmp_path / "marker").exists()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(extra: str | None) -> list[Requirement]:
    lines = project()["dependencies"] if extra is None else project()["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def test_the_core_needs_eight_packages_and_no_more():
    assert {canonicalize_name(one.name) for one in requirements(None)} == CORE


def installed(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def conflicts(asked: list[Requirement]) -> tuple[list[str], int]:
    """What the installed packages that `asked` leads to require and do not find, and how many packages were looked at."""
    waiting = [("ostension", one) for one in asked]
    seen: set[tuple[str, str]] = set()
    found: list[str] = []
    while waiting:
        by, one = waiting.pop()
        for extra in ("", *one.extras):
            name = canonicalize_name(one.name)
            if extra == "":
                have = installed(name)
                if have is None or not one.specifier.contains(have.version, prereleases=True):
                    found.append(f"{by} needs {one}, and {have.version if have else 'nothing'} is installed")
            if (name, extra) in seen or installed(name) is None:
                continue
            seen.add((name, extra))
            for line in importlib.metadata.requires(name) or []:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append((name, inner))
    return found, len(seen)


def own_extras() -> list[str]:
    return [name for name in project()["optional-dependencies"] if name != "dev"]


@pytest.mark.parametrize("extra", [None, *own_extras()])
def test_what_is_installed_for_an_extra_has_what_it_requires(extra):
    """What `pip check` looks at, for one extra and from the metadata alone. An extra that is not installed is skipped."""
    asked = requirements(extra)
    missing = [one.name for one in asked if installed(one.name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    found, looked_at = conflicts(asked)
    assert not found and looked_at >= len(asked)


def test_dev_has_every_extra_but_the_one_that_excludes_our_pillow():
    whole = next(one for one in requirements("dev") if one.name == "ostension")
    assert set(own_extras()) - whole.extras <= {"trackio"}


def test_every_package_that_is_asked_for_on_use_is_in_the_extra_that_the_message_names():
    """`require_extra("pyarrow", "curate")` tells a user what to install; the extra must bring it."""
    providers = importlib.metadata.packages_distributions()
    constants = {
        name: {node.targets[0].id: node.value.value for node in tree.body if isinstance(node, ast.Assign)
               and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant)}
        for name, tree in TREES.items()
    }
    checked = 0
    for name, what, call in calls():
        if what != "require_extra" or len(call.args) != 2 or not isinstance(call.args[0], ast.Constant):
            continue
        given_as = call.args[1]
        extra = given_as.value if isinstance(given_as, ast.Constant) else constants[name].get(ast.unparse(given_as))
        if extra is None:
            continue
        assert extra in project()["optional-dependencies"], f"{name}:{call.lineno}: there is no extra {extra!r}"
        module = call.args[0].value.split(".")[0]
        makers = {canonicalize_name(one) for one in providers.get(module, [])}
        if not makers or makers & CORE:  # not installed here, or a part of torch that needs another package
            continue
        brings = {canonicalize_name(one.name) for one in requirements(extra)}
        deeper = {
            canonicalize_name(Requirement(line).name)
            for one in brings if installed(one) for line in importlib.metadata.requires(one) or []
        }  # fmt: skip
        assert makers & (brings | deeper), f"{name}:{call.lineno}: {extra!r} does not bring {module!r}"
        checked += 1
    assert checked > 20


BLOCKED = """
import importlib.abc, pathlib, sys
allowed = set(sys.argv[2].split()) | set(sys.stdlib_module_names)
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is not of the core", name=name)
sys.meta_path.insert(0, Blocker())
import importlib
root = pathlib.Path(sys.argv[1])
failed = []
for path in sorted((root / "ostension").rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if parts[1] == "serve" or path.name == "__main__.py":
        continue
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{name}: {error}")
print(*failed, sep="\\n")
"""


@pytest.mark.slow
def test_everything_but_the_service_is_imported_with_the_core_packages_alone():
    """With every other package hidden, as on a machine that has the core only; `ostension serve` says which extra it needs."""
    roots: dict[str, set[str]] = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            roots.setdefault(canonicalize_name(name), set()).add(module)
    wanted, core = [*CORE], set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in core or installed(name) is None:
            continue
        core.add(name)
        for line in importlib.metadata.requires(name) or []:
            inner = Requirement(line)
            if inner.marker is None or inner.marker.evaluate({"extra": ""}):
                wanted.append(inner.name)
    modules = {"ostension"}.union(*(roots.get(name, set()) for name in core))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKED, str(ROOT), " ".join(sorted(modules))],
        capture_output=True, text=True, cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
