"""A small crawl: pictures with what stands beside them, from packs of real pictures, as they are and not as one would wish.

    photos     the first 800 of Flickr8k's pack, five captions each, and once more as thumbnails with one caption each
    emoji      all vendors; the caption is the English name, its short name (`radio_button`), or the name in another language
    clip art   Debian's openclipart with its file names: authors, counters, one desktop icon in many themes
    labels     pictures of Tiny ImageNet's training part, 50 of each of 200 labels, as they are written there

What a study of curation measures is not among them. Thumbnails stand for the copies that a crawl finds at other addresses.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ostension import files
from ostension.image.signatures import format_of
from ostension.recipes._study_pairs import PHOTOS, read_pack, write_pair
from ostension.runtime import numpy_generator

DONE = "pool.json"
THUMBNAILS, THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 400, 128, 60
ENGLISH, SHORT = 0.4, 0.2  # shares of emoji captions; the rest is in one of seven other languages


def write_pool(data: Path, folder: Path, *, every: int = 1) -> int:
    """Write the pool into a folder of pictures and captions side by side; gives how many pairs.

    Args:
        data: the folder of packs.
        every: take one in so many, for the smoke form.
    """
    if (folder / DONE).is_file():
        return int(files.read_json(folder / DONE)["pairs"])
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for place, (name, image, captions) in enumerate(_pool(data)):
        kind = name.partition("-")[0]
        if place % every == 0:
            write_pair(folder, name, image, captions)
            counts[kind] = counts.get(kind, 0) + 1
    files.write_json(folder / DONE, {"pairs": sum(counts.values()), "kinds": counts})
    return sum(counts.values())


def _pool(data: Path) -> Iterator[tuple[str, bytes, Sequence[str]]]:
    generator = numpy_generator(0, "curation-pool")
    photos = read_pack(data / "flickr8k_1000/flickr8k_1000.parquet")[:PHOTOS]
    for number, row in enumerate(photos):
        yield f"photo-{number:04d}", row["image"], row["captions"]
    for number in sorted(generator.permutation(len(photos))[:THUMBNAILS].tolist()):
        yield f"thumbnail-{number:04d}", _thumbnail(photos[number]["image"]), photos[number]["captions"][:1]
    for number, row in enumerate(read_pack(data / "emoji/emoji.parquet")):
        yield f"emoji-{number:04d}", row["image"], [_emoji_caption(row, generator.random(), generator.random())]
    for number, row in enumerate(read_pack(data / "openclipart/openclipart.parquet")):
        yield f"clipart-{number:04d}", row["image"], [row["stem"]]
    rows = read_pack(data / "tiny_imagenet/tiny_imagenet_val10k_train50pc.parquet")
    for number, row in enumerate(row for row in rows if row["split"] == "train"):
        yield f"label-{number:05d}", row["image"], [row["label"]]


def _emoji_caption(row: dict[str, Any], which: float, language: float) -> str:
    others = list(json.loads(row["labels_i18n"] or "{}").values())
    if which < ENGLISH or not others:
        return row["label"]
    if which < ENGLISH + SHORT and row["short_names"]:
        return row["short_names"][0]
    return others[int(language * len(others))]


def _thumbnail(image: bytes) -> bytes:
    small = Image.open(io.BytesIO(image), formats=(format_of(image, "<picture of the pool>"),)).convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=THUMBNAIL_QUALITY)
    return out.getvalue()
