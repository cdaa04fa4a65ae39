"""The score of a task by its own metric, with its chance level and interval, and what was said of each sample.

    score(task, logits, targets)            # a Metric; score_name(task) is its name
    score_value(task, logits, targets)      # the number alone, for searches
    scores(task, logits, targets, groups)   # the score first, then what belongs to it
    value_of_picks(task, picks, targets)    # both of them for metrics BY_PICKS, which look at the largest logit alone
    per_sample(task, logits, targets)       # columns by name

How each metric is computed is said beside its function here. Intervals are at 95 %: Wilson's for shares of samples and their
means over classes, a bootstrap over samples for all else. Equal logits are ordered by index. Logits may be minus infinity, for
classes that can never be given, but not in a whole row.

Letters: N samples, C classes or labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ostension.data.task import Task
from ostension.data.task_parts import chance_level
from ostension.errors import ConfigError, DataError, unknown_name
from ostension.evals import metrics, ranking
from ostension.evals.records import Metric
from ostension.runtime import numpy_generator
from ostension.shapes import Bool, Float, Int

Groups = Mapping[str, np.ndarray]
# Targets are (N,) positions, or (N, C) of 0 and 1 where samples have several labels.
Targets = np.ndarray
BY_PICKS = ("accuracy", "mean_per_class", "macro_f1_present", "worst_group")
ROWS = 4_096  # rows of probabilities in float64 at a time: 33 MB of 1,000 classes


def score_name(task: Task) -> str:
    """The name of the score among a record's metrics: the task's metric; "pm_0" for frames, whose anchors are scored here.

    Raises:
        ConfigError: for a retrieval task.
    """
    if task.metric == "recall_at_k":
        raise ConfigError(f"{task.name or task.title!r} is a retrieval task", expected="a task with classes")
    return "pm_0" if task.metric == "pm_k" else task.metric


def score(
    task: Task,
    logits: Float[np.ndarray, "N C"],
    targets: Targets,
    groups: Groups | None = None,
    *,
    seed: int = 0,
    independent: bool = False,
) -> Metric:
    """The task's own metric.

    Args:
        logits: by class in the task's order, or in that of any list of classes that `targets` count in.
        targets: (N,) positions, or (N, C) of 0 and 1.
        groups: (N,) values by the name of each of the task's groups, for the worst group.
        seed: of the bootstrap.
        independent: the logits of a multi-label task come from one classifier a label and are ranked as they are; otherwise
            the softmax over labels is ranked.

    Raises:
        ConfigError: for a retrieval task.
        DataError: for targets of another form than the task's, logits that are not numbers, or groups that are missing.
    """
    return scores(task, logits, targets, groups, seed=seed, independent=independent)[score_name(task)]


def score_value(
    task: Task,
    logits: Float[np.ndarray, "N C"],
    targets: Targets,
    groups: Groups | None = None,
    *,
    independent: bool = False,
) -> float:
    """The number alone of `score`, which costs no bootstrap."""
    name = score_name(task)
    _check(task, logits, targets)
    if name in BY_PICKS:
        return value_of_picks(task, logits.argmax(axis=1), targets, groups)
    if name in ("mean_top1_top5", "pm_0"):
        return float(_values(name, logits, targets).mean())
    return ranking.mean_over_labels(*_ranked(task, logits, targets, independent))[0]


def scores(
    task: Task,
    logits: Float[np.ndarray, "N C"],
    targets: Targets,
    groups: Groups | None = None,
    *,
    seed: int = 0,
    independent: bool = False,
) -> dict[str, Metric]:
    """`score` under its name, then what belongs to it: the average beside the worst group."""
    name = score_name(task)
    _check(task, logits, targets)
    if name in BY_PICKS:
        return scores_of_picks(task, logits.argmax(axis=1), targets, groups, classes=logits.shape[1], seed=seed)
    chance = chance_level(task.metric, logits.shape[1], None)[0]
    if name == "mean_top1_top5":
        values = _values(name, logits, targets)
        span = metrics.bootstrap_interval(values, seed=seed)
        return {name: Metric(value=float(values.mean()), count=len(values), chance=chance, interval=span)}
    if name == "pm_0":
        return {name: accuracy(in_set(logits, targets), chance=float(targets.mean()))}
    ranked = _ranked(task, logits, targets, independent)
    if name == "map_11_point":
        chance = float(targets.any(axis=0) @ targets.mean(axis=0) / max(1, targets.any(axis=0).sum()))
    span = metrics.percentile_interval(ranking.resampled_means(*ranked, seed=seed))
    return {name: Metric(value=ranking.mean_over_labels(*ranked)[0], count=len(logits), chance=chance, interval=span)}


def value_of_picks(task: Task, picks: Int[np.ndarray, " N"], targets: Targets, groups: Groups | None = None) -> float:
    """`score_value` of a metric of `BY_PICKS` from the classes with the largest logits."""
    name = score_name(task)
    if name == "accuracy":
        return float(np.mean(picks == targets))
    if name == "mean_per_class":
        return metrics.mean_per_class_accuracy(picks, targets)
    if name == "macro_f1_present":
        return metrics.macro_f1_present(picks, targets)
    assert name == "worst_group", name
    return _worst(group_accuracies(task, picks == targets, targets, groups))[1].value


def scores_of_picks(
    task: Task, picks: Int[np.ndarray, " N"], targets: Targets, groups: Groups | None = None, *, classes: int, seed: int = 0
) -> dict[str, Metric]:
    """`scores` of a metric of `BY_PICKS` from the classes with the largest of so many logits."""
    name = score_name(task)
    chance = chance_level(task.metric, classes, None)[0]
    if name == "accuracy":
        return {name: accuracy(picks == targets, chance=chance)}
    if name == "mean_per_class":
        return {name: mean_per_class(picks, targets, chance=chance)}
    if name == "macro_f1_present":
        return {name: macro_f1(picks, targets, chance=chance, seed=seed)}
    assert name == "worst_group", name
    cells = group_accuracies(task, picks == targets, targets, groups)
    worst = dataclasses.replace(_worst(cells)[1], chance=chance)
    return {name: worst, "average": _average(task, picks == targets, cells, chance)}


def gain(
    task: Task,
    ours: Float[np.ndarray, "N C"],
    theirs: Float[np.ndarray, "N C"],
    targets: Targets,
    groups: Groups | None = None,
    *,
    seed: int = 0,
) -> Metric:
    """The score of `ours` minus that of `theirs` on the same samples, with a paired interval; chance is 0.

    It is Agresti and Min's for accuracies, a normal one for means over classes, else a bootstrap. Macro-F1 and the worst group
    have none here. The same logits differ by nothing for certain.

    Raises:
        As `score`.
    """
    name = score_name(task)
    value = score_value(task, ours, targets, groups) - score_value(task, theirs, targets, groups)
    interval = None
    if np.array_equal(ours, theirs):
        interval = metrics.Interval(0.0, 0.0, 0.95, "same logits")
    elif name in ("map_11_point", "roc_auc"):
        both = [ranking.resampled_means(*_ranked(task, logits, targets, False), seed=seed) for logits in (ours, theirs)]
        interval = metrics.percentile_interval(both[0] - both[1])
    elif name == "mean_top1_top5":
        values = [_values(name, logits, targets) for logits in (ours, theirs)]
        interval = metrics.bootstrap_interval(values[0] - values[1], seed=seed)
    elif name in ("accuracy", "pm_0", "mean_per_class"):
        mine, other = (_values("accuracy" if targets.ndim == 1 else "pm_0", logits, targets) > 0 for logits in (ours, theirs))
        interval = metrics.paired_difference(mine, other)
        if name == "mean_per_class":
            error = metrics.class_mean_error(mine * 1.0 - other, targets)
            half = max(metrics.Z_95 * error, (interval.high - interval.low) / 2)
            interval = metrics.Interval(value - half, value + half, 0.95, "normal")
    return Metric(value=value, count=len(targets), chance=0.0, interval=interval)


def per_sample(
    task: Task, logits: Float[np.ndarray, "N C"], targets: Targets, groups: Groups | None = None
) -> dict[str, np.ndarray]:
    """Columns (N,): "target" and "predicted" as label keys, the predicted class's "probability", "correct", and "group".

    "correct" is what the mean of is the accuracy. There is no "target" where samples have several labels ("correct" then says
    whether the predicted one is among them), and a "group" only where the task is scored by groups.
    """
    _check(task, logits, targets)
    keys = np.array(list(task.display_names()))
    if logits.shape[1] != len(keys):
        raise DataError(f"{logits.shape[1]} columns of logits", source=task.name or task.title, expected=f"{len(keys)}")
    predicted = logits.argmax(axis=1)
    columns = {} if targets.ndim == 2 else {"target": keys[targets]}
    columns |= {
        "predicted": keys[predicted],
        "probability": top_probability(logits),
        "correct": in_set(logits, targets) if targets.ndim == 2 else predicted == targets,
    }
    if task.metric == "worst_group":
        columns["group"] = cells_of(task, targets, groups)
    return columns


def accuracy(correct: Bool[np.ndarray, " N"], *, chance: float | None) -> Metric:
    """The share of true values in `correct` (N,), with its Wilson interval."""
    successes = int(correct.sum())
    return Metric(
        value=successes / len(correct),
        count=len(correct),
        chance=chance,
        interval=metrics.wilson_interval(successes, len(correct)),
    )


def mean_per_class(predictions: Int[np.ndarray, " N"], targets: Int[np.ndarray, " N"], *, chance: float | None) -> Metric:
    """The mean of the accuracies of the classes that occur, with Wilson's interval for as many samples as are as informative.

    These are p (1 - p) / e^2 for the standard error e of `metrics.class_mean_error`.
    """
    value = metrics.mean_per_class_accuracy(predictions, targets)
    error = metrics.class_mean_error(predictions == targets, targets)
    trials = value * (1 - value) / error**2 if error > 0 else float(len(targets))
    interval = metrics.wilson_of(value, trials)
    return Metric(value=value, count=len(targets), chance=chance, interval=interval)


def macro_f1(predictions: Int[np.ndarray, " N"], targets: Int[np.ndarray, " N"], *, chance: float | None, seed: int) -> Metric:
    """`metrics.macro_f1_present`; a class that a draw leaves out of the targets is left out of the draw's mean."""
    value = metrics.macro_f1_present(predictions, targets)
    table = metrics.confusion(predictions, targets)
    generator = numpy_generator(seed, "bootstrap")
    drawn = generator.multinomial(len(targets), table[:, 2] / len(targets), size=ranking.RESAMPLES)
    classes = int(table[:, :2].max()) + 1
    sums = np.zeros((3, ranking.RESAMPLES, classes))
    for place, rows in enumerate((table[:, 0], table[:, 1])):
        order = np.argsort(rows, kind="stable")
        kinds, starts = np.unique(rows[order], return_index=True)
        sums[place][:, kinds] = np.add.reduceat(drawn[:, order], starts, axis=1)
    right = table[:, 0] == table[:, 1]
    sums[2][:, table[right, 0]] = drawn[:, right]
    true, given, both = sums
    found = np.where(true > 0, 2 * both / np.maximum(true + given, 1), np.nan)
    return Metric(
        value=value, count=len(targets), chance=chance, interval=metrics.percentile_interval(np.nanmean(found, axis=1))
    )


