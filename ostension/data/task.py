"""A task is data: one TOML record with class names by label key, templates, metric and splits.

Records lie in `data/tasks/NAME.toml`; a user's own lies anywhere. Class names come from the record itself or from a named
set of `text.prompts`; templates likewise. An unknown set is an error, never somebody else's set.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal

from ostension.config import from_tree, require
from ostension.errors import ConfigError, DataError
from ostension.files import sha256_json
from ostension.registry import RecordRegistry
from ostension.text.prompts import as_classes, as_templates, prompt_set

TASKS = RecordRegistry(Path(__file__).with_name("tasks"), "task")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a task: the number of samples that it must have."""

    count: int

    def __post_init__(self):
        require(self.count >= 1, "split count", self.count, "1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What there is to recognise, how it is asked and how it is scored.

    Attributes:
        title: the data set's name as its authors write it.
        version: raised when class names, templates or splits of the record change.
        classes: label key -> the names that stand for it, in the order of the logits.
        class_set: a named set of `text.prompts` instead of `classes`.
        keys: with a `class_set`, what labels the samples: the number of the class in the set, or its name.
        templates: the prompts' templates, each with one `{}`.
        template_set: a named set of `text.prompts` instead of `templates`.
        metric: how predictions are scored.
        splits: splits by name.
        licence, citation: of the data.
    """

    title: str
    version: int
    classes: dict[str, tuple[str, ...]] | None = None
    class_set: str | None = None
    keys: Literal["index", "name"] = "index"
    templates: tuple[str, ...] | None = None
    template_set: str | None = None
    metric: Literal["accuracy", "mean_per_class"] = "accuracy"
    splits: dict[str, Split] = dataclasses.field(default_factory=dict)
    licence: str
    citation: str

    def __post_init__(self):
        for own, named in (("classes", "class_set"), ("templates", "template_set")):
            if (getattr(self, own) is None) == (getattr(self, named) is None):
                raise ConfigError(f"{own} and {named} are both given or both missing", expected="exactly one of them")
        try:
            as_classes(self.label_names().values())
        except DataError as error:  # of a record it is the configuration that is wrong
            raise ConfigError(error.what, expected=error.expected, fix=error.fix) from None
        self.prompt_templates()

    def label_names(self) -> dict[str, tuple[str, ...]]:
        """The names of each class by its label key."""
        if self.classes is not None:
            return self.classes
        assert self.class_set is not None
        classes = prompt_set(self.class_set).classes
        return {names[0] if self.keys == "name" else str(index): names for index, names in enumerate(classes)}

    def prompt_templates(self) -> tuple[str, ...]:
        """The templates."""
        return as_templates(self.templates or self.template_set or ())

    @property
    def chance(self) -> float:
        """What a guesser reaches: 1 / C for both metrics."""
        return 1 / len(self.label_names())

    @property
    def class_list_sha256(self) -> str:
        """The hash of keys, names and their order."""
        return sha256_json([[key, list(names)] for key, names in self.label_names().items()])


def read_task(name_or_path: str | Path) -> Task:
    """The task of that name, or in that TOML file.

    Raises:
        ConfigError: for an unknown name, a file that is not TOML, or a record that is not valid.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = TASKS.path(str(name_or_path))
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", source=path, expected="a task record (TOML)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not TOML: {error}", source=path) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=path) from None
    if isinstance(tree.get("classes"), dict):
        tree["classes"] = {key: _names(names) for key, names in tree["classes"].items()}
    return from_tree(Task, tree, source=path)


def task_names() -> list[str]:
    """The names of the tasks that are shipped."""
    return TASKS.names()


def _names(value: Any) -> Any:
    """One name written plainly counts as a list of one."""
    return [value] if isinstance(value, str) else value
