"""Captioned pictures listed in a Karpathy file: `dataset_flickr8k.json`, `dataset_flickr30k.json`, `dataset_coco.json`.

The file names each picture, its split and its captions; the field's retrieval results are on its test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ostension.data.sets.base import LabelledSet, read_picture_file
from ostension.data.task_parts import check_inside
from ostension.errors import ConfigError, DataError
from ostension.files import read_json, sha256_file


class KarpathySet(LabelledSet):
    """The pictures of such a file, in its order; ids are their paths below the folder of pictures.

    Args:
        path: the JSON file.
        images: the folder of pictures, below the file's.

    Raises:
        DataError: for a file of another form, a picture without captions, a path that leaves the folder.
    """

    def __init__(self, path: Path, images: str | None = None):
        tree = read_json(path)
        listed = tree.get("images") if isinstance(tree, dict) else None
        if not isinstance(listed, list):
            raise DataError("no list of images", source=path, expected="a Karpathy file")
        self._folder = path.parent / (images or "")
        ids, splits, texts = [], [], []
        for number, entry in enumerate(listed):
            where = f"{path} (image {number})"
            try:
                name = "/".join(filter(None, (entry.get("filepath", ""), entry["filename"])))
                check_inside(name, "the image's path")
                captions = tuple(sentence["raw"].strip() for sentence in entry["sentences"])
                split = entry["split"]
            except ConfigError as error:  # the file is data
                raise DataError(error.what, source=where, expected=error.expected) from None
            except (KeyError, TypeError, AttributeError):
                raise DataError("is no image of a Karpathy file", source=where, expected="filename, split, sentences") from None
            if not captions or not isinstance(split, str):
                raise DataError("has no captions or no split", source=where)
            ids.append(name)
            splits.append(split)
            texts.append(captions)
        super().__init__(path, ids, [()] * len(ids), splits=splits, texts=texts)

    def image(self, index: int) -> bytes:
        return read_picture_file(self._folder / self.ids[index])

    def content(self) -> list[Any]:
        return [sha256_file(self.location)]
