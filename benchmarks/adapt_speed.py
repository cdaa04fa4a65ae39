"""Methods of learned words against the way of their published code, text tower of ViT-B/32 or of our smallest, random weights.

The published way runs all 77 positions of every prompt through all blocks, once more whenever a context has moved; TPT's does
so three times a picture (forward, backward, forward with the moved context) with an optimiser made anew. Here it runs with our
own blocks and the same weights, so the ratios are those of the work alone. Ours computes each distinct prefix once, nothing
behind a prompt's end, and the last block at the end token only; TPT's pictures share one graph, CoCoOp's one batch. Pictures
are features that are there already, on both sides.

Each row: seconds of processor time, how many times faster than the published way in the same run, and how far the results are
apart: of gradients, over the largest gradient; of TPT, in probabilities. A run ends with an error where they are not equal.

    python benchmarks/adapt_speed.py [--model tiny] [--classes 100] [--pictures 16] [--record FILE]
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator

import _measure
import torch
import torch.nn.functional as F
from adapt_epoch import tiny_tower
from torch import Tensor

from ostension.adapt import cocoop, coop, tpt
from ostension.adapt._agreement import plain_tuned
from ostension.adapt._fit import frozen
from ostension.adapt._text import ClassTokens
from ostension.adapt.base import Addition
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import torch_generator
from ostension.text.prompts import class_names

NAME, VIEWS, BATCH, CONDITIONAL = "ViT-B-32", 64, 32, 8
GRADIENTS_APART, PROBABILITIES_APART = 1e-3, 1e-3  # float32


@contextlib.contextmanager
def published(model: CLIP, prompts: ClassTokens, contexts: int) -> Iterator[None]:
    """All positions of all prompts up to the context length, through all blocks."""
    rows, encode = prompts.rows, model.encode_text
    length = model.config.text.context_length - contexts
    prompts.rows = F.pad(rows, (0, length - rows.shape[1]), value=model.tokenizer.pad_id)
    model.encode_text = functools.partial(encode, plain=True)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.encode_text
        prompts.rows = rows


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of processor time, and the result."""
    gc.collect()
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def gradient(addition: Addition, features: Tensor, targets: Tensor) -> Tensor:
    """The gradient of a step's loss, flat."""
    loss = F.cross_entropy(addition.logits(features), targets)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(addition.parameters()))])


def apart(first: Tensor, second: Tensor, allowed: float, scale: float = 1.0) -> float:
    """The largest difference, which must be small."""
    found = float((first - second).abs().max()) / scale
    if not found <= allowed:
        raise SystemExit(f"results differ by {found:.2g}; expected at most {allowed:g}")
    return found


