"""DPT with CAVPT: text and image tokens learned together, and in the top blocks image tokens made of the likeliest classes.

For each picture the frozen model ranks the classes with hand-written prompts; the top K make tokens of their learned text rows,
which are as long as the tower makes them (`_class_aware`). Blocks below have learned tokens.

    L = CE(both), after C0 epochs of  CE(text: frozen picture, learned rows) + CE(image: learned picture, hand-written rows)
        + 0.1 CE(both);    + alpha CE(D LN(o_y), y) where the right class y is among the top K

Source: Xing et al. 2023, "Dual Modality Prompt Tuning for Vision-Language Pre-Trained Model" (arXiv:2208.08340), and its code.
Letters: B batch, C classes, K of them, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._class_aware import ClassAware, encode
from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._init import linear, normal
from ostension.adapt._text import ClassTokens, unit
from ostension.adapt._visual import vit_of
from ostension.adapt.base import TEMPLATE, Addition, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator
from ostension.shapes import Float, Int

EARLY_BOTH = 0.1  # weight of the joint loss at first

SPEC = Spec(
    title="DPT",
    paper='Xing, Wu, Cheng, Zhang, Liang, Wang, Zhang. "Dual Modality Prompt Tuning for Vision-Language Pre-Trained Model". '
    "IEEE Transactions on Multimedia 2023, arXiv:2208.08340",
    trains="text contexts (16, W), image tokens (J, 10, W'), the attention of class-aware tokens and an auxiliary classifier",
    departures=(
        "one optimiser, with the image side's learning rate five times the text's and one warm-up epoch for both; the code "
        "has three optimisers, with 1 and 10",
        "new class names drop the auxiliary classifier, which only training uses",
        "float32; the code's mixed-precision path does not run",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the code's.

    Attributes:
        length: text contexts.
        visual_length: image tokens of each block below the class-aware ones; 0 is none.
        top: K, the classes that tokens are made of (all if there are fewer); 0 switches class-aware tokens off.
        class_aware: topmost blocks that have class-aware tokens.
        extra: learned tokens among the keys.
        alone_epochs: C0, epochs in which both sides learn against the frozen other one.
        auxiliary: alpha.
        template: of the hand-written prompts; None takes the task's if it has one alone, else "a photo of a {}.".
        recipe: how it is trained; the rate is the image side's, the text's a fifth.
    """

    length: int = 16
    visual_length: int = 10
    top: int = 10
    class_aware: int = 1
    extra: int = 10
    alone_epochs: int = 30
    auxiliary: float = 0.3
    template: str | None = None
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=60, lr=0.01, rates={"context": 0.2}))

    def __post_init__(self):
        for key in ("length", "class_aware"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
        for key in ("visual_length", "top", "extra", "alone_epochs", "auxiliary"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")


class DPT(Addition):
    """Both sides' tokens."""

    kind, config_type, needs_images = "dpt", Config, True
    hand_written: Tensor

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        vision = vit_of(model, self.kind)
        require(config.class_aware <= vision.layers, "class_aware", config.class_aware, f"at most {vision.layers} blocks")
        generator, device = torch_generator(seed, "dpt"), model.device
        self.context = nn.Parameter(normal((config.length, model.text.config.width), generator).to(device))
        blocks = vision.layers - config.class_aware if config.top else vision.layers
        self.tokens = nn.Parameter(normal((blocks, config.visual_length, vision.width), generator).to(device))
        self.aware = nn.ModuleList(
            ClassAware(vision.width, model.config.embed_dim, config.extra, generator) for _ in range(config.class_aware)
        ).to(device)
        words = model.classifier(self.class_names, [config.template or TEMPLATE])
        self.register_buffer("hand_written", words.weights, persistent=False)
        self.prompts = ClassTokens(model, self.class_names)
        self.classifiers: nn.ModuleList | None = None
        if config.top and config.auxiliary:
            made = (linear(vision.width, self.num_classes, generator, bias=False) for _ in range(config.class_aware))
            self.classifiers = nn.ModuleList(made).to(device)

    def rows(self) -> Float[Tensor, "C E"]:
        """The learned prompts' rows, as long as the tower makes them."""
        return self.prompts.kept(self.context)

    def weights(self, features: Tensor | None = None) -> Tensor:
        return unit(self.rows())

    def image(self, images: Tensor) -> Tensor:
        return self._prompted(images, self._frozen(images), self.rows())[0]

    @torch.no_grad()
    def _frozen(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, normalize=True)

    def _prompted(self, images: Tensor, frozen: Tensor, rows: Tensor) -> tuple[Tensor, Int[Tensor, "B K"], list[Tensor]]:
        """Embeddings, the classes that tokens were made of, and what the auxiliary classifier reads of each block."""
        top = min(self.config.top, self.num_classes)
        chosen = (frozen @ self.hand_written.T.to(frozen)).topk(top, dim=1).indices
        features, read = encode(self.model, images, self.tokens, self.aware, rows[chosen].float() if top else None)
        return features, chosen, read

    def loss(self, batch: Any) -> Tensor:
        config, targets, long, frozen = self.config, batch.targets, self.rows(), self._frozen(batch.images)
        features, chosen, read = self._prompted(batch.images, frozen, long)
        rows = unit(long)

        def cross_entropy(left: Tensor, right: Tensor) -> Tensor:
            return F.cross_entropy(self.scale() * self.cosines(left, right), targets)

        found = cross_entropy(features, rows)
        if batch.epoch < config.alone_epochs:
            found = cross_entropy(frozen, rows) + cross_entropy(features, self.hand_written) + EARLY_BOTH * found
        right = chosen == targets[:, None]
        if self.classifiers is not None and bool(right.any()):
            answers = targets[right.any(1)]
            parts = [F.cross_entropy(last(seen[right]), answers) for last, seen in zip(self.classifiers, read, strict=True)]
            found = found + config.auxiliary * torch.stack(parts).mean()
        return found

    def settle(self) -> None:
        self.classifiers = None


fit = fitting(DPT)
