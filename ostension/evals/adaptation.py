"""What adapting gains: a method learned from K labelled pictures a class, measured on the task, on classes that it never
saw, and on other tasks.

    task          trained on K shots of all classes, tested on all
    base-to-new   trained on K shots of the first half of the classes; each half tested against its own names; harmonic mean
    sources       other tasks that the method learns from besides, K shots of each
    keep          other tasks whose accuracy is to stay, of which the method looks at validation pictures
    targets       the same predictor, bound to other tasks' names: cross-data-set transfer, and domain shift

Shots are drawn as the published results drew theirs (`data.few_shot`), before classes are parted. Settings are never chosen on
a test split. Methods and this module meet only through `Predictor`.

Letters: N samples, C classes, K shots.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._tuning import Tuned
from ostension.adapt.base import METHODS, AdditionPredictor, Spec
from ostension.config import from_tree, require, to_tree
from ostension.data.few_shot import base_and_new, draw_few_shot, harmonic_mean, hold_out
from ostension.data.pairs import Subset
from ostension.data.sets.base import SelectedSet
from ostension.data.sets.videos import videos_of
from ostension.data.task import Task
from ostension.data.task_data import TaskData
from ostension.errors import ConfigError, DataError, nearest, unknown_name
from ostension.evals.answers import bound, domain_field, logits_of, names_of
from ostension.evals.group_robustness import by_group, worst_group
from ostension.evals.records import Metric, Record
from ostension.evals.scores import accuracy, score_name, scores
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.evals.typographic import attack_scores, written_classes
from ostension.files import sha256_json
from ostension.model.predictor import Predictor
from ostension.shapes import Int
from ostension.weights.states import mixed_state

ZERO_SHOT = "zero-shot"
LONGEST = 60  # letters of the names of sources, in the name of a file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One adaptation.

    Attributes:
        method: a method's name, or "zero-shot" for the hand-written prompts.
        config: its settings; None for zero-shot.
        shots: K; 0 takes all training pictures.
        seed: of the draw and of the training.
        base_to_new: train on the first half of the classes.
        sources: the names of other tasks that the method learns from besides.
        keep: the names of tasks whose accuracy is to stay.
        alphas: points on the line from zero-shot weights to tuned ones that are measured besides, of methods that tune a
            tower (WiSE-FT's curve).
        val: the split of the pictures that settings are chosen by; of WILDS "val" is out of distribution, "id_val" in it.
    """

    method: str
    config: Any = None
    shots: int = 16
    seed: int = 1
    base_to_new: bool = False
    sources: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    alphas: tuple[float, ...] = ()
    val: str = "val"

    def __post_init__(self):
        require(self.shots >= 0, "shots", self.shots, "0 for all training pictures, or more")
        require(all(0 <= alpha <= 1 for alpha in self.alphas), "alphas", self.alphas, "numbers from 0 to 1")

    @property
    def name(self) -> str:
        """The name under which its result is kept."""
        halves = "-base-to-new" if self.base_to_new else ""
        chosen = "" if self.val == "val" else f"-by-{self.val}"
        return f"adapt-{self.label.replace(' ', '-')}{halves}-{self.shots or 'all'}shot{chosen}-seed{self.seed}"

    @property
    def label(self) -> str:
        """The method, what it learns from besides, and what it is to keep."""
        parts = [self.method]
        for word, tasks in (("from", self.sources), ("keeping", self.keep)):
            named = "+".join(tasks)
            several = named if len(named) <= LONGEST else f"{len(tasks)} tasks {sha256_json(list(tasks))[:8]}"
            parts += [word, several] if tasks else []
        return " ".join(parts)


def spec_of(method: str) -> Spec:
    """What a method says of itself.

    Raises:
        ConfigError: for an unknown one, with the nearest three.
    """
    return _module(method).SPEC


def _module(method: str) -> ModuleType:
    if method.replace("_", "-") not in METHODS.names():
        raise unknown_name("method", method, (ZERO_SHOT, *METHODS.names()))
    return METHODS.load(method)


def plan_with(method: str, settings: Mapping[str, Any], **fields: Any) -> Plan:
    """A plan with a method's defaults but for some settings, whose keys have dots ("recipe.epochs").

    Raises:
        ConfigError: for a setting that the method does not have, or a value that it refuses.
    """
    if method == ZERO_SHOT:
        return Plan(method=method, **fields)
    kind = _module(method).Config
    tree = to_tree(kind())
    for key, value in settings.items():
        *path, last = key.split(".")
        place = tree
        for part in path:
            if not isinstance(place.get(part), dict):
                close = ", ".join(repr(one) for one in nearest(part, place))
                what = f"unknown setting {key!r}: there are none under {part!r}"
                raise ConfigError(what, source=f"settings of {method}", expected=f"a known one; nearest: {close}")
            place = place[part]
        place[last] = value
    return Plan(method=method, config=from_tree(kind, tree, source=f"settings of {method}"), **fields)


