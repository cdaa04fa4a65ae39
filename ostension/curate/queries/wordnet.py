"""Names of WordNet's synsets, from the database files of Princeton's release.

The files `data.noun`, `data.verb`, `data.adj` and `data.adv` have a line a synset: offset, file number, kind, number of words
(two hexadecimal digits), then each word and its number. Lines of the licence begin with two spaces. Words have underscores for
spaces, and adjectives a mark for where they stand, `galore(ip)`. The head of a synset is its first word.

Nothing is downloaded. Such a folder comes with Debian's wordnet-base (/usr/share/wordnet), Princeton's archive (dict), and
NLTK's data (corpora/wordnet, also as the .zip that its downloader leaves).

Source: wndb(5WN). MetaCLIP takes the heads in NLTK's form, which is lower case ("paris"); here they are as written ("Paris").
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ostension.errors import DataError

Names = Literal["heads", "all"]
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
FIND = "find"
_PLACE = re.compile(r"\((?:a|p|ip)\)$")


def synset_names(folder: str, names: Names = "heads") -> tuple[list[str], str]:
    """The names of synsets in the order of the files, each once, and where they were read.

    Args:
        folder: of the database; "find" looks where it usually is.
        names: "heads" for the first word of each synset, "all" for all of them.

    Raises:
        DataError: if there is no database, or a line of it is none.
    """
    place = _found() if folder == FIND else Path(folder)
    seen: dict[str, None] = {}
    for name, lines in _opened(place):
        for number, line in enumerate(lines, 1):
            if line.startswith("  ") or not line.strip():
                continue
            fields = line.split(" ")
            try:
                count = int(fields[3], 16)
                words = fields[4 : 4 + 2 * count : 2]
                if not count or len(words) != count or not fields[0].isdigit():
                    raise ValueError
            except (ValueError, IndexError):
                what = f"line {number} of {name} is no synset: {line[:60].rstrip()!r}"
                raise DataError(what, source=place, expected="WordNet's database files") from None
            for word in words[:1] if names == "heads" else words:
                seen[_PLACE.sub("", word).replace("_", " ")] = None
    return list(seen), str(place)


def _found() -> Path:
    home = os.environ.get("WNHOME")
    nltk = [*os.environ.get("NLTK_DATA", "").split(os.pathsep), str(Path.home() / "nltk_data"), "/usr/share/nltk_data"]
    places = [Path(one) for one in (os.environ.get("WNSEARCHDIR"), home and f"{home}/dict") if one]
    places += [Path("/usr/share/wordnet"), Path("/usr/local/WordNet-3.0/dict"), Path("/usr/local/share/wordnet")]
    for one in filter(None, nltk):
        places += [Path(one, "corpora", "wordnet"), Path(one, "corpora", "wordnet.zip")]
    for place in places:
        if (place / FILES[0]).is_file() or (place.suffix == ".zip" and place.is_file()):
            return place
    raise DataError(
        "no WordNet on this machine", expected=f"a folder with {FILES[0]}, such as {places[-1].parent} or /usr/share/wordnet",
        fix="install Debian's wordnet-base, or name the folder of a download: --wordnet.folder DICT",
    )  # fmt: skip


def _opened(place: Path) -> Iterator[tuple[str, list[str]]]:
    """The lines of each file."""
    if place.suffix == ".zip" and place.is_file():
        try:
            with zipfile.ZipFile(place) as archive:
                for name in FILES:
                    inside = next((one for one in archive.namelist() if one.rpartition("/")[2] == name), None)
                    if inside is None:
                        raise DataError(f"no {name} in the archive", source=place, expected="WordNet's database files")
                    yield name, archive.read(inside).decode("utf-8", "replace").splitlines()
        except zipfile.BadZipFile:
            raise DataError("no zip archive", source=place, expected="WordNet's database files") from None
        return
    place = place / "dict" if (place / "dict" / FILES[0]).is_file() else place
    for name in FILES:
        try:
            yield name, (place / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            expected = f"WordNet's database files ({', '.join(FILES)})"
            raise DataError(f"no {name} in this folder", source=place, expected=expected) from None
