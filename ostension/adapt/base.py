"""The Method contract: how a method adds to a frozen model, and how what it ends in is a Predictor like any other.

A method is one file of this folder, found by its name, with three things in it:

    SPEC = Spec(...)                                     # what it is, trains, needs and depends on
    class Config: ...                                    # a frozen dataclass: its settings with the paper's defaults
    def fit(model, examples, config, **run) -> Predictor # labelled (or unlabelled) pictures in, a Predictor out

Most methods are an `Addition`: a module whose own parameters are exactly what is trained, around a model that it holds but
does not own. It overrides `weights` (W) and, where the image side changes too, `image` (f); the loss, the training loop
(`_fit`), saving, loading and new class names are shared.

    logits = scale * f(x) @ W(x).T          f (B, E) and W (C, E), or (B, C, E) where W depends on the picture, unit rows

Letters: B batch, N contexts, C classes, E embedding, W width, S pixels a side.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._examples import Examples, Labelled
from ostension.config import from_tree, to_tree
from ostension.errors import CheckpointError, ConfigError
from ostension.model.clip import CLIP
from ostension.model.predictor import Level, Predictor, check_class_names
from ostension.registry import ModuleRegistry
from ostension.shapes import Float, Int

__all__ = ["METHODS", "TEMPLATE", "Addition", "AdditionPredictor", "Depends", "Examples", "Labelled", "Spec"]

Depends = Literal["nothing", "feature", "batch", "views"]
Takes = Literal["pictures", "videos"]
TEMPLATE = "a photo of a {}."  # where neither settings nor the task say another
METHODS = ModuleRegistry("ostension.adapt", "method", without=("base",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What a method is.

    Attributes:
        title: as the paper calls it.
        paper: authors, title, where and when, arXiv number.
        trains: what is trained, in words with sizes.
        labels: whether it needs labelled pictures.
        test_gradients: whether it takes gradients when it predicts.
        domains: whether it needs several source domains.
        selects: whether it chooses settings or an epoch on `examples.val`, which is then always there. A property `chooses` of
            its `Config` says it of these settings.
        depends: what W looks at: nothing, a picture's feature, the batch, or several views of a picture.
        takes: what a sample is: a picture, or a video.
        neutral: settings of its `Config` with which an untrained method is zero-shot with `neutral_template`; None where there
            are none.
        silence: sets an untrained addition's parameters so that it is, besides `neutral`, where no setting can.
        neutral_template: the template that it then equals.
        departures: where this differs from the paper or its code, and why.
    """

    title: str
    paper: str
    trains: str
    labels: bool = True
    test_gradients: bool = False
    domains: bool = False
    selects: bool = False
    depends: Depends = "nothing"
    takes: Takes = "pictures"
    neutral: Mapping[str, Any] | None = None
    silence: Callable[[Any], None] | None = None
    neutral_template: str = "a photo of a {}."
    departures: tuple[str, ...] = ()


