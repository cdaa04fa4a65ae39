"""A task is data: one TOML record with class names by label key, templates, metric, splits, sources and published values.

Records lie in `data/tasks/NAME.toml`; a user's own lies anywhere. Class names come from the record itself, from a named set
of `text.prompts`, or from another task; templates from the record or from a named set. An unknown set is an error, never
somebody else's set. Names belong to label keys: the order of a list decides nothing but the order of the logits.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from pathlib import Path
from typing import Any, Literal

from ostension.config import from_tree, require
from ostension.data.task_parts import Folds, Kind, Metric, Oracle, PreprocessChange, Source, Split, chance_level
from ostension.errors import ConfigError, DataError, LimitError, unknown_name
from ostension.files import sha256_json
from ostension.registry import RecordRegistry
from ostension.text.prompts import as_classes, as_templates, prompt_set

__all__ = ["TASKS", "Folds", "Oracle", "Source", "Split", "Task", "read_task", "task_names"]

TASKS = RecordRegistry(Path(__file__).with_name("tasks"), "task")
MAX_RECORD_BYTES = 4_000_000  # ten times the largest that is shipped
METRICS_OF: dict[str, tuple[str, ...]] = {
    "classify": ("accuracy", "mean_per_class", "mean_top1_top5", "macro_f1_present", "roc_auc"),
    "multilabel": ("map_11_point", "roc_auc"),
    "retrieval": ("recall_at_k",),
    "video": ("accuracy", "mean_per_class", "mean_top1_top5", "pm_k"),
    "group": ("worst_group", "accuracy", "macro_f1_present"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What there is to recognise, how it is asked and how it is scored.

    Attributes:
        title: the data set's name as its authors write it.
        name: the record's file name; set on reading.
        version: raised when class names, templates or splits of the record change.
        kind: classify (one label), multilabel (several), retrieval (captions), video (frames), group (one label, scored by
            groups).
        classes: label key -> the names that stand for it, in the order of the logits.
        class_set: a named set of `text.prompts` instead of `classes`.
        classes_of: another task's classes instead of `classes`; `subset` lists those label keys that are kept.
        keys: with a `class_set`, what labels the samples: the number of the class in the set, or its name.
        match: whether a label must equal a key, or only have the same letters and digits ("apple_pie" is "apple pie").
        numbers_from: where data may label its samples with numbers in the order of this record, the first of them.
        templates: the prompts' templates, each with one `{}`; of a retrieval task, what captions are put into.
        template_set: a named set of `text.prompts` instead of `templates`.
        texts: label key -> whole prompts of the class, instead of templates.
        superclass_of: a task whose classes are pooled into this one's (the largest logit of a pool counts).
        superclass_map: label key -> label keys of that task. A class that is not in it can never be predicted.
        metric: how predictions are scored.
        splits: splits by name.
        folds: official repetitions.
        groups: fields of the samples by which results are split, with their values where they are known.
        group_by: whether results are split by the values of those fields, or by class and values.
        group_weights: shares of the groups ("value", or "label/value") by which an average is weighted.
        written: the field of the samples that says, by label key, which class's name is written on the picture (typographic
            attacks); empty for a picture without a word.
        captions_per_image: of a retrieval task.
        preprocess: settings of `PreprocessConfig` that this task needs changed (those of `PreprocessChange`).
        cut_px: pixels that are cut off each side of every picture before anything else.
        sources: forms in which the data may lie.
        licence, citation: of the data.
        notes: the traps of this data set, one line each; `show` and `validate` print them.
        oracles: published results.
    """

    title: str
    name: str = ""
    version: int
    kind: Kind = "classify"
    classes: dict[str, tuple[str, ...]] | None = None
    class_set: str | None = None
    classes_of: str | None = None
    subset: tuple[str, ...] | None = None
    keys: Literal["index", "name"] = "index"
    match: Literal["exact", "letters"] = "exact"
    numbers_from: int | None = None
    templates: tuple[str, ...] | None = None
    template_set: str | None = None
    texts: dict[str, tuple[str, ...]] | None = None
    superclass_of: str | None = None
    superclass_map: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    metric: Metric = "accuracy"
    splits: dict[str, Split] = dataclasses.field(default_factory=dict)
    folds: Folds | None = None
    groups: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    group_by: Literal["groups", "class-and-groups"] = "groups"
    group_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    written: str | None = None
    captions_per_image: int | None = None
    preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
    cut_px: int = 0
    sources: tuple[Source, ...] = ()
    licence: str
    citation: str
    notes: tuple[str, ...] = ()
    oracles: tuple[Oracle, ...] = ()

    def __post_init__(self):
        require(self.version >= 1, "version", self.version, "1 or more")
        fitting = METRICS_OF[self.kind]
        require(self.metric in fitting, "metric", self.metric, f"of a {self.kind} task: {', '.join(fitting)}")
        if self.kind == "retrieval":
            self._check_retrieval()
        else:
            self._check_classes()
        self.prompt_templates()
        from_tree(PreprocessChange, self.preprocess)
        require(self.cut_px >= 0, "cut_px", self.cut_px, "0 or more")
        if self.metric == "worst_group":
            require(bool(self.groups), "groups", self.groups, "a field of the samples, for the metric worst_group")

    def label_names(self) -> dict[str, tuple[str, ...]]:
        """The names of each class by its label key, in the order of the logits: what goes into the templates.

        With `texts` these are the whole prompts, whose template is the bare `{}`.
        """
        return self.display_names() if self.texts is None else {key: self.texts[key] for key in self.display_names()}

    def display_names(self) -> dict[str, tuple[str, ...]]:
        """The names of each class by its label key; none for a retrieval task."""
        if self.classes is not None:
            return self.classes
        if self.class_set is not None:
            classes = prompt_set(self.class_set).classes
            return {names[0] if self.keys == "name" else str(index): names for index, names in enumerate(classes)}
        if self.classes_of is None:
            return {}
        known = shipped(self.classes_of, "classes_of").display_names()
        if self.subset is None:
            return known
        for key in self.subset:
            if key not in known:
                raise unknown_name(f"class of {self.classes_of!r} in subset", key, known)
        return {key: known[key] for key in known if key in set(self.subset)}

    def prompt_templates(self) -> tuple[str, ...]:
        """The templates."""
        if self.texts is not None:
            return ("{}",)
        return as_templates(self.templates if self.templates is not None else self.template_set or ())

    @property
    def takes_several(self) -> bool:
        """Whether a sample may have several labels: multi-label tasks, and frames whose label is a set."""
        return self.kind == "multilabel" or self.metric == "pm_k"

    def key_of(self, label: str) -> str | None:
        """The label key that a sample's label means, by the record's rules; None if it means no class."""
        return self._label_keys.get(label) or self._label_keys.get(_letters(label) if self.match == "letters" else "")

    @functools.cached_property
    def _label_keys(self) -> dict[str, str]:
        keys = {key: key for key in self.display_names()}
        if self.match == "letters":
            keys = {_letters(key): key for key in keys} | keys
        if self.numbers_from is not None:
            keys = {str(number): key for number, key in enumerate(self.display_names(), self.numbers_from)} | keys
        return keys

    @property
    def num_classes(self) -> int:
        return len(self.display_names())

    @property
    def unmapped(self) -> tuple[str, ...]:
        """Classes that pooling another task's logits can never give: their logit is minus infinity."""
        return tuple(key for key in self.display_names() if key not in self.superclass_map) if self.superclass_of else ()

    @property
    def chance(self) -> float | None:
        """What a guesser reaches; None where that depends on the labels. `chance_rule` says how it is computed."""
        return self._chance[0]

    @property
    def chance_rule(self) -> str:
        return self._chance[1]

    @property
    def _chance(self) -> tuple[float | None, str]:
        test = self.splits.get("test")
        return chance_level(self.metric, self.num_classes, None if test is None else test.count)

    @property
    def class_list_sha256(self) -> str:
        """The hash of keys, names and their order."""
        return sha256_json([[key, list(names)] for key, names in self.label_names().items()])

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            ConfigError: for an unknown one, with the nearest three.
        """
        if name not in self.splits:
            raise unknown_name(f"split of the task {self.name!r}", name, self.splits)
        return self.splits[name]

    def _check_classes(self) -> None:
        given = {name: getattr(self, name) is not None for name in ("classes", "class_set", "classes_of")}
        if sum(given.values()) != 1:
            many = " and ".join(name for name in given if given[name]) + " are both given"
            none = "classes and class_set (or classes_of) are both missing"
            raise ConfigError(many if any(given.values()) else none, expected="exactly one of them")
        forms = [name for name in ("templates", "template_set", "texts") if getattr(self, name) is not None]
        if len(forms) != 1:
            given_forms = f"{' and '.join(forms)} are both given" if forms else "templates and template_set are both missing"
            raise ConfigError(given_forms, expected="exactly one of templates, template_set and texts")
        require(self.subset is None or self.classes_of is not None, "subset", self.subset, "nothing without classes_of")
        require(self.captions_per_image is None, "captions_per_image", self.captions_per_image, "nothing without captions")
        names = self.display_names()
        require(len(names) >= 2, "classes", list(names), "two or more")
        if self.texts is not None and set(self.texts) != set(names):
            raise ConfigError("texts and classes differ in their label keys", expected="texts for every class")
        try:
            as_classes(self.label_names().values() if self.classes_of is None else names_that_differ(names))
        except DataError as error:  # of a record it is the configuration that is wrong
            raise ConfigError(error.what, expected=error.expected, fix=error.fix) from None
        if self.match == "letters" and len({_letters(key) for key in names}) < len(names):
            raise ConfigError("match is 'letters', but two label keys have the same letters", expected="match = 'exact'")
        if (self.superclass_of is None) != (not self.superclass_map):
            raise ConfigError("superclass_of and superclass_map need each other", expected="both or none")
        for key in self.superclass_map:
            if key not in names:
                raise unknown_name("class in superclass_map", key, names)
        if self.superclass_of is not None:
            known = shipped(self.superclass_of, "superclass_of").display_names()
            for key in (key for pool in self.superclass_map.values() for key in pool):
                if key not in known:
                    raise unknown_name(f"class of {self.superclass_of!r} in superclass_map", key, known)

    def _check_retrieval(self) -> None:
        refused = ("classes", "class_set", "classes_of", "subset", "texts", "superclass_of", "numbers_from", "written")
        for name in refused:
            require(getattr(self, name) is None, name, getattr(self, name), "nothing for a retrieval task")
        require((self.captions_per_image or 0) >= 1, "captions_per_image", self.captions_per_image, "1 or more")


def names_that_differ(names: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Classes of a published list, of which some share a name (ImageNet has two); a repeated class is left out here."""
    return list(dict.fromkeys(names.values()))


