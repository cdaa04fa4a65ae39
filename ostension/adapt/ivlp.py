"""IVLP: deep tokens of the text tower and deep tokens of the image tower, learned side by side without a tie.

    text block j reads [start, t_j, rest of the words, name, "."],   image block j reads [class, patches, v_j],   j = 0 .. J - 1

The baseline that MaPLe is compared with. With visual length 0 it is deep text prompting alone.
Source: Khattak et al. 2023, "MaPLe" (arXiv:2210.03117), and its repository.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._init import normal
from ostension.adapt._text import ClassTokens, split_words
from ostension.adapt._visual import first_tokens, visual_insert, vit_of
from ostension.adapt.base import Addition, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator

SPEC = Spec(
    title="IVLP",
    paper='Khattak, Rasheed, Maaz, Khan, Khan. "MaPLe: Multi-modal Prompt Learning". CVPR 2023, arXiv:2210.03117',
    trains="text tokens (J, N, W) and image tokens (J, N, W')",
    neutral={"length": 0, "visual_length": 0},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the repository's.

    Attributes:
        length: text tokens; they begin as the first of the words, the rest of which stay words.
        visual_length: image tokens.
        depth: blocks that get tokens of their own; None all.
        words: see length.
        recipe: how it is trained.
    """

    length: int = 2
    visual_length: int = 2
    depth: int | None = None
    words: str = "a photo of a"
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=5, batch_size=4, lr=0.0035))

    def __post_init__(self):
        require(self.length >= 0, "length", self.length, "0 or more")
        require(self.visual_length >= 0, "visual_length", self.visual_length, "0 or more")
        require(self.depth is None or self.depth >= 1, "depth", self.depth, "1 or more, or nothing")


class IVLP(Addition):
    """Independent tokens of both towers."""

    kind, config_type, needs_images = "ivlp", Config, True

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        vision = vit_of(model, self.kind)
        most = min(vision.layers, model.config.text.layers)
        depth = most if config.depth is None else config.depth
        require(depth <= most, "depth", depth, f"at most the towers' {most} blocks")
        first, template = split_words(model, config.words, config.length)
        generator = torch_generator(seed, "text tokens")
        deep = normal((depth - 1, *first.shape), generator)
        self.context, self.deep = nn.Parameter(first), nn.Parameter(deep.to(model.device))
        tokens = first_tokens((depth, config.visual_length, vision.width), "maple", vision, seed)
        self.tokens = nn.Parameter(tokens.to(model.device))
        self.prompts = ClassTokens(model, self.class_names, template=template)

    def image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, normalize=True, insert=visual_insert(self.tokens, "maple"))

    def weights(self, features: Tensor | None = None) -> Tensor:
        return self.prompts.encode(self.context, deep=self.deep if len(self.deep) else None)


fit = fitting(IVLP)
