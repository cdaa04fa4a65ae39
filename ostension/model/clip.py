"""CLIP: two towers, one embedding space, and the scale of its logits.

`encode_image` and `encode_text` are the contract of an encoder and keep gradients. `embed_images`, `embed_texts` and
`classifier` are for users: they take pictures and words, run without gradients in eval mode and give float32 unit rows.

Letters: B batch, C prompts (classes), M templates, N items, T tokens, S pixels a side, E embedding.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.errors import ConfigError, DataError
from ostension.image.transforms import Transform
from ostension.model.config import ImageTowerConfig, ModelConfig, ResNetConfig, TextConfig, TextTowerConfig, VitConfig
from ostension.model.init import initialise
from ostension.model.insert import TextInsert, VisualInsert
from ostension.model.modes import evaluating
from ostension.model.positions import resize_image_positions, resize_text_positions
from ostension.model.resnet import ResNet
from ostension.model.taps import Taps
from ostension.model.text_tower import TextTransformer
from ostension.model.towers.bag_of_words import BagOfWords
from ostension.model.towers.bert import BertTower
from ostension.model.towers.config import BagConfig, BertConfig, EfficientNetConfig
from ostension.model.towers.efficientnet import EfficientNetLite
from ostension.model.towers.transformers_towers import TransformersImageTower, TransformersTextTower
from ostension.model.vit import VisionTransformer
from ostension.shapes import Float, Int
from ostension.text.tokenizer import Tokenizer, build_tokenizer, pack

if TYPE_CHECKING:
    from ostension.model.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What of a model is not trained, as `train.freeze` sets it.

    Attributes:
        modules: submodules that stay in evaluation mode.
        image, text: whether all of the tower before its projection is frozen, so that it runs without a graph. Inserts of
            a method need the graph, and then have it.
    """

    modules: tuple[str, ...] = ()
    image: bool = False
    text: bool = False


GRID_ROWS = 16384  # prompts of a classifier that are laid out together: 16,384 x 512 float32 embeddings are 32 MB


