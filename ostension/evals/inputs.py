"""What a protocol measures: a task and a model, as rows of pictures by split and rows of texts by string.

A protocol asks for no more than that, so it does not know whether rows come from a store that a model fills on the first
use (`store_inputs`) or from somebody's arrays (`ArrayInputs`).

Letters: N samples, M prompts, C classes, E embedding, D width before the projection.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from ostension.data.task import Task
from ostension.errors import ConfigError, DataError, unknown_name
from ostension.files import sha256_json
from ostension.shapes import Float
from ostension.store import Features
from ostension.store.key import Level
from ostension.text.prompts import fill

Names = Mapping[str, tuple[str, ...]]


class Inputs(abc.ABC):
    """A task and a model.

    Attributes:
        task: the record.
        model_name: under which results of one model are put side by side.
        scale: the multiplier of the cosines, exp(logit_scale).
        answers_alone: why there is nothing but `logits` to look at; None where there is more.
    """

    task: Task
    model_name: str
    scale: float
    answers_alone: str | None = None

    @abc.abstractmethod
    def has(self, split: str) -> bool:
        """Whether there are samples of that split."""

    @abc.abstractmethod
    def features(self, split: str = "test", level: Level = "post") -> Features:
        """The rows of a split with targets, classes, groups and ids: unit rows in the joint space ("post") or the tower's
        output before the projection ("pre").

        Raises:
            ConfigError: for a split that is not there, or a level that is not known.
        """

    @abc.abstractmethod
    def texts(self, prompts: Sequence[str], *, truncate: bool = False) -> Float[np.ndarray, "M E"]:
        """Unit rows of prompts, float32.

        Args:
            truncate: cut prompts that are too long for the text tower instead of refusing them.

        Raises:
            ConfigError: where there is no text tower and a prompt's row is not known.
        """

    def logits(
        self, split: str = "test", names: Names | None = None, templates: Sequence[str] | None = None
    ) -> Float[np.ndarray, "N C"]:
        """scale * x W^T of a split's samples x, with the rows W that `classifier` gives for these names and templates."""
        weights = self.classifier(names, templates)
        return class_logits(self.features(split).unit(), weights, self.scale)

    @abc.abstractmethod
    def hashes(self) -> dict[str, str]:
        """Hashes of what the numbers depend on: weights, data of the splits, class list."""

    def name_of(self, split: str) -> str:
        """The record's name of a split: where one stands for "test", its own."""
        return split

    def other(self, task: Task) -> Inputs | None:
        """The same model on another task; None where that task's data is not there."""
        return None

    def projection(self) -> tuple[Float[np.ndarray, "D E"], Float[np.ndarray, " E"]] | None:
        """The matrix P and offset b that take rows before the projection x to the joint space, x P + b before it is made unit;
        None where there is no such map or it is not known.
        """
        return None

    def parameters(self) -> dict[str, int]:
        """The model's numbers of parameters: "visual" (the image tower with its projection) and "backbone" (all of it); empty
        where they are not known.
        """
        return {}

    def names(self) -> Names:
        """The names of each class by its label key, in the order of targets and logits."""
        return self.task.label_names()

    def classifier(self, names: Names | None = None, templates: Sequence[str] | None = None) -> Float[np.ndarray, "C E"]:
        """Unit rows W of the classes: the mean of the unit rows of all prompts (names x templates) of a class, made unit again.

        Args:
            names: names by label key; by default the task's own.
            templates: with one `{}` each; by default the task's own.

        Source: CLIP, section 3.1.4 (embeddings are averaged, not probabilities).
        """
        names = self.names() if names is None else names
        templates = self.task.prompt_templates() if templates is None else templates
        groups = [[fill(template, name) for name in several for template in templates] for several in names.values()]
        unique = list(dict.fromkeys(prompt for group in groups for prompt in group))
        rows = self.texts(unique)
        place = {prompt: index for index, prompt in enumerate(unique)}
        means = np.stack([rows[[place[prompt] for prompt in group]].mean(axis=0, dtype=np.float64) for group in groups])
        return unit(means, [f"the class {key!r}" for key in names])


