"""Small tasks of pictures in three colours, written to the disk, for tests of what measures and chooses on tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ostension.cli.main import main

COLOURS = {"red": (220, 20, 20), "green": (20, 160, 20), "blue": (20, 20, 220)}


def drawn(folder: Path, each: int, *, light: float = 1.0, noise: int = 20) -> None:
    """Pictures of three colours, a folder each."""
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for index in range(each):
            grain = np.random.default_rng([index, *colour, each]).integers(-noise, noise, (32, 32, 3))
            pixels = np.clip(light * np.array(colour) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")


def task_of(folder: Path) -> Path:
    """The task of a folder of pictures, a file beside it."""
    path = folder.with_suffix(".toml")
    assert main(["task", "new", str(folder), "-o", str(path)]) == 0
    return path


def colour_task(root: Path, splits: Mapping[str, int], *, noise: int = 20) -> Path:
    """The task `colours.toml` with so many pictures a colour in each split."""
    for split, each in splits.items():
        drawn(root / "colours" / split, each, noise=noise)
    return task_of(root / "colours")