class Addition(nn.Module, abc.ABC):
    """What a method adds to a model; its own parameters are all that it trains and all that is saved.

    A subclass gives itself a `kind` (its file's name) and a `config_type`, makes its parameters in `__init__`, and can then
    be saved, loaded and bound to other class names.

    Args:
        model: the model, which stays as it is.
        config: the method's settings.
        class_names: one name a class.
        seed: of the first values of its parameters.

    Attributes:
        needs_images: whether f depends on own parameters, so that features of the frozen tower cannot stand in.
        compares: whether its loss wants the frozen tower's rows of the same pictures beside their pixels; of random views it
            has to encode them itself.
        level: which rows of the frozen tower are f: unit embeddings ("post"), or its output before the projection ("pre").
        by_domain: whether a training batch holds `batch_size` pictures of every domain, domain after domain.
        binds: whether what was learned serves other class names.
        facts: what its fit has chosen and seen, which a predictor of it takes over.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type[Any]]
    depends: ClassVar[Depends] = "nothing"
    takes: ClassVar[Takes] = "pictures"
    needs_images: bool = False
    compares: bool = False
    level: Level = "post"
    by_domain: bool = False
    binds: bool = True
    model: CLIP

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            shared = {"kind": cls.kind, "addition": cls, "depends": cls.depends, "takes": cls.takes}
            type(f"{cls.__name__}Predictor", (AdditionPredictor,), shared)

    def __init__(self, model: CLIP, config: Any, class_names: Sequence[str], *, seed: int = 0):
        super().__init__()
        # Not a submodule: its weights are neither trained nor saved with the method.
        self.__dict__["model"] = model
        self.config, self.class_names = config, check_class_names(class_names)
        self.facts: dict[str, Any] = {}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def scale(self) -> Float[Tensor, ""]:
        """The multiplier of the cosines; the model's own."""
        return self.model.scale().detach()

    def image(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        """f: rows of preprocessed images; by default the frozen tower's of `level`."""
        if self.level == "pre":
            return self.model.image_features(images)["pooled"]
        return self.model.encode_image(images, normalize=True)

    def pixels(self, pictures: Sequence[Any], *, workers: int = 0) -> Float[Tensor, "B *F 3 S S"]:
        """What `image` takes of samples: preprocessed pictures, or videos' frames for a method that takes those."""
        return self.model.transform.batch(pictures, workers=workers)

    def split_rows(self, data: Labelled) -> Float[Tensor, "N E"] | None:
        """f of all samples of a split, where a method that takes videos has its own way to them."""
        return None

    @abc.abstractmethod
    def weights(self, features: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "*_B C E"]:
        """W: unit rows of the classes, (C, E) or, from `features`, (B, C, E)."""

    def logits(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        """scale * f @ W.T, in float32 or wider; a method that adds to that, or changes f, overrides it."""
        return self.cosines(features, self.weights(features)) * self.scale()

    def cosines(self, features: Float[Tensor, "B E"], weights: Float[Tensor, "*_B C E"]) -> Float[Tensor, "B C"]:
        """f @ W.T, in the wider of the two types."""
        wide = torch.promote_types(features.dtype, weights.dtype)
        features, weights = features.to(wide), weights.to(wide)
        return features @ weights.T if weights.ndim == 2 else torch.einsum("be,bce->bc", features, weights)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """What training minimises, of a `_fit.Batch`; the cross-entropy by default."""
        features = self.image(batch.images) if self.needs_images else batch.features
        return F.cross_entropy(self.logits(features), batch.targets)

    def order(self, data: Labelled, epoch: int, generator: np.random.Generator) -> Iterable[Int[np.ndarray, " B"]] | None:
        """The positions of the pictures in each batch of an epoch; None takes them as `by_domain` and the recipe say."""
        return None

    def score(self, logits: Float[Tensor, "N C"], val: Labelled) -> float:
        """What the best epoch is chosen by, of the logits of all validation pictures; their accuracy by default."""
        return float((logits.argmax(dim=1) == val.labels).double().mean())

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of it, as it is now."""
        return {name: value.detach().contiguous() for name, value in self.state_dict().items()}

    def predictor(self, templates: Sequence[str] = ()) -> AdditionPredictor:
        """The Predictor of it as it is now."""
        made = Predictor._kinds[self.kind]
        assert issubclass(made, AdditionPredictor)
        return made(self, templates or getattr(self.config, "templates", ()))

    def settle(self) -> None:
        """Drop what only training uses."""

    def receive(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of another one with the same settings.

        Raises:
            CheckpointError: for tensors of other names or shapes.
        """
        self.settle()
        wanted = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if wanted != found:
            odd = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
            first = f"{odd[0]} is {found.get(odd[0], 'missing')}"
            raise CheckpointError(first, expected=f"{wanted.get(odd[0], 'nothing')}, which {self.kind} with these settings has")
        self.load_state_dict(dict(tensors))

    def bound(self, class_names: Sequence[str]) -> Addition:
        """The same with other class names.

        Raises:
            ConfigError: where what was learned belongs to its classes.
        """
        if not self.binds:
            raise ConfigError(f"what {self.kind} has learned belongs to its {self.num_classes} classes", fix="adapt it again")
        other = type(self)(self.model, self.config, class_names).to(self.model.device)
        self.settle()
        other.receive(self.state_dict())
        return other


class AdditionPredictor(Predictor):
    """A Predictor around an `Addition`; one subclass a kind, made when the addition's class is.

    Attributes:
        facts: what its fit has chosen and seen, for the record of the result; not saved.
        rivals: other predictors of the same classes that its fit made or knows, to be measured beside it; not saved.
    """

    kind = "addition"
    addition: ClassVar[type[Addition]]

    def __init__(self, module: Addition, templates: Sequence[str] = ()):
        module.settle()
        self.module = module.eval().requires_grad_(False)
        weights = self._constant()
        self.class_names, self.templates = module.class_names, tuple(templates)
        self.encoder, self.scale = module.model, float(module.scale())
        self.own_images, self.level = module.needs_images, module.level
        self.facts: dict[str, Any] = dict(module.facts)
        self.rivals: dict[str, Predictor] = {}
        if weights is not None:
            self.weights = weights
        if self.takes == "videos":
            self.own_images = True  # kept embeddings of pictures are none of videos

    def _constant(self) -> Tensor | None:
        """W where it depends on nothing: computed once."""
        if self.depends != "nothing":
            return None
        with torch.no_grad():
            return self.module.weights().float()

    def features(self, images: Float[Tensor, "B *F 3 S S"]) -> Float[Tensor, "B E"]:
        return self.module.image(images)

    def pixels(self, pictures: Sequence[Any], *, workers: int = 0) -> Float[Tensor, "B *F 3 S S"]:
        return self.module.pixels(pictures, workers=workers)

    def split_rows(self, data: Labelled) -> Float[Tensor, "N E"] | None:
        """f of all samples of a split, where a method that takes videos has its own way to them."""
        return self.module.split_rows(data)

    def class_weights(self, embeddings: Float[Tensor, "B E"]) -> Float[Tensor, "*_B C E"]:
        return self.weights if self.depends == "nothing" else self.module.weights(embeddings)

    def logits(self, embeddings: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        return self.module.logits(embeddings) if self._own_logits else super().logits(embeddings)

    @property
    def _own_logits(self) -> bool:
        return type(self.module).logits is not Addition.logits

    def bind(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> AdditionPredictor:
        """The same method with other class names, without training.

        Args:
            templates: that the names are put into by a method that reads them with hand-written prompts; by default its own.

        Raises:
            ConfigError: where what was learned belongs to its classes.
        """
        module = self.module
        if templates and any(field.name == "templates" for field in dataclasses.fields(module.config)):
            module = copy.copy(module)
            module.config = dataclasses.replace(module.config, templates=tuple(templates))
            return module.bound(class_names).predictor(templates)
        return module.bound(class_names).predictor(self.templates)

    def freeze(self) -> Predictor:
        if self.own_images:
            raise ConfigError(f"{self.kind} changes the image side, which a constant matrix does not hold")
        if self._own_logits:
            raise ConfigError(f"the logits of {self.kind} are more than a product with a constant matrix")
        return super().freeze()

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        settings = {"class_names": list(self.class_names), "templates": list(self.templates)}
        return {**settings, "config": to_tree(self.module.config)}, self.module.state_dict()

    @classmethod
    def from_state(cls, settings: dict[str, Any], tensors: dict[str, Tensor], encoder: Any) -> AdditionPredictor:
        config = from_tree(cls.addition.config_type, settings["config"], source="predictor.json")
        module = cls.addition(encoder, config, settings["class_names"])
        module.receive(tensors)
        return cls(module.to(encoder.device), settings["templates"])
