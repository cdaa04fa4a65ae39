"""A captioner on a CLIP, as in CoCa (Yu et al. 2022): a decoder on the text tower's states that reads the image tower's.

Departures from the paper:

- The decoder reads the image tower's own places (patches, or the last map), not 256 queries that an attentional pooler made
  of them; the contrastive embedding comes from the tower's own head and not from a second pooler.
- The contrastive embedding of a text is CLIP's, read at the end token. The paper appends a CLS token to the text and masks
  padding for it. So the end token, which the decoder has to predict, is also what the contrastive loss reads.
- The loss of a caption is the mean over its tokens and not their sum, so that the weight of captioning does not depend on
  how long captions are. Padding is left out by position.

A captioner may be given a prompt for each picture (`train.concepts`), which it reads as the beginning of the caption.

Letters: B batch, T tokens, K beams, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ostension.config import require
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.decoder import Decoder, DecoderConfig, image_features, initialise_decoder, materialise, next_token_loss
from ostension.model.modes import evaluating
from ostension.model.taps import Taps
from ostension.runtime import numpy_generator
from ostension.shapes import Float, Int

NAME = "captioner"  # of the part, in the model and in its folder


class Captioner(nn.Module):
    """The decoder of a model's captions.

    Args:
        model: whose widths and vocabulary it has; nothing of it is kept.
        seed: of the initialisation; None leaves the parameters unset, for a loader that fills them.

    Raises:
        ConfigError: for a text tower that sees what comes after a token, or a tokenizer without a token to begin with.
    """

    def __init__(self, config: DecoderConfig, model: CLIP, *, seed: int | None = 0):
        super().__init__()
        text = model.config.text
        if not getattr(text, "causal", False) or model.tokenizer.start_id is None:
            raise ConfigError(
                "a captioner cannot stand on this text tower", source=model.config.name,
                expected="a causal one, whose tokenizer has a start token",
            )  # fmt: skip
        self.config = config
        with torch.device("meta"):
            features = image_features(model.config)
            self.decoder = Decoder(config, width=text.width, features=features, vocab_size=text.vocab_size)
        materialise(self)
        if seed is not None:
            initialise_decoder(self, seed, width=text.width, layers=config.layers)

    def places(self, read: Tensor) -> Float[Tensor, "B P F"]:
        """What the decoder reads, from the tap of its settings: the pooled feature is one place."""
        return read[:, None] if read.ndim == 2 else read

    def loss(
        self, states: Float[Tensor, "B T W"], places: Float[Tensor, "B P F"], tokens: Int[Tensor, "B T"],
        ends: Int[Tensor, " B"], firsts: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, " B"]:  # fmt: skip
        """The captioning loss of each pair, from the taps "tokens" and "patches" of its towers."""
        return next_token_loss(self.decoder, self.decoder(states, places), tokens, ends, firsts)


class CaptionModel:
    """A CLIP with its captioner: `caption(images)` says what is in pictures."""

    def __init__(self, model: CLIP, captioner: Captioner):
        self.model, self.captioner = model, captioner

    def caption(
        self, images: Sequence[Any] | Tensor, *, beams: int = 1, batch_size: int = 32, sampling: Sampling | None = None,
        prompts: Sequence[Sequence[int]] | None = None, keys: Sequence[str | int] | None = None,
    ) -> list[str]:  # fmt: skip
        """A caption for each picture (paths, bytes, PIL pictures, arrays, a preprocessed tensor, or pooled features).

        Args:
            beams: captions followed at a time; 1 takes the likeliest token at each place. The best has the highest mean
                log-likelihood of its tokens.
            sampling: draw the tokens instead.
            prompts: for each picture the ids, with the start token, that its caption goes on from; they are not part of it.
            keys: for each picture what its draws depend on, with the seed; by default its place.
        """
        require(beams >= 1, "beams", beams, "1 or more")
        require(sampling is None or beams == 1, "beams", beams, "1 where tokens are drawn")
        model, tokenizer, found = self.model, self.model.tokenizer, []
        assert tokenizer.start_id is not None
        prompts = prompts if prompts is not None else [[tokenizer.start_id]] * len(images)
        keys = keys if keys is not None else range(len(images))
        self.captioner.eval()
        with torch.no_grad(), evaluating(model):
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                places = self._places(batch if isinstance(batch, Tensor) else model.transform.batch(batch))
                said: dict[int, str] = {}
                lengths = [len(prompt) for prompt in prompts[start : start + len(places)]]
                for length in sorted(set(lengths)):  # prompts of one length are one matrix
                    rows = [row for row, own in enumerate(lengths) if own == length]
                    begun = torch.tensor([list(prompts[start + row]) for row in rows], device=places.device)
                    following = functools.partial(self._next, places[rows])
                    if sampling is None:
                        most = tokenizer.context_length
                        ids = beam_search(following, begun, beams=beams, end_id=tokenizer.end_id, length=most)
                    else:
                        drawn = [sampling.numbers(keys[start + row], tokenizer.context_length) for row in rows]
                        ids = sample(following, begun, sampling, torch.tensor(drawn), tokenizer.end_id)
                    said |= {row: tokenizer.decode(one) for row, one in zip(rows, ids, strict=True)}
                found += [said[row] for row in range(len(places))]
        return found

    def _places(self, images: Tensor) -> Tensor:
        """(B, P, F) of pictures, or of a frozen tower's pooled features (B, W)."""
        reads = self.captioner.config.reads
        if images.ndim == 2:
            require(reads == "pooled", "decoder.reads", reads, "'pooled', where images come as features")
            return self.captioner.places(images.to(self.model.device, self.model.dtype))
        return self.captioner.places(self.model.image_features(images, (reads,))[reads])

    def _next(self, places: Tensor, tokens: Tensor, which: Tensor) -> Tensor:
        """log p of the token after each row (R, V)."""
        wanted = Taps(("tokens",), self.model.text.tap_names())
        self.model.text(tokens, taps=wanted)
        states = self.captioner.decoder(wanted.result()["tokens"], places[which])
        return self.captioner.decoder.logits(states[:, -1]).log_softmax(dim=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        seed: captions of one seed and key are the same, whatever pictures they are made together with.
        temperature: of the softmax.
        top_p: the likeliest tokens that together have this probability are drawn from.
    """

    seed: int = 0
    temperature: float = 1.0
    top_p: float = 0.9

    def __post_init__(self):
        require(self.temperature > 0, "sampling.temperature", self.temperature, "more than 0")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "more than 0, at most 1")

    def numbers(self, key: str | int, count: int) -> list[float]:
        """What the tokens of one caption are drawn with, from 0 up to, not including, 1."""
        return numpy_generator(self.seed, "caption", key).random(count).tolist()


def sample(
    next_log_probabilities: Callable[[Tensor, Tensor], Tensor], prompts: Int[Tensor, "B P"], sampling: Sampling,
    numbers: Float[Tensor, "B N"], end_id: int,
) -> list[list[int]]:  # fmt: skip
    """For each prompt the ids behind it, without the end, of a row of at most N tokens that is drawn token by token."""
    tokens, start_id = prompts, int(prompts[0, 0])
    which = torch.arange(len(tokens), device=tokens.device)
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for place in range(tokens.shape[1], numbers.shape[1]):
        scores = next_log_probabilities(tokens, which).double() / sampling.temperature
        scores[:, start_id] = -torch.inf
        likely, order = scores.softmax(dim=1).sort(dim=1, descending=True, stable=True)
        sums = likely.cumsum(dim=1)
        kept = likely.masked_fill(sums - likely >= sampling.top_p, 0.0).cumsum(dim=1)  # the likeliest is always kept
        wanted = numbers[:, place, None].to(kept) * kept[:, -1:]
        token = order.gather(1, (kept <= wanted).sum(dim=1, keepdim=True).clamp(max=kept.shape[1] - 1))
        token[done] = end_id
        tokens, done = torch.cat([tokens, token], dim=1), done | (token[:, 0] == end_id)
        if done.all():
            break
    return [until(row, end_id) for row in tokens[:, prompts.shape[1] :].tolist()]


def until(row: list[int], end_id: int) -> list[int]:
    """The ids before the end token."""
    return row[: row.index(end_id)] if end_id in row else row


def beam_search(
    next_log_probabilities: Callable[[Tensor, Tensor], Tensor], prompts: Int[Tensor, "B P"], *, beams: int, end_id: int,
    length: int,
) -> list[list[int]]:  # fmt: skip
    """For each prompt the ids behind it, without the end, of the best row of at most `length` tokens.

    Args:
        next_log_probabilities: gives (R, V) for token rows (R, T) and the picture that each belongs to (R,).
        prompts: what the rows begin with, the start token first.
    """
    count, device, start_id = len(prompts), prompts.device, int(prompts[0, 0])
    tokens = prompts[:, None].expand(-1, beams, -1)
    totals = torch.full((count, beams), -torch.inf, device=device)
    totals[:, 0] = 0.0  # all beams begin alike, so one stands for them
    lengths = torch.zeros(count, beams, device=device)
    done = torch.zeros(count, beams, dtype=torch.bool, device=device)
    which = torch.arange(count, device=device).repeat_interleave(beams)
    for _ in range(length - prompts.shape[1]):
        scores = next_log_probabilities(tokens.flatten(0, 1), which).view(count, beams, -1)
        scores[..., start_id] = -torch.inf
        ended = torch.full_like(scores, -torch.inf)
        ended[..., end_id] = 0.0  # a finished row stays as it is
        new_totals = totals[..., None] + torch.where(done[..., None], ended, scores)  # (B, K, V)
        new_lengths = lengths + (~done).float()
        ranked = (new_totals / new_lengths[..., None]).flatten(1).topk(beams, dim=1).indices
        parent, token = ranked // scores.shape[-1], ranked % scores.shape[-1]
        totals = new_totals.flatten(1).gather(1, ranked)
        lengths, done = new_lengths.gather(1, parent), done.gather(1, parent) | (token == end_id)
        kept = tokens.gather(1, parent[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([kept, token[..., None]], dim=2)
        if done.all():
            break
    return [until(row, end_id) for row in tokens[:, 0, prompts.shape[1] :].tolist()]
