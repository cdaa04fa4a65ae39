"""The command line starts at once, explains itself and prints clean errors."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ostension.cli.doctor import EXTRAS, missing_packages
from ostension.cli.main import COMMANDS, main


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "ostension.cli.main", *arguments], capture_output=True, text=True, check=False)


def test_help_takes_under_0_3_s_of_processor_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, not wall time, so that a busy machine does not fail the test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_help_lists_every_command_with_its_line():
    text = run("--help").stdout
    for name in COMMANDS.names():
        assert COMMANDS.summary(name), f"{name} has no docstring"
        assert COMMANDS.summary(name) in text


@pytest.mark.parametrize("name", COMMANDS.names())
def test_importing_a_command_imports_nothing_heavy(name):
    heavy = ("torch", "transformers", "PIL", "pyarrow", "sklearn", "matplotlib")
    code = (
        f"import sys, importlib; importlib.import_module('ostension.cli.{name.replace('-', '_')}');"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_mistyped_command_is_one_line_and_status_2(capsys):
    assert main(["docter"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "doctor" in error


@pytest.mark.parametrize(("words", "wanted"), [
    (["classify", "a.png", "--lables", "cat"], "--lables, cat; expected one of the known options; nearest: --labels"),
    (["train", "--steps", "many"], "--steps is 'many'; expected a whole number; see: ostension train --help"),
    (["train", "--lr", "small"], "--lr is 'small'; expected a number; see: ostension train --help"),
    (["embed"], "missing: SOURCE, --output PATH; see: ostension embed --help"),
    (["classify", "a.png", "--format", "csv"], "invalid choice 'csv' for argument '--format'"),
])  # fmt: skip
def test_arguments_that_cannot_be_read_are_one_line_that_names_them(words, wanted, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ostension: error: ") and error.count("\n") == 1
    assert wanted in error


def test_help_names_what_to_type_and_no_default_that_says_nothing(capsys):
    with pytest.raises(SystemExit):
        main(["classify", "--help"])
    text = capsys.readouterr().out
    assert "[IMAGES ...]" in text and "--labels STR" in text and "--save-predictor PATH" in text
    for noise in ("{None}", "(default: None)", "(default: )", "(default: False)"):
        assert noise not in text


def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys):
    def refused(arguments):
        raise PermissionError(13, "Permission denied", "/locked/store")

    monkeypatch.setattr("ostension.cli.main._dispatch", refused)
    assert main(["store"]) == 1
    assert capsys.readouterr().err == "ostension: error: /locked/store: Permission denied\n"


def test_doctor_prints_one_json_object(capsys):
    assert main(["doctor", "--json", "--quick"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cores"] >= 1
    assert facts["versions"]["torch"] != "missing"
    assert facts["dtype"] in ("float32", "bfloat16")


def test_doctor_looks_for_the_packages_of_every_extra():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev"}
    assert not missing_packages(EXTRAS["data"] + EXTRAS["curate"])  # names as they are imported; both are here for tests


def test_the_version_is_the_packages(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("ostension")
