"""A near-duplicate detector: a residual network that maps a picture and its altered copies to one place. Pictures only.

CLIP's Appendix C: the paper's own embeddings are too semantic for this (two photos of one kind of thing are neighbours, and a
resampled fine texture is not its own), so a network of its own is trained on copies (`train.two_views`). What it is made of is
as said there: a ResNet-50 with GELU, anti-aliased pooling, and weight norm in place of batch norm, through whose statistics
the two views of a picture would tell each other apart from the rest of the batch. Beyond that no source says anything; ours:

- **Anti-aliasing** as in Zhang 2019: where a map is halved, it is blurred with [1 2 1] x [1 2 1] / 16 first; the max pool runs
  at stride 1 before it. The first convolution keeps its stride, as there.
- **Weight norm** (Salimans and Kingma 2016): w = g v / |v|, a gain, a direction and a bias for every output channel.
- **The start.** Their data-dependent start is not needed. Directions are random and centred over the inputs of each output,
  so that the mean of what GELU gives (0.28) does not add up to a constant that drowns the picture, and gains undo what GELU
  takes of the spread, g = 1 / sqrt(Var[gelu(z)]) = 1.70 for normal z. The last gain of every bottleneck starts at zero: the
  network starts as its shortcuts, and its depth does not matter. A test holds that the spread of the maps stays.
- **GELU comes before a convolution** and not after the sum (He et al. 2016b). ReLU may follow every sum, because a second one
  changes nothing; a second GELU shrinks what the first one left, and after 16 bottlenecks 3 % of the spread were left.
- **The whole picture** is squashed to the square. A crop would lose what a copy shows.

Letters: B batch, C channels, W width of the stem, E embedding, S pixels a side, N items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ostension.config import require
from ostension.errors import ConfigError, DataError
from ostension.image.transforms import PreprocessConfig, Transform
from ostension.model.modes import evaluating
from ostension.model.taps import Taps
from ostension.runtime import torch_generator
from ostension.shapes import Float

EXPANSION = 4  # channels that leave a bottleneck over those inside it
GELU_GAIN = 1.7009  # 1 / sqrt(Var[gelu(z)]) of normal z, by quadrature in a test; Brock et al. 2021 (NFNets) sampled 1.7015
NORM_EPS = 1e-12  # directions never come near zero; a row of zeros in a damaged file shall give zeros and not NaN


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What a detector is made of, with its preprocessing.

    Attributes:
        layers: bottlenecks in each stage; (3, 4, 6, 3) is ResNet-50. Each stage after the first halves the map.
        width: channels W of the stem; the last map has 4 W 2^(stages - 1).
        embed_dim: E.
        pool: "mean" averages the last map, as a ResNet does; "flatten" projects it place by place. Copies show the same thing
            at about the same place, and a small network in a short training makes the more of that.
    """

    name: str = "duplicate-detector"
    embed_dim: int
    layers: tuple[int, ...]
    width: int
    pool: Literal["mean", "flatten"] = "mean"
    preprocess: PreprocessConfig

    def __post_init__(self):
        require(len(self.layers) >= 1 and min(self.layers) >= 1, "layers", self.layers, "1 or more in each stage")
        for name in ("embed_dim", "width"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        smallest = 2 ** (len(self.layers) + 1)
        require(self.image_size >= smallest, "preprocess.image_size", self.image_size, f"{smallest} or more")

    @property
    def image_size(self) -> int:
        """S."""
        return self.preprocess.image_size

    @property
    def channels(self) -> int:
        """Of the last map."""
        return EXPANSION * self.width * 2 ** (len(self.layers) - 1)

    @property
    def grid(self) -> int:
        """Places along one side of the last map."""
        return -(-self.image_size // 2 ** (len(self.layers) + 1))

    @property
    def features(self) -> int:
        """Numbers before the projection."""
        return self.channels * (self.grid**2 if self.pool == "flatten" else 1)


class WeightNormConv(nn.Module):
    """A convolution whose weight is g v / |v|, a norm and a gain for each output channel."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1):
        super().__init__()
        self.direction = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.gain = nn.Parameter(torch.empty(outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride, self.padding = stride, kernel // 2

    def weight(self) -> Tensor:
        """(O, C, k, k); the norm is taken in float32 or wider, whatever the weights are in."""
        wide = self.direction if self.direction.dtype == torch.float64 else self.direction.float()
        norm = torch.linalg.vector_norm(wide.flatten(1), dim=1).clamp(min=NORM_EPS)
        return self.direction * (self.gain / norm).to(self.direction.dtype)[:, None, None, None]

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        return F.conv2d(x, self.weight(), self.bias, stride=self.stride, padding=self.padding)


def blurred_half(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
    """The map at half the size (rounded up): every second position of its blur with [1 2 1] x [1 2 1] / 16, edges mirrored."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    if min(x.shape[2:]) == 1:  # there is nothing to mirror
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    else:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    kernel = (line[:, None] * line).expand(channels, 1, 3, 3)
    return F.conv2d(x, kernel, stride=2, groups=channels)


class Bottleneck(nn.Module):
    """GELU and a convolution three times (1 x 1, 3 x 3, 1 x 1), with a blur where the map is halved, plus the shortcut."""

    def __init__(self, channels: int, planes: int, *, halves: bool):
        super().__init__()
        self.conv1 = WeightNormConv(channels, planes, 1)
        self.conv2 = WeightNormConv(planes, planes, 3)
        self.conv3 = WeightNormConv(planes, planes * EXPANSION, 1)
        changes = halves or channels != planes * EXPANSION
        self.shortcut = WeightNormConv(channels, planes * EXPANSION, 1) if changes else None
        self.halves = halves

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D G G2"]:
        active = F.gelu(x)
        inner = F.gelu(self.conv2(F.gelu(self.conv1(active))))
        if self.halves:
            inner, active = blurred_half(inner), blurred_half(active)
        return (x if self.shortcut is None else self.shortcut(active)) + self.conv3(inner)


class DetectorNet(nn.Module):
    """A picture as one vector: stem, stages of bottlenecks, the mean of the last map, a projection."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.config = config
        self.stem = WeightNormConv(3, config.width, 7, stride=2)
        channels = config.width
        for stage, depth in enumerate(config.layers):
            planes = config.width * 2**stage
            blocks = [Bottleneck(channels, planes, halves=stage > 0)]
            channels = planes * EXPANSION
            blocks += [Bottleneck(channels, planes, halves=False) for _ in range(1, depth)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.proj = nn.Parameter(torch.empty(config.features, config.embed_dim))
        self.checkpointing = False

    def tap_names(self) -> tuple[str, ...]:
        """The intermediates that `taps` may name (`model.taps`)."""
        return ("embedded", *(f"blocks.{stage}" for stage in range(len(self.config.layers))), "pooled", "embedding")

    def forward(self, images: Float[Tensor, "B 3 S S"], *, taps: Taps | None = None) -> Float[Tensor, "B E"]:
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        x = blurred_half(F.max_pool2d(x, 3, stride=1, padding=1))
        if taps is not None:
            taps.put("embedded", x)
        for stage in range(len(self.config.layers)):
            for block in getattr(self, f"layer{stage + 1}"):
                recomputed = self.checkpointing and torch.is_grad_enabled()
                x = checkpoint(block, x, use_reentrant=False) if recomputed else block(x)
            if taps is not None:
                taps.put(f"blocks.{stage}", x)
        x = F.gelu(x)
        pooled = x.mean(dim=(2, 3)) if self.config.pool == "mean" else x.flatten(1)
        embedding = pooled @ self.proj
        if taps is not None:
            taps.put("pooled", pooled)
            taps.put("embedding", embedding)
        return embedding


class DuplicateDetector(nn.Module):
    """A detector with the preprocessing that belongs to its weights. What reads image towers (the store) reads it too.

    Args:
        seed: of the first weights; None leaves them unset, for a loader that fills them.

    Attributes:
        visual: the network.
        provenance: where the weights come from.
    """

    def __init__(self, config: DetectorConfig, *, seed: int | None = 0):
        super().__init__()
        self.config = config
        self.provenance: dict[str, Any] = {}
        self.transform = Transform(config.preprocess)
        self.visual = DetectorNet(config)
        if seed is not None:
            _start(self, seed)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which the network computes."""
        return self.visual.proj.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.visual.proj.device

    def set_checkpointing(self, *, image: bool | None = None, text: bool | None = None) -> None:
        """Recompute the bottlenecks in the backward pass (less memory, one more forward), or stop doing so."""
        if text:
            raise ConfigError("a duplicate detector has no text tower to recompute")
        if image is not None:
            self.visual.checkpointing = image

    def encode_image(self, images: Float[Tensor, "B 3 S S"], *, normalize: bool = False) -> Float[Tensor, "B E"]:
        """Embeddings of preprocessed pictures; unit rows, in float32 or wider, with `normalize`.

        Raises:
            DataError: for pictures of another size than the detector's.
        """
        found = self.visual(self._pixels(images))
        return F.normalize(found if found.dtype == torch.float64 else found.float(), dim=-1) if normalize else found

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        """Unit rows."""
        return self.encode_image(images, normalize=True)

    def image_features(self, images: Float[Tensor, "B 3 S S"], taps: Iterable[str] = ("pooled",)) -> dict[str, Tensor]:
        """Named intermediates.

        Raises:
            ConfigError: for a name that the network does not have.
        """
        wanted = Taps(taps, self.visual.tap_names())
        self.visual(self._pixels(images), taps=wanted)
        return wanted.result()

    def embed_images(self, images: Sequence[Any] | Tensor, *, batch_size: int = 32, workers: int = 0) -> Float[Tensor, "N E"]:
        """Unit rows of pictures (paths, bytes, PIL pictures or arrays), or of a preprocessed tensor (N, 3, S, S)."""
        rows = []
        with torch.no_grad(), evaluating(self):
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                pixels = batch if isinstance(batch, Tensor) else self.transform.batch(batch, workers=workers)
                rows.append(self.encode_image(pixels, normalize=True).float())
        return torch.cat(rows) if rows else torch.empty(0, self.config.embed_dim, device=self.device)

    def _pixels(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise DataError(
                f"the images have the shape {tuple(images.shape)}", expected=f"(B, 3, {size}, {size})",
                fix="use the transform that belongs to the detector",
            )  # fmt: skip
        return images.to(self.device, self.dtype)



@torch.no_grad()
def _start(detector: DuplicateDetector, seed: int) -> None:
    """First weights as at the head of this file; each parameter has a random stream of its own."""
    for name, module in detector.named_modules():
        if isinstance(module, WeightNormConv):
            module.direction.normal_(generator=torch_generator(seed, "init", name))
            module.direction.sub_(module.direction.mean(dim=(1, 2, 3), keepdim=True))
            # Pixels are normalised and not GELU's, so the stem has nothing to undo.
            module.gain.fill_(1.0 if name.endswith("stem") else 0.0 if name.endswith("conv3") else GELU_GAIN)
            module.bias.zero_()
    proj = detector.visual.proj
    proj.normal_(0, len(proj) ** -0.5, generator=torch_generator(seed, "init", "proj"))
