"""Pictures with a label each, for evaluation while training: a labelled set, or pairs whose metadata has a label.

Nothing is left out: a file that is no picture, and a pair without a label, is an error that names it.
"""

from __future__ import annotations

from pathlib import Path

from ostension.data.open import open_pairs
from ostension.data.pairs import Pair, PairSource
from ostension.data.sets.arrow import is_saved_folder
from ostension.data.sets.folder import FolderSet
from ostension.data.sets.open import open_set
from ostension.errors import DataError

LABEL = "label"


def open_labelled(data: str) -> PairSource:
    """A folder with one subfolder a class, an npz, a folder of the Hugging Face library, or whatever `open_pairs` opens.

    Raises:
        DataError, ConfigError: if it is neither, cannot be read, or has files among the pictures that are none.
    """
    path = Path(data)
    if is_saved_folder(path) or (path.suffix == ".npz" and path.is_file()):
        return open_set(path)
    if path.is_dir() and not any(path.glob("*.tar")) and any(entry.is_dir() for entry in path.iterdir()):
        found = FolderSet(path, ("label",))
        for why, count in found.rejects.items():
            raise DataError(f"{count:,} x {why}", source=path, expected="pictures only, in a folder for each class")
        return found
    return open_pairs(data)


def label_of(pair: Pair, field: str) -> str:
    """The label in the pair's metadata, as text.

    Raises:
        DataError: naming the sample, if it has none.
    """
    value = pair.meta.get(field)
    if value is None or isinstance(value, (dict, list)):
        known = ", ".join(map(repr, pair.meta)) or "nothing"
        raise DataError(f"no label {field!r} in its metadata, which has {known}", source=pair.key)
    return str(value)