class ArrayInputs(Inputs):
    """A task and rows from anywhere.

    Args:
        task: the record; its classes must be the features' classes, in order, if the features have targets.
        features: by split, or by (split, level); by split alone the rows count as both levels.
        prompt_rows: a row for each prompt, (E,), of any length above 0.
        class_rows: (C, E) rows of the classes, instead of prompts; `classifier` then takes no other names or templates.
        projection: what `projection` gives: (D, E) and (E,).
        parameters: what `parameters` gives.
        scale: the multiplier of the cosines; 100 for OpenAI's released models.
        model_name: of what made the rows.
        others: the same model's inputs of other tasks, by the tasks' names.

    Raises:
        DataError: for features whose classes are not the task's, or rows of other shapes.
    """

    def __init__(
        self,
        task: Task,
        features: Mapping[str, Features] | Mapping[tuple[str, Level], Features],
        *,
        prompt_rows: Mapping[str, np.ndarray] | None = None,
        class_rows: np.ndarray | None = None,
        projection: tuple[np.ndarray, np.ndarray] | None = None,
        parameters: Mapping[str, int] | None = None,
        scale: float = 100.0,
        model_name: str = "arrays",
        others: Mapping[str, Inputs] | None = None,
    ):
        self._others = dict(others or {})
        self.task, self.scale, self.model_name = task, scale, model_name
        self._projection, self._parameters = projection, dict(parameters or {})
        self._features = {key if isinstance(key, tuple) else (key, level): rows for key, rows in features.items()
                          for level in (("pre", "post") if isinstance(key, str) else (key[1],))}  # fmt: skip
        self._prompts = None if prompt_rows is None else dict(prompt_rows)
        self._class_rows = None
        keys = tuple(task.label_names())
        for (split, _), rows in self._features.items():
            if rows.targets is not None and rows.classes != keys:
                what = f"the classes of {split!r} are {', '.join(rows.classes[:5])} ({len(rows.classes)})"
                raise DataError(what, expected=f"the task's: {', '.join(keys[:5])} ({len(keys)}), in that order")
        if class_rows is not None:
            if class_rows.ndim != 2 or len(class_rows) != len(keys):
                raise DataError(f"class rows of shape {class_rows.shape}", expected=f"({len(keys)}, E), one row a class")
            self._class_rows = unit(class_rows, [f"the class {key!r}" for key in keys])

    def other(self, task: Task) -> Inputs | None:
        return self._others.get(task.name)

    def has(self, split: str) -> bool:
        return any(known == split for known, _ in self._features)

    def features(self, split: str = "test", level: Level = "post") -> Features:
        if not self.has(split):
            raise unknown_name("split", split, {known for known, _ in self._features})
        if (split, level) not in self._features:
            raise ConfigError(f"no features {level!r} of {split!r}", expected=f"features for ({split!r}, {level!r})")
        return self._features[split, level]

    def projection(self) -> tuple[Float[np.ndarray, "D E"], Float[np.ndarray, " E"]] | None:
        return self._projection

    def parameters(self) -> dict[str, int]:
        return dict(self._parameters)

    def texts(self, prompts: Sequence[str], *, truncate: bool = False) -> Float[np.ndarray, "M E"]:
        if self._prompts is None:
            raise ConfigError("there are no rows of prompts", fix="give prompt_rows")
        for prompt in prompts:
            if prompt not in self._prompts:
                raise unknown_name("prompt", prompt, self._prompts)
        return unit(np.stack([self._prompts[prompt] for prompt in prompts]), prompts)

    def classifier(self, names: Names | None = None, templates: Sequence[str] | None = None) -> Float[np.ndarray, "C E"]:
        if self._class_rows is None:
            return super().classifier(names, templates)
        if names is not None or templates is not None:
            raise ConfigError("there are rows of classes and none of prompts", fix="give prompt_rows")
        return self._class_rows

    def hashes(self) -> dict[str, str]:
        found = {"class_list": self.task.class_list_sha256}
        for (split, level), rows in self._features.items():
            digest = hashlib.sha256(np.ascontiguousarray(rows.array()).tobytes())
            digest.update(b"" if rows.targets is None else np.ascontiguousarray(rows.targets).tobytes())
            digest.update(sha256_json(list(rows.ids)).encode())
            found[f"{split}/{level}"] = digest.hexdigest()
        for name, known in (("class_rows", self._class_rows), ("prompt_rows", self._prompts)):
            if isinstance(known, dict):
                found[name] = sha256_json({prompt: np.asarray(row).tolist() for prompt, row in known.items()})
            elif known is not None:
                found[name] = hashlib.sha256(known.tobytes()).hexdigest()
        if self._projection is not None:
            found["projection"] = hashlib.sha256(b"".join(part.tobytes() for part in self._projection)).hexdigest()
        return found


def class_logits(rows: Float[np.ndarray, "N E"], weights: Float[np.ndarray, "C E"], scale: float) -> Float[np.ndarray, "N C"]:
    """scale * x W^T in float32.

    Raises:
        DataError: for rows and weights of different widths.
    """
    if rows.shape[1] != weights.shape[1]:
        raise DataError(f"rows of {rows.shape[1]} numbers and classes of {weights.shape[1]}", expected="one joint space")
    return np.float32(scale) * (rows @ weights.T)


def unit(rows: np.ndarray, names: Sequence[str]) -> Float[np.ndarray, "M E"]:
    """Rows of unit length in float32.

    Raises:
        DataError: naming the row that is all zeros or not finite.
    """
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    bad = ~(np.isfinite(lengths) & (lengths > 0))[:, 0]
    if bad.any():
        raise DataError(f"the row of {names[int(bad.argmax())]} has no direction", expected="finite numbers, not all zero")
    return (wide / lengths).astype(np.float32)