def read_task(name_or_path: str | Path) -> Task:
    """The task of that name, or in that TOML file.

    Raises:
        ConfigError: for an unknown name, a file that is not TOML, or a record that is not valid.
        LimitError: for a file that is too large to be a record.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        return shipped(str(name_or_path))
    return _read(path)


@functools.cache
def shipped(name: str, where: str | None = None) -> Task:
    """The shipped task of that name; `where` says which setting named it."""
    try:
        path = TASKS.path(name)
    except ConfigError as error:
        if where is None:
            raise
        raise ConfigError(f"{where}: {error.what}", expected=error.expected) from None
    return _read(path)


def read_record(path: Path, what: str) -> dict[str, Any]:
    """The TOML tree of a record; every way in which that can fail is one line that names the file."""
    try:
        with open(path, "rb") as handle:
            data = handle.read(MAX_RECORD_BYTES + 1)
        if len(data) > MAX_RECORD_BYTES:
            raise LimitError("is too large", source=path, expected=f"{what} of at most {MAX_RECORD_BYTES:,} bytes")
        return tomllib.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", source=path, expected=f"{what} (TOML)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not TOML: {error}", source=path) from None
    except RecursionError:
        raise ConfigError("not TOML: nested too deeply", source=path) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=path) from None


def task_names() -> list[str]:
    """The names of the tasks that are shipped."""
    return TASKS.names()


def _read(path: Path) -> Task:
    tree = read_record(path, "a task record")
    for table in ("classes", "texts", "superclass_map"):
        if isinstance(tree.get(table), dict):
            tree[table] = {key: _names(names) for key, names in tree[table].items()}
    if tree.setdefault("name", path.stem) != path.stem:
        raise ConfigError(f"name is {tree['name']!r}", source=path, expected=f"{path.stem!r}, as the file is called")
    return from_tree(Task, tree, source=path)


def _names(value: Any) -> Any:
    """One name written plainly counts as a list of one."""
    return [value] if isinstance(value, str) else value


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())
