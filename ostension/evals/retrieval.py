"""Retrieval as a record: recall at k from text to image and from image to text, against chance."""

from __future__ import annotations

from typing import Any

import numpy as np

from ostension.evals import metrics
from ostension.evals.records import Metric, Record
from ostension.evals.scores import accuracy
from ostension.shapes import Float, Int

RECALL_AT = (1, 5, 10)


def retrieval(
    images: Float[np.ndarray, "N E"],
    texts: Float[np.ndarray, "M E"],
    image_groups: Int[np.ndarray, " N"],
    text_groups: Int[np.ndarray, " M"],
    *,
    subject: str,
    config: dict[str, Any],
    hashes: dict[str, str],
) -> Record:
    """The record of both directions; an image and a text belong together if their groups are equal.

    Text to image counts each text on its own; image to text counts an image as found if any of its texts is.
    """
    measured: dict[str, Metric] = {}
    directions = {
        "text_to_image": (texts, images, text_groups, image_groups),
        "image_to_text": (images, texts, image_groups, text_groups),
    }
    for name, (queries, gallery, query_groups, gallery_groups) in directions.items():
        found = metrics.retrieval_ranks(queries, gallery, query_groups, gallery_groups)
        sizes = group_sizes(query_groups, gallery_groups)
        for k in RECALL_AT:
            measured[f"{name}_r{k}"] = accuracy(found < k, chance=metrics.chance_recall(sizes, len(gallery), k))
        measured[f"{name}_median_rank"] = Metric(value=float(np.median(found)) + 1, count=len(found), direction="lower")
    return Record(
        protocol="retrieval", subject=subject, metrics=measured, config=config, hashes=hashes,
        counts={"images": len(images), "texts": len(texts)},
    )  # fmt: skip


def group_sizes(query_groups: Int[np.ndarray, " Q"], gallery_groups: Int[np.ndarray, " G"]) -> Int[np.ndarray, " Q"]:
    """How many positives each query has in the gallery."""
    values, counts = np.unique(gallery_groups, return_counts=True)
    return counts[np.searchsorted(values, query_groups)]
