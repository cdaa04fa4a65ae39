"""FixRes: after a model is trained, one more epoch at a larger picture, with a small learning rate.

The positions of the image tower are interpolated; everything else is as it was. The paper does so for ViT-L/14 at 336 px
(section 2.5, after Touvron et al. 2019); it can be done to any model whose positions can be interpolated.
"""

from __future__ import annotations

from pathlib import Path

from ostension.train.pretraining import Pretraining

LR = 2e-5  # remembered of appendix F, not confirmed in a source; its epoch is the paper's own word


def fixres(pretraining: Pretraining, image_size: int, start: Path | None, *, lr: float = LR, epochs: float = 1) -> Pretraining:
    """The run that follows `pretraining` at `image_size`, from the weights that it gave.

    The warm-up is a tenth of the run (2,000 steps at most), as the paper names none for it.
    """
    return pretraining.changed({
        "start": None if start is None else str(start),
        "model.vision.image_size": image_size,
        "model.preprocess.image_size": image_size,
        "train.steps": None,
        "train.epochs": epochs,
        "train.optim.lr": lr,
        "train.schedule.warmup_steps": None,
    })  # fmt: skip
