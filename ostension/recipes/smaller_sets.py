"""Runs on open data with figures to compare with: YFCC-15M as in the paper's ablation, and CC3M.

- **yfcc15m-rn50**: the paper's recipe with weight decay 0.1 and batch 2,048, as its author says (openai/CLIP issue 101);
  the released list has 14,829,396 rows. That the ablation's model is RN50, for 32 epochs, is remembered and not confirmed.
- **cc3m-rn50**: open_clip's run: learning rate 1e-3, weight decay 0.1, 30 epochs, batch 1,024, about 19 % zero-shot on
  ImageNet (mlfoundations/open_clip issue 448). Its warm-up of 10,000 steps and the set's 3,318,333 pairs are remembered;
  today fewer can be downloaded. Its text tower has exact GELU, as open_clip's RN50 has. It trained with a random resized
  crop of 0.9 to 1 of the area, where ours is a random square.
"""

from __future__ import annotations

from typing import Any

from ostension.recipes._tiny import tiny
from ostension.recipes.clip import ROOMY, papers_run
from ostension.train.pretraining import Pretraining

OFFERS = {
    "yfcc15m-rn50": "The paper's ablation: RN50 on YFCC-15M, batch 2,048.",
    "cc3m-rn50": "RN50 on CC3M as open_clip trains it: 30 epochs, batch 1,024.",
}
PAIRS = {"yfcc15m-rn50": 14_829_396, "cc3m-rn50": 3_318_333}
CHANGES: dict[str, dict[str, Any]] = {
    "yfcc15m-rn50": {"train.optim.weight_decay": 0.1, "batches.batch_size": 2048},
    "cc3m-rn50": {
        **ROOMY, "model.text.activation": "gelu", "model.preprocess.mode": "convert-first", "train.optim.lr": 1e-3,
        "train.optim.weight_decay": 0.1, "train.schedule.warmup_steps": 10_000, "train.epochs": 30,
        "batches.batch_size": 1024,
    },
}  # fmt: skip


def recipe(name: str) -> Pretraining:
    """The run called `name`; its data is given by the user."""
    return papers_run("RN50", 5e-4).changed(CHANGES[name])


def smoke(name: str) -> Pretraining:
    """The same settings on tiny towers and eight emoji at a time."""
    return tiny(recipe(name))


def pairs(name: str) -> int:
    """Pairs of the data set."""
    return PAIRS[name]