def group_accuracies(task: Task, correct: Bool[np.ndarray, " N"], targets: Targets, groups: Groups | None) -> dict[str, Metric]:
    """The accuracy in each cell that is not empty: the values of the task's groups, or class and values, joined by "/".

    Values that the record does not list (where it lists some) are no cell; they count in the average only.

    Raises:
        DataError: if the groups are missing, or no sample is in a cell.
    """
    cells = cells_of(task, targets, groups)
    listed = np.ones(len(cells), dtype=bool)
    for name, values in task.groups.items():
        if values:
            listed &= np.isin((groups or {})[name].astype(str), values)
    found = {str(cell): accuracy(correct[listed & (cells == cell)], chance=None) for cell in np.unique(cells[listed])}
    if not found:
        raise DataError("no sample is in a group that the record lists", source=task.name or task.title)
    return found


def cells_of(task: Task, targets: Targets, groups: Groups | None) -> np.ndarray:
    """The cell of each sample, as `group_accuracies` names them.

    Raises:
        DataError: if a field of the record is missing.
    """
    if missing := [name for name in task.groups if groups is None or name not in groups]:
        raise DataError(f"no values of the group {missing[0]!r}", source=task.name or task.title, expected="one a sample")
    keys = np.array(list(task.display_names()))
    parts = [keys[targets]] if task.group_by == "class-and-groups" else []
    parts += [(groups or {})[name].astype(str) for name in task.groups]
    return np.array(["/".join(values) for values in zip(*parts, strict=True)])


