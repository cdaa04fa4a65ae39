"""VPT: learned tokens beside the patches of the image tower, before the first block (shallow) or anew before every one (deep).

    block i reads [class, patches, P_i],  i = 0 .. J - 1;    p(y = c | x) = softmax_c(scale * cos(f(x; P), W_c))

W are the hand-written prompts' embeddings and stay as they are. `_visual` says where five code bases put their tokens.

Source: Jia et al. 2022, "Visual Prompt Tuning" (arXiv:2203.12119), and the five repositories.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._visual import Like, first_tokens, visual_insert, vit_of
from ostension.adapt.base import Addition, Spec
from ostension.config import require
from ostension.model.clip import CLIP

SPEC = Spec(
    title="VPT",
    paper='Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim. "Visual Prompt Tuning". ECCV 2022, arXiv:2203.12119',
    trains="tokens (J, N, W) of the image tower",
    neutral={"length": 0},
    departures=(
        "the original trains a linear head too; here the classes are words, as in the code bases for CLIP",
        "tokens stand behind the patches; attention does not see the difference",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are those of the MaPLe repository's VPT-deep.

    Attributes:
        length: N tokens; 0 is the frozen tower.
        depth: blocks that get tokens of their own: 1 is shallow, None all.
        like: place and first values, see `_visual`.
        template: of the hand-written prompts.
        recipe: how it is trained.
    """

    length: int = 8
    depth: int | None = None
    like: Like = "maple"
    template: str = "a photo of a {}."
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=5, batch_size=4, lr=0.0025))

    def __post_init__(self):
        require(self.length >= 0, "length", self.length, "0 or more")
        require(self.depth is None or self.depth >= 1, "depth", self.depth, "1 or more, or nothing")


class VPT(Addition):
    """Tokens of the image tower."""

    kind, config_type, needs_images = "vpt", Config, True
    hand_written: Tensor

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        vision = vit_of(model, self.kind)
        depth = vision.layers if config.depth is None else config.depth
        require(depth <= vision.layers, "depth", depth, f"at most the tower's {vision.layers} blocks")
        shape = (depth, config.length, vision.width)
        self.tokens = nn.Parameter(first_tokens(shape, config.like, vision, seed).to(model.device))
        self.register_buffer("hand_written", model.classifier(self.class_names, [config.template]).weights, persistent=False)

    def image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, normalize=True, insert=visual_insert(self.tokens, self.config.like))

    def weights(self, features: Tensor | None = None) -> Tensor:
        return self.hand_written


fit = fitting(VPT)