def steps(model: CLIP, names: list[str], rows: Tensor, targets: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """CoOp's and CoCoOp's forward and backward pass."""
    one, many = coop.CoOp(model, coop.Config(), names), cocoop.CoCoOp(model, cocoop.Config(), names)
    few, few_targets = rows[:CONDITIONAL], targets[:CONDITIONAL]

    def singly() -> Tensor:
        parts = [gradient(many, few[place, None], few_targets[place, None]) for place in range(len(few))]
        return torch.stack(parts).mean(0)

    cases: dict[str, Callable[[], Tensor]] = {
        "coop": lambda: gradient(one, rows, targets),
        "singly": singly,
        "together": lambda: gradient(many, few, few_targets),
    }
    seconds, found = dict.fromkeys(cases, math.inf), {}
    for _ in range(rounds):
        for name, case in cases.items():
            spent, found[name] = timed(case)
            seconds[name] = min(seconds[name], spent)
    with published(model, one.prompts, one.context.shape[0]):
        plain, expected = timed(cases["coop"])
    with published(model, many.conditional.prompts, many.conditional.context.shape[0]):
        plain_one, expected_one = timed(lambda: gradient(many, few[:1], few_targets[:1]))
    own = gradient(many, few[:1], few_targets[:1])
    each = plain_one * CONDITIONAL
    size, size_one, size_few = (float(part.abs().max()) for part in (expected, expected_one, found["singly"]))
    distances = {
        "coop": apart(found["coop"], expected, GRADIENTS_APART, size),
        "singly": apart(own, expected_one, GRADIENTS_APART, size_one),
        "together": apart(found["together"], found["singly"], GRADIENTS_APART, size_few),
    }
    batch = f"CoCoOp, {CONDITIONAL} pictures"
    return {
        f"CoOp, a step of {BATCH}: published": {"s": plain, "x published": 1.0},
        f"CoOp, a step of {BATCH}: ostension": row(seconds["coop"], plain, distances["coop"]),
        f"{batch}: published, a picture a step (one timed)": {"s": each, "x published": 1.0},
        f"{batch}: ostension, a picture a step": row(seconds["singly"], each, distances["singly"]),
        f"{batch}: ostension, one batch": row(seconds["together"], each, distances["together"]),
    }


def row(seconds: float, published_seconds: float, distance: float) -> dict[str, float]:
    return {"s": seconds, "x published": published_seconds / seconds, "apart": distance}


def pictures(model: CLIP, names: list[str], views: Tensor, rounds: int, loops: int) -> dict[str, dict[str, float]]:
    """TPT, per picture: a block of pictures together, and the first `loops` of them one after the other."""
    predictor = tpt.TPTPredictor(tpt.TPT(model, tpt.Config(), names))
    together, found = math.inf, torch.empty(0)
    for _ in range(rounds):
        spent, found = timed(lambda: predictor.logits_of_views(views))
        together = min(together, spent / len(views))
    addition = predictor.module

    def loop() -> Tensor:
        logits = []
        for own in views[:loops]:
            context = plain_tuned(addition, own)
            with torch.no_grad():
                logits.append(predictor.scale * own[:1] @ addition.prompts.encode(context).T)
        return torch.cat(logits)

    with published(model, addition.prompts, addition.context.shape[0]):
        plain, expected = timed(loop)
    plain /= loops
    distance = apart(found[:loops].softmax(-1), expected.softmax(-1), PROBABILITIES_APART)
    if not torch.equal(found[:loops].argmax(1), expected.argmax(1)):
        raise SystemExit("predictions differ")
    return {
        "TPT, a picture: published": {"s": plain, "x published": 1.0},
        f"TPT, a picture of {len(views)}: ostension": row(together, plain, distance),
    }


def main() -> None:
    options = _measure.arguments(
        __doc__ or "", classes=(100, "names of ImageNet's"), pictures=(16, "pictures of TPT"),
        loops=(2, "of them by the published loop"), model=(NAME, "a preset, or tiny for the smallest with CLIP's tokens"),
    )  # fmt: skip
    model = tiny_tower(32, 8) if options.model == "tiny" else CLIP(preset(options.model)).eval()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))  # as trained models have it
    names = list(class_names("imagenet"))[: options.classes]
    generator = torch_generator("adapt speed")
    kinds = model.classifier(names).weights
    targets = torch.randint(options.classes, (max(BATCH, options.pictures),), generator=generator)
    noise = torch.randn(len(targets), VIEWS, kinds.shape[1], generator=generator) * 0.05
    views = F.normalize(kinds[targets][:, None] + noise, dim=-1)  # near a class, and each a little elsewhere
    with frozen(model):
        figures = steps(model, names, views[:BATCH, 0], targets[:BATCH], options.rounds)
        figures |= pictures(model, names, views[: options.pictures], options.rounds, options.loops)
    _measure.table(f"{options.classes} classes", figures)
    settings = {"model": options.model, "classes": options.classes, "views": VIEWS, "batch": BATCH,
                "pictures": options.pictures, "loops": options.loops, "rounds": options.rounds}  # fmt: skip
    _measure.write_record(options.record, "adapt_speed", settings, figures)


if __name__ == "__main__":
    main()
