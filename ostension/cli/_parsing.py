"""Command lines into dataclasses: tyro reads them; here its help is made shorter, and its complaints one line.

tyro writes an option that may be left out as `{None}|STR (default: None)`. Nobody types None, so here it is `STR`. A
command line that cannot be read ends in a box of several lines; here it is an error like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ostension.errors import UsageError

_NAMES = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}


def parse(command: type, program: str, arguments: Sequence[str]) -> Any:
    """An instance of the dataclass `command`, as the arguments say. `--help` prints and exits.

    Raises:
        UsageError: if an argument is unknown, missing, or not of the kind that is expected.
    """
    description = inspect.cleandoc(command.__doc__ or "").split("\nArgs:", 1)[0].strip()
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: Any = tyro.cli(_readable(command), prog=program, args=arguments, description=description, config=config)
    except SystemExit as end:
        if not end.code:
            raise
        raise _one_line(complaint.getvalue(), program) from None
    sys.stderr.write(complaint.getvalue())  # a warning, with arguments that can be read
    return parsed


def _readable(command: type) -> type:
    """The command with placeholders that say what to type, and without defaults that say nothing."""
    hints = typing.get_type_hints(command, include_extras=True)
    annotations = {}
    for field in dataclasses.fields(command):
        hint = hints[field.name]
        bare, *metadata = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        several = typing.get_origin(bare) is tuple
        silent = field.default in (None, (), "") or field.default is False
        if any(mark is tyro.conf.Positional for mark in metadata):
            placeholder, silent = f"[{field.name.upper()} ...]" if several else None, silent or several
        else:
            placeholder = None if any(getattr(mark, "metavar", None) for mark in metadata) else _placeholder(bare)
            silent = silent and not any(mark is tyro.conf.UseAppendAction for mark in metadata)
        note = "" if silent else None
        annotations[field.name] = Annotated[hint, tyro.conf.arg(metavar=placeholder, help_behavior_hint=note)]
    body = {"__annotations__": annotations, "__doc__": command.__doc__, "__module__": command.__module__}
    return type(command.__name__, (command,), body)


def _placeholder(hint: Any) -> str | None:
    """What stands for the value of an option that may be left out; None where tyro's own word is good."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    inner = [one for one in typing.get_args(hint) if one is not type(None)]
    return _word(inner[0]) if len(inner) == 1 else None


def _word(hint: Any) -> str | None:
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    if typing.get_origin(hint) is tuple and len(typing.get_args(hint)) == 2 and typing.get_args(hint)[1] is Ellipsis:
        name = _word(typing.get_args(hint)[0])
        return name and f"[{name} [{name} ...]]"
    return _NAMES.get(hint)


def _one_line(box: str, program: str) -> UsageError:
    """tyro's box as an error: its first part is what is wrong, options in the other parts are what may have been meant."""
    lines = box.splitlines()
    if "│" not in box:  # without Unicode the title is a line of its own, with a rule below it
        lines = lines[2:]
    parts: list[list[str]] = [[]]
    for line in (re.sub(r"\s*│?\s*$", "", line[2:]) for line in lines if not line.startswith(("╭", "╰"))):
        if line and set(line) <= {"─", "-"}:
            parts.append([])
        elif line:
            parts[-1].append(line)
    options = [line.split("--", 1)[1].split() for part in parts[1:] for line in part if re.match(r"\s+(-\w .*)?--\w", line)]
    return _complaint([line.strip() for line in parts[0]], parts[0], options, f"see: {program} --help")


def _complaint(words: list[str], lines: list[str], options: list[list[str]], fix: str) -> UsageError:
    what = " ".join(words).rstrip(".") or "the command cannot be read"
    if what.startswith("Missing from"):
        missing = [line.strip().split(", ")[-1] for line in lines[1:] if re.match(r"    \S", line)]
        return UsageError(f"missing: {', '.join(missing)}", fix=fix)
    unread = re.match(r"Error parsing (\S+): .*?(?:from \[|base 10: |to float: )'(.*?)'", what)
    if unread:
        kind = options[0][-1] if options and len(options[0]) > 1 else None
        expected = {"INT": "a whole number", "FLOAT": "a number"}.get(str(kind), kind)
        return UsageError(f"{unread[1]} is {unread[2]!r}", expected=expected, fix=fix)
    meant = ", ".join(dict.fromkeys(f"--{option[0].rstrip(',')}" for option in options))
    return UsageError(
        what[0].lower() + what[1:].replace("'. Expected one of", "'; expected one of"),
        expected=f"one of the known options; nearest: {meant}" if meant else None, fix=fix,
    )  # fmt: skip
