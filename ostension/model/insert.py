"""Insertion points: what a method adds to a tower without editing or copying it.

`TextInsert` puts soft context vectors between the tokens of each prompt, `VisualInsert` adds tokens to the patches of a
vision transformer; both can replace theirs before every block (deep prompts), hook the blocks' outputs and adapt the
embedding. A tower without an insert pays nothing for them.

Where contexts go (SOS and EOT are the start and the end token, "." the `suffix_length` tokens that close a prompt):

    front    SOS name ctx_1 .. ctx_N . EOT
    middle   SOS ctx_1 .. ctx_n name ctx_n+1 .. ctx_N . EOT     with n = floor(N / 2)
    end      SOS ctx_1 .. ctx_N name . EOT

"name" is everything between the start token and the closing tokens, so a template's words may stand there too. The prompt
must be tokenised without place-holders, and name and full stop separately (`")" + "."` would merge into one token).
Inserting moves what follows to the right: a token at position p after the contexts moves to p + N, and so does EOT, where
the feature is read. Position embeddings are added after the insertion, so contexts take the positions they stand at.
A context made of the embeddings of "a photo of a" at "end" therefore equals the prompt with those words.

Letters: B images, C prompts (classes), N contexts or tokens, T positions, W width, J deep blocks, P patches, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ostension.errors import ConfigError, LimitError
from ostension.shapes import Float, Int

if TYPE_CHECKING:
    Position = Literal["front", "middle", "end"]
    Place = Literal["before_ln_pre", "after_ln_pre"]
else:  # the run-time checker of the tests must not speak before our own messages do
    Position = Place = str

Hook = Callable[[int, Tensor], Tensor]
Adapter = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInsert:
    """What to add to the text tower.

    Attributes:
        context: vectors between the tokens: (N, W) the same in every prompt, (C, N, W) one set per prompt, or
            (B, 1, N, W) and (B, C, N, W) one set per image; with the latter the embeddings come out as (B, C, E).
        position: the layout, see the head of this file.
        suffix_length: tokens that close a prompt before its end token (1: the full stop); front and middle need it.
        deep: (J, ...) with the rest as `context` or broadcast to it: `deep[j]` replaces the contexts' states before
            block j + 1. After the last of them the states go on as they come out.
        hook: called with a block's number and its output (rows, T, W), gives the output to use. Positions after a row's
            end token are padding. A hook switches the text fast path off.
        adapter: called with the embeddings (..., E), gives those to use.
    """

    context: Tensor | None = None
    position: Position = "end"
    suffix_length: int = 1
    deep: Tensor | None = None
    hook: Hook | None = None
    adapter: Adapter | None = None

    def __post_init__(self):
        if self.position not in ("front", "middle", "end"):
            raise ConfigError(f"the position of the text context is {self.position!r}", expected="'front', 'middle' or 'end'")
        if self.suffix_length < 0:
            raise ConfigError(f"suffix_length is {self.suffix_length}", expected="0 or more")
        if self.context is None:
            if self.deep is not None:
                raise ConfigError("deep text contexts are given without a context", fix="pass context=(N, W) as well")
            return
        if not 2 <= self.context.ndim <= 4:
            raise ConfigError(
                f"the text context has the shape {tuple(self.context.shape)}",
                expected="(N, W), (C, N, W), (B, 1, N, W) or (B, C, N, W)",
            )
        if self.deep is not None:
            try:
                self.deep_like_context()
            except RuntimeError:
                whole, each = (", ".join(map(str, shape)) for shape in (self.context.shape, self.context.shape[-2:]))
                raise ConfigError(
                    f"the deep text contexts have the shape {tuple(self.deep.shape)}",
                    expected=f"(J, {whole}) or (J, {each})",
                ) from None

    def deep_like_context(self) -> Tensor | None:
        """`deep` with the context's shape behind J."""
        if self.deep is None or self.context is None:
            return None
        missing = self.context.ndim + 1 - self.deep.ndim
        deep = self.deep.view(len(self.deep), *(1,) * missing, *self.deep.shape[1:])
        return deep.expand(len(self.deep), *self.context.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualInsert:
    """What to add to the image tower.

    Attributes:
        tokens: (N, W) or (B, N, W), put behind the patches (attention does not see the order). They carry no position
            embedding and take no part in pooling. Zeros are not neutral: they take attention; N = 0 is.
        place: before `ln_pre`, which then normalises them, or after it.
        deep: (J, N', W) or (J, B, N', W): `deep[j]` replaces the inserted tokens before block j + 1; or a function of a
            block's number and its input without the inserted tokens (B, P, W), which gives the tokens for this block
            (B, N', W), or None to let those of the block before go on. The function is asked before every block.
        hook: called with a block's number and its output (B, P + N, W), gives the output to use; in a ResNet with a
            stage's number and its output (B, channels, height, width).
        adapter: called with the embeddings (B, E), gives those to use.
    """

    tokens: Tensor | None = None
    place: Place = "after_ln_pre"
    deep: Tensor | Callable[[int, Tensor], Tensor | None] | None = None
    hook: Hook | None = None
    adapter: Adapter | None = None

    def __post_init__(self):
        if self.place not in ("before_ln_pre", "after_ln_pre"):
            raise ConfigError(f"the place of the visual tokens is {self.place!r}", expected="'before_ln_pre' or 'after_ln_pre'")
        if self.tokens is not None and self.tokens.ndim not in (2, 3):
            raise ConfigError(f"the visual tokens have the shape {tuple(self.tokens.shape)}", expected="(N, W) or (B, N, W)")
        if isinstance(self.deep, Tensor) and self.deep.ndim not in (3, 4):
            raise ConfigError(
                f"the deep visual tokens have the shape {tuple(self.deep.shape)}", expected="(J, N, W) or (J, B, N, W)"
            )

    def first(self, patches: Tensor) -> Tensor | None:
        """The tokens for the first block (B, N, W), in the dtype of `patches` (B, P, W)."""
        return None if self.tokens is None else _per_row(self.tokens.to(patches), patches)

    def replacement(self, index: int, patches: Tensor) -> Tensor | None:
        """The tokens that stand in for the inserted ones before block `index`, or None."""
        if isinstance(self.deep, Tensor):
            if not 1 <= index <= len(self.deep):
                return None
            return _per_row(self.deep[index - 1].to(patches), patches)
        if self.deep is not None:
            tokens = self.deep(index, patches)
            return None if tokens is None else tokens.to(patches)
        return None


def _per_row(tokens: Tensor, patches: Tensor) -> Tensor:
    # Not len(patches), of which a recorder of graphs keeps the number.
    return tokens if tokens.ndim == 3 else tokens.expand(patches.shape[0], *tokens.shape)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Rows of a text batch after insertion.

    Attributes:
        keys: (R, T) token ids, and -1 - i where row i of the context bank stands.
        ends: (R,) the position of each row's feature.
        bank: (n, W) all context vectors, or None.
        deep: (J, n, W) what replaces the bank before blocks 1 to J, or None.
        shape: the leading shape of the embeddings: (C,), or (B, C).
    """

    keys: Int[Tensor, "R T"]
    ends: Int[Tensor, " R"]
    bank: Float[Tensor, "n W"] | None
    deep: Float[Tensor, "J n W"] | None
    shape: tuple[int, ...]


def lay_out(
    tokens: Int[Tensor, "C T"], ends: Int[Tensor, " C"], insert: TextInsert | None, context_length: int
) -> Layout:
    """Put the contexts of `insert` between the tokens.

    Raises:
        LimitError: when a prompt does not fit the context length any more.
        ConfigError: for a context whose number of prompts is another, or a name that is shorter than the suffix says.
    """
    if insert is None or insert.context is None or insert.context.shape[-2] == 0:
        return Layout(tokens, ends, None, None, (tokens.shape[0],))
    context, number = insert.context, insert.context.shape[-2]
    prompts, device = len(tokens), tokens.device
    if context.ndim >= 3 and context.shape[-3] != prompts and not (context.ndim == 4 and context.shape[1] == 1):
        raise ConfigError(
            f"the text context {tuple(context.shape)} is for {context.shape[-3]} prompts and there are {prompts}",
            fix="one context per image is (B, 1, N, W)",
        )
    longest = int(ends.max()) + 1 + number
    if longest > context_length:
        raise LimitError(
            f"a prompt of {longest - number} tokens and {number} contexts takes {longest} positions",
            expected=f"at most {context_length}",
        )
    start = ends - 1 - insert.suffix_length if insert.position != "end" else torch.zeros_like(ends)  # last token before
    if bool((start < 0).any()):
        raise ConfigError(f"a prompt is shorter than its closing {insert.suffix_length} tokens", fix="lower suffix_length")
    width = min(tokens.shape[1] + number, context_length)
    source, context_index = _sources(start, number, width, insert.position)
    keys = tokens.gather(1, source.clamp(max=tokens.shape[1] - 1))
    bank_rows = torch.arange(context[..., 0].numel(), device=device).view(context.shape[:-1])  # (..., N)
    if context.ndim == 4:
        bank_rows = bank_rows.expand(len(context), prompts, number)
        keys, context_index = keys.repeat(len(context), 1), context_index.repeat(len(context), 1)
    rows = bank_rows.expand(prompts, number) if context.ndim == 2 else bank_rows.reshape(-1, number)
    own = rows.gather(1, context_index.clamp(min=0))
    deep = insert.deep_like_context()
    shape = (prompts,) if context.ndim < 4 else (len(context), prompts)
    new_ends = (ends + number).repeat(len(keys) // prompts)
    keys = torch.where(context_index >= 0, -1 - own, keys)
    return Layout(keys, new_ends, context.flatten(0, -2), None if deep is None else deep.flatten(1, -2), shape)


def _sources(start: Tensor, number: int, width: int, position: str) -> tuple[Tensor, Tensor]:
    """For each new position the old one (any where a context stands), and the number of the context (-1 where none)."""
    at = torch.arange(width, device=start.device).expand(len(start), width)
    start = start[:, None]
    if position == "middle":
        half = number // 2
        first = (at >= 1) & (at <= half)
        second = (at > start + half) & (at <= start + number)
        context = torch.where(first, at - 1, torch.where(second, at - 1 - start, torch.full_like(at, -1)))
        source = at - half * (at > half) - (number - half) * (at > start + number)
        return source, context
    inside = (at > start) & (at <= start + number)
    return at - number * (at > start + number), torch.where(inside, at - 1 - start, torch.full_like(at, -1))
