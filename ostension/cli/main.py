"""The command `ostension`: finds a command's module by name, parses its dataclass, prints clean errors.

A command module holds `COMMAND`: one frozen dataclass with a `run()` method, or a dict of sub-command name to such a
class, or to a `Group` of further sub-commands. The first line of the module's docstring is its line in `--help`, read
without importing it. Modules import nothing heavy at their top level.

Exit status: 0 done, 1 an error in the input or the data, 2 a command that cannot be meant, 3 training diverged,
130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from ostension.errors import OstensionError, UsageError, nearest
from ostension.registry import ModuleRegistry

COMMANDS = ModuleRegistry("ostension.cli", "command", without=("main",))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except OstensionError as error:
        print(f"ostension: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("ostension: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`ostension ... | head`): that is not an error, but Python would
        # complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A folder without the right to write, a full disk: the machine's say, and nothing to mend in here.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
        print(f"ostension: error: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("--version", "version"):
        from ostension import __version__

        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS.names():
        raise UsageError(f"unknown command {name!r}", expected=_nearest(name, COMMANDS.names()), fix="see: ostension --help")
    command = COMMANDS.load(name).COMMAND
    program = f"ostension {name}"
    while isinstance(command, dict):
        if not rest or rest[0] in ("-h", "--help"):
            print(_group_help(program, command))
            return 0 if rest else 2
        if rest[0] not in command:
            what = f"unknown command '{program.removeprefix('ostension ')} {rest[0]}'"
            raise UsageError(what, expected=_nearest(rest[0], command), fix=f"see: {program} --help")
        command, program, rest = command[rest[0]], f"{program} {rest[0]}", rest[1:]
    return _parse_and_run(command, program, rest)


def _parse_and_run(command: type, program: str, arguments: list[str]) -> int:
    from ostension.cli._parsing import parse

    return int(parse(command, program, arguments).run() or 0)


def _nearest(name: str, known) -> str:
    return "a known one; nearest: " + ", ".join(nearest(name, known))


def _help() -> str:
    names = COMMANDS.names()
    width = max(map(len, names), default=0)
    lines = [
        "usage: ostension COMMAND [OPTIONS]",
        "",
        "Contrastive language-image models: build the pairs, pre-train, classify with words, search, adapt, measure.",
        "",
        "commands:",
        *(f"  {name.ljust(width)}  {COMMANDS.summary(name)}" for name in names),
        "",
        "ostension COMMAND --help explains one; ostension --version prints the version.",
    ]
    return "\n".join(lines)


def _group_help(program: str, commands: dict[str, type]) -> str:
    width = max(map(len, commands))
    lines = [f"usage: {program} COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name.ljust(width)}  {(command.__doc__ or '').strip().splitlines()[0]}" for name, command in commands.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
