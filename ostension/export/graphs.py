"""A model's towers as modules that can be recorded as a graph: pixels or token ids in, three tensors out.

    image   pixels (B, 3, S, S) float32 -> embeddings (B, E), unit_embeddings (B, E), features (B, W)
    text    tokens (B, T) int64         -> the same

`embeddings` is what `encode_image` gives, `unit_embeddings` the same with rows of length one, `features` what comes before
the projection. B is free. T is free up to the context length wherever nothing after the end token changes a text's embedding;
a tower that sees its padding (SigLIP's) keeps the context length.

Departures from the towers' own forward passes, which decide by the values of their inputs and so cannot be recorded: a text
transformer runs every position of every row, and in the last block only the position that is read.

Letters: B batch, T tokens, S pixels a side, W width, E embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.model.clip import CLIP
from ostension.model.config import TextConfig
from ostension.model.taps import Taps
from ostension.model.text_tower import TextTransformer

SIDES = ("image", "text")
INPUTS = {"image": "pixels", "text": "tokens"}
OUTPUTS = ("embeddings", "unit_embeddings", "features")  # no name of an operator: torch 2.13 would use it twice
Outputs = tuple[Tensor, Tensor, Tensor]


class Graph(nn.Module):
    """One tower with its three outputs."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower: Any = tower
        self.eval()

    def forward(self, inputs: Tensor) -> Outputs:
        taps = Taps(("pooled", "embedding"), self.tower.tap_names())
        self.run(inputs, taps)
        found = taps.result()
        return finish(found["embedding"], found["pooled"])

    def run(self, inputs: Tensor, taps: Taps) -> None:
        """Call the tower."""
        self.tower(inputs, taps=taps)


class PlainTextGraph(Graph):
    """A text tower by its plain path, in which nothing depends on how far rows are padded."""

    def run(self, inputs: Tensor, taps: Taps) -> None:
        self.tower(inputs, taps=taps, plain=True)


class TransformerTextGraph(Graph):
    """CLIP's and SigLIP's text tower: all positions up to the last block, and there the one that is read."""

    tower: TextTransformer

    def forward(self, inputs: Tensor) -> Outputs:
        tower, causal = self.tower, self.tower.config.causal
        ends = tower.ends(inputs)
        x = tower.token_embedding(inputs) + tower.positional_embedding[: inputs.shape[1]]
        *before, last = tower.transformer.blocks()
        for block in before:
            x = block(x, causal)
        place = ends[:, None, None].expand(-1, 1, x.shape[2])
        normed = last.ln_1(x)
        seen = torch.arange(inputs.shape[1], device=inputs.device) <= ends[:, None]  # (B, T)
        read = last.attn(normed, query=normed.gather(1, place), mask=seen[:, None, None] if causal else None)
        pooled = tower.ln_final(last.mix((x.gather(1, place) + read)[:, 0]))
        return finish(tower.project(pooled), pooled)


def finish(embedding: Tensor, pooled: Tensor) -> Outputs:
    """The three outputs."""
    return embedding, F.normalize(embedding, dim=-1), pooled


def tower_graph(model: CLIP, side: str) -> Graph:
    """The graph of one side of a model."""
    if side == "image":
        return Graph(model.visual)
    if isinstance(model.config.text, TextConfig):
        return TransformerTextGraph(model.text)
    return PlainTextGraph(model.text)


def free_length(model: CLIP) -> bool:
    """Whether texts may come in rows of any length up to the context length, cut after the longest of them."""
    return not model.config.text.sees_padding
