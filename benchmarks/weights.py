"""Weight arithmetic on files: seconds against copying the file, and memory, measured in a process of its own.

`time` interpolates two checkpoints of one size and copies one of them, in turns; both are flushed to the disk, and both read
files that are in memory already. `memory` is what a process holds besides files that it maps (RssAnon) at its peak, above what
it held before the call: for a line between two checkpoints and for a uniform soup of many.

    python benchmarks/weights.py [--model ViT-L-14] [--soup 72] [--soup-model ViT-B-32] [--record FILE]

It writes five files of the model's size to the folder of temporary files, and removes them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import _measure
import torch

from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.presets import preset

WATCHED = """
    import json, threading, time
    import ostension.formats.load
    from ostension.weights import arithmetic
    def anonymous():
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    def watch():
        while not done.is_set():
            seen.append(anonymous())
            time.sleep(0.002)
    calls = json.loads({calls!r})
    arithmetic.soup(calls["small"], calls["target"] + "-first")   # imports and threads
    before, seen, done = anonymous(), [], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    arithmetic.soup(calls["models"], calls["target"])
    done.set()
    watcher.join()
    print(max(seen) - before)
"""


def made(folder: Path, name: str, seed: int) -> Path:
    """A model with weights that are not zero anywhere, on disk."""
    model = CLIP(preset(name), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    save(model, folder)
    return folder


def copied(source: Path, target: Path) -> float:
    """Seconds of a copy that is on the disk."""
    begin = time.perf_counter()
    shutil.copyfile(source, target)
    with open(target, "rb") as handle:
        os.fsync(handle.fileno())
    return time.perf_counter() - begin


def peak(small: list[str], models: list[str], target: Path) -> int:
    """Bytes that a soup takes besides mapped files."""
    calls = json.dumps({"small": small, "models": models, "target": str(target)})
    code = textwrap.dedent(WATCHED.format(calls=calls))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(found.stdout)


def largest_tensor(name: str) -> int:
    """Bytes of a model's largest tensor in float32."""
    with torch.device("meta"):
        return max(tensor.numel() for tensor in CLIP(preset(name), seed=None).parameters()) * 4


def main() -> None:
    options = _measure.arguments(__doc__, model=("ViT-L-14", "a preset"), soup=(72, "models in the soup"),
                                  soup_model=("ViT-B-32", "their preset"))  # fmt: skip
    from ostension.weights import arithmetic

    with tempfile.TemporaryDirectory(prefix="ostension-weights-") as name:
        root = Path(name)
        models = [made(root / f"model-{seed}", options.model, seed) for seed in (1, 2)]
        tiny = [str(made(root / f"tiny-{seed}", "tiny-vit", seed)) for seed in (1, 2)]
        file = models[0] / "model.safetensors"
        seconds: dict[str, list[float]] = {"copy": [], "interpolate": [], "processor": []}
        for _ in range(options.rounds + 1):  # the first brings the files into memory
            seconds["copy"].append(copied(file, root / "copy"))
            (root / "copy").unlink()
            begin, used = time.perf_counter(), time.process_time()
            arithmetic.interpolate(*models, {0.3: root / "out"})
            seconds["interpolate"].append(time.perf_counter() - begin)
            seconds["processor"].append(time.process_time() - used)
            shutil.rmtree(root / "out")
        best = {what: min(values[1:]) for what, values in seconds.items()}
        row = {
            "GB": file.stat().st_size / 1e9, "copy s": best["copy"], "interpolate s": best["interpolate"],
            "ratio": best["interpolate"] / best["copy"], "processor s": best["processor"],
        }  # fmt: skip
        memory = {"line of 2": {"models GB": 2 * row["GB"], "MB": peak(tiny, list(map(str, models)), root / "line") / 1e6}}
        memory["line of 2"]["largest tensor MB"] = largest_tensor(options.model) / 1e6
        parts = [str(made(root / f"part-{seed}", options.soup_model, seed)) for seed in (1, 2)]
        many = [parts[index % 2] for index in range(options.soup)]
        size = (Path(parts[0]) / "model.safetensors").stat().st_size / 1e9
        memory[f"soup of {options.soup}"] = {
            "models GB": options.soup * size, "MB": peak(tiny, many, root / "soup") / 1e6,
            "largest tensor MB": largest_tensor(options.soup_model) / 1e6,
        }  # fmt: skip
    figures = {f"time, {options.model}": {"float32": row}, "memory besides mapped files": memory}
    for title, rows in figures.items():
        _measure.table(title, rows)
    settings = {name: getattr(options, name) for name in ("model", "soup", "soup_model", "rounds")}
    _measure.write_record(options.record, "weights", settings, figures)


if __name__ == "__main__":
    main()
