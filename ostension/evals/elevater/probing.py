"""One linear probe of ELEVATER from its shots to its logits: draw, hold out, search, train again on everything.

Two modes, which differ in what a reader may believe:

- *honest*: settings are chosen by the last epoch's score on the images held out; the result is the last epoch's.
- *faithful*, as the released code: a trial's score is its best epoch's on the images held out, and the result is **the best
  epoch on the test images**. Such a number is not for reporting: the test images have chosen it.

A trial whose numbers overflow has no score (see `tuning`). Should the final training overflow, the next best trial takes its
place and the result says so.

Letters: N training images, M test images, D width, C classes.
Source: ELEVATER, section 3.2 and appendix; `full_model_finetune` of the toolkit, read.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ostension.config import require
from ostension.data.task import Task
from ostension.errors import ConfigError, DivergenceError
from ostension.evals.elevater.heads import HeadConfig, Start
from ostension.evals.elevater.knowledge import Mode
from ostension.evals.elevater.probe import Probes, TrainConfig, Trial, train_probes
from ostension.evals.elevater.splits import draw_shots, hold_out
from ostension.evals.elevater.tuning import RATES, Scored, Search, line_of, search
from ostension.evals.scores import score_value, softmax
from ostension.shapes import Float
from ostension.store import Features

FULL = -1  # shots: every image
_LOG = logging.getLogger("ostension.evals.elevater")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How a probe is tuned and trained.

    Attributes:
        mode: "honest" or "faithful" (see the module).
        rates: the learning rates of the search.
        learning_rate, weight_decay: train with these instead of searching.
        epochs: of a trial.
        final_epochs: of the last training.
        batch_size: images of a step.
        search_cap: images a class that the search sees at most; only PatchCamelyon has more.
    """

    mode: Mode = "honest"
    rates: tuple[float, ...] = RATES
    learning_rate: float | None = None
    weight_decay: float | None = None
    epochs: int = 10
    final_epochs: int = 50
    batch_size: int = 64
    search_cap: int = 10_000

    def __post_init__(self):
        both = (self.learning_rate, self.weight_decay)
        require((both[0] is None) == (both[1] is None), "learning_rate and weight_decay", both, "both or none")
        require(all(rate > 0 for rate in self.rates) and len(self.rates) > 0, "rates", self.rates, "above 0")
        require(tuple(sorted(set(self.rates))) == self.rates, "rates", self.rates, "different ones, ascending")
        require(self.tuned or self.rates == RATES, "rates", self.rates, "left out, as there is no search")
        require(self.epochs >= 1 and self.final_epochs >= 1, "epochs", (self.epochs, self.final_epochs), "1 or more")
        require(self.search_cap >= 2, "search_cap", self.search_cap, "2 or more")

    @property
    def tuned(self) -> bool:
        """Whether there is a search."""
        return self.learning_rate is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probed:
    """A probe's result.

    Attributes:
        logits: (M, C) of the test images.
        search: the trials; None where the settings were given.
        trial: the settings that it was trained with.
        epoch: whose result it is.
        drawn: training images, of which `held_out` chose the settings.
        notes: what a reader must know, one line each.
    """

    logits: Float[np.ndarray, "M C"]
    search: Search | None
    trial: Trial
    epoch: int
    drawn: int
    held_out: int
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sets:
    """Training and test features of a task; the rows are those that the head stands on."""

    task: Task
    train: Features
    test: Features


class Trainer(abc.ABC):
    """What trains trials on some of the training images: heads on rows (`ProbeTrainer`), or a tower (`finetune`)."""

    @abc.abstractmethod
    def train(
        self,
        trials: Sequence[Trial],
        chosen: np.ndarray,
        held: np.ndarray | None,
        train: TrainConfig,
        look: Callable[[int, int, np.ndarray], None],
        *,
        every_epoch: bool,
    ) -> dict[int, int]:
        """Train; the epochs in which trials lost their finite numbers, by their places.

        Args:
            chosen: positions of the training images.
            held: positions of the images that are looked at; None for the test images.
            look: told a trial's place, the epoch from 1, and the logits of those images.
            every_epoch: look after each epoch, or after the last one only.
        """


class ProbeTrainer(Trainer):
    """Heads on frozen rows, all trials side by side."""

    def __init__(self, sets: Sets, head: HeadConfig, start: Start):
        self.sets, self.head, self.start = sets, head, start

    def train(
        self,
        trials: Sequence[Trial],
        chosen: np.ndarray,
        held: np.ndarray | None,
        train: TrainConfig,
        look: Callable[[int, int, np.ndarray], None],
        *,
        every_epoch: bool,
    ) -> dict[int, int]:
        part = self.sets.train.take(chosen)
        seen = self.sets.test if held is None else self.sets.train.take(held)
        seen_rows = torch.from_numpy(seen.array())

        def after(probes: Probes, epoch: int) -> None:
            if every_epoch or epoch == train.epochs:
                for place in probes.alive:
                    look(place, epoch, probes.logits(seen_rows, place).numpy())

        targets = torch.from_numpy(np.asarray(labels_of(part), np.int64))
        return train_probes(self.head, self.start, trials, torch.from_numpy(part.array()), targets, train, after).ended


def probe(sets: Sets, head: HeadConfig, start: Start, config: ProbeConfig, *, shots: int, seed: int) -> Probed:
    """A probe on `shots` images a class; see `adapt`."""
    return adapt(ProbeTrainer(sets, head, start), sets, config, shots=shots, seed=seed)


