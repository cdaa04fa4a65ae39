"""Whether a task's data is what its record says: counts, labels, duplicates, leaks between splits, pictures that open."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from ostension.data.pairs import image_digest
from ostension.data.sets.base import LabelledSet
from ostension.data.task import Task
from ostension.data.task_data import count_notes, select, unknown_label
from ostension.errors import ConfigError, DataError, LimitError

SHOWN = 5  # examples of each finding


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskCheck:
    """What was found.

    Attributes:
        counts: samples by split, of the splits that the data has.
        problems: what makes results wrong, one line each.
        warnings: what to know before trusting results, one line each.
        num_pictures: pictures that were read and decoded.
    """

    counts: dict[str, int]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    num_pictures: int


def check_record(task: Task) -> list[str]:
    """What is odd in a record that is valid: classes that no prompt can tell apart, splits that are missing."""
    counts = Counter(name for names in task.label_names().values() for name in names)
    shared = [name for name, count in counts.items() if count > 1]
    found = [f"{len(shared)} names stand for two classes each, such as {shared[0]!r}"] if shared else []
    if "test" not in task.splits and "domain" not in task.groups:
        found.append(f"no split is called 'test'; there are {', '.join(task.splits) or 'none'}")
    return found


def check_data(
    task: Task, data: LabelledSet, *, pictures: bool = True, progress: Callable[[Iterable[int]], Iterator[int]] = iter
) -> TaskCheck:
    """Compare data with its record.

    Args:
        pictures: whether every picture is read and decoded, which also finds duplicates.
        progress: wraps the positions of the samples, to show how far the work is.
    """
    problems: list[str] = []
    warnings = [f"{count:,} x {why}" for why, count in data.rejects.items()]
    counts: dict[str, int] = {}
    split_of = list(data.splits) if data.splits is not None else [""] * len(data)
    for split, wanted in task.splits.items():
        try:
            part = select(task, data, split)
        except (ConfigError, DataError) as error:
            warnings.append(error.what)
            continue
        counts[split] = len(part)
        for index in part.indices:
            split_of[index] = split
        (warnings if wanted.evidence == "remembered" else problems).extend(count_notes(task, part, split))
        labels_wrong, labels_odd = _labels(task, part, split)
        problems += labels_wrong
        warnings += labels_odd
    if not counts:
        problems.append(f"the data has no split of the record ({', '.join(task.splits)})")
    repeated = [name for name, count in Counter(data.ids).items() if count > 1]
    if repeated:
        problems.append(f"{len(repeated):,} ids stand for several samples, such as {repeated[0]!r}")
    num_pictures = 0
    if pictures and data.embeddings is None:
        num_pictures = len(data)
        broken, leaks, twins = _pictures(data, split_of, progress)
        problems += broken + leaks
        warnings += twins
    return TaskCheck(counts=counts, problems=tuple(problems), warnings=tuple(warnings), num_pictures=num_pictures)


def _labels(task: Task, part: LabelledSet, split: str) -> tuple[list[str], list[str]]:
    """Labels without a class, and samples without the right number of labels; classes without samples."""
    if task.kind == "retrieval":
        return ([] if part.texts is not None else [f"{split}: no captions"]), []
    problems, counts = [], Counter(label for labels in part.labels for label in labels)
    keys = {label: task.key_of(label) for label in counts}
    unknown = {label: counts[label] for label, key in keys.items() if key is None}
    if unknown:
        samples = sum(unknown.values())
        error = unknown_label(task, next(iter(unknown)), split)
        problems.append(f"{len(unknown):,} labels on {samples:,} samples are no class: {error}")
    if not task.takes_several:
        odd = [part.ids[index] for index, labels in enumerate(part.labels) if len(labels) != 1]
        if odd:
            problems.append(f"{split}: {len(odd):,} samples have no label or several, such as {odd[0]!r}")
    empty = [key for key in task.display_names() if key not in set(keys.values())]
    warnings = [f"{split}: no sample of {len(empty):,} of {task.num_classes:,} classes: {_some(empty)}"] if empty else []
    return problems, warnings


def _pictures(
    data: LabelledSet, splits: list[str], progress: Callable[[Iterable[int]], Iterator[int]]
) -> tuple[list[str], list[str], list[str]]:
    """Pictures that do not open; those that are in two splits; those that are in one split twice."""
    from ostension.image.decode import read_picture

    places: dict[int, list[int]] = defaultdict(list)
    reasons: dict[str, list[str]] = defaultdict(list)
    for index in progress(range(len(data))):
        try:
            image = data.image(index)
            places[image_digest(image)].append(index)
            read_picture(image, name=data.ids[index])
        except (DataError, LimitError) as error:
            reasons[error.what].append(data.ids[index])
    broken = [f"{len(ids):,} pictures cannot be used, {why}: {_some(ids)}" for why, ids in reasons.items()]
    repeated = [found for found in places.values() if len(found) > 1]
    between: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for found in repeated:
        between[tuple(sorted({splits[index] for index in found}))].append(found)
    leaks, twins = [], []
    for names, groups in between.items():
        example = " and ".join(repr(data.ids[index]) for index in groups[0][:2])
        clash = sum(len({data.labels[index] for index in found}) > 1 for found in groups)
        labels = f"; {clash:,} of them with different labels" if clash else ""
        if len(names) > 1:
            leaks.append(f"{len(groups):,} pictures are in the splits {' and '.join(names)}, such as {example}{labels}")
        else:
            where = f" in {names[0]}" if names[0] else ""
            twins.append(f"{len(groups):,} pictures occur more than once{where}, such as {example}{labels}")
    return broken, leaks, twins


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
