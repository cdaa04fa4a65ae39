"""`open_pairs`: a source of pairs from what a user types: a name, files, a pattern, a folder, or several of them."""

from __future__ import annotations

import collections
import concurrent.futures
import glob
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ostension.data.embedded import open_emoji
from ostension.data.folders import CaptionFolder
from ostension.data.layout import USUAL, Layout
from ostension.data.pairs import Joined, PairSource
from ostension.data.parquet import Parquet
from ostension.data.remote import THREADS, RemoteFile, is_url, look_up, matching, shown
from ostension.data.tables import Table
from ostension.data.tar_shards import TarShards
from ostension.errors import ConfigError, DataError

EMBEDDED = "emoji"
FORMATS = ("tar", "csv", "tsv", "parquet")
MAX_EXPANDED = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# Between two sources, but not in the address of a host, as in http://[::1]:8000/a.tar.
_BETWEEN = re.compile(r"::(?![0-9a-fA-F:.%]*\])")
Location = Path | RemoteFile


def open_pairs(source: str | os.PathLike | Sequence[str | os.PathLike], *, layout: Layout = USUAL) -> PairSource:
    """The pairs of `source`.

    Args:
        source: "emoji" (the embedded set; "emoji:train" and so on are its splits), or files, here or at URLs:

            - tar shards with lists in braces, `cc/{00000..00331}.tar`, or patterns, `cc/*.tar`
            - a table, `pairs.csv` or `pairs.tsv`, or Parquet, `data/train-*.parquet`
            - a folder with tar shards, with Parquet files, or with images and captions (`a.jpg`, `a.txt`)
            - several of these with `::` between them, or in a list

        layout: what holds the images and the captions, where that is not as usual.

    Raises:
        DataError: if a file is missing or is not what its name says.
        ConfigError: if the source cannot be understood, or the layout has no effect on it.
        UnreachableError: if a URL cannot be read.
        MissingExtraError: if it needs a package that is not installed.
    """
    items = [source] if isinstance(source, (str, os.PathLike)) else source
    parts = [part for item in items for part in _BETWEEN.split(str(item))]
    if not parts or not all(part.strip() for part in parts):
        raise ConfigError(f"the source of pairs is {source!r}", expected="a path, a pattern, a URL or the name 'emoji'")
    places: list[Location | str] = []
    for part in parts:
        if part.partition(":")[0] == EMBEDDED and not os.path.exists(part):
            places.append(part)
        else:
            places += [found for path in expand(part) for found in _files_in(path)]
    for place, count in collections.Counter(map(_identity, places)).items():
        if count > 1:
            raise ConfigError("listed twice", source=shown(place) if is_url(place) else place, fix="list each file once")
    kinds = [_kind(place) for place in places]
    _check_layout(layout, set(kinds))
    places = _with_ranges(places, kinds)
    opened: list[PairSource] = []
    for kind, group in itertools.groupby(zip(kinds, places, strict=True), key=lambda pair: pair[0]):
        files = [place for _, place in group]
        if kind == "tar":  # neighbouring shards are one source
            opened.append(TarShards([place for place in files if not isinstance(place, str)], layout=layout))
        else:
            opened += [_open(kind, place, layout) for place in files]
    source_of_pairs = opened[0] if len(opened) == 1 else Joined(opened)
    for note in source_of_pairs.summary().notes:
        logging.getLogger("ostension.data").warning(note)
    return source_of_pairs


def shards_of(source: str) -> list[Location]:
    """The tar shards of `source`, which is written as for `open_pairs`.

    Raises:
        DataError: if a file is missing, or something is no tar shard.
    """
    shards = []
    for part in _BETWEEN.split(source):
        for place in expand(part):
            found = _files_in(place)
            if any(_kind(file) != "tar" for file in found):
                raise DataError("no tar shard in this folder", source=place, expected="files that end in .tar")
            shards += found
    return [place.with_ranges() if isinstance(place, RemoteFile) else place for place in shards]


def expand(pattern: str) -> list[Location]:
    """The files that a pattern stands for: braces give a list in their order, wildcards the files that match, sorted.

    Raises:
        ConfigError: for braces that cannot be understood, or that stand for too many files.
        DataError: for wildcards that match nothing, or a path that does not exist.
        UnreachableError: if a URL cannot be read.
    """
    if pattern.startswith("pipe:"):
        raise ConfigError("commands are not run", source=pattern, expected="files or URLs")
    if pattern.startswith("file://"):
        pattern = pattern.removeprefix("file://").removeprefix("localhost")
    texts = list(itertools.islice(_expand_braces(pattern), MAX_EXPANDED + 1))
    lists: Iterator[Sequence[Location]] = (_find_remote if is_url(pattern) else _find_here)(texts[:MAX_EXPANDED])
    found = list(zip(texts, lists, strict=False))
    places = [place for _, some in found for place in some]
    missing = [text for text, some in found if not some]
    if len(texts) > MAX_EXPANDED or len(places) + len(missing) > MAX_EXPANDED:
        raise ConfigError(f"more than {MAX_EXPANDED} files", source=pattern)
    if missing:
        total = f"; {len(missing)} of {len(places) + len(missing)} are missing" if len(places) + len(missing) > 1 else ""
        first = shown(missing[0]) if is_url(missing[0]) else missing[0]
        raise DataError(
            f"no such file or folder{total}", source=first, expected="files that exist, a pattern, or the name 'emoji'"
        )
    return places