class CLIP(nn.Module):
    """A contrastive language-image model with the preprocessing and the tokenizer that belong to its weights.

    Args:
        config: what the model is made of.
        seed: of the initialisation (`model.init`); None leaves the parameters unset, for a loader that fills them.

    Built under `torch.device("meta")` it has shapes only.

    Attributes:
        visual, text: the towers; `visual.transformer.checkpointing` and the like switch gradient checkpointing on.
        logit_scale: the log of the multiplier of the logits, 0-d. With the bias it stays in float32 when the model is
            cast to a shorter type: bfloat16 would hold 4.6052 as 4.594, which is 1 % of the multiplier.
        logit_bias: what is added to the logits (SigLIP), 0-d, or None.
        provenance: where the weights come from (see `formats`).
    """

    def __init__(self, config: ModelConfig, *, seed: int | None = 0):
        super().__init__()
        self.config = config
        self.frozen = Frozen()
        self.provenance: dict[str, Any] = {}
        self._transform: Transform | None = None
        self._tokenizer: Tokenizer | None = None
        device = torch.get_default_device()
        with torch.device("meta"):  # the layers' own initialisation would cost time and draw from the global state
            self.visual = image_tower(config.vision, config.embed_dim)
            self.text = text_tower(config.text, config.embed_dim)
            self.logit_scale = nn.Parameter(torch.empty(()))
            self.logit_bias = None if config.init_logit_bias is None else nn.Parameter(torch.empty(()))
        if device.type != "meta":
            # Not to_empty: its empty_like of meta tensors imports sympy, half a second of every start.
            self._apply(lambda value: torch.empty(value.shape, dtype=value.dtype, device=device) if value.is_meta else value)
            if seed is not None:
                initialise(self, seed)

    @property
    def transform(self) -> Transform:
        """The preprocessing that the weights were trained with."""
        if self._transform is None:
            self._transform = Transform(self.config.preprocess)
        return self._transform

    @transform.setter
    def transform(self, transform: Transform) -> None:
        self._transform = transform

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the weights were trained with, read on first use."""
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self.config.tokenizer)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which the towers compute."""
        return next(self.text.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.text.parameters()).device

    def _apply(self, fn, recurse=True):
        before = [None if parameter is None else parameter.detach() for parameter in (self.logit_scale, self.logit_bias)]
        super()._apply(fn, recurse)
        for parameter, value in zip((self.logit_scale, self.logit_bias), before, strict=True):
            if parameter is not None and value is not None and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = value.to(parameter.device, torch.float32)
        return self

    def scale(self) -> Float[Tensor, ""]:
        """The multiplier of the logits: exp(logit_scale), at most the cap. Past the cap its gradient is zero."""
        cap = self.config.logit_scale_cap
        return (self.logit_scale if cap is None else self.logit_scale.clamp(max=math.log(cap))).exp()

    def encode_image(
        self, images: Float[Tensor, "B 3 S S"], *, normalize: bool = False, insert: VisualInsert | None = None
    ) -> Float[Tensor, "B E"]:
        """Embeddings of preprocessed images, in the dtype of the weights; unit rows, in float32 or wider, with `normalize`.

        Raises:
            DataError: for images of another size than the model's.
        """
        images = self._pixels(images)
        if self.frozen.image and insert is None:
            with torch.no_grad():
                features = self._pooled(self.visual, images)
            return self._finish(self.visual.project(features), normalize)
        return self._finish(self.visual(images, insert=insert), normalize)

    def encode_text(
        self, tokens: Int[Tensor, "C T"], *, normalize: bool = False, insert: TextInsert | None = None, plain: bool = False
    ) -> Float[Tensor, "*C E"]:
        """Embeddings of token rows; with contexts per image (see `TextInsert`) one row of prompts for each image.

        Args:
            plain: run every position of every row, as the paper's code does. The result is the same; this is the reference.
        """
        tokens = tokens.to(self.device, torch.int64)
        if self.frozen.text and insert is None and not plain:
            with torch.no_grad():
                features = self._pooled(self.text, tokens)
            return self._finish(self.text.project(features), normalize)
        return self._finish(self.text(tokens, insert=insert, plain=plain), normalize)

    def project_image(self, features: Float[Tensor, "B W"], *, normalize: bool = False) -> Float[Tensor, "B E"]:
        """Embeddings of pooled image features (the tap "pooled"), such as a cache of a frozen tower's."""
        return self._finish(self.visual.project(features.to(self.device, _dtype_of(self.visual))), normalize)

    def project_text(self, features: Float[Tensor, "B W"], *, normalize: bool = False) -> Float[Tensor, "B E"]:
        """Embeddings of pooled text features."""
        return self._finish(self.text.project(features.to(self.device, self.dtype)), normalize)

    def image_features(
        self, images: Float[Tensor, "B 3 S S"], taps: Iterable[str] = ("pooled",), *, insert: VisualInsert | None = None
    ) -> dict[str, Tensor]:
        """Named intermediates of the image tower (`model.taps` lists the names).

        Raises:
            ConfigError: for a name that the tower does not have.
        """
        wanted = Taps(taps, self.visual.tap_names())
        self.visual(self._pixels(images), insert=insert, taps=wanted)
        return wanted.result()

    def text_features(
        self, tokens: Int[Tensor, "C T"], taps: Iterable[str] = ("pooled",), *, insert: TextInsert | None = None
    ) -> dict[str, Tensor]:
        """Named intermediates of the text tower (`model.taps` lists the names).

        Raises:
            ConfigError: for a name that the tower does not have.
        """
        wanted = Taps(taps, self.text.tap_names())
        self.text(tokens.to(self.device, torch.int64), insert=insert, taps=wanted)
        return wanted.result()

    def forward(self, images: Float[Tensor, "B 3 S S"], tokens: Int[Tensor, "C T"]) -> Float[Tensor, "B C"]:
        """Logits: scale times cosine, plus the bias where there is one."""
        return self.logits(self.encode_image(images, normalize=True), self.encode_text(tokens, normalize=True))

    def train(self, mode: bool = True) -> CLIP:
        """Training or evaluation mode; what is frozen (`train.freeze`) stays in evaluation mode."""
        super().train(mode)
        for name in self.frozen.modules:
            self.get_submodule(name).training = False
        return self

    def logits(self, images: Float[Tensor, "B E"], texts: Float[Tensor, "C E"]) -> Float[Tensor, "B C"]:
        """Logits of unit embeddings."""
        logits = self.scale() * images @ texts.T
        return logits if self.logit_bias is None else logits + self.logit_bias

    def set_checkpointing(self, *, image: bool | None = None, text: bool | None = None) -> None:
        """Recompute a tower's blocks in the backward pass (less memory, one more forward), or stop doing so."""
        if image is not None:
            _checkpointed(self.visual, "image").checkpointing = image
        if text is not None:
            _checkpointed(self.text, "text").checkpointing = text

    def resized(self, *, image_size: int | None = None, context_length: int | None = None) -> CLIP:
        """A copy for another image size or context length, position embeddings interpolated (`model.positions`).

        Raises:
            ConfigError: for a size that the tower cannot take.
        """
        config, vision, text = self.config, self.config.vision, self.config.text
        if not isinstance(vision, VitConfig | ResNetConfig | EfficientNetConfig) or not isinstance(text, TextConfig):
            raise ConfigError(f"a model with towers of the kinds {vision.kind!r} and {text.kind!r} cannot be resized")
        pixels, length = image_size or vision.image_size, context_length or text.context_length
        if pixels != vision.image_size and getattr(vision, "pool", None) == "flatten":
            raise ConfigError("a flattened last map is projected position by position, which fixes the image size")
        config = dataclasses.replace(
            config,
            vision=dataclasses.replace(vision, image_size=pixels),
            preprocess=dataclasses.replace(config.preprocess, image_size=pixels),
            text=dataclasses.replace(text, context_length=length),
            tokenizer=dataclasses.replace(config.tokenizer, context_length=length),
        )
        state = self.state_dict()
        for name in ("visual.positional_embedding", "visual.attnpool.positional_embedding"):
            if name in state:
                class_row = getattr(vision, "class_token", True)
                state[name] = resize_image_positions(state[name], config.vision.grid, class_row=class_row)
        state["text.positional_embedding"] = resize_text_positions(state["text.positional_embedding"], length)
        with torch.device(self.device):
            model = CLIP(config, seed=None).to(self.dtype)
        model.load_state_dict(state)
        before = {"image_size": vision.image_size, "context_length": text.context_length}
        model.provenance = {**self.provenance, "resized_from": before}
        if self._tokenizer is not None:
            model.tokenizer = copy.copy(self._tokenizer)
            model.tokenizer.config = config.tokenizer
        return model.train(self.training)

    def embed_images(self, images: Sequence[Any] | Tensor, *, batch_size: int = 32, workers: int = 0) -> Float[Tensor, "N E"]:
        """Unit rows of pictures (paths, bytes, PIL pictures or arrays), or of a preprocessed tensor (N, 3, S, S)."""
        rows = []
        with torch.no_grad(), evaluating(self):
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                pixels = batch if isinstance(batch, Tensor) else self.transform.batch(batch, workers=workers)
                rows.append(self.encode_image(pixels, normalize=True).float())
        return torch.cat(rows) if rows else torch.empty(0, self.config.embed_dim, device=self.device)

    def embed_texts(
        self, texts: str | Sequence[str], *, batch_size: int = 1024, truncate: bool = False
    ) -> Float[Tensor, "N E"]:
        """Unit rows of texts."""
        texts = [texts] if isinstance(texts, str) else texts
        rows = []
        with torch.no_grad(), evaluating(self):
            for start in range(0, len(texts), batch_size):
                tokens = self.tokenizer(texts[start : start + batch_size], truncate=truncate)
                rows.append(self.encode_text(tokens, normalize=True).float())
        return torch.cat(rows) if rows else torch.empty(0, self.config.embed_dim, device=self.device)

    def classifier(self, class_names: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)) -> Predictor:
        """A zero-shot classifier over `class_names`: each class is the mean of its prompts' embeddings, as a unit row."""
        from ostension.model.predictor import Predictor

        return Predictor.zero_shot(self, class_names, templates)

    def class_embeddings(self, class_names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "C E"]:
        """For each class the mean of its prompts' unit embeddings, as a unit row (CLIP, section 3.1.4).

        Prompts are composed as token ids and encoded for several templates at a time, `GRID_ROWS` prompts or one template,
        so that what prompts share is computed once and the memory does not grow with the number of templates.
        """
        from ostension.text.prompts import compose

        total = torch.zeros(len(class_names), self.config.embed_dim, device=self.device)
        step = max(1, GRID_ROWS // len(class_names))
        length = self.config.text.context_length if self.config.text.sees_padding else None
        with torch.no_grad(), evaluating(self):
            for start in range(0, len(templates), step):
                grid = compose(self.tokenizer, templates[start : start + step], class_names)
                rows = pack([ids for prompts in grid for ids in prompts], self.tokenizer.pad_id, length)
                embeddings = self.encode_text(rows, normalize=True).float()
                total += embeddings.view(len(class_names), -1, self.config.embed_dim).sum(dim=1)
        return F.normalize(total, dim=-1)

    def _pixels(self, images: Tensor) -> Tensor:
        """The images where the weights are and in their dtype, if they have the right size."""
        size = self.config.vision.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise DataError(
                f"the images have the shape {tuple(images.shape)}",
                expected=f"(B, 3, {size}, {size})",
                fix="use the transform that belongs to the model, or model.resized(image_size=...)",
            )
        return images.to(self.device, _dtype_of(self.visual))  # which is another one where a method trains a tower of its own

    def _pooled(self, tower: nn.Module, inputs: Tensor) -> Tensor:
        """A tower's feature before the projection."""
        wanted = Taps(("pooled",), tower.tap_names())  # type: ignore[operator]
        tower(inputs, taps=wanted)
        return wanted.result()["pooled"]

    def _finish(self, embeddings: Tensor, normalize: bool) -> Tensor:
        if not normalize:
            return embeddings
        return F.normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), dim=-1)



