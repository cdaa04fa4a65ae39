"""Weight arithmetic on files: seconds against copying the file, and memory, measured in a process of its own.

`time` interpolates two checkpoints of one size and copies one of them, in turns; both read files that are in memory already,
and both are on the disk when the clock stops. "ratio" is to such a copy; "ratio, no flush" to one that may still be in
memory, as `cp` leaves it, beside which the interpolation is still flushed. Processor seconds are of all threads. `memory` is
what a process holds besides files that it maps (RssAnon) at its peak, above what it held before the call: for a line between
two checkpoints and for a uniform soup of many.

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
from collections.abc import Callable
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


def copied(source: Path, target: Path, *, flush: bool) -> None:
    """A copy, on the disk or as it comes."""
    shutil.copyfile(source, target)
    if flush:
        with open(target, "rb") as handle:
            os.fsync(handle.fileno())


def timed(case: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall, and of the processor."""
    begin, used = time.perf_counter(), time.process_time()
    case()
    return time.perf_counter() - begin, time.process_time() - used


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
        cases: dict[str, Callable[[], object]] = {
            "copy": lambda: copied(file, root / "copy", flush=True),
            "copy, no flush": lambda: copied(file, root / "copy", flush=False),
            "interpolate": lambda: arithmetic.interpolate(*models, {0.3: root / "out"}),
        }
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(options.rounds + 1):  # the first brings the files into memory
            for case, call in cases.items():
                spent[case].append(timed(call))
                (root / "copy").unlink(missing_ok=True)
                shutil.rmtree(root / "out", ignore_errors=True)
                os.sync()  # what one leaves behind is not the next one's
        walls, used = ({case: min(values[part] for values in found[1:]) for case, found in spent.items()} for part in (0, 1))
        row = {
            "GB": file.stat().st_size / 1e9, "copy s": walls["copy"], "interpolate s": walls["interpolate"],
            "ratio": walls["interpolate"] / walls["copy"], "ratio, no flush": walls["interpolate"] / walls["copy, no flush"],
            "copy's processor s": used["copy"], "processor s": used["interpolate"],
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