def _find_here(texts: Sequence[str]) -> Iterator[list[Path]]:
    for text in texts:
        if any(letter in text for letter in "*?[") and not os.path.exists(text):
            yield [Path(found) for found in sorted(glob.glob(text, recursive=True))]
        else:
            yield [Path(text)] if os.path.exists(text) else []


def _find_remote(texts: Sequence[str]) -> Iterator[list[RemoteFile]]:
    """The files at URLs. Of wildcards only `*` is one, since `?` begins a query; an address without a format is a folder."""
    lists: list[list[str]] = []
    for text in texts:
        if "*" in text:
            lists.append(matching(text))
        elif _suffix(shown(text)) in FORMATS:
            lists.append([text])
        else:
            folder = text.rstrip("/")
            lists.append(matching(f"{folder}/*.tar") or matching(f"{folder}/*.parquet"))
    files = iter(look_up([url for urls in lists for url in urls]))
    for urls in lists:
        yield [file for file in itertools.islice(files, len(urls)) if file is not None]


def _expand_braces(pattern: str) -> Iterator[str]:
    """Every text that a pattern with `{00..11}` and `{a,b}` stands for, leftmost braces slowest."""
    found = _BRACES.search(pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise ConfigError("braces that do not match", source=pattern, expected="{00..11} or {a,b}")
        yield pattern
        return
    numbers = _RANGE.fullmatch(found[1])
    options: Iterator[str]
    if numbers:
        first, last, width = int(numbers[1]), int(numbers[2]), len(numbers[1])
        if not 0 <= last - first < MAX_EXPANDED:
            raise ConfigError(f"the range {found[0]}", source=pattern, expected="an ascending range of at most a million")
        options = (str(number).zfill(width) for number in range(first, last + 1))
    elif "," in found[1]:
        options = iter(found[1].split(","))
    else:
        raise ConfigError(f"the braces {found[0]}", source=pattern, expected="{00..11} or {a,b}")
    for option in options:
        yield from _expand_braces(pattern[: found.start()] + option + pattern[found.end() :])


def _files_in(place: Location) -> list[Location]:
    """A folder's tar shards if it has any, or its Parquet files; else the place itself."""
    if isinstance(place, Path) and place.is_dir():
        return [*(sorted(place.glob("*.tar")) or sorted(place.glob("*.parquet")))] or [place]
    return [place]


def _identity(place: Location | str) -> str:
    """What tells two places apart."""
    return place.url if isinstance(place, RemoteFile) else str(place.resolve()) if isinstance(place, Path) else place


def _kind(place: Location | str) -> str:
    if isinstance(place, str):
        return "embedded"
    if isinstance(place, Path) and place.is_dir() and place.suffix != ".tar":
        return "folder"
    suffix = _suffix(place.name)
    if suffix not in FORMATS:
        expected = f"a folder, {', '.join(f'.{name}' for name in FORMATS[:-1])} or .{FORMATS[-1]}"
        raise ConfigError(f"a source ending in {place.suffix!r}", source=place, expected=expected)
    return suffix


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _check_layout(layout: Layout, kinds: set[str]) -> None:
    tables = kinds & {"csv", "tsv", "parquet"}
    if layout.image is not None and not tables:
        raise ConfigError(f"layout.image is {layout.image!r}", expected="nothing: there is no table among the data")
    if (layout.texts or layout.lines) and not tables | (kinds & {"tar"}):
        raise ConfigError("layout.texts and layout.lines have no effect", expected="tables or tar shards among the data")
    if layout.weights and kinds != {"tar"}:
        raise ConfigError(f"layout.weights is {layout.weights!r}", expected="nothing, or data in tar shards alone")


def _with_ranges(places: list[Location | str], kinds: list[str]) -> list[Location | str]:
    """The same, with copies here of what cannot be read by ranges."""

    def prepared(pair: tuple[Location | str, str]) -> Location | str:
        place, kind = pair
        return place.with_ranges() if isinstance(place, RemoteFile) and kind in ("tar", "parquet") else place

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(prepared, zip(places, kinds, strict=True)))


def _open(kind: str, place: Location | str, layout: Layout) -> PairSource:
    if isinstance(place, str):
        return open_emoji(place.partition(":")[2] or "all")
    if kind == "parquet":
        return Parquet(place, layout=layout)
    if isinstance(place, RemoteFile) or kind != "folder":
        return Table(place, layout=layout)
    return CaptionFolder(place)
