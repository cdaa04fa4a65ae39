"""What the loop trains on: batch number `step`, as a pure function of the step.

A source of batches keeps no position. It can be asked for any step in any order, from any process, and gives the same
pairs with the same random crops and captions every time; so a resumed run, or one with other workers, sees what the
uninterrupted one would have seen, and there is no state to save.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ostension.model.config import TextTowerConfig
from ostension.text.tokenizer import Tokenizer, pack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One global batch of B pairs.

    Attributes:
        images: (B, 3, S, S), preprocessed; or (B, W), features of a frozen tower before its projection.
        tokens: (B, T), T at most the context length, see `pad_tokens`; or (B, W) of floating point, such features.
        keys: where each pair comes from, for diagnosis.
        groups: (B,) a number per pair, equal for pairs that are not each other's negatives, or (B, K) numbers of which one
            in common is enough; None where all differ.
        rejects: pairs that could not be used and were replaced: their key and why.
        texts_cut: captions that were longer than the context.
        prompted: (B, T), the captions behind what a captioner is told before it speaks, such as concepts; a contrastive loss
            never sees them.
        firsts: (B,) the first token of each row of `prompted` that is the caption's.
    """

    images: Tensor
    tokens: Tensor
    keys: Sequence[str]
    groups: Tensor | None = None
    rejects: Sequence[tuple[str, str]] = ()
    texts_cut: int = 0
    prompted: Tensor | None = None
    firsts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, rows: slice) -> Batch:
        """Some of the pairs, as views."""
        sliced: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **sliced, keys=self.keys[rows])

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        if device.type == "cpu":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return dataclasses.replace(self, **moved)


class BatchSource(Protocol):
    """Batches by number. Tar shards behind a sampler are one; a data set held in memory as tensors is another.

    Attributes:
        worker_kind: how workers make batches ahead. "processes" for what the interpreter lock would hold up, as decoding
            with much Python in it; the source is sent to each once, so it must be picklable and hold no tensors. "threads"
            for work in tensors; they share the source.
    """

    worker_kind: Literal["processes", "threads"]

    @property
    def batch_size(self) -> int:
        """B, the same for every step."""
        ...

    @property
    def num_samples(self) -> int:
        """Pairs in one epoch."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """A JSON tree of all that decides what the batches hold: the data's fingerprint, the seed, the choices made.

        A run refuses to resume when any of it is another.
        """
        ...

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The batch of `step`, counted from 0; of several processes, the part of this one.

        The batch of all is the same for any number of processes, and each takes an equal, contiguous part of it, the first
        process the first. Groups mean the same in all parts; T, and what was replaced and cut, are those of the part.

        Raises:
            ConfigError: if the batch size is no multiple of the number of processes.
        """
        ...


def token_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], int]:
    """Token rows of captions, what is too long for the context cut with the end token last; and how many were cut."""
    start = [] if tokenizer.start_id is None else [tokenizer.start_id]
    room = tokenizer.context_length - len(start) - 1
    encoded = [tokenizer.encode(text) for text in texts]
    return [[*start, *ids[:room], tokenizer.end_id] for ids in encoded], sum(len(ids) > room for ids in encoded)


def pad_tokens(rows: Sequence[Sequence[int]], pad_id: int, config: TextTowerConfig) -> Tensor:
    """Token rows as one matrix (B, T), cut to the longest row where the tower allows it.

    Under a causal mask nothing after the end token matters, and BERT masks the padding, so T is the longest row; a tower
    that attends both ways without a mask saw the padding in training too, and gets its full context length.
    """
    length = config.context_length if config.sees_padding else None
    return pack(rows, pad_id, length)
