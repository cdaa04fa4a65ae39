"""Predictor: what every method ends in. logits = scale * f(x) @ W(x).T with unit f (B,E) and unit W (C,E) or (B,C,E).

Whoever evaluates or serves one cannot tell a zero-shot classifier from a trained one. This file holds the contract, which
is also the common case: f is the encoder's embedding and W a constant matrix. A method with another f or W derives from
`Predictor`, gives itself a `kind` and overrides `features`, `class_weights` or `forward`; `depends` says what its W
looks at.

A scalar bias of the logits (SigLIP) is left out: it moves all classes alike, and softmax does not see that.

Letters: B batch, N images, C classes, E embedding, S pixels a side.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.errors import CheckpointError, ConfigError, DataError
from ostension.model._predictor_files import (
    check_class_list,
    find_encoder,
    read_predictor,
    read_record,
    write_predictor,
)
from ostension.model.modes import evaluating
from ostension.registry import ModuleRegistry
from ostension.shapes import Float
from ostension.text.prompts import ClassNamesLike, TemplatesLike, as_classes, as_templates, fill

METHODS = ModuleRegistry("ostension.adapt", "method", without=("base",))  # a file there defines the kind of its name
Level = Literal["pre", "post"]
UNIT_TOLERANCE = 1e-3  # rows written from bfloat16 embeddings are unit to about 4e-4


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The probabilities of one image's classes."""

    class_names: tuple[str, ...]
    probabilities: Float[Tensor, " C"]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.top(1)[0][1]

    def top(self, k: int) -> list[tuple[str, float]]:
        """The `k` most probable classes with their probabilities, best first (all of them if there are fewer)."""
        values, order = self.probabilities.sort(descending=True, stable=True)
        return [(self.class_names[int(i)], float(value)) for value, i in zip(values[:k], order[:k], strict=True)]


