"""Which rows of a tensor a process holds, when W processes hold equal parts of it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows from `start` up to `stop` of `total`; the largest part has `most`.

    As `torch.chunk` cuts: parts of ceil(total / W) rows, the last ones shorter or empty.
    """

    start: int
    stop: int
    total: int
    most: int

    @classmethod
    def of(cls, total: int, rank: int, size: int) -> Rows:
        """The part of process `rank` of `size`."""
        most = -(-total // size)
        return cls(min(rank * most, total), min((rank + 1) * most, total), total, most)

    def __len__(self) -> int:
        return self.stop - self.start