def takes(method: str, parameter: str) -> bool:
    """Whether a method's `fit` takes something of its own: "start", another predictor, "sources" or "keep", other tasks."""
    return method != ZERO_SHOT and parameter in inspect.signature(_module(method).fit).parameters


def tunes(method: str) -> bool:
    """Whether a method ends in a tower of its own."""
    found = [] if method == ZERO_SHOT else vars(_module(method)).values()
    return any(isinstance(one, type) and issubclass(one, Tuned) for one in found)


def _that_take(parameter: str) -> list[str]:
    return [name for name in METHODS.names() if takes(name, parameter)]


def examples_of(splits: TaskSplits, embedder: Embedder, plan: Plan, classes: Sequence[int] | None = None) -> Examples:
    """The pictures that a plan learns from: K shots of "train", and min(K, 4) of the plan's "val" where there is one.

    A method that chooses by validation pictures gets some of "train" where there is none. One whose settings say
    selection="test", for a published protocol that did so, gets all test pictures; the facts then say it, too.

    A class with fewer pictures than K gives all that it has, as in the published draw; the facts name it ("short").

    Raises:
        DataError, ConfigError: if there is no training split and the method wants labels, or samples have several labels.
    """
    names = names_of(splits.task)
    if (missing := splits.missing("train")) is not None:
        if spec_of(plan.method).labels:
            raise DataError(missing, fix="adapt on a task with a training split")
        return _without_pictures(splits, names if classes is None else [names[index] for index in classes])
    train = _split(splits, "train")
    if splits.measured == "train":
        raise ConfigError(f"{splits.task.name}@train is learned from and measured", expected="another split to measure")
    if plan.val in ("train", splits.measured):
        raise ConfigError(f"{plan.val!r} is to choose and is learned from or measured", expected="validation pictures")
    if plan.val != "val" and (missing := splits.missing(plan.val)) is not None:
        raise DataError(missing, fix="name a split of the task that is there")
    val = _split(splits, plan.val) if splits.missing(plan.val) is None else None
    for part in (train, val):
        if part is not None and (part.targets is None or part.targets.ndim != 1):
            raise ConfigError(f"{splits.task.name!r} has several labels a sample", expected="a task with one label a sample")
    assert train.targets is not None
    chosen, chosen_val = np.arange(len(train)), None if val is None else np.arange(len(val))
    if plan.shots:
        chosen, chosen_val = draw_few_shot(train.targets, None if val is None else val.targets, plan.shots, plan.seed)
    by_test = getattr(plan.config, "selection", "val") == "test"
    if by_test:
        val = splits.split("test")
        chosen_val = np.arange(len(val))
    elif val is None and _selects(plan):
        val = train
        chosen, chosen_val = hold_out(train.targets, chosen, plan.shots, plan.seed)
    chosen_by = None if val is None else "test" if by_test else val.split
    wanted = np.arange(len(train.classes)) if classes is None else np.asarray(classes)
    place = np.full(len(train.classes), -1)
    place[wanted] = np.arange(len(wanted))
    counts = np.bincount(train.targets, minlength=len(train.classes))
    least = max(plan.shots, 1) if spec_of(plan.method).labels else 0
    short = {names[index]: int(counts[index]) for index in wanted if counts[index] < least}
    return Examples(
        class_names=tuple(names[index] for index in wanted),
        train=_labelled(train, chosen, place, embedder),
        val=None if val is None or chosen_val is None else _labelled(val, chosen_val, place, embedder),
        templates=splits.task.prompt_templates(),
        facts={"task": splits.task.name, "shots": plan.shots, "seed": plan.seed, "selection": chosen_by,
               "short": short},
    )  # fmt: skip


def _without_pictures(splits: TaskSplits, names: Sequence[str]) -> Examples:
    """A vocabulary alone, for a method that learns from no pictures."""
    data = _split(splits, "test")
    nothing = Labelled(source=Subset(data.samples, range(0)), targets=np.arange(0), none=True)
    facts = {"task": splits.task.name, "shots": 0, "seed": 0, "selection": None, "short": {}}
    return Examples(class_names=tuple(names), train=nothing, templates=splits.task.prompt_templates(), facts=facts)


def _split(splits: TaskSplits, name: str) -> TaskData:
    """The samples of a split; of a task of videos one a video, whatever the method looks at."""
    data = splits.split(name)
    return videos_of(data) if data.task.kind == "video" and not data.task.takes_several else data


