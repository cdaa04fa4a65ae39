"""One training step against open_clip's: the same towers, weights and batch, captions of 16 tokens on average and 76 at most.

Each row: seconds of processor time for a step, pairs a second, how many times faster than open_clip's step in float32 with
its default AdamW in the same run, and the share of this machine's measured matmul peak, counting the products that the
padded model needs (so a row that leaves padding out may pass 1). The second table has glibc told to keep large blocks, as
`ostension train` does; open_clip gains from it too when its rows run in the same process.

    python benchmarks/train_step.py [--model small|ViT-B-32] [--batch 256] [--record FILE]
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import _measure
import torch
from _peers import load_open_clip

from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig, TextConfig, VitConfig
from ostension.model.presets import preset
from ostension.runtime import numpy_generator, torch_generator
from ostension.text.tokenizer import pack
from ostension.train.allocator import keep_large_blocks
from ostension.train.batches import Batch
from ostension.train.loop import measure
from ostension.train.objective import Contrastive
from ostension.train.optim import OptimConfig
from ostension.train.state import TrainState
from ostension.train.step import backward

START, END = 49406, 49407
SETTINGS = OptimConfig(clip_norm=None)  # open_clip does not clip by default


def configuration(name: str) -> ModelConfig:
    """A preset, or the small model of the stated figures: 64 px, 6 x 256; text 4 x 256."""
    base = preset("ViT-B-32")
    if name != "small":
        return preset(name)
    vision = VitConfig(image_size=64, patch_size=8, width=256, layers=6, activation="gelu")
    text = TextConfig(width=256, layers=4, activation="gelu")
    preprocess = dataclasses.replace(base.preprocess, image_size=64)
    return dataclasses.replace(base, embed_dim=256, vision=vision, text=text, preprocess=preprocess)


def open_clip_model(open_clip, config: ModelConfig):
    """open_clip's model of the same shape, with its own initial weights."""
    vision, text = config.vision, config.text
    assert isinstance(vision, VitConfig)
    torch.manual_seed(0)
    return open_clip.model.CLIP(
        embed_dim=config.embed_dim,
        vision_cfg={
            "image_size": vision.image_size, "patch_size": vision.patch_size, "width": vision.width, "layers": vision.layers,
            "head_width": vision.head_width,
        },
        text_cfg={
            "context_length": text.context_length, "vocab_size": text.vocab_size, "width": text.width, "heads": text.heads,
            "layers": text.layers,
        },
        quick_gelu=vision.activation == "quick_gelu",
    ).train()


def caption_tokens(batch: int, context: int) -> torch.Tensor:
    """Token rows (batch, context): 16 tokens on average, one row of 76, padded with zeros."""
    generator = numpy_generator("captions", batch)
    lengths = generator.lognormal(2.65, 0.45, batch).round().clip(3, 74).astype(int)
    lengths[0] = 74
    rows = [[START, *generator.integers(300, 40_000, length).tolist(), END] for length in lengths]
    return pack(rows, 0, context)


def flop_of_step(config: ModelConfig, batch: int) -> float:
    """Floating-point operations of forward and backward at full padding: three times the forward's products."""
    vision, text = config.vision, config.text
    assert isinstance(vision, VitConfig)

    def tower(tokens: int, width: int, layers: int) -> float:
        return layers * (24 * tokens * width**2 + 4 * tokens**2 * width)

    patches = vision.grid**2
    image = tower(patches + 1, vision.width, vision.layers) + 2 * patches * 3 * vision.patch_size**2 * vision.width
    return 3.0 * batch * (image + tower(text.context_length, text.width, text.layers))


def open_clip_step(open_clip, config: ModelConfig, images, tokens, *, fused: bool = False, autocast: bool = False):
    """A function that makes one step as open_clip's trainer does."""
    model = open_clip_model(open_clip, config)
    loss_function = open_clip.loss.ClipLoss()
    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    spared = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": SETTINGS.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    betas = (SETTINGS.beta1, SETTINGS.beta2)
    optimizer = torch.optim.AdamW(groups, lr=SETTINGS.lr, betas=betas, eps=SETTINGS.eps, fused=fused or None)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_function(*model(images, tokens))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)

    return step


def our_step(config: ModelConfig, images, tokens, folder: Path, dtype: torch.dtype):
    """A function that makes one step as the loop does, tokens cut to the longest."""
    objective = Contrastive(CLIP(config, seed=0).train())
    state = TrainState(objective, folder, optim=SETTINGS, dtype=dtype, average=None, non_finite="stop")
    longest = int(tokens.argmax(1).max()) + 1
    batch = Batch(images=images, tokens=tokens[:, :longest].contiguous(), keys=[str(row) for row in range(len(tokens))])

    def step() -> None:
        state.update(measure(state, backward(objective, batch), SETTINGS.lr))

    return step


def rows(cases, rounds: int, batch: int, flop: float, peaks) -> dict[str, dict[str, float]]:
    """Times, rates and ratios of the cases."""
    seconds = _measure.interleaved(cases, rounds)
    found = {}
    for name, taken in seconds.items():
        peak = peaks[torch.bfloat16 if "bfloat16" in name else torch.float32]
        ratio = seconds["open_clip float32"] / taken
        found[name] = {"s/step": taken, "pairs/s": batch / taken, "x open_clip": ratio, "of peak": flop / taken / peak}
    return found


def main() -> None:
    options = _measure.arguments(__doc__, model=("small", "'small' or a preset"), batch=(256, "pairs in a batch"))
    open_clip = load_open_clip()
    peaks = {dtype: _measure.matmul_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print("matmul peak: " + ", ".join(f"{str(dtype)[6:]} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in peaks.items()))
    config = configuration(options.model)
    side = config.vision.image_size
    images = torch.randn(options.batch, 3, side, side, generator=torch_generator("images"))
    tokens = caption_tokens(options.batch, config.text.context_length)
    flop = flop_of_step(config, options.batch)
    figures: dict[str, object] = {"matmul peak": {str(dtype)[6:]: rate for dtype, rate in peaks.items()}}
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "open_clip float32": open_clip_step(open_clip, config, images, tokens),
            "open_clip float32, fused AdamW": open_clip_step(open_clip, config, images, tokens, fused=True),
            "open_clip bfloat16 autocast": open_clip_step(open_clip, config, images, tokens, autocast=True),
            "ostension float32": our_step(config, images, tokens, Path(folder), torch.float32),
            "ostension bfloat16 weights": our_step(config, images, tokens, Path(folder), torch.bfloat16),
        }
        title = f"{options.model}, batch {options.batch}, {float((tokens.argmax(1) + 1).float().mean()):.1f} tokens a caption"
        for allocator in ("default allocator", "large blocks kept"):
            if allocator == "large blocks kept" and not keep_large_blocks():
                break
            figures[allocator] = rows(cases, options.rounds, options.batch, flop, peaks)
            _measure.table(f"{title}, {allocator}", figures[allocator])
    settings = {"model": options.model, "batch": options.batch, "rounds": options.rounds}
    _measure.write_record(options.record, "train_step", settings, figures)


if __name__ == "__main__":
    main()
