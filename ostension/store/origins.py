"""What a user names to be embedded, opened; and the picture that a row was made from, read again where it still lies."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ostension.data.caption_lists import captions_in_lines, captions_in_table, captions_of
from ostension.data.fetch import FetchPolicy
from ostension.data.img2dataset import failures
from ostension.data.layout import USUAL, Layout
from ostension.data.pairs import IMAGE_SUFFIXES, PairSource, image_digest, read_image
from ostension.data.picture_lists import PictureFiles, PictureTree, Urls, listed, urls_in_table
from ostension.data.pictures import open_pictures
from ostension.data.remote import is_url
from ostension.errors import DataError
from ostension.store.collection import Source, sources
from ostension.store.sets import EmbeddingSet

TABLES = (".csv", ".tsv", ".parquet")
LIST = "-"


def open_source(
    text: str,
    *,
    prefix: str = "",
    name: str | None = None,
    layout: Layout = USUAL,
    policy: FetchPolicy | None = None,
    lines: Iterable[str] = (),
) -> tuple[PairSource, Source]:
    """The pictures that a text names, and where they lie.

    Args:
        text: a picture or a folder of them; what `open_pictures` opens (tar shards, Parquet, tables); a table with a column of
            web addresses; a .txt file with a path or a web address a line; "-" for such lines.
        prefix: what to put before keys to make ids.
        name: what the source is called; by default the absolute path.
        lines: the lines for "-".

    Raises:
        DataError, ConfigError: if it cannot be read or understood.
    """
    policy = policy or FetchPolicy()
    path = Path(text)
    place = text if is_url(text) else os.path.abspath(text)  # a list on stdin is that of this folder
    name = name or place
    opened: PairSource | None = None
    if text == LIST:
        opened, base = listed(lines, Path.cwd(), policy, "the list on stdin"), str(Path.cwd())
    elif path.suffix.lower() == ".txt" and path.is_file():
        opened, base = listed(_text_of(path).split("\n"), path.parent, policy, path), os.path.abspath(path.parent)
    elif path.suffix.lower() in TABLES and path.is_file():
        opened = urls_in_table(path, policy)
    elif path.suffix.lower().removeprefix(".") in IMAGE_SUFFIXES and path.is_file():
        opened, base = PictureFiles([path.name], path.parent), os.path.abspath(path.parent)
    elif path.is_dir() and not _holds_shards(path):
        opened = PictureTree(path)
    if isinstance(opened, Urls):
        return opened, Source(name=name, kind="urls", prefix=prefix)
    if isinstance(opened, PictureFiles):
        return opened, Source(name=name, kind="folder", root=base, prefix=prefix)
    if opened is not None:
        return opened, Source(name=name, kind="folder", root=place, prefix=prefix)
    kind = "pairs" if layout == USUAL else ""  # who reads it again does not know the layout
    return open_pictures(text, layout=layout), Source(name=name, kind=kind, root=place, prefix=prefix)


def open_texts(
    text: str,
    *,
    prefix: str = "",
    name: str | None = None,
    columns: Sequence[str] = (),
    layout: Layout = USUAL,
    lines: Iterable[str] = (),
) -> tuple[PairSource, Source]:
    """The captions that a text names: a .txt file or "-" with one a line, a table with a column of them, or whatever pictures
    `open_source` opens, whose captions are taken.

    Args:
        columns: of the table; by default the usual one.

    Raises:
        DataError, ConfigError: if it cannot be read or has no captions.
    """
    path = Path(text)
    place = text if is_url(text) else os.path.abspath(text)
    suffix = path.suffix.lower()
    if text == LIST:
        opened = captions_in_lines(lines, "the list on stdin")
    elif suffix == ".txt" and path.is_file():
        opened = captions_in_lines(_text_of(path).split("\n"), path)
    elif suffix in TABLES and path.is_file():
        opened = captions_in_table(path, columns)
    else:
        opened = captions_of(open_source(text, layout=layout)[0], path)
    return opened, Source(name=name or place, prefix=prefix)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"cannot be read as a list ({error})", source=path, expected="UTF-8, one entry a line") from None


def left_out(source: PairSource) -> dict[str, int]:
    """What a source says that it had to leave out, by reason: what is no pair, and downloads that failed."""
    return {**source.summary().rejects, **failures(source)}


def original(opened: EmbeddingSet, row: int) -> bytes:
    """The encoded picture that a row was made from, as it lies in its source.

    Its bytes are compared with the digest of the row: so nothing but what was embedded is ever given out, whatever ids and
    links say.

    Raises:
        DataError: if the source cannot be read again, or the picture is gone or another one.
    """
    number, sample, digest = (int(opened.column(column, [row])[0]) for column in ("source", "sample", "digest"))
    name = str(opened.column("id", [row])[0])
    known = sources(opened)
    if not 0 <= number < len(known) or not known[number].kind or known[number].kind == "urls":
        raise DataError("its source cannot be read again", source=name)
    source = known[number]
    key = name.removeprefix(source.prefix)
    if source.kind == "folder":
        image = _file(Path(source.root), key)
    else:
        pairs = _pairs(source.root)
        if not 0 <= sample < len(pairs) or pairs.key(sample) != key:
            raise DataError("is not where it was in its source", source=name, fix="embed the source again")
        image = pairs.read(sample).image
    if image_digest(image) != digest:
        raise DataError("is another picture by now", source=name, fix="embed the source again")
    return image


def _file(root: Path, key: str) -> bytes:
    path = Path(os.path.realpath(root / key))
    if not path.is_relative_to(os.path.realpath(root)) and not os.path.isabs(key):
        raise DataError("lies outside its source", source=key)
    return read_image(path, key)


@functools.lru_cache(maxsize=8)
def _pairs(root: str) -> PairSource:
    return open_pictures(root)


def _holds_shards(folder: Path) -> bool:
    from ostension.data.sets.arrow import is_saved_folder

    return is_saved_folder(folder) or any(folder.glob("*.tar")) or any(folder.glob("*.parquet"))


def gone(opened: EmbeddingSet) -> list[str]:
    """The ids of rows whose pictures are no longer in their sources; rows of sources that cannot be read again are not looked
    at.

    Raises:
        DataError: if a source is not there, or has no picture any more: that is rather a disk that is away.
    """
    numbers = np.asarray(opened.column("source")) if len(opened) else np.zeros(0, np.int64)
    ids = opened.ids
    lost: list[str] = []
    for number, source in enumerate(sources(opened)):
        mine = np.flatnonzero(numbers == number).tolist()
        if not mine or source.kind not in ("folder", "pairs"):
            continue
        if source.kind == "folder" and source.name != source.root:  # a list: its files are where they are
            lost += [ids[row] for row in mine if not (Path(source.root) / ids[row].removeprefix(source.prefix)).is_file()]
            continue
        pairs = PictureTree(source.root) if source.kind == "folder" else open_pictures(source.root)
        now = {source.prefix + pairs.key(index) for index in range(len(pairs))}
        lost += [ids[row] for row in mine if ids[row] not in now]
    return lost
