"""An epoch of CoOp, 16 shots of 100 classes, on kept features against the published loop, on the same tiny tower.

The published loop reads and decodes every picture again in every epoch and sends it through the image tower, and in every step
sends all 77 positions of all prompts through the text tower, forward and backward. Here it runs in our own training loop, with
our blocks, our batches and the same weights, so the ratio is that of the work alone. Ours has the pictures' features, which
serve every epoch, seed and method once they are there (the last row), and computes what prompts share once. On a tower this
small the fixed cost of each operation is most of ours; `adapt_speed.py` has the same step on the text tower of ViT-B/32.

Each row: seconds of processor time of an epoch, how many times faster than the published loop in the same run, and how far the
contexts are apart after all epochs, over the way that they went. A run ends with an error where they are not equal.

    python benchmarks/adapt_epoch.py [--classes 100] [--shots 16] [--record FILE]
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import _measure
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.adapt._examples import Labelled
from ostension.adapt._fit import Recipe, fit_addition
from ostension.adapt.coop import Config, CoOp
from ostension.data.open import open_pairs
from ostension.data.pairs import Subset
from ostension.model.clip import CLIP
from ostension.model.insert import TextInsert
from ostension.model.presets import preset
from ostension.text.prompts import class_names

LENGTH, CONTEXTS, APART = 77, 16, 1e-3  # positions of a prompt; learned ones; float32
RECIPE = Recipe(epochs=3, views=0)


class PublishedCoOp(CoOp):
    """CoOp as its code runs it: pictures through the tower in every step, all positions of all prompts through theirs."""

    kind, needs_images = "coop-published", True

    def weights(self, features: Tensor | None = None) -> Tensor:
        rows = F.pad(self.prompts.rows, (0, LENGTH - CONTEXTS - self.prompts.rows.shape[1]), value=self.model.tokenizer.pad_id)
        insert = TextInsert(context=self.context, position=self.prompts.position)
        return self.model.encode_text(rows, normalize=True, insert=insert, plain=True)

    @torch.no_grad()
    def image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, normalize=True)


def tiny_tower() -> CLIP:
    """The smallest of our models, with CLIP's tokens and 77 positions."""
    base, large = preset("tiny-vit"), preset("ViT-B-32")
    text = dataclasses.replace(base.text, context_length=LENGTH, vocab_size=large.text.vocab_size)
    model = CLIP(dataclasses.replace(base, text=text, tokenizer=large.tokenizer), seed=0).eval()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))  # as trained models have it
    return model


def fitted(addition: CoOp, data: Labelled) -> tuple[list[float], Tensor]:
    """Seconds of processor time up to the end of each epoch, and the contexts."""
    ends, start = [], time.process_time()
    fit_addition(addition, data, RECIPE, seed=1, progress=lambda now: ends.append(time.process_time() - start))
    return ends, addition.context.detach()


def main() -> None:
    options = _measure.arguments(__doc__ or "", classes=(100, "classes"), shots=(16, "pictures of each"))
    model, names = tiny_tower(), list(class_names("imagenet"))[: options.classes]
    count = options.classes * options.shots
    data = Labelled(source=Subset(open_pairs("emoji"), range(count)), targets=np.arange(count) % options.classes)
    first = CoOp(model, Config(length=CONTEXTS), names, seed=1).context.detach().clone()
    ours, plain, once, found = math.inf, math.inf, math.inf, {}
    for _ in range(options.rounds):
        for kind in (CoOp, PublishedCoOp):
            ends, context = fitted(kind(model, Config(length=CONTEXTS), names, seed=1), data)
            epochs = np.diff(ends).tolist()
            found[kind] = context
            if kind is CoOp:
                ours, once = min(ours, *epochs), min(once, ends[0] - min(epochs))
            else:
                plain = min(plain, *epochs)
    way = float((found[CoOp] - first).abs().max())
    distance = float((found[CoOp] - found[PublishedCoOp]).abs().max()) / way
    if not distance <= APART:
        raise SystemExit(f"contexts differ by {distance:.2g} of their way; expected at most {APART:g}")
    rows: dict[str, dict[str, Any]] = {
        "published: pictures, 77 positions": {"s": plain, "x published": 1.0},
        "ostension: kept features": {"s": ours, "x published": plain / ours, "apart": distance},
        "the features, once": {"s": once},
    }
    steps = count // RECIPE.batch_size
    figures = {f"CoOp, {options.shots} shots of {options.classes} classes, an epoch of {steps} steps": rows}
    for title, group in figures.items():
        _measure.table(title, group)
    settings = {"classes": options.classes, "shots": options.shots, "batch": RECIPE.batch_size, "contexts": CONTEXTS,
                "model": "tiny-vit", "rounds": options.rounds}  # fmt: skip
    _measure.write_record(options.record, "adapt_epoch", settings, figures)


if __name__ == "__main__":
    main()
