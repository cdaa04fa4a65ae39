"""What adapting gains: a method learned from K labelled pictures a class, measured on the task, on classes that it never
saw, and on other tasks.

    task          trained on K shots of all classes, tested on all
    base-to-new   trained on K shots of the first half of the classes; each half tested against its own names; harmonic mean
    targets       the same predictor, bound to other tasks' names: cross-data-set transfer, and domain shift

Shots are drawn as the published results drew theirs (`data.few_shot`), before classes are parted. Settings are never chosen on
a test split. Methods and this module meet only through `Predictor`.

Letters: N samples, V views, C classes, E embedding, K shots.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._views import Views
from ostension.adapt.base import METHODS, Spec
from ostension.config import to_tree
from ostension.data.few_shot import base_and_new, draw_few_shot, harmonic_mean, hold_out
from ostension.data.sets.base import SelectedSet
from ostension.data.task import Task
from ostension.data.task_data import TaskData
from ostension.errors import ConfigError, DataError
from ostension.evals.records import Metric, Record
from ostension.evals.scores import accuracy, score_name, scores
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.model.predictor import Predictor, unique_labels
from ostension.shapes import Float, Int

BLOCK = 64  # pictures that are predicted together; of methods that look at the batch, the published size
ZERO_SHOT = "zero-shot"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One adaptation.

    Attributes:
        method: a method's name, or "zero-shot" for the hand-written prompts.
        config: its settings; None for zero-shot.
        shots: K; 0 takes all training pictures.
        seed: of the draw and of the training.
        base_to_new: train on the first half of the classes.
    """

    method: str
    config: Any = None
    shots: int = 16
    seed: int = 1
    base_to_new: bool = False

    @property
    def name(self) -> str:
        """The name under which its result is kept."""
        halves = "-base-to-new" if self.base_to_new else ""
        return f"adapt-{self.method}{halves}-{self.shots or 'all'}shot-seed{self.seed}"


def spec_of(method: str) -> Spec:
    """What a method says of itself.

    Raises:
        ConfigError: for an unknown one, with the nearest three.
    """
    return METHODS.load(method).SPEC


def names_of(task: Task) -> tuple[str, ...]:
    """One name a class, in the order of the targets; a name that two classes share gets the class's number."""
    return unique_labels(list(task.display_names().values()))


def examples_of(splits: TaskSplits, embedder: Embedder, plan: Plan, classes: Sequence[int] | None = None) -> Examples:
    """The pictures that a plan learns from: K shots of "train", and min(K, 4) of "val" where there is one.

    A method that chooses by validation pictures gets some of "train" where there is none.

    Raises:
        DataError, ConfigError: if there is no training split, or samples have several labels.
    """
    if (missing := splits.missing("train")) is not None:
        raise DataError(missing, fix="adapt on a task with a training split")
    train = splits.split("train")
    val = splits.split("val") if splits.missing("val") is None else None
    for part in (train, val):
        if part is not None and (part.targets is None or part.targets.ndim != 1):
            raise ConfigError(f"{splits.task.name!r} has several labels a sample", expected="a task with one label a sample")
    assert train.targets is not None
    chosen, chosen_val = np.arange(len(train)), None if val is None else np.arange(len(val))
    if plan.shots:
        chosen, chosen_val = draw_few_shot(train.targets, None if val is None else val.targets, plan.shots, plan.seed)
    if val is None and _selects(plan):
        val = train
        chosen, chosen_val = hold_out(train.targets, chosen, plan.shots, plan.seed)
    wanted = np.arange(len(train.classes)) if classes is None else np.asarray(classes)
    place = np.full(len(train.classes), -1)
    place[wanted] = np.arange(len(wanted))
    names = names_of(splits.task)
    return Examples(
        class_names=tuple(names[index] for index in wanted),
        train=_labelled(train, chosen, place, embedder),
        val=None if val is None or chosen_val is None else _labelled(val, chosen_val, place, embedder),
        templates=splits.task.prompt_templates(),
        facts={"task": splits.task.name, "shots": plan.shots, "seed": plan.seed},
    )


