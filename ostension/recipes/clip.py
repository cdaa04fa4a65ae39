"""The nine models of the paper, with its settings.

    ostension train --recipe clip-vit-b-32 --plan
    torchrun --nproc-per-node 8 -m ostension train --recipe clip-vit-b-32 --data "wit/{00000..39999}.tar" --run runs/b32

Radford et al. 2021, section 2.5 and appendix F. 400 million pairs, 32 epochs, batch 32,768, AdamW with decoupled weight
decay 0.2 on all weights that are not gains or biases, warm-up over 2,000 steps, cosine to zero, the multiplier of the
logits from 1 / 0.07 and capped at 100, a random square crop of the resized picture as the only augmentation. To save memory:
mixed precision, gradient checkpointing, Adam's statistics in half precision, and half-precision weights of the text tower that
are rounded stochastically. `--plan` shows what each of them is worth; all are settings (`train.checkpointing`,
`train.optim.moments`, `train.stochastic_rounding`), and a run that has the memory may leave them out.

What each value rests on:

- the paper's text: epochs, pairs, batch, optimiser, what decays, schedule, the multiplier's start and cap, the crop, mixed
  precision and the memory options; one more epoch at 336 px for ViT-L/14.
- open sources that say they follow it: betas and eps (open_clip's defaults), weight decay and warm-up (MetaCLIP's matching
  configuration, which also has 4e-4 for L/14).
- memory only, not confirmed in any source: the table of appendix F as a whole, and from it all learning rates (5e-4 for
  RN50, RN101, RN50x4, B/32 and B/16, 4e-4 for RN50x16 and L/14, 3.6e-4 for RN50x64, 2e-5 for L/14 at 336 px).

Departures. Mixed precision is bfloat16 weights over float32 masters where the paper has float16 with a loss scale, and the
text tower's weights are bfloat16 for the same reason. The similarities are summed in blocks of rows, which changes nothing
but the memory. No clipping of the gradient is named in the paper, and there is none here.
"""

from __future__ import annotations

from pathlib import Path

from ostension.losses import LossConfig
from ostension.model.presets import preset
from ostension.recipes._fixres import fixres
from ostension.recipes._tiny import tiny
from ostension.train.objective import ContrastiveConfig
from ostension.train.optim import OptimConfig
from ostension.train.pairs import PairBatchesConfig
from ostension.train.pretraining import Pretraining
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig

OFFERS = {
    "clip-rn50": "The paper's RN50: 400M pairs, 32 epochs, batch 32,768.",
    "clip-rn101": "The paper's RN101.",
    "clip-rn50x4": "The paper's RN50x4, 288 px.",
    "clip-rn50x16": "The paper's RN50x16, 384 px.",
    "clip-rn50x64": "The paper's RN50x64, 448 px.",
    "clip-vit-b-32": "The paper's ViT-B/32.",
    "clip-vit-b-16": "The paper's ViT-B/16.",
    "clip-vit-l-14": "The paper's ViT-L/14.",
    "clip-vit-l-14-336": "The paper's ViT-L/14@336px: one more epoch at 336 px from runs/clip-vit-l-14/model, or --from.",
}
PAIRS, EPOCHS, BATCH_SIZE = 400_000_000, 32, 32_768
# Model and peak learning rate.
TABLE = {
    "clip-rn50": ("RN50", 5e-4),
    "clip-rn101": ("RN101", 5e-4),
    "clip-rn50x4": ("RN50x4", 5e-4),
    "clip-rn50x16": ("RN50x16", 4e-4),
    "clip-rn50x64": ("RN50x64", 3.6e-4),
    "clip-vit-b-32": ("ViT-B-32", 5e-4),
    "clip-vit-b-16": ("ViT-B-16", 5e-4),
    "clip-vit-l-14": ("ViT-L-14", 4e-4),
}
FIXRES_START, FIXRES_SIZE = Path("runs/clip-vit-l-14/model"), 336
CHUNK_ROWS = 1024
# A run without the paper's savings of memory, for those who have enough of it.
ROOMY = {"train.optim.moments": "fp32", "train.checkpointing": "none", "train.stochastic_rounding": "none"}


def recipe(name: str) -> Pretraining:
    """The run called `name`; its data is given by the user."""
    if name == "clip-vit-l-14-336":
        return fixres(recipe("clip-vit-l-14"), FIXRES_SIZE, FIXRES_START).changed({"model.name": "ViT-L-14-336"})
    return papers_run(*TABLE[name])


def smoke(name: str) -> Pretraining:
    """The same settings on tiny towers and eight emoji at a time."""
    return tiny(recipe(name))


def pairs(name: str) -> int:
    """Pairs in WIT, for all of them."""
    return PAIRS


def papers_run(model_name: str, lr: float) -> Pretraining:
    """A model of the paper's kinds with the paper's settings."""
    model = preset(model_name)
    residual = model.vision.kind == "resnet"
    optim = OptimConfig(
        lr=lr, beta1=0.9, beta2=0.999 if residual else 0.98, eps=1e-8 if residual else 1e-6, weight_decay=0.2,
        decay_rule="paper", clip_norm=None, moments="fp16",
    )  # fmt: skip
    train = TrainConfig(
        epochs=EPOCHS, optim=optim, schedule=ScheduleConfig(warmup_steps=2000), precision="bf16", checkpointing="both",
        stochastic_rounding="text",
    )  # fmt: skip
    return Pretraining(
        model=model,
        batches=PairBatchesConfig(data="", batch_size=BATCH_SIZE, crop="random"),
        train=train,
        objective=ContrastiveConfig(loss=LossConfig(chunk_rows=CHUNK_ROWS)),
    )
