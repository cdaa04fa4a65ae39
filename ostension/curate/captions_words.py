"""Captions that have a word of a list: of words that are wanted, or of words that are not.

DataComp's text-based filter keeps captions with a word among the synsets of ImageNet-21k, which it finds through WordNet's
first sense of each word; here the list is of words and phrases: synsets have to be written out, with plurals if they are meant.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ostension.errors import DataError

_WORD = re.compile(r"\w+")


class WordList:
    """Words and phrases, one a line; `#` begins a comment. A caption that has one of them as whole words is found.

    Case and punctuation do not matter: both sides are case-folded and cut into words. Each length of phrase costs one pass over
    the caption's words, so the number of entries does not matter.

    Raises:
        DataError: if the file cannot be read or has no entry.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            raw = self.path.read_bytes()
            lines = raw.decode("utf-8-sig").splitlines()
        except OSError as error:
            what = f"cannot be read: {(error.strerror or '').lower()}"
            raise DataError(what, source=path, expected="a list of words") from None
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 at byte {error.start}", source=path, expected="a list of words") from None
        self.sha256 = hashlib.sha256(raw).hexdigest()
        entries = [tuple(words_of(line.partition("#")[0])) for line in lines]
        self._entries = {entry for entry in entries if entry}
        if not self._entries:
            raise DataError("no word in it", source=path, expected="one word or phrase a line")
        self._lengths = sorted({len(entry) for entry in self._entries})

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, text: str) -> str | None:
        """The first entry that the text has, the shortest first; None if it has none."""
        words = words_of(text)
        for length in self._lengths:
            for start in range(len(words) - length + 1):
                entry = tuple(words[start : start + length])
                if entry in self._entries:
                    return " ".join(entry)
        return None


def words_of(text: str) -> list[str]:
    """The words of a text, case-folded: runs of letters, digits and underscores."""
    return _WORD.findall(text.casefold())
