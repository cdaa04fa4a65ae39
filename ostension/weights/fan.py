"""Models around one start: start + sum_i alpha_i (end_i - start), of which one is live at a time.

    fan = Fan(zero_shot, [tuned_on_cars, tuned_on_digits])
    model = fan.at((0.4, 0.5))                    # parallel patching (PAINT); with one end it is a line

Sums are those of `kernel.Moved`: where an end has not moved, it adds exactly nothing, so that ends that moved different weights
do not disturb each other; the order of the ends changes no bit. All alphas 0 give the start and a single 1 gives that end, to
the bit.

Source: task arithmetic (arXiv 2212.04089), PAINT (2208.05592).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.model.clip import CLIP
from ostension.weights.kernel import Moved, block_of

Alphas = tuple[float, ...]


class Fan:
    """Models start + sum_i alpha_i (end_i - start).

    Args:
        start, ends: models of one architecture; they stay as they are. The live one is one more in memory.

    Raises:
        CheckpointError: for tensors of other names or shapes.
    """

    def __init__(self, start: CLIP, ends: Sequence[CLIP]):
        self._start, *self._ends = (
            {name: value.detach() for name, value in model.state_dict().items()} for model in (start, *ends)
        )  # fmt: skip
        for state in self._ends:
            odd = sorted(name for name in {*self._start, *state} if _shape(self._start, name) != _shape(state, name))
            if odd:
                raise CheckpointError(f"the tensor {odd[0]!r} is {_shape(state, odd[0])} in one model",
                                      expected=f"{_shape(self._start, odd[0])}, as in the start")  # fmt: skip
        self._moved = {name for name, value in self._start.items() if any(not _same(value, end[name]) for end in self._ends)}
        vectors = (_Vector(_digest(end, self._moved), end, self._start) for end in self._ends)
        self._sources = [_Vector("start", self._start), *vectors]
        with torch.device(start.device):
            self._live = CLIP(start.config, seed=None).to(start.dtype).eval()
        self._live.load_state_dict(start.state_dict())
        self._live.transform = start.transform
        if start._tokenizer is not None:
            self._live.tokenizer = start.tokenizer

    @torch.no_grad()
    def at(self, alphas: Sequence[float]) -> CLIP:
        """The model there; the next call changes it."""
        alphas = tuple(map(float, alphas))
        assert len(alphas) == len(self._ends)
        whole = [index for index, alpha in enumerate(alphas) if alpha]
        end = self._ends[whole[0]] if len(whole) == 1 and alphas[whole[0]] == 1 else None
        for name, value in self._live.state_dict().items():
            if name not in self._moved:
                continue  # the start's, as it was made
            if end is not None:
                value.copy_(end[name])
                continue
            count = value.numel()
            blocks = {index: source.read(name, 0, count) for index, source in enumerate(self._sources)}
            value.copy_(block_of(self._sources, Moved(alphas), name, blocks, value.dtype).view(value.shape))
        return self._live


def search(value: Callable[[Alphas], float], count: int, grid: Sequence[float], *, sweeps: int = 3) -> Alphas:
    """The alphas of `count` ends with the greatest value, the smallest ones of equal value.

    Of one end, the best of the grid. Of several, the best that is common to all, then each in turn over the grid while the
    others stay, until nothing gains. The result is never worse than the start, nor than any common alpha.
    """
    known: dict[Alphas, float] = {}

    def key(alphas: Alphas) -> tuple[float, float]:
        if alphas not in known:
            known[alphas] = value(alphas)
        return known[alphas], -sum(alphas)

    best = max(((alpha,) * count for alpha in grid), key=key)
    for _ in range(sweeps if count > 1 else 0):
        before = best
        for place, alpha in itertools.product(range(count), grid):
            moved = (*best[:place], float(alpha), *best[place + 1 :])
            best = max(best, moved, key=key)
        if best == before:
            break
    return best


class _Vector:
    """What a state dict adds to a start, as the kernel's source; of the start itself, its numbers."""

    def __init__(self, digest: str, state: dict[str, Tensor], start: dict[str, Tensor] | None = None):
        self.name, self.digest = f"model {digest[:12]}", digest
        self.dtypes = {name: value.dtype for name, value in state.items()}
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}
        self._state, self._start = state, start

    def read(self, name: str, start: int, stop: int) -> Tensor:
        own = self._state[name].reshape(-1)[start:stop].cpu()
        if self._start is None or not own.is_floating_point():
            return own
        return own.double() - self._start[name].reshape(-1)[start:stop].cpu().double()


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(state[name].shape) if name in state else "missing"


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) and bool((torch.signbit(one) == torch.signbit(other)).all())


def _digest(state: dict[str, Tensor], names: set[str]) -> str:
    """The hash of the tensors that differ between the models: the order in which ends are added."""
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(state[name].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
