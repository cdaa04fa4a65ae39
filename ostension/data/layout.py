"""Where a source keeps the parts of a pair, where that is not as usual, and how its texts become captions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ostension.config import require
from ostension.errors import DataError

TEXT_MEMBER = "txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What holds what.

    Attributes:
        image: the column of a table that holds images, or paths to them; found by the usual names if not given.
        texts: what holds captions: columns of a table; in tar shards keys of the sample's JSON, and "txt" for the text
            member. All that a sample has are its captions. By default the usual column, and "txt".
        shares: how often a caption comes from each of `texts`, where one is drawn at random; what a sample lacks leaves its
            share to the others. By default all captions are alike.
        lines: each line of a text is a caption of its own, as retrieval sets in tar shards have it.
        weights: in tar shards the key of the sample's JSON whose list says how likely each caption is to be drawn, such as
            "lineage/caption.weights" (a slash between a key and one inside of it); a sample without it has captions that are
            all alike.
    """

    image: str | None = None
    texts: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    lines: bool = False
    weights: str = ""

    def __post_init__(self):
        require(len(set(self.texts)) == len(self.texts) and all(self.texts), "layout.texts", self.texts, "different names")
        one_rule = not (self.weights and (self.shares or self.lines))
        require(one_rule, "layout.weights", self.weights, "neither shares nor lines beside it")
        if self.shares:
            expected = "a positive share for each of layout.texts"
            require(len(self.shares) == len(self.texts), "layout.shares", self.shares, expected)
            require(min(self.shares) > 0, "layout.shares", self.shares, expected)


USUAL = Layout()


def captions_of(values: Sequence[Any], layout: Layout, source: object) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The captions in the values of `layout.texts` (None where one is absent), and how likely each is to be drawn.

    A value is a text or a list of texts; blank ones are no captions. Without shares there are no likelihoods.

    Raises:
        DataError: if a value is something else, or there is no caption.
    """
    texts: list[str] = []
    weights: list[float] = []
    for number, value in enumerate(values):
        found = _captions(value, layout, source)
        texts += found
        if layout.shares:
            weights += [layout.shares[number] / len(found) for _ in found]
    if not texts:
        raise DataError("text is empty", source=source)
    return tuple(texts), tuple(weights)


def weights_of(metadata: Mapping[str, Any], layout: Layout, count: int, source: object) -> tuple[float, ...]:
    """How likely each of `count` captions is to be drawn, as the sample's JSON says it; nothing where it does not.

    Raises:
        DataError: if that is no list of as many positive numbers.
    """
    value: Any = metadata
    for name in layout.weights.split("/"):
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None:
        return ()
    numbers = value if isinstance(value, list) else []
    fit = all(type(number) in (int, float) and 0 <= number < math.inf for number in numbers) and sum(numbers) > 0
    if len(numbers) != count or not fit:
        raise DataError(f"{layout.weights} is {value!r}", source=source, expected=f"a weight for each of {count} captions")
    return tuple(float(number) for number in numbers)


def _captions(value: Any, layout: Layout, source: object) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(one, str) or one is None for one in values):
        raise DataError(f"a text of type {type(value).__name__}", source=source, expected="a text, or a list of texts")
    pieces = [piece for one in values if one for piece in (one.splitlines() if layout.lines else [one])]
    return [piece.strip() for piece in pieces if piece.strip()]
