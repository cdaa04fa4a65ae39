"""Named intermediates of a tower: hidden states, patch features, features before the projection.

    embedded    what enters the first block (B, T, W)
    blocks.N    what leaves block N (B, T, W); in a ResNet stage N (B, channels, height, width)
    tokens      text: all positions after the last LayerNorm (B, T, W)
    patches     image: the patches after the last LayerNorm (B, P, W); in a ResNet the last map (B, height * width, channels)
    pooled      the feature before the projection (B, W)
    embedding   the feature after it (B, E)

Letters: B batch, T tokens, P patches, W width, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ostension.errors import unknown_name


class Taps:
    """Collects the intermediates that were asked for, by name.

    Args:
        wanted: the names to collect.
        known: the names that the tower offers.

    Raises:
        ConfigError: for a name that the tower does not offer.
    """

    def __init__(self, wanted: Iterable[str], known: Iterable[str]):
        known = tuple(known)
        self.found: dict[str, Tensor | None] = dict.fromkeys(wanted)
        for name in self.found:
            if name not in known:
                raise unknown_name("tap", name, known)

    def put(self, name: str, value: Tensor) -> None:
        """Keep `value` if `name` was asked for."""
        if name in self.found:
            self.found[name] = value

    @property
    def inner(self) -> bool:
        """Whether states of single tokens are wanted, so that every token must pass every block."""
        return any(name not in ("pooled", "embedding") for name in self.found)

    def result(self) -> dict[str, Tensor]:
        """The intermediates in the order asked for."""
        assert all(value is not None for value in self.found.values())
        return {name: value for name, value in self.found.items() if value is not None}
