"""Flush denormal numbers to zero for a while, and leave the processor as it was found.

Numbers below 1e-38 (float32) are handled in microcode on many processors, a hundred times slower than others. torch can turn
them off, but not tell whether they are; the state is read off a product here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def denormals_are_flushed() -> bool:
    """Whether this thread turns denormal results into zero."""
    return float(torch.tensor([1e-30]).mul_(1e-10)) == 0.0


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormals are zero inside, for this thread; its earlier setting comes back afterwards, also after an error.

    A processor without the setting goes on as before: the setting changes time, not results that anybody reads.
    """
    before = denormals_are_flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