def in_set(logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, "N C"]) -> Bool[np.ndarray, " N"]:
    """Whether the class with the largest logit is among a sample's labels."""
    return np.take_along_axis(labels, logits.argmax(axis=1)[:, None], axis=1)[:, 0] > 0


def softmax(logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    """Probabilities in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def top_probability(logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, " N"]:
    """The largest probability of each row, without holding all of them."""
    found = [softmax(logits[start : start + ROWS]).max(axis=1) for start in range(0, len(logits), ROWS)]
    return np.concatenate(found)


def _ranked(
    task: Task, logits: np.ndarray, targets: np.ndarray, independent: bool
) -> tuple[ranking.Ranking, np.ndarray, np.ndarray]:
    """The ranking metric of mAP and AUC, with what it ranks and which are positive.

    A classifier of two classes is scored by the probability of the second (label 1, where they are numbers), one of more by
    the mean over classes of one against the rest, a multi-label one by the mean over labels.
    """
    # Raw similarities of pictures differ by what is the same for all labels, which the softmax takes out.
    values = logits if independent else softmax(logits)
    positive = targets > 0 if targets.ndim == 2 else targets[:, None] == np.arange(logits.shape[1])
    if targets.ndim == 1 and logits.shape[1] == 2:
        values, positive = values[:, 1:], positive[:, 1:]
    return ranking.eleven_point_of if task.metric == "map_11_point" else ranking.roc_auc_of, values, positive


def _values(name: str, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What each sample adds to a metric that is a mean over samples."""
    if name == "mean_top1_top5":
        found = metrics.ranks(logits, targets)
        return ((found < 1) + 1.0 * (found < 5)) / 2
    return 1.0 * (in_set(logits, targets) if name == "pm_0" else logits.argmax(axis=1) == targets)


def _worst(cells: Mapping[str, Metric]) -> tuple[str, Metric]:
    return min(cells.items(), key=lambda cell: cell[1].value)


def _average(task: Task, correct: np.ndarray, cells: Mapping[str, Metric], chance: float | None) -> Metric:
    """The mean over samples; with `group_weights` the mean over cells by their weights (of the cells that are not empty)."""
    if not task.group_weights:
        return accuracy(correct, chance=chance)
    for cell in cells:
        if cell not in task.group_weights:
            raise unknown_name("group without a weight:", cell, task.group_weights, source=task.name or task.title)
    total = sum(task.group_weights[cell] for cell in cells)
    value = sum(task.group_weights[cell] * one.value for cell, one in cells.items()) / total
    return Metric(value=value, count=sum(one.count for one in cells.values()), chance=chance)


def _check(task: Task, logits: np.ndarray, targets: np.ndarray) -> None:
    """Targets of the task's form, logits that can be ranked."""
    check_targets(task, logits.shape, targets)
    check_logits(task, logits)


def check_targets(task: Task, shape: tuple[int, ...], targets: np.ndarray) -> None:
    """Raise unless targets are of the task's form, for logits of shape (N, C).

    Raises:
        DataError: otherwise.
    """
    count, classes = shape
    several = task.takes_several
    wanted = (count, classes) if several else (count,)
    source = task.name or task.title
    if targets.shape != wanted or targets.dtype.kind not in "iu":
        what = f"targets of shape {targets.shape} and type {targets.dtype}"
        raise DataError(what, source=source, expected=f"whole numbers of shape {wanted}")
    if count == 0:
        raise DataError("there are no samples to measure", source=source, expected="at least one")
    if not 0 <= targets.min() <= targets.max() < (2 if several else classes):
        what = f"targets from {targets.min()} to {targets.max()}"
        raise DataError(what, source=source, expected="0 and 1" if several else f"0 to {classes - 1}")


def check_logits(task: Task, logits: Float[np.ndarray, "N C"]) -> None:
    """Raise unless each row has a largest number.

    Raises:
        DataError: otherwise.
    """
    highest = logits.max(axis=1)
    if not np.isfinite(highest).all():
        row = int((~np.isfinite(highest)).argmax())
        source = task.name or task.title
        raise DataError(f"row {row} of the logits has no largest number", source=source, expected="finite logits")
