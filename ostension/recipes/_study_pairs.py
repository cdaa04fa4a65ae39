"""Pairs for the studies' small models: captioned photos, named pictures and clip art, as files side by side.

    photos     the first 800 of Flickr8k's pack, five captions each
    names      pictures of Tiny ImageNet's classes (training part) in five templates
    clip art   Debian's openclipart with the names of its folders

What a study measures is not among them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ostension import files
from ostension.errors import DataError, require_extra
from ostension.image.signatures import format_of
from ostension.runtime import numpy_generator

PHOTOS, NAMES, PICTURES_A_NAME = 800, 160, 30
NAMES_FILE = "names.json"
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a blurry photo of a {}.", "a photo of one {}.", "{}")
DRAWING_TEMPLATES = ("a drawing of {}.", "clip art of {}.", "{}")


def read_pack(path: Path) -> list[dict[str, Any]]:
    """The rows of one of the packs.

    Raises:
        DataError: if it is not there.
        MissingExtraError: without pyarrow.
    """
    parquet = require_extra("pyarrow.parquet", "curate")
    if not path.is_file():
        raise DataError("there is no such pack", source=path, fix="name the folder of packs with --data, or in OSTENSION_DATA")
    return parquet.read_table(path).to_pylist()


def write_pairs(
    data: Path, folder: Path, *, names: int = NAMES, pictures: int = PICTURES_A_NAME, photos: int = PHOTOS, clip_art: int = 0
) -> int:
    """Write them into a folder, and when it is whole `names.json` into it, with the classes; gives how many pairs.

    Args:
        data: the folder of packs.
        names: of Tiny ImageNet's 200 classes; the others are never named.
        pictures: of each name.
        clip_art: drawings, the first ones in order of a fixed shuffle.
    """
    generator = numpy_generator(0, "measure-study")
    named: dict[str, list[bytes]] = {}
    for row in read_pack(data / "tiny_imagenet/tiny_imagenet_val10k_train50pc.parquet"):
        if row["split"] == "train":
            named.setdefault(row["label"], []).append(row["image"])
    chosen = sorted(generator.choice(sorted(named), names, replace=False).tolist())
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(read_pack(data / "flickr8k_1000/flickr8k_1000.parquet")[:photos]):
        write_pair(folder, f"photo-{number:04d}", row["image"], row["captions"])
    for number, label in enumerate(chosen):
        name = label.split(",")[0].replace("_", " ")
        for index, image in enumerate(named[label][:pictures]):
            write_pair(folder, f"name-{number:03d}-{index:02d}", image, [template.format(name) for template in TEMPLATES])
    if clip_art:
        rows = read_pack(data / "openclipart/openclipart.parquet")
        for number, index in enumerate(generator.permutation(len(rows))[:clip_art].tolist()):
            said = rows[index]["folders"][-1].replace("_", " ")
            write_pair(folder, f"drawing-{number:04d}", rows[index]["image"], [text.format(said) for text in DRAWING_TEMPLATES])
    files.write_json(folder / NAMES_FILE, chosen)
    return sum(1 for path in folder.iterdir() if path.suffix == ".txt")


def write_pair(folder: Path, name: str, image: bytes, captions: Sequence[str]) -> None:
    """One pair as NAME.jpg, or whatever it is, and NAME.txt."""
    suffix = (Image.open(io.BytesIO(image), formats=(format_of(image, name),)).format or "jpeg").lower()
    (folder / f"{name}.{suffix}").write_bytes(image)
    (folder / f"{name}.txt").write_text("\n".join(captions), encoding="utf-8")
