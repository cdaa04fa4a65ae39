"""Group robustness: accuracy by group, the worst one, its distance from the average, and how low chance alone would make it.

Groups are the record's cells: values of a field (regions), or class and values (bird and background). The average is over
samples; with `group_weights` in the record it is weighted by them, as WILDS weights Waterbirds by the sizes of its training
cells, 3498, 184, 56 and 1057. Values that the record does not list ("Other" among FMoW's regions) count in the average only.

The worst of many small groups is low by chance. With n_g samples each and one accuracy p for all,

    P(worst <= w) = 1 - prod_g P(X_g > w n_g),  X_g binomial with n_g and p

Letters: N samples, G groups.
Source: Sagawa et al. 2020; Koh et al. 2021, WILDS, whose evaluations of Waterbirds, CelebA, FMoW and iWildCam are followed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ostension.data.task import Task
from ostension.errors import DataError
from ostension.evals.records import Metric
from ostension.evals.scores import Groups, accuracy, group_accuracies
from ostension.evals.statistics import binomial_tail, clopper_pearson
from ostension.shapes import Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupResult:
    """Accuracies by group.

    Attributes:
        cells: each group's accuracy with its 95 % Clopper-Pearson interval, by name.
        worst: the name of the lowest; of equals the first.
        average: over samples, or weighted.
        by_chance: the probability of a worst group as low if all had the plain average.
        small: groups that have too few samples to be compared, with their sizes.
        absent: groups that the average has a weight for and no sample; it is over the others.
    """

    cells: Mapping[str, Metric]
    worst: str
    average: Metric
    by_chance: float
    small: Mapping[str, int]
    absent: tuple[str, ...]

    @property
    def gap(self) -> float:
        """The average minus the worst."""
        return self.average.value - self.cells[self.worst].value

    def metrics(self, prefix: str = "", chance: float | None = None) -> dict[str, Metric]:
        """worst_group, average and gap."""
        worst = dataclasses.replace(self.cells[self.worst], chance=chance)
        gap = Metric(value=self.gap, count=self.average.count, direction="lower", chance=0.0)
        return {f"{prefix}worst_group": worst, f"{prefix}average": self.average, f"{prefix}gap": gap}


def by_group(
    task: Task,
    predicted: Int[np.ndarray, " N"],
    targets: Int[np.ndarray, " N"],
    groups: Groups | None,
    *,
    minimum: int = 1,
) -> GroupResult:
    """The accuracies in the cells of a task's record.

    Args:
        groups: (N,) values by the name of each of the task's groups.
        minimum: cells with fewer samples count in the average only.

    Raises:
        DataError: if a field is missing, or no cell has so many samples.
    """
    correct = predicted == targets
    found = {name: exact(cell) for name, cell in group_accuracies(task, correct, targets, groups).items()}
    cells = {name: cell for name, cell in found.items() if cell.count >= minimum}
    if not cells:
        raise DataError(f"no group has {minimum} samples", source=task.name or task.title, expected="a smaller minimum")
    plain = exact(accuracy(correct, chance=None))
    average = weighted_average(found, task.group_weights) if task.group_weights else plain
    worst = min(cells, key=lambda name: cells[name].value)
    return GroupResult(
        cells=cells,
        worst=worst,
        average=average,
        by_chance=chance_of_worst([cell.count for cell in cells.values()], plain.value, cells[worst].value),
        small={name: cell.count for name, cell in found.items() if name not in cells},
        absent=tuple(name for name in task.group_weights if name not in found),
    )


def worst_group(
    task: Task, logits: Float[np.ndarray, "N C"], targets: np.ndarray, groups: Groups | None
) -> dict[str, Metric]:
    """The worst group beside another score, for a task whose record lists its groups' values; empty for other tasks.

    It is empty, too, where all samples are of one group, and where groups are the score itself.
    """
    listed = bool(task.groups) and all(task.groups.values())
    if task.metric == "worst_group" or not listed or targets.ndim != 1 or not groups or not task.groups.keys() <= groups.keys():
        return {}
    cells = group_accuracies(task, logits.argmax(axis=1) == targets, targets, groups)
    if len(cells) < 2:
        return {}
    worst = min(cells, key=lambda name: cells[name].value)
    return {"worst_group": exact(cells[worst])}


def weighted_average(cells: Mapping[str, Metric], weights: Mapping[str, float]) -> Metric:
    """sum_g weight_g accuracy_g / sum_g weight_g over the cells that are there.

    Raises:
        DataError: for a cell without a weight.
    """
    for name in cells:
        if name not in weights:
            raise DataError(f"the group {name!r} has no weight", expected=f"a weight for it; there are {', '.join(weights)}")
    total = sum(weights[name] for name in cells)
    value = sum(weights[name] * cell.value for name, cell in cells.items()) / total
    return Metric(value=value, count=sum(cell.count for cell in cells.values()))


def chance_of_worst(sizes: Sequence[int], average: float, worst: float) -> float:
    """The probability that the lowest of groups of those sizes is at most `worst` if all have the accuracy `average`."""
    above = 1.0
    for size in sizes:
        least = math.floor(worst * size + 1e-9) + 1  # the fewest right answers that are more than the worst share
        above *= binomial_tail(least, size, average) if least <= size else 0.0
    return 1.0 - above


def exact(metric: Metric) -> Metric:
    """A share with its 95 % Clopper-Pearson interval, which holds its promise for small groups and shares near 1."""
    successes = round(metric.value * metric.count)
    return dataclasses.replace(metric, interval=clopper_pearson(successes, metric.count, 0.95))
