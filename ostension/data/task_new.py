"""A user's own data as a task: the record that its files suggest."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

from ostension.data.sets.base import SPLIT_WORDS, LabelledSet, ids_sha256
from ostension.data.sets.folder import FolderSet
from ostension.data.sets.open import LABEL_TABLES, kind_of, open_set
from ostension.data.task import Source, Split, Task, read_task
from ostension.errors import DataError

TEMPLATE = "a photo of a {}."
UNKNOWN = "not stated"
MAX_CLASSES = 100_000
_NUMBERED = re.compile(r"^\d+[._ -]+(?=\D)")  # "001.Black_footed_Albatross"
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")  # "AnnualCrop"
_WORDNET = re.compile(r"n\d{8}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewTask:
    """A record, and what its maker decided for the user, one line each."""

    task: Task
    notes: tuple[str, ...]


def new_task(data: Path, record: Path, *, title: str | None = None) -> NewTask:
    """The record for the data at `data`, to be written at `record`.

    Class names are the labels with separators read as spaces; splits, counts and hashes are what is found.

    Raises:
        DataError, ConfigError: if the data cannot be read or has fewer than two classes.
    """
    kind = kind_of(data)
    found = open_set(data)
    labels = sorted({label for several in found.labels for label in several})
    if len(labels) < 2 or len(labels) > MAX_CLASSES:
        what = f"{len(labels)} labels" + (f" ({labels[0]!r})" if len(labels) == 1 else "")
        raise DataError(what, source=data, expected="two or more: a folder for each class, or a column of labels")
    names, notes = clean_names(labels)
    splits, more = _splits(found)
    several = any(len(labels) != 1 for labels in found.labels)
    source, place = _source(data, record, kind, found)
    notes += [*more, *([place] if place else [])]
    notes.append(f"templates: one plain one, {TEMPLATE!r}; say what the pictures are, if it is known")
    notes.append(f"licence and citation: {UNKNOWN}; fill them in before the task is shared")
    task = Task(
        title=title or data.resolve().name.removesuffix(data.suffix).replace("_", " "),
        name=record.stem,
        version=1,
        kind="multilabel" if several else "classify",
        classes={label: (name,) for label, name in zip(labels, names, strict=True)},
        templates=(TEMPLATE,),
        metric="map_11_point" if several else "accuracy",
        splits=splits,
        groups={name: tuple(sorted(set(found.fields[name]))) for name in ("domain", "group") if name in found.fields},
        sources=() if source is None else (source,),
        licence=UNKNOWN,
        citation=UNKNOWN,
    )
    return NewTask(task=task, notes=tuple(notes))


def clean_names(labels: list[str]) -> tuple[list[str], list[str]]:
    """A name for each label, and notes on what was done.

    WordNet ids that ImageNet has take its class names. Otherwise separators and inner capitals part words, and a number
    before a name is left out; labels whose names would fall together keep all that they have.
    """
    if all(_WORDNET.fullmatch(label) for label in labels):
        known = read_task("imagenet").display_names()
        chosen = [known.get(label, (label,))[0] for label in labels]
        if all(label in known for label in labels) and len(set(chosen)) == len(chosen):
            return chosen, [f"class names: those of ImageNet for {len(labels)} WordNet ids"]
    names = [clean_name(label) for label in labels]
    counts = Counter(name.casefold() for name in names)
    same = [label for label, name in zip(labels, names, strict=True) if counts[name.casefold()] > 1]
    names = [label if label in same else name for label, name in zip(labels, names, strict=True)]
    notes = [f"class names: {len(labels)}, made from the labels ({labels[0]!r} is {names[0]!r})"]
    if same:
        notes.append(f"class names: {len(same)} would fall together and are left as they are, such as {same[0]!r}")
    odd = [name for name in names if not any(letter.isalpha() for letter in name)]
    if odd:
        notes.append(f"class names: {len(odd)} are no words, such as {odd[0]!r}; write what they mean into [classes]")
    return names, notes


def clean_name(label: str) -> str:
    """A label as words."""
    words = _CAMEL.sub(" ", _NUMBERED.sub("", label))
    if words != label and " " in words and "_" not in label:
        words = words.lower()
    words = " ".join(words.replace("_", " ").split())
    return words or label


def _splits(found: LabelledSet) -> tuple[dict[str, Split], list[str]]:
    if found.splits is None:
        split = Split(count=len(found), ids_sha256=ids_sha256(found.ids))
        return {"test": split}, ["splits: the data has none; all of it is called 'test'"]
    ids: dict[str, list[str]] = {}
    words: dict[str, set[str]] = {}
    for name, word in zip(found.ids, found.splits, strict=True):
        split_name = next((known for known, said in SPLIT_WORDS.items() if word.casefold() in said), word) or "unnamed"
        ids.setdefault(split_name, []).append(name)
        words.setdefault(split_name, set()).add(word)
    order = {name: place for place, name in enumerate(SPLIT_WORDS)}
    splits = {
        name: Split(
            count=len(part),
            ids_sha256=ids_sha256(part),
            select={} if words[name] == {name} or name in SPLIT_WORDS else {"split": tuple(sorted(words[name]))},
        )
        for name, part in sorted(ids.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))
    }
    counts = ", ".join(f"{name} {split.count:,}" for name, split in splits.items())
    return splits, [f"splits: {counts}"]


def _source(data: Path, record: Path, kind: str, found: LabelledSet) -> tuple[Source | None, str | None]:
    """Where the record says that the data lies, if that is beside or below the record."""
    place = data.resolve()
    if place.is_dir() and kind == "csv":
        place = next(place / name for name in LABEL_TABLES if (place / name).is_file())
    home = record.resolve().parent
    if not place.is_relative_to(home):
        return None, f"source: the data does not lie below the record, so give it each time: --data {data}"
    levels = found.levels if isinstance(found, FolderSet) else None
    return Source(kind=kind, path=place.relative_to(home).as_posix(), levels=levels), None  # type: ignore[arg-type]
