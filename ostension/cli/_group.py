"""A group of sub-commands that is itself a sub-command, as `ostension eval overlap ...`."""

from __future__ import annotations

from collections.abc import Mapping


class Group(dict):
    """Sub-commands by name; `line` is what the help of the command above says of the group."""

    def __init__(self, line: str, commands: Mapping[str, type]):
        super().__init__(commands)
        self.__doc__ = line
