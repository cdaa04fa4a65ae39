"""A batch that is embedded in pieces: our cached embeddings against open_clip's `--accum-freq`, float32, the same batch.

Each case runs in a process of its own. "s" is processor time of the gradients of one batch, the least of the rounds; "MB" is
what the process came to hold at most beyond model and batch; "x own whole" is the speed against the same model's whole
batch. The errors are against the same model's whole batch too: "logit_scale" is the quotient of its gradients (1 is right),
"towers" the relative distance of all other gradients.

    python benchmarks/cached_batch.py [--model small] [--batch 256] [--micro-batch 32] [--rounds 2] [--record FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import _measure
import torch
from _peers import load_open_clip
from torch import Tensor
from train_step import caption_tokens, configuration, open_clip_model

from ostension.model.clip import CLIP
from ostension.runtime import peak_memory_bytes, torch_generator
from ostension.train.allocator import keep_large_blocks
from ostension.train.batches import Batch
from ostension.train.objective import Contrastive
from ostension.train.step import backward

CASES = ("open_clip whole", "open_clip accumulated", "ostension whole", "ostension cached")


def open_clip_gradients(model, images: Tensor, tokens: Tensor, micro_batch: int) -> None:
    """Gradients as open_clip's `train_one_epoch` makes them with `--accum-freq`: features without gradients, then for each
    piece the loss of all features, of which its own are new."""
    loss_function = load_open_clip().loss.ClipLoss()
    pieces = list(zip(images.split(micro_batch), tokens.split(micro_batch), strict=True))
    if len(pieces) == 1:
        loss_function(*model(images, tokens)).backward()
        return
    with torch.no_grad():
        cached = [model(*piece)[:2] for piece in pieces]
    for index, piece in enumerate(pieces):
        image, text, logit_scale = model(*piece)
        parts = [(image, text) if place == index else pair for place, pair in enumerate(cached)]
        loss_function(*(torch.cat(side) for side in zip(*parts, strict=True)), logit_scale).backward()


def maker(case: str, options) -> tuple[Iterable[tuple[str, torch.nn.Parameter]], Callable[[int], None]]:
    """The weights of a case's model, and what leaves their gradients for pieces of some pairs."""
    config = configuration(options.model)
    side = config.vision.image_size
    images = torch.randn(options.batch, 3, side, side, generator=torch_generator("images"))
    tokens = caption_tokens(options.batch, config.text.context_length)
    if case.startswith("open_clip"):
        peer = open_clip_model(load_open_clip(), config)
        return list(peer.named_parameters()), lambda piece: open_clip_gradients(peer, images, tokens, piece)
    model = CLIP(config, seed=0).train()
    tokens = tokens[:, : int(tokens.argmax(1).max()) + 1].contiguous()
    batch = Batch(images=images, tokens=tokens, keys=[str(row) for row in range(options.batch)])
    objective = Contrastive(model)
    return list(model.named_parameters()), lambda piece: backward(objective, batch, piece) and None


def run_case(case: str, options) -> dict[str, float]:
    """Time, memory and errors of one case, in this process."""
    keep_large_blocks()
    weights, leave_gradients = maker(case, options)

    def gradients(piece: int) -> dict[str, Tensor]:
        for _, weight in weights:
            weight.grad = None
        leave_gradients(piece)
        return {name: weight.grad for name, weight in weights if weight.grad is not None}

    pieces = options.batch if case.endswith("whole") else options.micro_batch
    before, seconds, found = peak_memory_bytes(), [], {}
    for _ in range(options.rounds):
        start = time.process_time()
        found = gradients(pieces)
        seconds.append(time.process_time() - start)
    beyond = peak_memory_bytes() - before
    exact = found if case.endswith("whole") else gradients(options.batch)
    towers = [name for name in exact if name != "logit_scale"]
    distance = sum(float((found[name] - exact[name]).square().sum()) for name in towers)
    size = sum(float(exact[name].square().sum()) for name in towers)
    quotient = float(found["logit_scale"] / exact["logit_scale"])
    return {"s": min(seconds), "MB": beyond / 1e6, "logit_scale": quotient, "towers": (distance / size) ** 0.5}


def main() -> None:
    options = _measure.arguments(
        __doc__ or "", model=("small", "'small' or a preset"), batch=(256, "pairs in a batch"),
        micro_batch=(32, "pairs embedded at a time"), case=("", "run this case alone, for itself"),
    )  # fmt: skip
    if options.case:
        print(json.dumps(run_case(options.case, options)))
        return
    settings = {name: getattr(options, name) for name in ("model", "batch", "micro_batch", "rounds", "threads")}
    flags = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    found: dict[str, dict[str, float]] = {}
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, *flags]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[case] = json.loads(done.stdout.splitlines()[-1])
    for case, row in found.items():
        row["x own whole"] = found[f"{case.split()[0]} whole"]["s"] / row["s"]
        row["x open_clip"] = found["open_clip accumulated"]["s"] / row["s"]
    title = f"{options.model}, {options.batch} pairs, {options.micro_batch} at a time"
    _measure.table(title, found)
    _measure.write_record(options.record, "cached_batch", settings, {title: found})


if __name__ == "__main__":
    main()
