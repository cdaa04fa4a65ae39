"""What a run is asked for, from words: which tasks and splits, which protocols with which settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.config import from_tree, to_tree
from ostension.data.suite import read_suite, suite_names
from ostension.data.task import Task, read_record, read_task, task_names
from ostension.errors import ConfigError, nearest, unknown_name
from ostension.evals.protocol import PROTOCOLS, EvalProtocol, load_protocol
from ostension.evals.task_splits import TaskSplits, measured_splits

DEFAULT_PROTOCOLS = ("zeroshot", "retrieval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A task of which one split is measured.

    Attributes:
        task: the record's name, or its TOML file.
        split: the split's name in the record.
    """

    task: str
    split: str

    def read(self) -> Task:
        return read_task(self.task)


def find_targets(words: Sequence[str]) -> list[Target]:
    """The tasks that words mean: names of suites and tasks, TOML files of either, each perhaps with @SPLIT.

    Raises:
        ConfigError: for a name that is neither, with the nearest ones; an unknown split.
    """
    found: list[Target] = []
    for word in words:
        name, at, split = word.rpartition("@") if "@" in Path(word).name else (word, "", "")
        tasks: Sequence[str] = (name,)
        if name in suite_names():
            tasks = read_suite(name).tasks
        elif name.endswith(".toml"):
            if "tasks" in read_record(Path(name), "a task or suite record"):
                tasks = read_suite(name).tasks
        elif name not in task_names():
            raise unknown_name("task or suite", name, [*task_names(), *suite_names()])
        for task in tasks:
            record = read_task(task)
            if at:
                record.split(split)
            found += [Target(task=task, split=one) for one in ((split,) if at else measured_splits(record))]
    return list(dict.fromkeys(found))


def of_one_task(targets: Sequence[Target]) -> bool:
    """Whether all targets are splits of one task, whose data may be what `--data` names."""
    return len({target.task for target in targets}) == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A protocol with its settings."""

    name: str
    protocol: EvalProtocol
    config: Any

    @property
    def module(self) -> str:
        return f"{PROTOCOLS.package}.{self.name.replace('-', '_')}"


def find_protocols(names: Sequence[str], settings: Mapping[str, Any], source: object = "--set") -> list[Asked]:
    """Protocols with their settings changed by "PROTOCOL.SETTING".

    Raises:
        ConfigError: for an unknown protocol or setting, or a setting of a protocol that is not asked for.
    """
    wanted = list(dict.fromkeys(name.replace("_", "-") for name in names))
    modules = {name: load_protocol(name) for name in wanted}
    trees = {name: to_tree(module.Config()) for name, module in modules.items()}
    for key, value in settings.items():
        name, dot, rest = key.partition(".")
        name = name.replace("_", "-")
        if not dot or not rest:
            raise ConfigError(f"{key!r} is no setting", source=source, expected="PROTOCOL.SETTING=VALUE")
        if name not in trees:
            known = PROTOCOLS.names()
            if name not in known:
                raise unknown_name("protocol", name, known, source=source)
            raise ConfigError(f"{key} has no effect", source=source, expected=f"a setting of {', '.join(trees)}")
        *path, last = rest.split(".")
        place = trees[name]
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            close = ", ".join(f"{name}.{match}" for match in nearest(rest, trees[name])) or "it has none"
            raise ConfigError(
                f"unknown setting {key!r}", source=source, expected=f"a setting of the protocol; nearest: {close}"
            )
        place[last] = value
    return [
        Asked(name=name, protocol=modules[name], config=from_tree(modules[name].Config, trees[name], source)) for name in wanted
    ]


def default_protocols() -> tuple[str, ...]:
    """What is measured if no protocol is named: of zero-shot and retrieval, each where it can be."""
    return tuple(name for name in DEFAULT_PROTOCOLS if name in PROTOCOLS.names())


class OpenedTasks:
    """The data of tasks, opened once for all models and protocols.

    Args:
        options: of `TaskSplits`: data, limit, seed, download, itself.
    """

    def __init__(self, **options: Any):
        self._options = options
        self._opened: dict[str, TaskSplits] = {}

    def splits(self, task: Task | str, measured: str | None = None) -> TaskSplits:
        """The splits of a task, one of which stands for "test"."""
        key = task.name if isinstance(task, Task) else task
        if key not in self._opened:
            self._opened[key] = TaskSplits(task, **self._options)
        first = self._opened[key]
        return first if measured in (None, first.measured) else first.of(str(measured))
