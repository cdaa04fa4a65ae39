"""The settings of a query list: which groups, what lets an entry in, in which order, and how many at most."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from ostension.config import require
from ostension.errors import ConfigError

Group = Literal["lists", "integers", "words", "bigrams", "titles", "wordnet"]
GROUPS: tuple[Group, ...] = ("lists", "integers", "words", "bigrams", "titles", "wordnet")
LIMIT = 500_000  # the paper's
WORD_COUNT = 100  # the paper's
TITLE_VIEWS = 70  # MetaCLIP's, over 26 days
PAIRS_A_WORD = 0.4  # MetaCLIP's 100,646 bi-grams beside 251,465 words


def _check(rule: object, group: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(rule, name)
        require(value is None or value >= 1, f"{group}.{name}", value, "1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """Single words.

    Attributes:
        min_count: Least count in the corpora. Default: the paper's 100, or 1 with top.
        top: At most so many, the most frequent first.
    """

    min_count: int | None = None
    top: int | None = None

    def __post_init__(self):
        _check(self, "words", ("min_count", "top"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bigrams:
    """Pairs of neighbouring words.

    Attributes:
        score: What pairs rank by: pmi (the paper's), npmi (pmi over its maximum for that count), likelihood (Dunning's G2).
        min_count: Least count of the pair; 10 sets the error of a pmi to half a bit.
        min_score: Least score. Of pmi none is above log2(words / min_count).
        top: At most so many, the highest score first. Default: without min_score, 0.4 for each word that is let in.
    """

    score: Literal["pmi", "npmi", "likelihood"] = "pmi"
    min_count: int = 10
    min_score: float | None = None
    top: int | None = None

    def __post_init__(self):
        _check(self, "bigrams", ("min_count", "top"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Titles:
    """Titles by popularity.

    Attributes:
        files: Page views of Wikimedia, or tables with titles and views; patterns and folders too.
        min_views: Least views in all files together. Default: MetaCLIP's 70, or 1 with top.
        top: At most so many, the most viewed first.
        projects: Whose page views count: en is the desktop site alone, en.m the mobile one.
        hourly_floor: Views an hour below this are dropped.
    """

    files: tuple[str, ...] = ()
    min_views: int | None = None
    top: int | None = None
    projects: tuple[str, ...] = ("en",)
    hourly_floor: int = 50

    def __post_init__(self):
        _check(self, "titles", ("min_views", "top"))
        require(bool(self.projects), "titles.projects", self.projects, "at least one")
        require(self.hourly_floor >= 0, "titles.hourly_floor", self.hourly_floor, "0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wordnet:
    """Names of WordNet's synsets.

    Attributes:
        folder: Of WordNet's database files (data.noun, ...), or find to look where they usually are.
        names: The head of each synset, or all its names.
        top: At most so many, in the order of the files.
    """

    folder: str | None = None
    names: Literal["heads", "all"] = "heads"
    top: int | None = None

    def __post_init__(self):
        _check(self, "wordnet", ("top",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryRules:
    """A whole list.

    Attributes:
        corpora: texts in which words and bi-grams are counted, together.
        columns: what holds the texts in tables, Parquet and JSON lines; by default the first of the usual names.
        encoding: of text files.
        wrapped: lines of text files belong together until an empty one.
        case: "kept" tells capitals apart, as matching does by default; "folded" does not.
        integers: 0 to this, without it.
        add: lists of queries that are taken as they are.
        exclude: lists of queries that are left out, whatever group they come from.
        exclude_matching: so are those in which one of these regular expressions is found.
        order: which groups there are and who comes first; an entry belongs to the first group that has it.
        limit: at most so many in all.
    """

    corpora: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    wrapped: bool = False
    case: Literal["kept", "folded"] = "kept"
    words: Words = Words()
    bigrams: Bigrams = Bigrams()
    titles: Titles = Titles()
    wordnet: Wordnet = Wordnet()
    integers: int = 100
    add: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_matching: tuple[str, ...] = ()
    order: tuple[Group, ...] = GROUPS
    limit: int = LIMIT

    def __post_init__(self):
        require(self.limit >= 1, "limit", self.limit, "1 or more")
        require(0 <= self.integers <= 1_000_000, "integers", self.integers, "0 to 1,000,000")
        require(bool(self.order) and len(set(self.order)) == len(self.order), "order", self.order, "different groups")
        for pattern in self.exclude_matching:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"exclude_matching has {pattern!r}: {error}", expected="a regular expression") from None
        given = {
            "lists": (bool(self.add), "add"), "titles": (bool(self.titles.files), "titles.files"),
            "wordnet": (self.wordnet.folder is not None, "wordnet.folder"),
            "words": (self.words != Words(), "words"), "bigrams": (self.bigrams != Bigrams(), "bigrams"),
        }  # fmt: skip
        for group, (there, setting) in given.items():
            require(not there or group in self.order, setting, "given", f"nothing, or {group!r} in order")
        for group in ("words", "bigrams"):
            require(not given[group][0] or bool(self.corpora), group, "set", "nothing: there is no corpus to count in")
        require(given["titles"][0] or self.titles == Titles(), "titles", "set", "nothing without titles.files")
        require(given["wordnet"][0] or self.wordnet == Wordnet(), "wordnet", "set", "nothing without wordnet.folder")
        if not self.groups():
            raise ConfigError("nothing to make a list of", expected="a corpus, titles, WordNet, integers or a list to add")

    def groups(self) -> tuple[str, ...]:
        """The groups that there are, in order."""
        there = {
            "lists": bool(self.add), "integers": self.integers > 0, "words": bool(self.corpora), "bigrams": bool(self.corpora),
            "titles": bool(self.titles.files), "wordnet": self.wordnet.folder is not None,
        }  # fmt: skip
        return tuple(group for group in self.order if there[group])
