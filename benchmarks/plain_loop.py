"""Our training against the plainest PyTorch loop on the demo's data: accuracy on what was held out, and time, seed by seed.

The plain side is what one writes in an afternoon: OpenAI's modules with `nn.MultiheadAttention`, float32, tokens padded to
the context length, `torch.optim.AdamW`, one loop of some 60 lines with its model. It starts from the same weights, sees the
same batches (pictures, views, captions), has the same loss, learning rates and decay. So only how a step is computed
differs. Seconds are of all threads, making the batches included; both sides' weights are measured by the same evaluation.

    python benchmarks/plain_loop.py --seeds 3 --steps 300 --record benchmarks/records/plain_loop.json    # an hour of one core

A short run shows the ratio of times, which does not depend on the steps: --seeds 1 --steps 12 --no-accuracy 1.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import _measure
import torch
import torch.nn.functional as F
from torch import nn

from ostension.evals import metrics
from ostension.formats.load import load
from ostension.model.clip import CLIP
from ostension.recipes import demo
from ostension.recipes._emoji_batches import EmojiBatches, emoji_set
from ostension.recipes._emoji_evaluation import EmojiEvaluation
from ostension.train.pretraining import Pretraining
from ostension.train.schedule import rate_factor

# ----------------------------------------------------------------------------------------------------------------------
# The plain side: two towers and a loop. Names of weights are OpenAI's, so that both sides can begin with the same.


class Bottleneck(nn.Module):
    def __init__(self, channels, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.pool, self.downsample = nn.AvgPool2d(stride), None
        if stride > 1 or channels != 4 * planes:
            layers = [nn.AvgPool2d(stride), nn.Conv2d(channels, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)]
            self.downsample = nn.Sequential()
            for name, layer in zip(("-1", "0", "1"), layers, strict=True):
                self.downsample.add_module(name, layer)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.pool(F.relu(self.bn2(self.conv2(y))))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Visual(nn.Module):
    def __init__(self, width, stages, grid, embed_dim):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage in range(stages):
            block = Bottleneck(channels, width * 2**stage, 1 + (stage > 0))
            channels = 4 * width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(block))
        self.stages, self.proj = stages, nn.Parameter(torch.empty(grid**2 * channels, embed_dim))

    def forward(self, x):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.flatten(2).transpose(1, 2).flatten(1) @ self.proj


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2, self.mlp = nn.LayerNorm(width), nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


class Text(nn.Module):
    def __init__(self, config, embed_dim):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))
        length = config.context_length
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1), persistent=False)

    def forward(self, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding
        for block in self.transformer.resblocks:
            x = block(x, self.mask)
        return self.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection


class PlainCLIP(nn.Module):
    def __init__(self, config):
        super().__init__()
        vision = config.vision
        self.visual = Visual(vision.width, len(vision.layers), vision.grid, config.embed_dim)
        self.text = Text(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.empty(()))

    def forward(self, images, tokens):
        image, text = F.normalize(self.visual(images), dim=1), F.normalize(self.text(tokens), dim=1)
        return self.logit_scale.exp() * image @ text.T


def train_plainly(model: PlainCLIP, batches: EmojiBatches, run: Pretraining) -> None:
    """The loop."""
    optim, steps = run.train.optim, run.train.steps
    schedule = run.train.schedule.resolved(steps)
    positions = ("positional_embedding", "class_embedding")
    decayed = [w for n, w in model.named_parameters() if w.ndim > 1 and not n.endswith(positions)]
    others = [w for n, w in model.named_parameters() if w.ndim <= 1 or n.endswith(positions)]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)
    length = model.text.positional_embedding.shape[0]
    model.train()
    for step in range(steps):
        batch = batches.batch(step)
        tokens = F.pad(batch.tokens, (0, length - batch.tokens.shape[1]))
        logits = model(batch.images, tokens)
        targets = (batch.groups[:, None] == batch.groups).float()
        targets /= targets.sum(dim=1, keepdim=True)
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets.T)) / 2
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * rate_factor(schedule, step, steps)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)


# ----------------------------------------------------------------------------------------------------------------------


def trained_plainly(run: Pretraining) -> tuple[CLIP, float]:
    """The model, and the processor seconds of its training."""
    model = run.initial_model()
    plain = PlainCLIP(run.model)
    plain.load_state_dict(model.state_dict())
    started = time.process_time()
    train_plainly(plain, run.batches.build(model), run)
    seconds = time.process_time() - started
    model.load_state_dict(plain.state_dict())
    return model.eval(), seconds


def trained_by_us(run: Pretraining) -> tuple[CLIP, float]:
    """The same by `Pretraining.run`, with its checkpoints and its log."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        run.run(Path(folder) / "run")
        seconds = time.process_time() - started
        return load(Path(folder) / "run" / "model", device="cpu", dtype="float32"), seconds


def accuracies(model: CLIP) -> dict[str, float]:
    """Top-1 on the style that was held out, for seen and for new names."""
    evaluation = EmojiEvaluation(model, emoji_set(), demo.TEMPLATES)
    return {
        f"top-1, {view.name}": metrics.top_k_accuracy(evaluation.logits(view, evaluation.ensemble), evaluation.targets(view))
        for view in evaluation.views[:2]
    }


def main() -> None:
    options = _measure.arguments(
        __doc__ or "", seeds=(3, "seeds"), steps=(300, "steps of each run"), no_accuracy=(0, "1 measures the time only"),
    )  # fmt: skip
    rows: dict[str, dict[str, float]] = {}
    sides = {"plain loop": trained_plainly, "ostension": trained_by_us}
    emoji_set()  # decoded once, for both
    for seed in range(options.seeds):
        run = demo.recipe(options.steps, seed=seed)
        for side, train in sides.items():
            model, seconds = train(run)
            row = {"processor s": seconds} | ({} if options.no_accuracy else accuracies(model))
            rows[f"{side}, seed {seed}"] = row
            print(f"{side}, seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    columns = list(rows["ostension, seed 0"])
    means = {
        side: {name: statistics.mean(rows[f"{side}, seed {seed}"][name] for seed in range(options.seeds)) for name in columns}
        for side in sides
    }
    means["plain loop's time over ours"] = {
        "processor s": means["plain loop"]["processor s"] / means["ostension"]["processor s"]
    }
    _measure.table("mean over the seeds", means)
    settings = {"seeds": options.seeds, "steps": options.steps, "recipe": "demo", "plain": "float32, padded, AdamW"}
    _measure.write_record(options.record, "plain_loop", settings, {"mean over the seeds": means, "each run": rows})


if __name__ == "__main__":
    main()
