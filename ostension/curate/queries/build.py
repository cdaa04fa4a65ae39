"""A query list from its rules: groups in order, each entry in the first group that has it, until the list is full."""

from __future__ import annotations

import collections
import dataclasses
import re
import string
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import to_tree
from ostension.curate.queries.corpora import CHUNK_BYTES, Reading, open_corpora
from ostension.curate.queries.counting import Counts, Pairs, Progress, count
from ostension.curate.queries.listing import MAX_LETTERS, Queries, has_controls, read_queries
from ostension.curate.queries.ranking import first, most, score
from ostension.curate.queries.rules import PAIRS_A_WORD, TITLE_VIEWS, WORD_COUNT, QueryRules
from ostension.curate.queries.segment import pair_text
from ostension.curate.queries.titles import Titles, count_titles
from ostension.curate.queries.wordnet import synset_names
from ostension.errors import ConfigError, DataError

Candidates = tuple[list[str], np.ndarray, np.ndarray]  # texts in order of rank, counts (-1: none), scores (nan: none)


@dataclasses.dataclass(frozen=True)
class Source:
    """A group of candidates.

    Attributes:
        first: the first so many by rank (all for None).
        total: how many there are.
        top: at most so many are taken.
        facts: what is to be known of the group.
    """

    first: Callable[[int | None], Candidates]
    total: int
    top: int | None
    facts: dict[str, Any]


