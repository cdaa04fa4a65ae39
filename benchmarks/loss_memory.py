"""The contrastive loss with its gradients: whole matrix, row chunks, and open_clip's, in time and in memory.

Each case runs in a process of its own, N unit rows of 512 numbers a side. "s" is processor time of forward and backward,
the least of the rounds; "MB" is what the process came to hold at most beyond the embeddings, their gradients included;
"x plain" is how many times faster than our plain form; the last two columns are relative distances from our plain form in
float64 at 2,048 rows: of the gradients of the rows, and of that of `logit_scale`. A case that would not fit into the memory
that is free is left out and named.

    python benchmarks/loss_memory.py [--pairs 8192,32768] [--rounds 2] [--record FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import _measure
import torch
from _peers import load_open_clip
from torch import Tensor

from ostension.losses import contrastive_loss
from ostension.runtime import peak_memory_bytes, torch_generator
from ostension.train.allocator import keep_large_blocks

WIDTH = 512
SCALE = 30.0
# Matrices of N x N numbers that a case holds at once, seen at N = 8,192; to leave out what would not fit.
CASES = {"open_clip": 6, "ostension plain": 7, "ostension 512 rows": 0}


def embeddings(pairs: int) -> tuple[Tensor, ...]:
    """Unit rows, made in place; those of a pair have a cosine of about 0.4."""
    generator = torch_generator("loss memory", pairs)
    image, text = (torch.randn(pairs, WIDTH, generator=generator) for _ in range(2))
    text.mul_(2).add_(image)
    return tuple(side.div_(side.norm(dim=1, keepdim=True)) for side in (image, text))


def loss_of(case: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The function that a case names, from both sides' rows and the multiplier to the loss."""
    if case == "open_clip":
        return load_open_clip().loss.ClipLoss()
    rows = None if case.endswith("plain") else int(case.split()[1])
    return lambda image, text, scale: contrastive_loss(image, text, scale, chunk_rows=rows).loss


def gradients(loss, image: Tensor, text: Tensor) -> list[Tensor]:
    """The gradients of both sides' rows and of logit_scale."""
    image, text = image.detach().requires_grad_(), text.detach().requires_grad_()
    logit_scale = torch.tensor(SCALE, dtype=torch.float64).log().to(image.dtype).requires_grad_()
    loss(image, text, logit_scale.exp()).backward()
    return [value.grad for value in (image, text, logit_scale) if value.grad is not None]


def run_case(case: str, pairs: int, rounds: int) -> dict[str, float]:
    """Time and memory of one case, in this process."""
    keep_large_blocks()
    loss = loss_of(case)
    gradients(loss, *embeddings(256))  # first calls load libraries
    image, text = embeddings(pairs)
    before, seconds = peak_memory_bytes(), []
    for _ in range(rounds):
        start = time.process_time()
        gradients(loss, image, text)
        seconds.append(time.process_time() - start)
    beyond = peak_memory_bytes() - before
    sides = embeddings(2048)
    found = gradients(loss, *sides)
    exact = gradients(loss_of("ostension plain"), *(side.double() for side in sides))
    rows = (torch.cat(found[:2]) - torch.cat(exact[:2])).norm() / torch.cat(exact[:2]).norm()
    scale = (found[2] - exact[2]) / exact[2]
    return {"s": min(seconds), "MB": beyond / 1e6, "rows": float(rows), "logit_scale": float(scale.abs())}


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def compare(pairs: int, rounds: int) -> dict[str, dict[str, float]]:
    """All cases that fit, each in a new process."""
    found: dict[str, dict[str, float]] = {}
    for case, matrices in CASES.items():
        if (matrices + 0.2) * 4 * pairs**2 > available_bytes():
            print(f"left out: {case} at {pairs}, for which {available_bytes() / 1e9:.1f} GB are too little", flush=True)
            continue
        command = [sys.executable, __file__, "--case", case, "--pairs", str(pairs), "--rounds", str(rounds)]
        threads = ["--threads", str(torch.get_num_threads())]
        done = subprocess.run([*command, *threads], check=True, capture_output=True, text=True)
        found[case] = json.loads(done.stdout.splitlines()[-1])
    if "ostension plain" in found:
        for row in found.values():
            row["x plain"] = found["ostension plain"]["s"] / row["s"]
    return found


def main() -> None:
    options = _measure.arguments(
        __doc__ or "", pairs=("8192,32768", "rows a side, several with commas"), case=("", "run this case alone, for itself")
    )
    if options.case:
        print(json.dumps(run_case(options.case, int(options.pairs), options.rounds)))
        return
    figures = {}
    for pairs in map(int, options.pairs.split(",")):
        title = f"{pairs:,} x {WIDTH}"
        figures[title] = compare(pairs, options.rounds)
        _measure.table(title, figures[title])
    _measure.write_record(options.record, "loss_memory", {"pairs": options.pairs, "rounds": options.rounds}, figures)


if __name__ == "__main__":
    main()
