"""Small models and made-up prompts."""

from __future__ import annotations

import pytest
import torch

from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import numpy_generator, torch_generator


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shaken(model: CLIP, seed: int = 0) -> CLIP:
    """The model with every parameter and statistic away from zeros and ones, so that each of them matters."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point() and name not in ("logit_scale", "logit_bias"):
                noise = torch.randn(tensor.shape, generator=torch_generator(seed, "shake", name)) * 0.1
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return model.eval()


@pytest.fixture
def tiny():
    """`tiny("tiny-vit")`, or `tiny(config)`, is a small model whose every parameter matters."""
    return lambda config, **options: shaken(CLIP(preset(config) if isinstance(config, str) else config, **options))


def prompts(count: int, length: int = 24, vocab: int = 1024, seed: int = 0) -> torch.Tensor:
    """Token rows that share beginnings now and then; the two highest ids are start and end."""
    random = numpy_generator(seed, "prompts")
    rows = torch.zeros(count, length, dtype=torch.int64)
    for row in rows:
        words = [5, 6, 7][: random.integers(0, 4)] + random.integers(1, 6, random.integers(1, 9)).tolist() + [9]
        row[: len(words) + 2] = torch.tensor([vocab - 2, *words, vocab - 1])
    return rows


@pytest.fixture
def tokens():
    """200 prompts, ten of them twice."""
    rows = prompts(200)
    return torch.cat([rows, rows[:10]])
