"""The baseline that understands nothing: the nearest labelled picture, pixel by pixel."""

from __future__ import annotations

import numpy as np

from ostension.shapes import Float, Int, UInt8


def nearest_pixel_scores(
    queries: UInt8[np.ndarray, "N H W 3"],
    references: UInt8[np.ndarray, "M H W 3"],
    reference_classes: Int[np.ndarray, " M"],
    num_classes: int,
) -> Float[np.ndarray, "N C"]:
    """Scores of each query for each class: minus the squared distance, per value in 0..1, to its nearest reference there.

    A class without references scores minus infinity. The argmax over classes is the nearest neighbour's class; a column
    ranks the queries for a class.
    """
    left, right = _flat(queries), _flat(references)
    # |a - b|^2 = |a|^2 - 2 a.b + |b|^2, one matrix product for all pairs
    squares = (left**2).sum(1)[:, None] - 2 * left @ right.T + (right**2).sum(1)[None, :]
    scores = np.full((len(left), num_classes), -np.inf, dtype=np.float32)
    for index in np.unique(reference_classes):
        scores[:, index] = -squares[:, reference_classes == index].min(axis=1) / left.shape[1]
    return scores


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255
