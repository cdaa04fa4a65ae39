"""Masked patches from the visible ones, as in a masked autoencoder (He et al. 2022): a small decoder on a vision transformer.

A share of the patches of each picture is hidden, others for each picture; the tower sees the rest, and the decoder says for
each hidden patch p its pixels, whitened by the patch's own mean and spread: over the hidden patches M_i of picture i

    L_i = 1 / (|M_i| D) sum_pd (decoder(visible)_pd - t_pd)^2,    t_p = (x_p - mean x_p) / sqrt(var x_p + 1e-6)          (1)

Departures from the paper: positions of the decoder are learned and not sines, and the tower's class token is read by nobody.

Letters: B batch, P patches, K visible ones, W width of the tower, D numbers of a patch.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.config import require
from ostension.errors import ConfigError
from ostension.model.config import ModelConfig, VitConfig
from ostension.model.decoder import initialise_decoder, materialise
from ostension.model.layers import Block
from ostension.model.vit import VisionTransformer
from ostension.shapes import Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """What is hidden and who says what it was.

    Attributes:
        share: of the patches that are hidden.
        width, layers, head_width: of the decoder.
    """

    share: float = 0.75
    width: int = 128
    layers: int = 2
    head_width: int = 32

    def __post_init__(self):
        require(0 < self.share < 1, "reconstruction.share", self.share, "between 0 and 1")
        for key in ("width", "layers", "head_width"):
            require(getattr(self, key) >= 1, f"reconstruction.{key}", getattr(self, key), "1 or more")
        whole = self.width % self.head_width == 0
        require(whole, "reconstruction.head_width", self.head_width, f"a divisor of the width {self.width}")


class PatchDecoder(nn.Module):
    """The decoder of a model's hidden patches.

    Args:
        model: whose image tower it belongs to.

    Raises:
        ConfigError: for an image tower without patches.
    """

    def __init__(self, config: ReconstructionConfig, model: ModelConfig, *, seed: int = 0):
        super().__init__()
        vision = model.vision
        if not isinstance(vision, VitConfig):
            raise ConfigError(
                f"an image tower of the kind {vision.kind!r} has no patches to hide", expected="one of our vision transformers"
            )
        patches = vision.grid**2
        self.config = config
        self.visible = max(1, int(patches * (1 - config.share)))
        require(self.visible < patches, "reconstruction.share", config.share, f"one that hides some of {patches} patches")
        width = config.width
        with torch.device("meta"):
            self.token_proj = nn.Linear(vision.width, width)
            self.mask_token = nn.Parameter(torch.empty(width))
            self.positional_embedding = nn.Parameter(torch.empty(patches, width))
            heads = width // config.head_width
            self.resblocks = nn.ModuleList(Block(width, heads, 4 * width, "gelu", 1e-5) for _ in range(config.layers))
            self.ln_final = nn.LayerNorm(width)
            self.head = nn.Linear(width, 3 * vision.patch_size**2)
        materialise(self)
        initialise_decoder(self, seed, width=width, layers=config.layers)

    def losses(self, visual: VisionTransformer, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, " B"]:
        """Equation (1) of each picture; what is hidden is drawn from torch's random state."""
        order = torch.rand(len(images), len(self.positional_embedding), device=images.device).argsort(dim=1)
        return self.losses_of(visual, images, order[:, : self.visible], order[:, self.visible :])

    def losses_of(
        self, visual: VisionTransformer, images: Float[Tensor, "B 3 S S"], visible: Int[Tensor, "B K"],
        hidden: Int[Tensor, "B H"],
    ) -> Float[Tensor, " B"]:  # fmt: skip
        """The same with the places of the patches given."""
        states = self.token_proj(visual.visible_states(images, visible))
        x = self.mask_token.expand(len(images), len(self.positional_embedding), -1)
        x = x.scatter(1, _wide(visible, states), states) + self.positional_embedding
        for block in self.resblocks:
            x = block(x)
        x = self.ln_final(x)
        said = self.head(x.gather(1, _wide(hidden, x)))
        pixels = visual.pixels(images)
        said, pixels = (value if value.dtype == torch.float64 else value.float() for value in (said, pixels))
        targets = whitened(pixels.gather(1, _wide(hidden, pixels)))
        return F.mse_loss(said, targets, reduction="none").mean(dim=(1, 2))


def whitened(patches: Float[Tensor, "B H D"]) -> Float[Tensor, "B H D"]:
    """Each patch less its mean, over its spread."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    return (patches - mean) / (variance + 1e-6).sqrt()


def _wide(places: Tensor, like: Tensor) -> Tensor:
    """Places for `gather` and `scatter` along dimension 1 of rows as wide as `like`'s."""
    return places[..., None].expand(-1, -1, like.shape[2])
