"""Pictures with a word on them whose file names say what is shown and what is written: `label=X_text=Y.png`.

The form of the typographic attacks that PAINT was measured on (Ilharco et al. 2022, arXiv 2208.05592). What stands before
`label=` is free; an empty Y is a picture without a word. X and Y are quoted as in web addresses where file names would not
bear them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ostension.data.sets.base import LabelledSet, read_picture_file
from ostension.data.sets.folder import pictures_below, splits_on_top
from ostension.errors import DataError

FIELD = "text"
_NAME = re.compile(r"(?:.*[^A-Za-z])?label=(?P<label>.+?)_text=(?P<text>.*)\.[^.]+")


class WrittenSet(LabelledSet):
    """The pictures below `root` in the order of their paths, which are their ids; the field "text" has the written labels.

    Folders called as splits are splits.

    Raises:
        DataError: for a file of another name, or if there is no picture.
    """

    def __init__(self, root: Path):
        self.root = root
        names, rejects = pictures_below(root)
        labels, texts = [], []
        for name in names:
            label, text = parse_name(name, root)
            labels.append((label,))
            texts.append(text)
        splits = [name.split("/")[0] for name in names] if splits_on_top(root, {"clean"}) else None
        super().__init__(root, names, labels, splits=splits, fields={FIELD: texts}, rejects=rejects)

    def image(self, index: int) -> bytes:
        return read_picture_file(self.root / self.ids[index])

    def content(self) -> list[Any]:
        return [(self.root / name).stat().st_size for name in self.ids]


def parse_name(name: str, root: Path | None = None) -> tuple[str, str]:
    """What a file's name says is shown and written.

    Raises:
        DataError: for a name that does not say it.
    """
    found = _NAME.fullmatch(name.rpartition("/")[2])
    if found is None:
        raise DataError("the file's name does not say label and text", source=(root or Path()) / name,
                        expected="label=X_text=Y.png")  # fmt: skip
    return unquote(found["label"]), unquote(found["text"])


def file_stem(label: str, text: str) -> str:
    """The name of a picture's file, without its ending, that `parse_name` reads."""
    label, text = (quote(part, safe=" ,'()&!+").replace("_", "%5F").replace(".", "%2E") for part in (label, text))
    return f"label={label}_text={text}"
