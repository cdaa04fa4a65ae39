"""Retrieval: recall at k from image to text and from text to image, median ranks and chance, in blocks.

An image counts as found by its texts if *any* of them is among the first k; each text counts on its own (Karpathy and
Fei-Fei 2015). The strict recall that some tools print, the share of an image's texts among the first k, is another number.

Letters: N images, M texts, E embedding.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ostension.evals import metrics
from ostension.evals.records import Metric, Record
from ostension.evals.scores import accuracy
from ostension.shapes import Float, Int

RECALL_AT = (1, 5, 10)
CURVE_AT = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Both directions of a search.

    Attributes:
        metrics: "image_to_text_r1", "..._r5", "..._r10", "..._median_rank" (the first place is 1), and "text_to_image_..."; the
            intervals of texts are a bootstrap over images, because texts of one image come together.
        image_ranks: (N,) how many texts come before the image's best one.
        text_ranks: (M,) how many images come before the text's best one.
        curves: [[k, recall], ...] by direction, up to the size of the gallery.
    """

    metrics: dict[str, Metric]
    image_ranks: np.ndarray
    text_ranks: np.ndarray
    curves: dict[str, list[list[int | float]]]


def measure(
    images: Float[np.ndarray, "N E"],
    texts: Float[np.ndarray, "M E"],
    image_groups: Int[np.ndarray, " N"],
    text_groups: Int[np.ndarray, " M"],
    *,
    seed: int = 0,
) -> Retrieval:
    """Retrieval between unit rows; an image and a text belong together if their groups are equal.

    Raises:
        DataError: for an image without a text, or a text without an image.
    """
    measured: dict[str, Metric] = {}
    ranks, curves = {}, {}
    directions = {
        "text_to_image": (texts, images, text_groups, image_groups),
        "image_to_text": (images, texts, image_groups, text_groups),
    }
    for name, (queries, gallery, query_groups, gallery_groups) in directions.items():
        found = ranks[name] = metrics.retrieval_ranks(queries, gallery, query_groups, gallery_groups)
        sizes = group_sizes(query_groups, gallery_groups)
        clustered = len(np.unique(query_groups)) < len(query_groups)
        for k in RECALL_AT:
            one = accuracy(found < k, chance=metrics.chance_recall(sizes, len(gallery), k))
            if clustered:
                one = dataclasses.replace(one, interval=metrics.cluster_interval(found < k, query_groups, seed=seed))
            measured[f"{name}_r{k}"] = one
        measured[f"{name}_median_rank"] = Metric(value=float(np.median(found)) + 1, count=len(found), direction="lower")
        curves[name] = [[k, float(np.mean(found < k))] for k in CURVE_AT if k <= len(gallery)]
    return Retrieval(metrics=measured, image_ranks=ranks["image_to_text"], text_ranks=ranks["text_to_image"], curves=curves)


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
    """The record of `measure`."""
    return Record(
        protocol="retrieval", subject=subject, metrics=measure(images, texts, image_groups, text_groups).metrics, config=config,
        hashes=hashes, counts={"images": len(images), "texts": len(texts)},
    )  # fmt: skip


def mean_recall(measured: dict[str, Metric]) -> Metric:
    """The mean of the six recalls, which suites of retrieval are scored by."""
    six = [measured[f"{way}_r{k}"] for way in ("image_to_text", "text_to_image") for k in RECALL_AT]
    chances = [one.chance or 0.0 for one in six]
    value, count = float(np.mean([one.value for one in six])), measured["image_to_text_r1"].count
    return Metric(value=value, count=count, chance=float(np.mean(chances)))


def group_sizes(query_groups: Int[np.ndarray, " Q"], gallery_groups: Int[np.ndarray, " G"]) -> Int[np.ndarray, " Q"]:
    """How many positives each query has in the gallery."""
    values, counts = np.unique(gallery_groups, return_counts=True)
    return counts[np.searchsorted(values, query_groups)]
