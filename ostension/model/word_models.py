"""Models that predict the words of a picture: the first two curves of CLIP's Figure 2, on the image tower of a CLIP.

    LanguageModel       a causal decoder reads the image tower's last map; a class scores log p(its name's tokens), the mean
    BagPredictor        a linear layer on the image tower's embedding gives a logit for each word of the vocabulary at once; a
                        class scores the mean logit of its name's tokens

The paper says what they are and not how a class is scored; the scores are ours. A name's tokens include, for the language
model, the end token: else a name that begins another's would win over it.

Letters: B batch, C classes, T tokens, P places, V vocabulary, S pixels a side.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ostension.config import require
from ostension.errors import ConfigError
from ostension.image.transforms import Transform
from ostension.model.clip import CLIP
from ostension.model.decoder import (
    Decoder,
    DecoderConfig,
    image_features,
    initialise_decoder,
    materialise,
    next_token_loss,
)
from ostension.model.taps import Taps
from ostension.model.towers.bag_of_words import content_mask
from ostension.shapes import Float, Int
from ostension.text.prompts import fill
from ostension.text.tokenizer import Tokenizer, pack

SCORE_TOKENS = 2**14  # tokens of a language model that are scored together


class WordModel(nn.Module, abc.ABC):
    """An image tower with a head that predicts words.

    Args:
        model: whose image tower, preprocessing and tokenizer it takes; the text tower is left behind.

    Attributes:
        config: of the model that the tower is from.
        provenance: where the weights come from.
    """

    kind: ClassVar[str]

    def __init__(self, model: CLIP):
        super().__init__()
        self.config, self.transform, self.tokenizer = model.config, model.transform, model.tokenizer
        self.provenance: dict[str, Any] = {}
        self.visual = model.visual
        if self.tokenizer.start_id is None:
            raise ConfigError(f"a {self.kind} model needs a tokenizer with a start token", source=model.config.name)

    transform: Transform
    tokenizer: Tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which the model computes."""
        return next(self.visual.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.visual.parameters()).device

    @property
    def text(self) -> nn.Module:
        """The part with the words in it, which stands where a CLIP has its text tower."""
        return self.head  # type: ignore[return-value]

    def set_checkpointing(self, *, image: bool | None = None, text: bool | None = None) -> None:
        """Recompute blocks of a part in the backward pass, or stop doing so (`CLIP.set_checkpointing`)."""
        decoder = getattr(self.head, "decoder", None)
        for side, part, switch in (("image", self.visual, image), ("text", decoder, text)):
            if switch and part is None:
                raise ConfigError(f"a {self.kind} model has no {side} tower to recompute")
            if switch is not None and part is not None:
                (part if hasattr(part, "checkpointing") else part.transformer).checkpointing = switch

    def tap(self, images: Float[Tensor, "B 3 S S"], name: str) -> Tensor:
        """An intermediate of the image tower (`model.taps`)."""
        wanted = Taps((name,), self.visual.tap_names())
        self.visual(images.to(self.device, self.dtype), taps=wanted)
        return wanted.result()[name]

    def name_tokens(self, class_names: Sequence[str], template: str = "{}") -> Int[Tensor, "C T"]:
        """Token rows of the class names in a template."""
        rows = self.tokenizer.ragged([fill(template, name) for name in class_names])
        return pack(rows, self.tokenizer.pad_id).to(self.device)

    @abc.abstractmethod
    def losses(self, images: Float[Tensor, "B 3 S S"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """The loss of each pair."""

    @abc.abstractmethod
    def scores(self, images: Float[Tensor, "B 3 S S"], names: Int[Tensor, "C T"]) -> Float[Tensor, "B C"]:
        """How well each name fits each picture; comparable within a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """A language model's head: its width, and its decoder."""

    width: int = 256
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)

    def __post_init__(self):
        require(self.width >= 1, "head.width", self.width, "1 or more")
        require(self.decoder.reads == "patches", "head.decoder.reads", self.decoder.reads, "'patches' for a language model")


class LanguageModel(WordModel):
    """Says a caption token by token, each from those before it and the picture."""

    kind = "language_model"

    def __init__(self, model: CLIP, config: LanguageModelConfig, *, seed: int | None = 0):
        super().__init__(model)
        self.settings = config
        vocabulary, length = model.config.text.vocab_size, model.config.text.context_length
        with torch.device("meta"):
            head = nn.Module()
            head.token_embedding = nn.Parameter(torch.empty(vocabulary, config.width))
            head.positional_embedding = nn.Parameter(torch.empty(length, config.width))
            features = image_features(model.config)
            head.decoder = Decoder(config.decoder, width=config.width, features=features, vocab_size=vocabulary)
        materialise(head)
        if seed is not None:
            std = model.config.init_token_std
            initialise_decoder(head, seed, width=config.width, layers=config.decoder.layers, token_std=std)
        self.head = head

    def states(self, places: Float[Tensor, "I P F"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
        """The decoder's state at each token; all rows read the same image if there is one only."""
        x = nn.functional.embedding(tokens, self.head.token_embedding) + self.head.positional_embedding[: tokens.shape[1]]  # type: ignore[arg-type,index]
        return self.head.decoder(x, places)  # type: ignore[operator]

    def losses(self, images: Float[Tensor, "B 3 S S"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, " B"]:
        states = self.states(self.tap(images, "patches"), tokens)
        return next_token_loss(self.head.decoder, states, tokens, tokens.argmax(dim=1))  # type: ignore[arg-type]

    def scores(self, images: Float[Tensor, "B 3 S S"], names: Int[Tensor, "C T"]) -> Float[Tensor, "B C"]:
        """The mean log-likelihood of each name's tokens, its end token included."""
        places, ends = self.tap(images, "patches"), names.argmax(dim=1)
        lengths, order = ends.sort()  # short names together, so that little is computed for padding
        found = places.new_empty(len(places), len(names), dtype=torch.float32)
        start = 0
        while start < len(names):
            stop = start + 1
            while stop < len(names) and (stop + 1 - start) * (int(lengths[stop]) + 1) <= SCORE_TOKENS:
                stop += 1
            chosen, width = order[start:stop], int(lengths[stop - 1]) + 1
            for row in range(len(places)):
                found[row, chosen] = self._mean_log_likelihood(places[row : row + 1], names[chosen, :width], ends[chosen])
            start = stop
        return found

    def _mean_log_likelihood(self, places: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        states = self.states(places, tokens)
        return -next_token_loss(self.head.decoder, states, tokens, ends).float()  # type: ignore[arg-type]


class BagPredictor(WordModel):
    """Predicts which words a caption has, all at once."""

    kind = "bag_prediction"

    def __init__(self, model: CLIP, *, seed: int | None = 0):
        super().__init__(model)
        features = model.config.embed_dim
        with torch.device("meta"):
            head = nn.Linear(features, model.config.text.vocab_size)
        materialise(head)
        if seed is not None:
            initialise_decoder(head, seed, width=features, layers=1)
        self.head = head

    def logits(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B V"]:
        """A logit for each word of the vocabulary, in float32 or wider."""
        logits = self.head(self.tap(images, "embedding"))
        return logits if logits.dtype == torch.float64 else logits.float()

    def losses(self, images: Float[Tensor, "B 3 S S"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """The cross-entropy against the caption's different words, each with an equal share of the target."""
        words = torch.zeros(len(tokens), self.head.out_features, device=tokens.device)
        words.scatter_add_(1, tokens, content_mask(tokens, tokens.argmax(dim=1)).float())
        logits = self.logits(images)
        target = (words > 0).to(logits.dtype)
        target /= target.sum(dim=1, keepdim=True).clamp(min=1)
        return -(target * logits.log_softmax(dim=1)).sum(dim=1)

    def scores(self, images: Float[Tensor, "B 3 S S"], names: Int[Tensor, "C T"]) -> Float[Tensor, "B C"]:
        """The mean logit of each name's tokens."""
        inside = content_mask(names, names.argmax(dim=1))
        weights = torch.zeros(len(names), self.head.out_features, device=names.device)
        weights.scatter_add_(1, names, inside.float())
        weights /= weights.sum(dim=1, keepdim=True).clamp(min=1)
        return self.logits(images).float() @ weights.T
