"""Detection submissions: boxes checked, and made of results in COCO's form.

A box is `[class, conf, L, T, R, B]`: the class's number from 0, a confidence in 0..1, and the left, top, right and bottom
edge in pixels. Only the format is checked; no average precision is computed, as the labels of the server are not here.

Source: `is_valid_box` of the toolkit, read; COCO's result and annotation files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from ostension.errors import DataError
from ostension.evals.elevater.submission import Image, is_number
from ostension.files import read_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """What an annotation file says of a test set: ids of its images and of its categories, in the file's order."""

    images: tuple[int, ...]
    categories: tuple[int, ...]


def wrong_with_box(box: Any, num_classes: int | None) -> str | None:
    """What is wrong with a box; None if it is right."""
    if not isinstance(box, list) or len(box) != 6 or not all(map(is_number, box)):
        return "is not six numbers"
    label, confidence, left, top, right, bottom = box
    if label != int(label) or label < 0 or (num_classes is not None and label >= num_classes):
        return f"has the class {label}" + ("" if num_classes is None else f" of {num_classes}")
    if not 0 <= confidence <= 1:
        return f"has the confidence {confidence}"
    if min(left, top) < 0 or left > right or top > bottom:
        return f"has the edges {[left, top, right, bottom]}"
    return None


def read_annotations(path: Path) -> Annotations:
    """The images and categories of a COCO file.

    Raises:
        DataError: for a file of another form.
    """
    tree = read_json(path)
    found: list[tuple[int, ...]] = []
    for part in ("images", "categories"):
        entries = tree.get(part) if isinstance(tree, dict) else None
        listed = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        ids = [one for one in listed if type(one) is int]
        if not ids or len(set(ids)) < len(entries or ()):
            raise DataError(f"{part} have no ids of their own", source=path, expected="annotations in COCO's form")
        found.append(tuple(ids))
    return Annotations(images=found[0], categories=found[1])


def boxes_of_results(path: Path, annotations: Annotations) -> list[Image]:
    """The boxes of each image, in the annotations' order, from a list of `{image_id, category_id, bbox, score}`.

    COCO's boxes are `[left, top, width, height]`. Boxes keep the order of the file.

    Raises:
        DataError: naming the result that cannot be used.
    """
    results = read_json(path)
    if not isinstance(results, list):
        raise DataError("not a list", source=path, expected="results in COCO's form")
    boxes: dict[int, Image] = {image: [] for image in annotations.images}
    label = {category: index for index, category in enumerate(annotations.categories)}
    for place, result in enumerate(results):
        image, box = _box(result, boxes, label)
        if box is None:
            expected = "image_id and category_id of the annotations, bbox and score"
            raise DataError(f"result {place} is {json.dumps(result)[:80]}", source=path, expected=expected)
        if (wrong := wrong_with_box(box, len(label))) is not None:
            raise DataError(f"result {place} {wrong}", source=path, expected="a box inside the picture and a score in 0..1")
        boxes[image].append(box)
    return [boxes[image] for image in annotations.images]


def _box(result: Any, images: Container[int], label: Mapping[int, int]) -> tuple[int, Image | None]:
    """The image of a result and its box; no box if it is no result."""
    keys = ("image_id", "category_id", "bbox", "score")
    if not isinstance(result, dict) or any(key not in result for key in keys):
        return 0, None
    image, category, sides, score = (result[key] for key in keys)
    if type(image) is not int or image not in images or type(category) is not int or category not in label:
        return 0, None
    if not isinstance(sides, list) or len(sides) != 4 or not all(map(is_number, [*sides, score])):
        return 0, None
    left, top, width, height = sides
    return image, [label[category], score, left, top, left + width, top + height]