def _selects(plan: Plan) -> bool:
    """Whether the plan chooses anything by validation pictures."""
    recipe = getattr(plan.config, "recipe", None)
    return spec_of(plan.method).selects or (recipe is not None and recipe.select == "best")


def _labelled(data: TaskData, chosen: np.ndarray, place: np.ndarray, embedder: Embedder) -> Labelled:
    assert data.targets is not None
    kept = chosen[place[data.targets[chosen]] >= 0]
    domains = None
    if data.groups:
        values = next(iter(data.groups.values()))[kept]
        domains = np.unique(values, return_inverse=True)[1]
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
) -> tuple[Record, Predictor]:
    """Adapt as the plan says and measure; the record has the task's own score first, then those of the predictor's rivals
    ("mix/accuracy") and of the targets, and what the fit says of itself in its details.

    Args:
        targets: other tasks, each with the split to measure.
        folder: where a fit keeps its state, so that one that was stopped goes on.
        start: a predictor that the method begins with.

    Raises:
        ConfigError: for a start with a method that takes none.
    """
    model, count = embedder.model, len(splits.task.display_names())
    base, new = base_and_new(count) if plan.base_to_new else (range(count), range(0))
    names = names_of(splits.task)
    examples = None
    if plan.method == ZERO_SHOT:
        predictor: Predictor = model.classifier([names[index] for index in base], splits.task.prompt_templates())
    else:
        examples = examples_of(splits, embedder, plan, base if plan.base_to_new else None)
        method = METHODS.load(plan.method)
        given = {} if start is None else {"start": start}
        if not given.keys() <= inspect.signature(method.fit).parameters.keys():
            raise ConfigError(f"{plan.method} does not begin with another predictor", expected="tpt")
        predictor = method.fit(model, examples, plan.config, seed=plan.seed, folder=folder, progress=progress, **given)
    test = splits.split("test")
    facts, rivals = getattr(predictor, "facts", {}), getattr(predictor, "rivals", {})
    measured: dict[str, Metric] = {}
    score = score_name(splits.task)
    if plan.base_to_new:
        other = _renamed(predictor, [names[index] for index in new], splits.task)
        halves = {"base": _half(predictor, test, base, embedder), "new": _half(other, test, new, embedder)}
        value = harmonic_mean(halves["base"].value, halves["new"].value)
        measured["harmonic_mean"] = Metric(value=value, count=len(test))
        measured |= halves
    else:
        measured |= scores(splits.task, logits_of(predictor, test, embedder), _targets(test), test.groups, seed=plan.seed)
        for name, rival in rivals.items():
            logits = logits_of(rival, test, embedder)
            measured[f"{name}/{score}"] = scores(splits.task, logits, _targets(test), test.groups, seed=plan.seed)[score]
    for target in targets:
        data = target.split("test")
        for prefix, one in (("", predictor), *((f"{name}/", rival) for name, rival in rivals.items())):
            bound = _renamed(one, names_of(target.task), target.task)
            found = scores(target.task, logits_of(bound, data, embedder), _targets(data), data.groups, seed=plan.seed)
            measured[f"{prefix}{target.task.name}@{data.split}"] = found[score_name(target.task)]
    counts = {"test_samples": len(test), "classes": len(base)}
    if examples is not None:
        counts |= {"train_samples": len(examples.train)}
    settings = None if plan.config is None else to_tree(plan.config)
    record = Record(
        protocol=plan.name, subject=f"{plan.method}, {plan.shots or 'all'} shots", metrics=measured,
        config={
            "method": plan.method, "settings": settings, "shots": plan.shots, "base_to_new": plan.base_to_new, "score": score,
        },
        hashes=embedder.hashes(splits.task), counts=counts, seeds=(plan.seed,), task=splits.task.name, model=embedder.name,
        split=test.split, details={"fit": facts} if facts else {},
    )  # fmt: skip
    return record, predictor


