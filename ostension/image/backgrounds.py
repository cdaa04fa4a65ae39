"""Backgrounds for cut-out drawings: two textures that a model can mistake for what it is asked about.

A forest has upright streaks from dark brown green to light green, water has level ones from deep blue to foam. Both are sums
of random grids of few cells, enlarged smoothly, so that no two are alike. Every random choice comes from the generator that is
passed in.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from ostension.shapes import Float, UInt8

Background = Literal["forest", "water"]
BACKGROUNDS: tuple[Background, ...] = ("forest", "water")
COLOURS = {"forest": ((38, 48, 20), (120, 160, 60)), "water": ((16, 60, 120), (130, 200, 235))}  # darkest and lightest
# Cells down and across, and the share of the sum, for upright streaks; level ones have them the other way round.
GRIDS = (((3, 20), 0.6), ((12, 40), 0.25), ((48, 48), 0.15))
SIZE = (0.58, 0.83)  # of a drawing, as a share of the background's side


def background(kind: Background, side: int, generator: np.random.Generator) -> UInt8[np.ndarray, "S S 3"]:
    """A square texture."""
    upright = kind == "forest"
    total = np.zeros((side, side), dtype=np.float32)
    for cells, share in GRIDS:
        total += np.float32(share) * _enlarged(cells if upright else cells[::-1], side, generator)
    lightness = (total - total.min()) / (total.max() - total.min())
    dark, light = (np.array(colour, dtype=np.float32) for colour in COLOURS[kind])
    return (dark + (light - dark) * lightness[..., None]).round().astype(np.uint8)


def on_background(drawing: Image.Image, kind: Background, side: int, generator: np.random.Generator) -> Image.Image:
    """A drawing with alpha, whole and at a random place and size, on a background of its own."""
    ground = Image.fromarray(background(kind, side, generator)).convert("RGBA")
    size = round(side * generator.uniform(*SIZE))
    left, top = generator.integers(0, side - size + 1, size=2).tolist()
    ground.alpha_composite(drawing.convert("RGBA").resize((size, size), Image.Resampling.BICUBIC), (left, top))
    return ground.convert("RGB")


def _enlarged(cells: tuple[int, int], side: int, generator: np.random.Generator) -> Float[np.ndarray, "S S"]:
    grid = Image.fromarray(generator.random(cells, dtype=np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
