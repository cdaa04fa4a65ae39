"""Prompts around class names: token rows without place-holders, and contexts that begin as words.

Letters: B batch, C classes, N contexts, T tokens, W width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.config import require
from ostension.errors import ConfigError, LimitError
from ostension.model.clip import CLIP
from ostension.model.config import TextConfig
from ostension.model.insert import Position, TextInsert
from ostension.shapes import Float, Int
from ostension.text.prompts import compose
from ostension.text.tokenizer import pack


class ClassTokens:
    """Token rows of prompts that end in a class name and a full stop, around which learned contexts go.

    At "end" the rows are those of the template ("NAME.") as the tokenizer reads it, so that a context of words' embeddings
    gives the prompt with these words, bit for bit. For "front" and "middle" name and full stop are separate tokens, which
    parts a name that ends in ")" from the stop: the published code puts the merged token into the name's place (6 of
    ImageNet's names).
    """

    def __init__(self, model: CLIP, class_names: Sequence[str], position: Position = "end", *, template: str = "{}."):
        check_text_tower(model)
        tokenizer = model.tokenizer
        if position == "end":
            rows = [row for (row,) in compose(tokenizer, (template,), list(class_names))]
        else:
            start = [] if tokenizer.start_id is None else [tokenizer.start_id]
            stop = tokenizer.encode(".")
            rows = [[*start, *tokenizer.encode(name), *stop, tokenizer.end_id] for name in class_names]
        self.rows: Int[Tensor, "C T"] = pack(rows, tokenizer.pad_id)
        self.model, self.position = model, position
        self.longest = max(zip(map(len, rows), class_names, strict=True), key=lambda pair: pair[0])
        self._kept: tuple[object, Tensor] | None = None

    def encode(self, context: Tensor, *, deep: Tensor | None = None, normalize: bool = True) -> Float[Tensor, "*_B C E"]:
        """Unit rows of the prompts with `context` in them; (B, C, E) where there is one context a picture (B, 1, N, W).

        Without `normalize` the rows are as long as the tower makes them.

        Raises:
            LimitError: for a name that leaves no room for the contexts.
        """
        (length, name), number, most = self.longest, context.shape[-2], self.model.config.text.context_length
        if length + number > most:
            raise LimitError(
                f"the prompt of {name!r} with {number} contexts takes {length + number} positions",
                expected=f"at most the tower's {most}", fix="fewer contexts, or a shorter name",
            )  # fmt: skip
        insert = TextInsert(context=context, position=self.position, deep=deep)
        return self.model.encode_text(self.rows, normalize=normalize, insert=insert)

    def kept(self, context: Tensor) -> Float[Tensor, "C E"]:
        """The rows as long as the tower makes them; those of a context that is not learned are computed once for its values."""
        if torch.is_grad_enabled() and context.requires_grad:
            return self.encode(context, normalize=False)
        state = (id(context), context._version, context.dtype, context.device)
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self.encode(context, normalize=False).detach()
        return self._kept[1]


def unit(rows: Float[Tensor, "C E"]) -> Float[Tensor, "C E"]:
    """The rows in float32 or wider, each of length 1."""
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=-1)


def check_text_tower(model: CLIP) -> TextConfig:
    """The configuration of a text tower that takes contexts between its words.

    Raises:
        ConfigError: for any other tower.
    """
    text = model.config.text
    if isinstance(text, TextConfig) and not text.sees_padding:
        return text
    kind = "of SigLIP's kind, which reads its padding" if isinstance(text, TextConfig) else f"of the kind {text.kind!r}"
    raise ConfigError(
        f"the text tower is {kind}, and contexts cannot be put between its words", expected="a causal one of CLIP's kind",
        fix="use a method that leaves the words as they are: vpt, tecoa, or mvlpt with family=visual",
    )  # fmt: skip


def word_context(model: CLIP, words: str) -> Float[Tensor, "N W"]:
    """The embeddings of words, to begin a context with; float32 copies.

    Raises:
        ConfigError: for words that are no tokens.
    """
    check_text_tower(model)
    ids = model.tokenizer.encode(words)
    if not ids:
        raise ConfigError(f"the words are {words!r}", expected="one word or more")
    return model.text.token_embedding.weight[torch.tensor(ids)].detach().float().clone()


def split_words(model: CLIP, words: str, length: int) -> tuple[Tensor, str]:
    """The embeddings of the first `length` words (a token each) and the template of the rest."""
    check_text_tower(model)
    parts = words.split()
    require(length <= len(parts), "length", length, f"at most the {len(parts)} words {words!r}")
    kept = " ".join([*parts[length:], "{}."])
    if length == 0:
        return word_context(model, parts[0])[:0], kept
    return word_context(model, " ".join(parts[:length])), kept