class Predictor:
    """A classifier over `class_names`.

    Args:
        class_names: what the columns of the logits are called; all different and none empty.
        weights: (C, E) unit rows W.
        scale: the multiplier of the cosines.
        encoder: the model that gives f; needed for images, not for embeddings.
        templates: the prompts' templates that W was made with, for the record.

    Raises:
        DataError: for duplicated or empty class names, or weights that are not C finite unit rows.
    """

    kind: ClassVar[str] = "matrix"
    depends: ClassVar[Literal["nothing", "feature", "batch", "views"]] = "nothing"
    takes: ClassVar[Literal["pictures", "videos"]] = "pictures"
    level: Level = "post"  # which rows of the encoder are f: unit embeddings, or the image tower's before the projection
    own_images: bool = False  # whether f is another than the encoder's, so that kept embeddings of it cannot stand in
    _kinds: ClassVar[dict[str, type[Predictor]]] = {}  # filled below, and by each subclass as it is defined

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        Predictor._kinds[cls.kind] = cls

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        weights: Float[Tensor, "C E"],
        scale: float,
        encoder: Any = None,
        templates: Sequence[str] = (),
    ):
        self.class_names = check_class_names(class_names)
        self.weights = check_weights(weights, len(self.class_names))
        self.scale, self.encoder, self.templates = float(scale), encoder, tuple(templates)

    @classmethod
    def zero_shot(cls, encoder: Any, class_names: ClassNamesLike, templates: TemplatesLike) -> Predictor:
        """The prompt ensemble: W_c is the mean of the unit embeddings of class c's prompts, as a unit row again.

        Args:
            class_names: one name for each class, or several, which are pooled with the templates.
            templates: templates with one `{}`, or the name of a set of them.

        Raises:
            DataError, ConfigError: for names and templates that `text.prompts` refuses.

        Source: CLIP, section 3.1.4 (embeddings are averaged, not probabilities).
        """
        classes, templates = as_classes(class_names), as_templates(templates)
        weights = _ensemble(encoder, classes, templates)
        scale = encoder.scale().item()
        return cls(class_names=unique_labels(classes), weights=weights, scale=scale, encoder=encoder, templates=templates)

    def pixels(self, pictures: Sequence[Any], *, workers: int = 0) -> Float[Tensor, "B *V 3 S S"]:
        """Pictures (paths, bytes, PIL pictures, arrays) as `forward` takes them; in several views where W looks at those."""
        return self._need_encoder().transform.batch(pictures, workers=workers)

    def features(self, images: Float[Tensor, "B *F 3 S S"]) -> Float[Tensor, "B E"]:
        """f: unit embeddings of preprocessed images, or of videos' frames for a predictor of videos."""
        return self._need_encoder().encode_image(images, normalize=True)

    def class_weights(self, embeddings: Float[Tensor, "B E"]) -> Float[Tensor, "*_B C E"]:
        """W: unit rows (C, E), or (B, C, E) where the classifier depends on the image."""
        return self.weights

    def logits(self, embeddings: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        """scale * f @ W.T of unit embeddings, in float32 or wider.

        The product runs in float64. It is little work beside an encoder's, and the logits then do not depend on the order
        of the classes or the size of the batch: matrix products round differently at different places.
        """
        weights, wide = self.class_weights(embeddings), embeddings.double()
        product = wide @ weights.double().T if weights.ndim == 2 else torch.einsum("be,bce->bc", wide, weights.double())
        return (self.scale * product).to(torch.float64 if embeddings.dtype == torch.float64 else torch.float32)

    def forward(self, images: Float[Tensor, "B *F 3 S S"]) -> Float[Tensor, "B C"]:
        """Logits of preprocessed images, or of videos' frames for a predictor of videos."""
        return self.logits(self.features(images))

    @torch.no_grad()
    def predict(self, images: Sequence[Any] | Tensor, *, batch_size: int = 32, workers: int = 0) -> Float[Tensor, "N C"]:
        """Probabilities of pictures (paths, bytes, PIL pictures, arrays) or of a preprocessed tensor (N, 3, S, S)."""
        encoder = self._need_encoder()
        rows = []
        with evaluating(encoder):
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                pixels = batch if isinstance(batch, Tensor) else self.pixels(batch, workers=workers)
                rows.append(self.forward(pixels).softmax(dim=-1))
        return torch.cat(rows) if rows else torch.empty(0, len(self.class_names))

    def __call__(self, images: Any, *, batch_size: int = 32, workers: int = 0) -> list[Prediction]:
        """One `Prediction` for each picture; a single picture counts as a list of one."""
        listed = images if isinstance(images, (list, tuple, Tensor)) else [images]
        probabilities = self.predict(listed, batch_size=batch_size, workers=workers)
        return [Prediction(self.class_names, row) for row in probabilities.cpu()]

    def bind(self, class_names: Sequence[str]) -> Predictor:
        """The same prompts with other class names.

        Raises:
            ConfigError: where W was not made of prompts.
        """
        if not self.templates:
            raise ConfigError(f"a {self.kind!r} predictor without templates belongs to its {len(self.class_names)} classes")
        return Predictor.zero_shot(self._need_encoder(), list(class_names), self.templates)

    def freeze(self) -> Predictor:
        """The same predictions from a constant matrix.

        Raises:
            ConfigError: where W depends on the input.
        """
        if self.depends != "nothing":
            raise ConfigError(f"a {self.kind!r} predictor depends on its {self.depends} and has no constant matrix")
        return Predictor(
            class_names=self.class_names, weights=self.weights, scale=self.scale, encoder=self.encoder, templates=self.templates
        )

    def save(self, folder: str | Path) -> None:
        """Write the predictor without its encoder, which is named by its fingerprint and its place.

        Raises:
            ConfigError: without an encoder, for the predictor would be of no use.
        """
        settings, tensors = self.state()
        write_predictor(
            Path(folder), kind=self.kind, settings=settings, tensors=tensors, class_names=self.class_names,
            templates=self.templates, encoder=self._need_encoder(),
        )  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path, encoder: Any = None, **options: Any) -> Predictor:
        """Read what `save` wrote, with its encoder: a model, a model's path, or (None) the one at the recorded place.

        Args:
            options: of `ostension.load`, for an encoder that is no model yet.

        Raises:
            CheckpointError: for a damaged folder, or an encoder other than the one that the predictor was made with.
        """
        record, tensors = read_predictor(Path(folder), {*cls._kinds, *METHODS.names()})
        if record["kind"] not in cls._kinds:
            METHODS.load(record["kind"])
        encoder = find_encoder(Path(folder), record["encoder"], encoder, **options)
        try:
            predictor = cls._kinds[record["kind"]].from_state(record["settings"], tensors, encoder)
        except (ConfigError, DataError, KeyError, TypeError) as error:
            raise CheckpointError(f"not a usable predictor: {error}", source=folder) from None
        check_class_list(Path(folder), record, predictor.class_names)
        return predictor

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `from_state` needs: settings (a JSON tree) and the predictor's own tensors."""
        settings = {"class_names": list(self.class_names), "templates": list(self.templates), "scale": self.scale}
        return settings, {"weights": self.weights}

    @classmethod
    def from_state(cls, settings: dict[str, Any], tensors: dict[str, Tensor], encoder: Any) -> Predictor:
        """The predictor of a saved state."""
        return cls(
            class_names=settings["class_names"], weights=tensors["weights"].to(encoder.device), scale=settings["scale"],
            encoder=encoder, templates=settings["templates"],
        )  # fmt: skip

    def _need_encoder(self) -> Any:
        if self.encoder is None:
            raise ConfigError("this predictor has no encoder", fix="pass encoder=..., or use it on embeddings only")
        return self.encoder