def _selects(plan: Plan) -> bool:
    """Whether the plan chooses anything by validation pictures."""
    recipe = getattr(plan.config, "recipe", None)
    chooses = getattr(plan.config, "chooses", spec_of(plan.method).selects)
    return chooses or (recipe is not None and recipe.select == "best")


def _labelled(data: TaskData, chosen: np.ndarray, place: np.ndarray, embedder: Embedder) -> Labelled:
    assert data.targets is not None
    kept = chosen[place[data.targets[chosen]] >= 0]
    domains = None
    if (field := domain_field(data)) is not None:
        domains = np.unique(data.groups[field][kept], return_inverse=True)[1]
    return Labelled(
        source=SelectedSet(data.samples, kept), targets=place[data.targets[kept]], domains=domains, name=data.split,
        store=embedder.store,
    )  # fmt: skip


def run_plan(
    plan: Plan,
    splits: TaskSplits,
    embedder: Embedder,
    *,
    targets: Sequence[TaskSplits] = (),
    folder: Path | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    start: Predictor | None = None,
    sources: Sequence[TaskSplits] = (),
    keep: Sequence[TaskSplits] = (),
) -> tuple[Record, Predictor]:
    """Adapt as the plan says and measure; the record has the task's own score first, then those of the predictor's rivals
    ("mix/accuracy") and of the targets, and what the fit says of itself in its details. Where a task's record lists groups, the
    worst of them stands beside the score; where they are the score, the gap to the average does, and the details have each.

    Args:
        targets: other tasks, each with the split to measure.
        folder: where a fit keeps its state, so that one that was stopped goes on.
        start: a predictor that the method begins with.
        sources: the plan's other tasks.
        keep: the plan's tasks to keep; all of their validation pictures (or some of their training ones) are there.

    Raises:
        ConfigError: for a start, sources or tasks to keep with a method that takes none.
    """
    model, count = embedder.model, len(splits.task.display_names())
    base, new = base_and_new(count) if plan.base_to_new else (range(count), range(0))
    if plan.base_to_new and not new:
        raise ConfigError(f"{splits.task.name} has one class", expected="two or more, to learn one half and measure both")
    names = names_of(splits.task)
    examples = None
    if plan.method == ZERO_SHOT:
        predictor: Predictor = model.classifier([names[index] for index in base], splits.task.prompt_templates())
    else:
        examples = examples_of(splits, embedder, plan, base if plan.base_to_new else None)
        method = _module(plan.method)
        given: dict[str, Any] = {} if start is None else {"start": start}
        if sources:
            given["sources"] = [examples_of(source, embedder, dataclasses.replace(plan, val="val")) for source in sources]
        if keep:
            given["keep"] = [examples_of(one, embedder, dataclasses.replace(plan, shots=0, val="val")) for one in keep]
        for parameter in given:
            if not takes(plan.method, parameter):
                raise ConfigError(f"{plan.method} takes no {parameter}", expected=", ".join(_that_take(parameter)))
        predictor = method.fit(model, examples, plan.config, seed=plan.seed, folder=folder, progress=progress, **given)
    test = _split(splits, "test")
    facts, rivals = getattr(predictor, "facts", {}), getattr(predictor, "rivals", {})
    measured: dict[str, Metric] = {}
    cells: dict[str, list[float]] = {}
    score = score_name(splits.task)
    if plan.base_to_new:
        other = _renamed(predictor, [names[index] for index in new], splits.task)
        halves = {"base": _half(predictor, test, base, embedder), "new": _half(other, test, new, embedder)}
        value = harmonic_mean(halves["base"].value, halves["new"].value)
        measured["harmonic_mean"] = Metric(value=value, count=len(test))
        measured |= halves
    else:
        logits = logits_of(predictor, test, embedder)
        measured |= scores(splits.task, logits, _targets(test), test.groups, seed=plan.seed)
        measured |= worst_group(splits.task, logits, _targets(test), test.groups) | _attacked(test, logits)
        if score == "worst_group":
            found = by_group(splits.task, logits.argmax(axis=1), _targets(test), test.groups)
            measured["gap"] = found.metrics()["gap"]
            cells = {name: [cell.value, cell.count] for name, cell in found.cells.items()}
    measured |= _on_targets(predictor, targets, embedder, plan.seed)
    for name, rival in itertools.chain(rivals.items(), points_between(predictor, plan.alphas)):
        if not plan.base_to_new:
            logits = logits_of(rival, test, embedder)
            measured[f"{name}/{score}"] = scores(splits.task, logits, _targets(test), test.groups, seed=plan.seed)[score]
        elsewhere = _on_targets(rival, targets, embedder, plan.seed)
        measured |= {f"{name}/{where}": metric for where, metric in elsewhere.items() if "/" not in where}
    short: Any = {} if examples is None else examples.facts["short"]
    counts = {"test_samples": len(test), "classes": len(base)}
    if examples is not None:
        counts |= {"train_samples": len(examples.train)}
        counts |= {"short_classes": len(short)} if short else {}
    if sources:
        counts |= {"source_tasks": len(sources), "source_samples": sum(len(one.train) for one in given["sources"])}
    details = [("fit", facts), ("groups", cells), ("short", short)]
    settings = None if plan.config is None else to_tree(plan.config)
    chosen_by = examples.facts["selection"] if examples is not None and _selects(plan) else None
    record = Record(
        protocol=plan.name, subject=f"{plan.label}, {plan.shots or 'all'} shots", metrics=measured,
        config={
            "method": plan.label, "settings": settings, "shots": plan.shots, "base_to_new": plan.base_to_new, "score": score,
            "selection": chosen_by,
        },
        hashes=embedder.hashes(splits.task), counts=counts, seeds=(plan.seed,), task=splits.task.name, model=embedder.name,
        split=test.split, details={name: value for name, value in details if value},
    )  # fmt: skip
    return record, predictor


