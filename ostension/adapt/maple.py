"""MaPLe: deep tokens of the text tower, from which linear maps make those of the image tower, so that both learn together.

    image tokens v_j = F_j(t_j),    F_j: W -> W',    j = 0 .. J - 1

t_0 begins as words, the others at random; all are trained, with one map each. After block J the states go on as they come out.
Source: Khattak et al. 2023, "MaPLe: Multi-modal Prompt Learning" (arXiv:2210.03117), and its repository.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._init import linear, normal
from ostension.adapt._text import ClassTokens, split_words
from ostension.adapt._visual import visual_insert, vit_of
from ostension.adapt.base import Addition, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator

SPEC = Spec(
    title="MaPLe",
    paper='Khattak, Rasheed, Maaz, Khan, Khan. "MaPLe: Multi-modal Prompt Learning". CVPR 2023, arXiv:2210.03117',
    trains="text tokens (J, N, W) and J linear maps W -> W'; 3,555,072 numbers for ViT-B/16 at depth 9",
    neutral={"length": 0},
    departures=("float32 throughout; the code has the widths 512 and 768 and float16 written into it",),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are those of base-to-new (cross-dataset and domain generalisation: depth 3, lr 0.0026, 2 epochs).

    Attributes:
        length: N tokens; they begin as the first of the words, the rest of which stay words.
        depth: J; None takes 9, or all blocks of a tower that has fewer.
        words: see length.
        recipe: how it is trained.
    """

    length: int = 2
    depth: int | None = None
    words: str = "a photo of a"
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=5, batch_size=4, lr=0.0035))

    def __post_init__(self):
        require(self.length >= 0, "length", self.length, "0 or more")
        require(self.depth is None or self.depth >= 1, "depth", self.depth, "1 or more, or nothing")


class MaPLe(Addition):
    """Text tokens and the maps that make image tokens of them."""

    kind, config_type, needs_images = "maple", Config, True

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        vision = vit_of(model, self.kind)
        most = min(vision.layers, model.config.text.layers)
        depth = min(9, most) if config.depth is None else config.depth
        require(depth <= most, "depth", depth, f"at most the towers' {most} blocks")
        first, template = split_words(model, config.words, config.length)
        generator, width = torch_generator(seed, "maple"), first.shape[-1]
        deep = normal((depth - 1, *first.shape), generator)
        self.context, self.deep = nn.Parameter(first), nn.Parameter(deep.to(model.device))
        # The maps of the deep tokens begin as copies of one, as in the code.
        maps = [linear(width, vision.width, generator) for _ in range(2)]
        self.maps = nn.ModuleList([maps[0], *(copy.deepcopy(maps[1]) for _ in range(depth - 1))]).to(model.device)
        self.prompts = ClassTokens(model, self.class_names, template=template)

    def image(self, images: Tensor) -> Tensor:
        rows = torch.cat([self.context[None], self.deep])
        tokens = torch.stack([made(row) for made, row in zip(self.maps, rows, strict=True)])
        return self.model.encode_image(images, normalize=True, insert=visual_insert(tokens, "maple"))

    def weights(self, features: Tensor | None = None) -> Tensor:
        return self.prompts.encode(self.context, deep=self.deep if len(self.deep) else None)


fit = fitting(MaPLe)
