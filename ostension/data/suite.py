"""A suite is a list of tasks, as data: `data/suites/NAME.toml`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ostension.config import from_tree, require
from ostension.data.task import Task, read_record, read_task, task_names
from ostension.errors import ConfigError, unknown_name
from ostension.registry import RecordRegistry

SUITES = RecordRegistry(Path(__file__).with_name("suites"), "suite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are reported together.

    Attributes:
        title: what they are.
        tasks: names of shipped tasks, in order.
        score: how one number is made of them, if any is.
        source: where the list comes from.
        notes: what to know about it.
        name: the record's file name; set on reading.
    """

    title: str
    tasks: tuple[str, ...]
    score: str
    source: str
    notes: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self):
        require(bool(self.tasks), "tasks", self.tasks, "one task or more")
        for name in self.tasks:
            require(self.tasks.count(name) == 1, "tasks", name, "each task once")
            if name not in task_names():
                raise unknown_name("task", name, task_names())

    def read(self) -> list[Task]:
        """The tasks."""
        return [read_task(name) for name in self.tasks]


def read_suite(name_or_path: str | Path) -> Suite:
    """The suite of that name, or in that TOML file.

    Raises:
        ConfigError: for an unknown name, with the nearest three, or a record that is not valid.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = SUITES.path(str(name_or_path))
    tree = read_record(path, "a suite record")
    if tree.setdefault("name", path.stem) != path.stem:
        raise ConfigError(f"name is {tree['name']!r}", source=path, expected=f"{path.stem!r}, as the file is called")
    return from_tree(Suite, tree, source=path)


def suite_names() -> list[str]:
    """The names of the suites that are shipped."""
    return SUITES.names()