Predictor._kinds[Predictor.kind] = Predictor


def sample_kind(folder: str | Path) -> Literal["pictures", "videos"]:
    """What a saved predictor classifies, seen from its record alone.

    Raises:
        CheckpointError: for a damaged folder.
    """
    kind = read_record(Path(folder), {*Predictor._kinds, *METHODS.names()})["kind"]
    if kind not in Predictor._kinds:
        METHODS.load(kind)
    return Predictor._kinds[kind].takes


def encoder_fingerprint(folder: str | Path) -> str:
    """The fingerprint of the encoder that a saved predictor was made with.

    Raises:
        CheckpointError: for a damaged folder.
    """
    return str(read_predictor(Path(folder), {*Predictor._kinds, *METHODS.names()})[0]["encoder"].get("fingerprint"))


def _ensemble(encoder: Any, classes: Sequence[Sequence[str]], templates: Sequence[str]) -> Tensor:
    """W (C, E) over all names and templates of each class."""
    if all(len(names) == 1 for names in classes):
        return encoder.class_embeddings([names[0] for names in classes], templates)
    # The mean runs over names x templates at once. Such tasks are small (FER: 12 names for 7 classes), so the plain way.
    prompts = [[fill(template, name) for name in names for template in templates] for names in classes]
    rows = encoder.embed_texts([prompt for group in prompts for prompt in group])
    return F.normalize(torch.stack([group.mean(0) for group in rows.split([len(group) for group in prompts])]), dim=-1)


def unique_labels(classes: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The first name of each class, with the class's number where a published list has a name twice (ImageNet: missile)."""
    first = [names[0] for names in classes]
    count = collections.Counter(first)
    return tuple(f"{name} ({index})" if count[name] > 1 else name for index, name in enumerate(first))


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """The names as given, if each can be told from the others.

    Raises:
        DataError: for no names, an empty one, or one that occurs twice.
    """
    if isinstance(class_names, str) or not class_names:
        raise DataError(f"the class names are {class_names!r}", expected="a list of one or more names")
    first: dict[str, int] = {}
    for index, name in enumerate(class_names):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"class_names[{index}] is {name!r}", expected="a name that is not empty")
        earlier = first.setdefault(name.strip(), index)
        if earlier != index:
            raise DataError(f"class_names[{index}] is {name!r}, as is class_names[{earlier}]", fix="say what sets them apart")
    return tuple(class_names)


def check_weights(weights: Tensor, num_classes: int) -> Tensor:
    """The rows in float32 (float64 stays), if there is one finite unit row for each class.

    Raises:
        DataError: otherwise.
    """
    weights = weights if weights.dtype == torch.float64 else weights.float()
    if weights.ndim != 2 or len(weights) != num_classes:
        expected = f"one row for each of {num_classes} classes"
        raise DataError(f"the weights have the shape {tuple(weights.shape)}", expected=expected)
    off = (weights.norm(dim=-1) - 1).abs()
    if not bool((off <= UNIT_TOLERANCE).all()):  # also catches what is not finite
        row = int((off > UNIT_TOLERANCE).logical_or(off.isnan()).nonzero()[0])
        raise DataError(f"row {row} of the weights has the norm {float(weights[row].norm()):.4g}", expected="unit rows")
    return weights
