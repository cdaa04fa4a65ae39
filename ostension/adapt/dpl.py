"""AP / DPL: a net makes the contexts of features and means them over a batch of one domain, without gradients at test time.

    v(D) = mean over x in a batch of domain D of MLP(f(x)),  (N, W);    W(D)_c = g([v_1(D)] ... [v_N(D)] [name_c] ".")

Each picture is scored with its own domain's prompts. So a prediction depends on the batch it is made in, which must be of one
domain. A batch of one is allowed, and conditions on the picture.
Source: Zhang et al. 2021, "Amortized Prompt: Lightweight Fine-Tuning for CLIP in Domain Generalization" (arXiv:2111.12853),
and its code.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._text import ClassTokens, word_context
from ostension.adapt.base import Addition, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator

NORM = 10.0  # OpenAI's embeddings have about this length before they are made unit rows


def _silence(addition: DPL) -> None:
    """A net that gives the embeddings of words whatever it sees."""
    with torch.no_grad():
        addition.last.weight.zero_()
        addition.last.bias.copy_(word_context(addition.model, "a").flatten())


SPEC = Spec(
    title="DPL",
    paper='Zhang, Gu, Matsuo, Iwasawa. "Domain Prompt Learning for Efficiently Adapting CLIP to Unseen Domains". 2021, '
    "arXiv:2111.12853",
    trains="a net of three layers, E -> E -> E -> N W; 4,727,808 numbers for ViT-B/16",
    domains=True,
    depends="batch",
    neutral={"length": 1},
    silence=_silence,
    neutral_template="a {}.",
    departures=(
        "each picture is scored with its own domain's prompts, as described; the loss 'first-domain' is the released code, in "
        "which every positive lies in the first domain's rows and the other domains' prompts are negatives only",
        "the net sees unit embeddings times 10 where the code's are as the tower gives them, about that long",
        "epochs over the largest domain instead of 5,001 steps",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the code's.

    Attributes:
        length: N contexts.
        hidden: width of the net.
        dropout: after each hidden layer, in training.
        loss: "own-domain" as described, or "first-domain" as the released code has it.
        recipe: how it is trained; a step has `batch_size` pictures of every domain.
    """

    length: int = 16
    hidden: int = 512
    dropout: float = 0.1
    loss: Literal["own-domain", "first-domain"] = "own-domain"
    recipe: Recipe = dataclasses.field(
        default_factory=lambda: Recipe(epochs=20, lr=1e-3, momentum=0.1, weight_decay=0.0, warmup_epochs=0, schedule="constant")
    )

    def __post_init__(self):
        require(self.length >= 1, "length", self.length, "1 or more")
        require(self.hidden >= 1, "hidden", self.hidden, "1 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 up to, not including, 1")


class DPL(Addition):
    """The net that makes contexts."""

    kind, config_type, depends, by_domain = "dpl", Config, "batch", True

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        generator, self.width = torch_generator(seed, "dpl", "net"), model.text.config.width
        sizes = (model.config.embed_dim, config.hidden, config.hidden, config.length * self.width)
        first, second, last = (_xavier(*pair, generator) for pair in itertools.pairwise(sizes))
        drop, relu = nn.Dropout(config.dropout), nn.ReLU()
        self.hidden = nn.Sequential(first, drop, relu, second, drop, relu).to(model.device)
        self.last = last.to(model.device)
        self.prompts = ClassTokens(model, self.class_names)

    def weights(self, features: Tensor | None = None) -> Tensor:
        assert features is not None
        made = self.last(self.hidden(NORM * features.to(self.last.weight.dtype))).mean(dim=0)
        return self.prompts.encode(made.view(self.config.length, self.width))

    def loss(self, batch: Any) -> Tensor:
        members = [batch.domains == domain for domain in batch.domains.unique()]
        rows = [self.weights(batch.features[member]) for member in members]
        if self.config.loss == "first-domain":
            features = torch.cat([batch.features[member] for member in members])
            logits = self.scale() * self.cosines(features, torch.cat(rows))
            return F.cross_entropy(logits, torch.cat([batch.targets[member] for member in members]))
        losses = [
            F.cross_entropy(self.scale() * self.cosines(batch.features[member], own), batch.targets[member])
            for member, own in zip(members, rows, strict=True)
        ]
        return torch.stack(losses).mean()


def _xavier(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear map with Xavier's uniform weights and biases of 0.01."""
    with torch.device("meta"):
        made = nn.Linear(inputs, outputs)
    bound = (6 / (inputs + outputs)) ** 0.5
    made.weight = nn.Parameter((torch.rand(outputs, inputs, generator=generator) * 2 - 1) * bound)
    made.bias = nn.Parameter(torch.full((outputs,), 0.01))
    return made


fit = fitting(DPL)