@torch.no_grad()
def logits_of(predictor: Predictor, data: TaskData, embedder: Embedder) -> Float[np.ndarray, "N C"]:
    """A predictor's logits on all samples: from rows of the store where it leaves the image side alone, else from pictures.

    A method that looks at the batch sees 64 pictures of one domain at a time.
    """
    if predictor.own_images:
        return torch.cat([_of_pictures(predictor, data, block) for block in _blocks(np.arange(len(data)))]).numpy()
    if predictor.depends == "views":
        return _of_views(predictor, data, embedder)
    kept = embedder.rows(data, predictor.level)
    rows = torch.from_numpy(kept.unit() if predictor.level == "post" else kept.array())
    found = None
    for members in _domains(data) if predictor.depends == "batch" else [np.arange(len(data))]:
        for block in _blocks(members):
            part = predictor.logits(rows[torch.from_numpy(block)].to(_device(predictor))).cpu()
            if found is None:
                found = torch.empty(len(data), part.shape[1])
            found[torch.from_numpy(block)] = part
    assert found is not None
    return found.numpy()


def _of_pictures(predictor: Predictor, data: TaskData, block: np.ndarray) -> torch.Tensor:
    pixels = torch.stack([predictor.encoder.transform(data.samples.read(int(index)).image) for index in block])
    return predictor.forward(pixels.to(_device(predictor))).float().cpu()


def _of_views(predictor: Any, data: TaskData, embedder: Embedder) -> np.ndarray:
    """From stored views: the model's own preprocessing, then random crops; AugMix makes its views of each picture anew."""
    if predictor.module.config.mix != "none":
        samples = (data.samples.read(index).image for index in range(len(data)))
        made = Views(predictor.encoder, predictor.module.config.views, predictor.module.config.mix)
        return torch.cat([predictor.logits_of_views(made.rows(image)[None]) for image in samples]).cpu().numpy()
    count, model = predictor.module.config.views - 1, embedder.model
    none = np.zeros(len(data), dtype=np.int64)  # nobody looks at them
    pictures = Labelled(source=data.samples, targets=none, name=data.split, store=embedder.store)
    views = torch.cat([pictures.features(model), *([pictures.features(model, count)] if count else [])])
    blocks = (torch.from_numpy(block) for block in _blocks(np.arange(len(data))))
    device = _device(predictor)
    found = [predictor.logits_of_views(views[:, block].transpose(0, 1).to(device)) for block in blocks]
    return torch.cat(found).cpu().numpy()


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
    """The predictor for other class names: bound by the method, or hand-written anew for zero-shot."""
    if tuple(names) == predictor.class_names:
        return predictor
    bind = getattr(predictor, "bind", None)
    if bind is not None:
        return bind(tuple(names))
    return predictor.encoder.classifier(list(names), task.prompt_templates())


def bind_to(predictor: Predictor | None, encoder: Any, task: Task) -> Predictor:
    """The predictor with a task's class names; without one, the encoder's hand-written prompts for them."""
    if predictor is None:
        return encoder.classifier(list(names_of(task)), task.prompt_templates())
    return _renamed(predictor, names_of(task), task)


def _targets(data: TaskData) -> Int[np.ndarray, " N"]:
    assert data.targets is not None
    return data.targets


def _blocks(members: np.ndarray) -> list[np.ndarray]:
    return [members[start : start + BLOCK] for start in range(0, len(members), BLOCK)]


def _domains(data: TaskData) -> list[np.ndarray]:
    """The samples of each domain; all of them where the task has none."""
    if not data.groups:
        return [np.arange(len(data))]
    values = next(iter(data.groups.values()))
    return [np.flatnonzero(values == value) for value in np.unique(values)]


def _device(predictor: Predictor) -> torch.device:
    return predictor.encoder.device
