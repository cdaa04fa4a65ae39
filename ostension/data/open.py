"""`open_pairs`: a source of pairs from what a user types: a name, files, a pattern, a folder, or several of them."""

from __future__ import annotations

import collections
import glob
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ostension.data.embedded import open_emoji
from ostension.data.pairs import Joined, PairSource
from ostension.data.tables import CaptionFolder, Table
from ostension.data.tar_shards import TarShards
from ostension.errors import ConfigError, DataError

EMBEDDED = "emoji"
MAX_EXPANDED = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_pairs(source: str | os.PathLike | Sequence[str | os.PathLike]) -> PairSource:
    """The pairs of `source`.

    Args:
        source: "emoji" (the embedded set; "emoji:train" and so on are its splits), or files:

            - tar shards with lists in braces, `cc/{00000..00331}.tar`, or patterns, `cc/*.tar`
            - a table, `pairs.csv` or `pairs.tsv`
            - a folder with tar shards, or with images and captions (`a.jpg`, `a.txt`)
            - several of these with `::` between them, or in a list

    Raises:
        DataError: if a file is missing or is not what its name says.
        ConfigError: if the source cannot be understood.
    """
    items = [source] if isinstance(source, (str, os.PathLike)) else source
    parts = [part for item in items for part in str(item).split("::")]
    if not parts or not all(part.strip() for part in parts):
        raise ConfigError(f"the source of pairs is {source!r}", expected="a path, a pattern or the name 'emoji'")
    paths: list[Path | str] = []
    for part in parts:
        if part.partition(":")[0] == EMBEDDED and not os.path.exists(part):
            paths.append(part)
        else:
            paths += [found for path in expand(part) for found in _tars_in(path)]
    for path, count in collections.Counter(path.resolve() if isinstance(path, Path) else path for path in paths).items():
        if count > 1:
            raise ConfigError("listed twice", source=path, fix="list each file once")
    opened: list[PairSource] = []
    for kind, group in itertools.groupby(paths, key=_kind):
        if kind == "tar":  # neighbouring shards are one source
            opened.append(TarShards([Path(path) for path in group]))
        else:
            opened += [_OPENERS[kind](path) for path in group]
    source_of_pairs = opened[0] if len(opened) == 1 else Joined(opened)
    for note in source_of_pairs.summary().notes:
        logging.getLogger("ostension.data").warning(note)
    return source_of_pairs


def expand(pattern: str) -> list[Path]:
    """The paths that a pattern stands for: braces give a list in their order, wildcards the files that match, sorted.

    Raises:
        ConfigError: for braces that cannot be understood, or that stand for too many files.
        DataError: for wildcards that match nothing, or a path that does not exist.
    """
    paths: list[Path] = []
    missing: list[str] = []
    for text in _expand_braces(pattern):
        if any(letter in text for letter in "*?[") and not os.path.exists(text):
            found = sorted(glob.glob(text, recursive=True))
        else:
            found = [text] if os.path.exists(text) else []
        paths += map(Path, found)
        if not found:
            missing.append(text)
        if len(paths) + len(missing) > MAX_EXPANDED:
            raise ConfigError(f"more than {MAX_EXPANDED} files", source=pattern)
    if missing:
        total = f"; {len(missing)} of {len(paths) + len(missing)} are missing" if len(paths) + len(missing) > 1 else ""
        raise DataError(f"no such file{total}", source=missing[0], expected="files that exist, a pattern, or the name 'emoji'")
    return paths


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


def _tars_in(path: Path) -> list[Path]:
    """A folder's tar shards if it has any; else the path itself."""
    return (sorted(path.glob("*.tar")) if path.is_dir() else []) or [path]


def _kind(path: Path | str) -> str:
    if isinstance(path, str):
        return "embedded"
    if path.is_dir() and path.suffix != ".tar":
        return "folder"
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in ("tar", "csv", "tsv"):
        raise ConfigError(f"a source ending in {path.suffix!r}", source=path, expected="a folder, .tar, .csv or .tsv")
    return suffix if suffix == "tar" else "table"


def _open_embedded(name: str) -> PairSource:
    return open_emoji(name.partition(":")[2] or "all")


_OPENERS: dict[str, Callable[..., PairSource]] = {"embedded": _open_embedded, "folder": CaptionFolder, "table": Table}
