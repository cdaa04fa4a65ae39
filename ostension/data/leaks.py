"""Whether two splits have an image in common: then the result on one says nothing about the other."""

from __future__ import annotations

import numpy as np

from ostension.data.pairs import PairSource
from ostension.data.tar_shards import TarShards
from ostension.errors import DataError


def check_disjoint(train: PairSource, held_out: PairSource) -> None:
    """Raise a `DataError` if an image of `train` is also in `held_out`: a shard in both, or the same bytes anywhere.

    Compares 64-bit hashes of the encoded images, which tar shards have in their index; captions may repeat.
    """
    if isinstance(train, TarShards) and isinstance(held_out, TarShards):
        hashes = held_out.shard_hashes()
        for sha256, shard in train.shard_hashes().items():
            if sha256 in hashes:
                what = f"also held out, as {hashes[sha256].name}"
                raise DataError(what, source=shard, expected="splits without a common shard")
    first, second = train.image_digests(), held_out.image_digests()
    common = np.intersect1d(first, second)
    if len(common):
        here, there = (int(np.flatnonzero(digests == common[0])[0]) for digests in (first, second))
        raise DataError(
            f"{len(common)} images of the training data are also held out, such as {train.key(here)} and {held_out.key(there)}",
            expected="splits without a common image",
        )
