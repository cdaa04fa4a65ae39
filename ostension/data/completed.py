"""How originals and synthetic captions of a pair are mixed: the likelier the pair is noise, the more often a synthetic one.

The synthetic captions together have the share eps_i, held between `FLOOR` and 1 - `FLOOR`, the originals the rest; captions of
a kind are alike. So a synthetic caption is drawn now and then for a pair that is surely clean, and an original for one that
surely is not: no estimate of noise is so good that an original should never be seen again. That NLIP favours synthetic
captions where noise is likely is known to us, by how much is not: this rule is ours.
"""

from __future__ import annotations

from ostension.config import require

FLOOR = 0.1


def caption_weights(originals: int, synthetic: int, noise: float, floor: float = FLOOR) -> tuple[float, ...]:
    """How likely each caption is to be drawn, the originals first; their sum is 1.

    Args:
        noise: eps_i, from 0 to 1.
        floor: the least share of either kind, where there are both.
    """
    require(0 <= noise <= 1, "noise", noise, "from 0 to 1")
    require(0 <= floor <= 0.5, "floor", floor, "from 0 to 0.5")
    require(originals >= 1, "originals", originals, "1 or more: they are never lost")
    if synthetic == 0:
        return (1 / originals,) * originals
    share = min(max(noise, floor), 1 - floor)
    return ((1 - share) / originals,) * originals + (share / synthetic,) * synthetic
