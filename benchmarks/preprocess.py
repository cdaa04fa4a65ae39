"""Preprocessing against open_clip's transform (torchvision on Pillow): one JPEG in memory to a normalised 224 px tensor.

Each row: milliseconds of processor time for a picture, how many times faster than open_clip's transform in the same run,
the share of the time that Pillow's decoding alone takes (what no transform can go below), the largest difference to
open_clip's tensor in levels of 1/255, and the share of values that differ. The exact modes have to show 0.

Threads matter more than anything here. torchvision's ToTensor and Normalize start torch's threads for a millisecond of
work; with `--threads 2` on a busy machine the waiting costs many times the work, and that is what users get by default.
The stated figures are for one thread.

The peer needs torchvision, whose build from PyPI does not load beside a torch without CUDA; its Python parts are enough and
are loaded alone. Install both without their requirements, or put them into a folder of their own for `--peers FOLDER`:

    pip install --no-deps --target FOLDER torchvision==0.28.0 open_clip_torch==3.3.0

    python benchmarks/preprocess.py [--peers FOLDER] [--images FOLDER] [--record FILE]
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import _measure
import numpy as np
import torch
from PIL import Image

from ostension.image.augment import AugmentConfig, augment, premultiplied, random_affine, random_recolouring
from ostension.image.transforms import PreprocessConfig, Transform
from ostension.runtime import numpy_generator, torch_generator

SIDE = 224
SIZES = ((500, 375), (375, 500), (1280, 960), (3000, 2000))
INSTALL = "pip install --no-deps --target FOLDER torchvision==0.28.0 open_clip_torch==3.3.0, then --peers FOLDER"


def load_peer(folder: str) -> Callable[[Image.Image], torch.Tensor]:
    """open_clip's evaluation transform, from its transform.py alone.

    torchvision's package file loads its CUDA library; an empty one that says that there are no compiled operators takes
    its place, and torchvision's transforms are Python all the way.
    """
    if folder:
        sys.path.insert(0, folder)
    for name in ("torchvision", "open_clip"):
        found = importlib.util.find_spec(name)
        if found is None or not found.submodule_search_locations:
            raise SystemExit(f"this benchmark compares with open_clip and torchvision, and {name} is not here: {INSTALL}")
        package = types.ModuleType(name)
        package.__path__ = list(found.submodule_search_locations)
        sys.modules[name] = package
    extension = types.ModuleType("torchvision.extension")
    extension._has_ops = lambda: False  # type: ignore[attr-defined]
    extension._assert_has_ops = lambda: None  # type: ignore[attr-defined]
    sys.modules["torchvision.extension"] = extension
    return importlib.import_module("open_clip.transform").image_transform(SIDE, is_train=False)


def photo(width: int, height: int) -> bytes:
    """A JPEG with a photo's statistics: broad shading, texture, sensor noise, a few hard edges; about 2 bits a pixel."""
    random = numpy_generator("benchmark photo", width, height)

    def layer(step: int) -> np.ndarray:
        cells = random.integers(0, 256, (height // step + 2, width // step + 2, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), np.float32)

    pixels = 0.7 * layer(40) + 0.3 * layer(4) + random.normal(0, 3, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    dark = (x * 9 // width + y * 7 // height) % 2 == 0
    pixels[dark] = pixels[dark] * 0.5 + 60
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def interleaved(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of processor time of a call of each case, the least of many that take turns.

    Calls last a millisecond and make no garbage, so none is collected between them (as `_measure.interleaved` does).
    """
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds + 1):
        for name, case in cases.items():
            start = time.process_time()
            case()
            best[name] = min(best[name], time.process_time() - start)
    return best


def measure(peer: Callable[[Image.Image], torch.Tensor], data: bytes, rounds: int) -> dict[str, dict[str, float]]:
    """The rows of one picture."""
    # OpenAI's and open_clip's code discard alpha; for a JPEG it makes no difference.
    modes = ("openai-exact", "convert-first", "fast")
    transforms = {mode: Transform(PreprocessConfig(image_size=SIDE, mode=mode, alpha="drop")) for mode in modes}
    cases: dict[str, Callable[[], torch.Tensor]] = {"open_clip": lambda: peer(Image.open(io.BytesIO(data)))}
    for mode, transform in transforms.items():
        cases[f"ostension {mode}"] = lambda transform=transform: transform(data)
    reference = cases["open_clip"]()
    std = torch.tensor(transforms["fast"].config.std).view(3, 1, 1)
    levels = {name: ((case() - reference) * std * 255).abs() for name, case in cases.items()}
    seconds = interleaved({**cases, "decoding alone": lambda: Image.open(io.BytesIO(data)).load()}, rounds)
    rows = {}
    for name, spent in seconds.items():
        limit = seconds["decoding alone"]
        rows[name] = {"ms": spent * 1e3, "x open_clip": seconds["open_clip"] / spent, "decoding": limit / spent}
        if name in levels:
            rows[name] |= {"levels": round(levels[name].max().item(), 3), "moved": (levels[name] > 0).float().mean().item()}
    return rows


def measure_views(count: int, side: int, rounds: int) -> dict[str, dict[str, float]]:
    """Random views of drawings with alpha, against the same steps one after the other in torch."""
    drawings = torch.randint(0, 256, (count, 72, 72, 4), dtype=torch.uint8, generator=torch_generator("drawings"))
    config = AugmentConfig()

    def steps() -> torch.Tensor:
        generator = torch_generator("views")
        x = drawings.permute(0, 3, 1, 2).float() / 255
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], dim=1)
        matrices = random_affine(count, config, generator)
        grid = torch.nn.functional.affine_grid(matrices, [count, 4, side, side], align_corners=False)
        x = torch.nn.functional.grid_sample(x, grid, align_corners=False)
        change = random_recolouring(count, config, generator)
        x = x[:, :3] + (1 - x[:, 3:]) * change.background[:, :, None, None]
        x = x * change.gain[:, :, None, None]
        middle = x.mean((1, 2, 3), keepdim=True)
        x = (x - middle) * change.contrast[:, None, None, None] + middle
        grey = x.mean(1, keepdim=True)
        return grey + (x - grey) * change.saturation[:, None, None, None]

    cases = {
        "the steps one after the other": steps,
        "ostension float32": lambda: augment(premultiplied(drawings), config, torch_generator("views"), side=side),
    }
    assert torch.allclose(cases["ostension float32"](), steps(), atol=1e-3)
    seconds = interleaved(cases, rounds)
    first = next(iter(seconds.values()))
    return {name: {"views a second": count / spent, "x steps": first / spent} for name, spent in seconds.items()}


def main() -> None:
    options = _measure.arguments(
        __doc__,
        peers=("", "folder that holds the packages torchvision and open_clip, if they are not installed"),
        images=("", "folder of JPEGs to measure in place of the made ones"),
        batch=(256, "drawings in a batch of views"),
        side=(64, "pixels a side of a view"),
    )
    peer = load_peer(options.peers)
    pictures = {f"{width} x {height}": photo(width, height) for width, height in SIZES}
    if options.images:
        files = [path for path in sorted(Path(options.images).iterdir()) if path.suffix.lower() in (".jpg", ".jpeg")]
        pictures = {path.name: path.read_bytes() for path in files}
    figures = {}
    for title, data in pictures.items():
        rounds = options.rounds * (5 if len(data) > 500_000 else 50)  # the least of few short calls is chance
        figures[title] = measure(peer, data, rounds)
        _measure.table(f"{title}, {len(data):,} bytes", figures[title])
    figures["views"] = measure_views(options.batch, options.side, options.rounds * 3)
    _measure.table(f"views of {options.batch} drawings of 72 px at {options.side} px", figures["views"])
    settings = {"images": options.images, "side": SIDE, "batch": options.batch, "view_side": options.side}
    _measure.write_record(options.record, "preprocess", settings, figures)


if __name__ == "__main__":
    main()