def _on_targets(
    predictor: Predictor, targets: Sequence[TaskSplits], embedder: Embedder, seed: int
) -> dict[str, Metric]:
    """The scores of a predictor on other tasks, and their worst groups."""
    measured: dict[str, Metric] = {}
    for target in targets:
        data, where = _split(target, "test"), f"{target.task.name}@{target.measured}"
        logits = logits_of(_renamed(predictor, names_of(target.task), target.task), data, embedder)
        measured[where] = scores(target.task, logits, _targets(data), data.groups, seed=seed)[score_name(target.task)]
        cells = worst_group(target.task, logits, _targets(data), data.groups) | _attacked(data, logits)
        measured |= {f"{where}/{name}": metric for name, metric in cells.items()}
    return measured


def _attacked(data: TaskData, logits: np.ndarray) -> dict[str, Metric]:
    """What words on the pictures do, where they have some: "two_way" and "deceived"."""
    texts = data.groups.get(data.task.written or "")
    if texts is None or not all(texts):
        return {}
    found = attack_scores(logits, _targets(data), written_classes(texts.tolist(), data.classes, _targets(data)))
    return {name: found[name] for name in ("two_way", "deceived")}


def points_between(predictor: Predictor, alphas: Sequence[float]) -> Iterator[tuple[str, Predictor]]:
    """Predictors on the line of weights from a method before its first step (0) to what it gave (1), one alive at a time.

    Of methods that tune no tower there are none. They are measured, and nothing is chosen among them.
    """
    module = getattr(predictor, "module", None)
    if not alphas or not isinstance(module, Tuned):
        return
    assert isinstance(predictor, AdditionPredictor)
    ends = [{name: value.clone() for name, value in one.state_dict().items()} for one in (module.untrained(), module)]
    try:
        for alpha in alphas:
            module.load_state_dict(mixed_state(ends, [1 - alpha, alpha]))
            yield f"alpha {alpha:g}", module.predictor(predictor.templates)
    finally:
        module.load_state_dict(ends[1])


def _half(predictor: Predictor, data: TaskData, classes: range, embedder: Embedder) -> Metric:
    """The accuracy on the samples of some classes among these classes alone."""
    targets = _targets(data)
    members = np.flatnonzero((targets >= classes.start) & (targets < classes.stop))
    part = dataclasses.replace(
        data, samples=SelectedSet(data.samples, members), targets=targets[members],
        groups={name: values[members] for name, values in data.groups.items()},
    )  # fmt: skip
    if predictor.own_images or predictor.depends in ("views", "batch"):  # a batch must not hold the other half's pictures
        found = logits_of(predictor, part, embedder)
    else:
        found = logits_of(predictor, data, embedder)[members]
    return accuracy(found.argmax(axis=1) == targets[members] - classes.start, chance=1 / len(classes))


def _renamed(predictor: Predictor, names: Sequence[str], task: Task) -> Predictor:
    """The predictor for other class names: hand-written prompts are the task's, else the method binds what it has learned."""
    if tuple(names) == predictor.class_names:
        return predictor
    if type(predictor) is Predictor and predictor.templates:
        return predictor.encoder.classifier(list(names), task.prompt_templates())
    if isinstance(predictor, AdditionPredictor):
        return predictor.bind(names, task.prompt_templates())
    return bound(predictor, names)


def bind_to(predictor: Predictor | None, encoder: Any, task: Task) -> Predictor:
    """The predictor with a task's class names; without one, the encoder's hand-written prompts for them."""
    if predictor is None:
        return encoder.classifier(list(names_of(task)), task.prompt_templates())
    return _renamed(predictor, names_of(task), task)


def _targets(data: TaskData) -> Int[np.ndarray, " N"]:
    assert data.targets is not None
    return data.targets