def build(
    rules: QueryRules, folder: Path, *, workers: int = 0, scratch: bool = False, chunk_bytes: int = CHUNK_BYTES,
    progress: Progress = lambda *_: None,
) -> Queries:  # fmt: skip
    """The list of queries that `rules` describe; counts lie in `folder`, where work that was stopped goes on.

    The same rules and corpora give the same list, whatever the number of workers and however often it was stopped.

    Args:
        scratch: what else was counted in the folder is removed instead of refused.

    Raises:
        ConfigError: for a threshold that nothing can reach; the message says what could.
        DataError: for files that cannot be read.
    """
    maker = _Maker(rules, folder, workers, scratch, chunk_bytes, progress)
    wanted = rules.groups()
    excluded, patterns = maker.exclusions()
    texts: dict[str, str] = {}
    counts: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    ranks: list[np.ndarray] = []
    groups: list[dict[str, Any]] = []
    for group in wanted:
        source = maker.source(group, groups)
        room = rules.limit - len(texts)
        taken, reasons = _fill(source, room, lambda text: _refusal(text, texts, excluded, patterns))
        texts.update(dict.fromkeys(taken.texts, group))
        counts.append(taken.counts)
        scores.append(taken.scores)
        ranks.append(taken.ranks)
        facts: dict[str, Any] = {"group": group, "candidates": source.total, "taken": len(taken.texts), **reasons}
        if len(taken.texts) and taken.counts[-1] >= 0:
            facts["lowest_count"] = int(taken.counts.min())
        if len(taken.texts) and not np.isnan(taken.scores[-1]):
            facts["lowest_score"] = float(taken.scores.min())
        groups.append({**facts, **source.facts})
    if not texts:
        fix = "lower a threshold or take an exclusion back"
        raise DataError("nothing is left of any group", expected="at least one query", fix=fix)
    return Queries(
        list(texts), list(texts.values()), np.concatenate(counts), np.concatenate(scores), np.concatenate(ranks),
        {"format": 1, "rules": to_tree(rules), "groups": groups, **maker.facts()},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Taken:
    texts: list[str]
    counts: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray


def _fill(source: Source, room: int, refusal: Callable[[str], str | None]) -> tuple[_Taken, dict[str, Any]]:
    """As many candidates as there is room for, by rank, and why others were not taken."""
    most_wanted = min(room, source.top if source.top is not None else room)
    asked = most_wanted
    while True:
        texts, counts, scores = source.first(asked)
        reasons: collections.Counter[str] = collections.Counter()
        places: list[int] = []
        own: set[str] = set()
        looked_at = 0
        for place, text in enumerate(texts):
            if len(places) == most_wanted:
                break
            looked_at += 1
            why = "repeated" if text in own else refusal(text)
            if why is None:
                places.append(place)
                own.add(text)
            else:
                reasons[why] += 1
        if len(places) == most_wanted or len(texts) < asked:
            break
        asked *= 2
    left = source.total - looked_at
    found: dict[str, Any] = {"refused": dict(sorted(reasons.items()))}
    if left > 0:
        found["beyond_top" if most_wanted < room or source.top == room else "beyond_limit"] = left
        if looked_at < len(texts):
            found["next"] = texts[looked_at]
    kept = np.array(places, np.int64)
    return _Taken([texts[place] for place in places], counts[kept], scores[kept], kept + 1), found


def _refusal(text: str, taken: dict[str, str], excluded: set[str], patterns: list[re.Pattern]) -> str | None:
    """Why an entry is not taken; None if it is."""
    if text in taken:
        return "in an earlier group"
    if text in excluded:
        return "excluded by a list"
    if any(pattern.search(text) for pattern in patterns):
        return "excluded by an expression"
    if len(text) > MAX_LETTERS or has_controls(text):
        return "too long or with control characters"
    if all(letter in string.punctuation or unicodedata.category(letter)[0] in "PZ" for letter in text):
        return "punctuation alone"
    return None


class _Maker:
    """Makes the groups' candidates; what is counted is counted once."""

    def __init__(
        self, rules: QueryRules, folder: Path, workers: int, scratch: bool, chunk_bytes: int, progress: Progress
    ):  # fmt: skip
        self.rules, self.folder, self.workers, self.scratch, self.progress = rules, folder, workers, scratch, progress
        self.counts: Counts | None = None
        self.titles: Titles | None = None
        reading = Reading(columns=rules.columns, encoding=rules.encoding, wrapped=rules.wrapped)
        self.corpora = open_corpora(rules.corpora, reading)
        if self.corpora and {"words", "bigrams"} & set(rules.groups()):
            self.counts = count(
                self.corpora, folder / "text", case=rules.case, workers=workers, chunk_bytes=chunk_bytes, scratch=scratch,
                progress=progress,
            )  # fmt: skip
            if not self.counts.num_words:
                rejects = "".join(f", {number:,} {why}" for why, number in self.counts.rejects.items())
                raise DataError(f"not a word in the corpora{rejects}", source=", ".join(rules.corpora), expected="text")

    def source(self, group: str, groups: list[dict[str, Any]]) -> Source:
        if group == "bigrams":
            words = next((found["taken"] for found in groups if found["group"] == "words"), None)
            return self._bigrams(words)
        return getattr(self, f"_{group}")()

    def exclusions(self) -> tuple[set[str], list[re.Pattern]]:
        lists = [read_queries(path, clean=True).texts for path in self.rules.exclude]
        return {self._written(text) for texts in lists for text in texts}, list(map(re.compile, self.rules.exclude_matching))

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.corpora:
            names = ("name", "form", "digest", "size")
            found["corpora"] = [{name: getattr(corpus, name) for name in names} for corpus in self.corpora]
        if self.counts is not None:
            sums = ("num_texts", "num_words", "num_letters", "num_long", "rejects")
            found["counted"] = {name: getattr(self.counts, name) for name in sums}
            found["counted"]["different_words"] = self.counts.num_with(1)
        if self.titles is not None:
            found["titles"] = {"files": self.titles.files, "rejects": self.titles.rejects}
        return found

    def _written(self, text: str) -> str:
        text = unicodedata.normalize("NFC", " ".join(text.split()))
        return unicodedata.normalize("NFC", text.casefold()) if self.rules.case == "folded" else text

    def _listed(self, texts: list[str], top: int | None, facts: dict[str, Any]) -> Source:
        found = list(dict.fromkeys(filter(None, map(self._written, texts))))
        none = np.full(len(found), -1, np.int64), np.full(len(found), np.nan)
        return Source(lambda k: (found[:k], none[0][:k], none[1][:k]), len(found), top, facts)

    def _lists(self) -> Source:
        return self._listed([text for path in self.rules.add for text in read_queries(path, clean=True).texts], None, {})

    def _integers(self) -> Source:
        return self._listed(list(map(str, range(self.rules.integers))), None, {})

    def _wordnet(self) -> Source:
        rule = self.rules.wordnet
        assert rule.folder is not None
        names, place = synset_names(rule.folder, rule.names)
        return self._listed(names, rule.top, {"read_from": place})

    def _words(self) -> Source:
        assert self.counts is not None
        rule, counts = self.rules.words, self.counts
        least = rule.min_count or (WORD_COUNT if rule.top is None else 1)
        total = counts.num_with(least)
        if not total:
            highest = max(counts.by_count)
            raise ConfigError(
                f"words.min_count is {least:,}, and no word of {counts.num_words:,} was seen more than {highest:,} times",
                expected="a lower count", fix="or choose by rank: --words.top 1000",
            )  # fmt: skip
        return Source(lambda k: _by_count(counts.batches(), least, k), total, rule.top, {"min_count": least})

    def _titles(self) -> Source:
        rule = self.rules.titles
        self.titles = count_titles(
            rule.files, self.folder / "titles", projects=rule.projects, hourly_floor=rule.hourly_floor, case=self.rules.case,
            workers=self.workers, scratch=self.scratch, progress=self.progress,
        )  # fmt: skip
        titles = self.titles
        least = rule.min_views or (TITLE_VIEWS if rule.top is None else 1)
        numbers = [(int((views >= least).sum()), int(views.max())) for _, views in titles.batches()]
        total = sum(number for number, _ in numbers)
        if not total:
            what = f"titles.min_views is {least:,}, and no title of {', '.join(rule.projects)} has more than "
            highest = max((views for _, views in numbers), default=0)
            raise ConfigError(f"{what}{highest:,}", expected="a lower number", fix="or choose by rank: --titles.top 1000")
        return Source(lambda k: _by_count(titles.batches(), least, k), total, rule.top, {"min_views": least})

    def _bigrams(self, words_taken: int | None) -> Source:
        assert self.counts is not None
        rule, total = self.rules.bigrams, self.counts.num_words
        highest = most(rule.score, rule.min_count, total)
        if rule.min_score is not None and rule.min_score > highest:
            needed = f", or {2**rule.min_score * rule.min_count:.3g} words" if rule.score == "pmi" else ""
            what = f"in {total:,} words no pair seen {rule.min_count} times can have a {rule.score} above {highest:.2f}"
            raise ConfigError(
                f"bigrams.min_score is {rule.min_score:g}, and {what}", expected=f"a lower score{needed}",
                fix="or choose by rank: --bigrams.top 1000",
            )  # fmt: skip
        pairs = self.counts.pairs(rule.min_count, self.progress)
        least = 0.0 if rule.min_score is None else rule.min_score
        number = sum(len(keys) for keys, _, _ in self._scored(pairs, least))
        top = rule.top
        facts: dict[str, Any] = {"score": rule.score, "min_count": rule.min_count, "highest_possible": highest}
        if top is None and rule.min_score is None and words_taken is not None:
            top = max(1, round(PAIRS_A_WORD * words_taken))
        if rule.min_score is not None:
            facts["min_score"] = rule.min_score
        if rule.score == "likelihood":
            del facts["highest_possible"]

        def found(k: int | None) -> Candidates:
            keys, counts, scores = first(self._scored(pairs, least), k)
            one, other = (_texts(pairs.words.take(part)) for part in _parts(keys))
            return list(map(pair_text, one, other)), counts, scores

        return Source(found, number, top, facts)

    def _scored(self, pairs: Pairs, least: float) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """Pairs that stand together more than by chance, and at least `least` so."""
        import pyarrow as pa

        assert self.counts is not None
        for one, other, both in pairs.batches():
            scores = score(self.rules.bigrams.score, both, pairs.counts[one], pairs.counts[other], self.counts.num_words)
            kept = (scores > 0) & (scores >= least)
            yield pa.array((one[kept] << 32) | other[kept], pa.int64()), both[kept], scores[kept]


def _parts(keys: Any) -> tuple[Any, Any]:
    import pyarrow as pa

    numbers = np.asarray(keys.to_numpy(zero_copy_only=False), np.int64)
    return pa.array(numbers >> 32), pa.array(numbers & 0xFFFFFFFF)


def _by_count(batches: Iterator[tuple[Any, np.ndarray]], least: int, k: int | None) -> Candidates:
    """The most frequent keys; of equals, the first by their bytes."""
    import pyarrow as pa

    def kept() -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        for keys, counts in batches:
            wanted = counts >= least
            yield keys.filter(pa.array(wanted)), counts[wanted], np.zeros(int(wanted.sum()))

    keys, counts, _ = first(kept(), k)
    return _texts(keys), counts, np.full(len(counts), np.nan)


def _texts(keys: Any) -> list[str]:
    return [key.decode("utf-8") for key in keys.to_pylist()]
