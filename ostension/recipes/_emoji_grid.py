"""The default grid of `ostension scaling run`: small models of the demo's family on the embedded emoji.

Every fourth name is taken, so that minutes of one core are enough to get well away from chance; models differ in the widths
of both towers, data in the share of these names that training may see. What is asked is always the same: the new drawing
style, all names that training could see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from ostension.config import require
from ostension.data.embedded import EmojiSet
from ostension.evals import metrics
from ostension.files import sha256_json
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.recipes import demo
from ostension.recipes._emoji_batches import EmojiBatches, EmojiBatchesConfig, emoji_set
from ostension.recipes._emoji_evaluation import pictures
from ostension.recipes._scaling_grid import GridConfig
from ostension.runtime import numpy_generator

EVERY = 4
NEW_STYLE = "new-style-seen-names"
RECALL_AT = (1, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedEmojiConfig(EmojiBatchesConfig):
    """Batches of emoji of which training may see only a share.

    Attributes:
        share: of the names that training sees, drawn by the seed; a smaller share is part of every larger one.
    """

    share: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.share <= 1, "batches.share", self.share, "more than 0, at most 1")

    def build(self, model: CLIP) -> EmojiBatches:
        """The batches for a model, over the share."""
        return EmojiBatches(shared(emoji_set(self.every), self.share, self.seed), self, model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiQuestions:
    """What a model is asked: to name the new style among all names that training could see, and to find its pictures.

    Attributes:
        every: every n-th concept only, as in training.
        templates: of the prompts.
    """

    kind: Literal["emoji-questions"] = "emoji-questions"
    every: int = 1
    templates: tuple[str, ...] = demo.TEMPLATES

    def build(self, model: CLIP) -> Callable[[CLIP, int], dict[str, float]]:
        """The evaluation."""
        emoji = emoji_set(self.every)
        rows = emoji.rows(NEW_STYLE)
        concepts = np.unique(emoji.concept[rows])
        names = [emoji.concepts[index].name for index in concepts]
        targets, asked = np.searchsorted(concepts, emoji.concept[rows]), pictures(emoji, rows)

        def evaluate(model: CLIP, step: int) -> dict[str, float]:
            words = Predictor.zero_shot(model, names, self.templates).weights.float().cpu().numpy()
            images = model.embed_images(asked, batch_size=256).float().cpu().numpy()
            named = metrics.ranks(images @ words.T, targets)
            found = metrics.retrieval_ranks(words, images, concepts, emoji.concept[rows])
            measured = {f"top{k}": float((named < k).mean()) for k in RECALL_AT}
            measured |= {f"text_to_image_r{k}": float((found < k).mean()) for k in RECALL_AT}
            measured |= {"samples": len(rows), "texts": len(names), "classes": len(names)}
            return {f"new-style/{name}": value for name, value in measured.items()}

        return evaluate


def shared(emoji: EmojiSet, share: float, seed: int) -> EmojiSet:
    """The set without the training pictures of all but a share of the names; what is held out stays."""
    if share == 1:
        return emoji
    train = emoji.rows("train")
    seen = np.unique(emoji.concept[train])
    kept = numpy_generator(seed, "share of the names").permutation(seen)[: max(1, round(share * len(seen)))]
    gone = train[~np.isin(emoji.concept[train], kept)]
    rows = np.setdiff1d(np.arange(len(emoji)), gone)
    return dataclasses.replace(
        emoji, pixels=emoji.pixels[rows], concept=emoji.concept[rows], style=emoji.style[rows],
        fingerprint=sha256_json([emoji.fingerprint, share, seed]),
    )  # fmt: skip


def default_grid() -> GridConfig:
    """Three sizes, three amounts of samples, two shares of the names."""
    return GridConfig(
        recipe="demo",
        settings={"batches.every": EVERY},
        sizes={"small": widths(8, 64), "medium": widths(16, 128), "large": widths(32, 256)},
        data={"half": {"batches.share": 0.5}, "all": {}},
        ratios=(1.0, 2.0, 4.0),
        targets=("new-style/top1", "new-style/text_to_image_r5"),
    )


def smoke_grid() -> GridConfig:
    """A grid of seconds: shows that everything runs, and learns nothing."""
    return GridConfig(
        recipe="demo",
        settings={"batches.every": 16, "batches.concepts": 8},
        sizes={"small": widths(8, 64), "large": widths(16, 64)},
        data={"half": {"batches.share": 0.5}, "all": {}},
        samples=(160, 320),
        targets=("new-style/top1", "new-style/text_to_image_r5"),
    )


def widths(image: int, text: int) -> dict[str, int]:
    """Both towers, and the embedding as wide as the text tower."""
    heads = {"model.vision.head_width": 32, "model.text.head_width": 32}
    return {"model.vision.width": image, "model.text.width": text, "model.embed_dim": text, **heads}
