"""The pages say what is there: links lead somewhere, and every command shown has these sub-commands and flags."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ostension.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced_lines(text: str) -> list[str]:
    """Lines inside code fences, continuation lines joined."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@functools.cache
def help_of(*words: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return output.getvalue()


def commands_in(path: Path) -> list[str]:
    found = []
    for line in fenced_lines(path.read_text(encoding="utf-8")):
        for part in re.split(r"\s*(?:\||&&|;)\s+", line.removeprefix("$ ")):
            words = part.split()
            if words[:1] == ["ostension"] or words[:1] == [".venv/bin/ostension"]:
                found.append(part.split("  #")[0])
    return found


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_command_on_a_page_exists_with_its_flags(path):
    for command in commands_in(path):
        words = [word for word in shlex.split(command, comments=True)[1:] if word not in (">", "<")]
        if not words or words[0].startswith("-") or words[0] == "COMMAND":
            continue
        assert words[0] in COMMANDS.names(), f"{path.name}: {command}"
        group, depth = COMMANDS.load(words[0]).COMMAND, 1
        while isinstance(group, dict):
            assert len(words) > depth and (words[depth] in group or words[depth] == "--help"), f"{path.name}: {command}"
            group, depth = group.get(words[depth]), depth + 1
        shown = help_of(*words[:depth])
        for word in words:
            if re.match(r"--[a-z]", word) and word != "--help":
                assert word.split("=")[0] in shown, f"{path.name}: {command}: {word}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_local_link_leads_to_a_file(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_make_target_on_a_page_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for path in PAGES:
        for line in fenced_lines(path.read_text(encoding="utf-8")):
            if line.startswith("make "):
                assert line.split()[1] in targets, f"{path.name}: {line}"


def test_the_tables_on_the_pages_are_those_of_their_records():
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "write_tables.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