def image_tower(config: ImageTowerConfig, embed_dim: int) -> Any:
    """The module of an image tower."""
    if isinstance(config, VitConfig):
        return VisionTransformer(config, embed_dim)
    if isinstance(config, ResNetConfig):
        return ResNet(config, embed_dim)
    if isinstance(config, EfficientNetConfig):
        return EfficientNetLite(config, embed_dim)
    return TransformersImageTower(config, embed_dim)


def text_tower(config: TextTowerConfig, embed_dim: int) -> Any:
    """The module of a text tower."""
    if isinstance(config, TextConfig):
        return TextTransformer(config, embed_dim)
    if isinstance(config, BagConfig):
        return BagOfWords(config, embed_dim)
    return BertTower(config, embed_dim) if isinstance(config, BertConfig) else TransformersTextTower(config, embed_dim)


def _dtype_of(tower: nn.Module) -> torch.dtype:
    return next(tower.parameters()).dtype


def _checkpointed(tower: Any, side: str) -> Any:
    """The part of a tower that has the switch for gradient checkpointing."""
    part = tower if hasattr(tower, "checkpointing") else getattr(tower, "transformer", None)
    if part is None:
        raise ConfigError(f"the {side} tower has no gradient checkpointing", expected="a tower with a module of our own")
    return part