def adapt(trainer: Trainer, sets: Sets, config: ProbeConfig, *, shots: int, seed: int) -> Probed:
    """Draw, search and train on `shots` images a class (`FULL` for every image; for 1 another of each class is held out).

    Raises:
        ConfigError: for shots that are none.
        DivergenceError: if every trial overflows.
    """
    require(shots == FULL or shots >= 1, "shots", shots, "1 or more, or -1 for every image")
    train, task = sets.train, sets.task
    targets, classes = labels_of(train), task.num_classes
    notes: list[str] = []
    drawn = np.arange(len(train))
    if shots != FULL:
        drawn = draw_shots(targets, classes, max(shots, 2), seed, config.mode)
    final, searched = drawn, drawn
    if shots == FULL and _per_class(targets, classes).max(initial=0) > config.search_cap:
        searched = draw_shots(targets, classes, config.search_cap, seed, config.mode)
        notes.append(f"the search saw {len(searched):,} of {len(drawn):,} images")
    kept, held = (searched[part] for part in hold_out(targets[searched], seed, config.mode))
    if shots == 1:
        final = kept
    trials, found = _chosen(trainer, sets, config, kept, held, seed)
    if found is not None:
        notes.append(found.summary)
        _LOG.log(logging.WARNING if found.failed else logging.INFO, "%s, %s: %s", task.name, _words(shots, seed), found.summary)
    for trial in trials:
        logits, epoch = _final(trainer, sets, config, trial, final, seed)
        if logits is not None:
            return Probed(
                logits=logits, search=found, trial=trial, epoch=epoch, drawn=len(drawn), held_out=len(held), notes=tuple(notes)
            )
        line = line_of(Scored(trial=trial, score=None, error=f"the final training overflowed in epoch {epoch}"))
        notes.append(line)
        _LOG.warning("%s, %s: %s", task.name, _words(shots, seed), line)
    raise DivergenceError(f"no final training of {len(trials)} settings stayed finite", source=f"{task.name}: {notes[-1]}")


def probabilities(task: Task, logits: Float[np.ndarray, "M C"], mode: Mode) -> Float[np.ndarray, "M C"]:
    """What is submitted: the softmax; of a task with several labels the logistic function of each, but in faithful mode the
    softmax as well.
    """
    if task.takes_several and mode == "honest":
        return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))
    return softmax(logits)


def value_of(task: Task, logits: Float[np.ndarray, "M C"], features: Features, mode: Mode) -> float:
    """The task's own score; with several labels the honest mode ranks each label's own logits."""
    return score_value(task, logits, labels_of(features), features.groups, independent=_independent(task, mode))


def labels_of(features: Features) -> np.ndarray:
    """The targets.

    Raises:
        ConfigError: if there are none.
    """
    if features.targets is None:
        raise ConfigError("the samples have no labels", source=features.facts.get("source"), expected="labels")
    return features.targets


def _chosen(
    trainer: Trainer, sets: Sets, config: ProbeConfig, kept: np.ndarray, held: np.ndarray, seed: int
) -> tuple[Sequence[Trial], Search | None]:
    """Settings for the final training, the best first."""
    if config.learning_rate is not None and config.weight_decay is not None:
        return [Trial(learning_rate=config.learning_rate, weight_decay=config.weight_decay)], None
    train = TrainConfig(epochs=config.epochs, batch_size=config.batch_size, seed=seed)
    out = sets.train.take(held)

    def evaluate(trials: Sequence[Trial]) -> list[Scored]:
        best: dict[int, float] = {}

        def look(place: int, epoch: int, logits: np.ndarray) -> None:
            if np.isfinite(logits).all():
                best[place] = max(best.get(place, -np.inf), value_of(sets.task, logits, out, config.mode))

        ended = trainer.train(trials, kept, held, train, look, every_epoch=config.mode == "faithful")
        return [_scored(trial, best.get(place), ended.get(place)) for place, trial in enumerate(trials)]

    found = search(evaluate, config.rates)
    ranked = sorted((one for one in found.tried if one.score is not None), key=lambda one: -(one.score or 0))
    return [found.best.trial, *(one.trial for one in ranked if one.trial != found.best.trial)], found


def _scored(trial: Trial, score: float | None, ended: int | None) -> Scored:
    error = "" if ended is None else f"overflowed in epoch {ended}"
    return Scored(trial=trial, score=score, error=error or ("" if score is not None else "its logits overflowed"))


def _final(
    trainer: Trainer, sets: Sets, config: ProbeConfig, trial: Trial, chosen: np.ndarray, seed: int
) -> tuple[Float[np.ndarray, "M C"] | None, int]:
    """The logits of the test images and whose epoch they are of; None and the epoch in which the training overflowed."""
    train = TrainConfig(epochs=config.final_epochs, batch_size=config.batch_size, seed=seed)
    faithful = config.mode == "faithful"
    best: tuple[float, np.ndarray | None, int] = (-np.inf, None, 0)

    def look(place: int, epoch: int, logits: np.ndarray) -> None:
        nonlocal best
        if np.isfinite(logits).all():
            value = value_of(sets.task, logits, sets.test, config.mode) if faithful else 0.0
            if value > best[0]:
                best = (value, logits, epoch)

    ended = trainer.train([trial], chosen, None, train, look, every_epoch=faithful)
    return best[1], best[2] or ended.get(0, config.final_epochs)


def _independent(task: Task, mode: Mode) -> bool:
    return task.takes_several and mode == "honest"


def _per_class(targets: np.ndarray, classes: int) -> np.ndarray:
    return targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=classes)


def _words(shots: int, seed: int) -> str:
    return f"{'every image' if shots == FULL else f'{shots} shots'}, seed {seed}"
