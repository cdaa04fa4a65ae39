"""Captions a second with 500,000 queries: the matcher against the published loop and Aho-Corasick peers, and memory over time.

Captions are made: words by Zipf's law, ten a caption on average, half of them ending in a full stop. The published loop asks
for each query whether it is in the caption; it is run on a few captions. Peers search one caption at a time, as published:

    pip install pyahocorasick ahocorasick_rs

    python benchmarks/curate_match.py --record benchmarks/records/curate_match.json
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _measure import arguments, table, write_record

from ostension import runtime
from ostension.curate.balancing import draw_offline, keep_probabilities, query_counts, query_probabilities
from ostension.curate.matching import PUBLISHED, Matcher, Matches
from ostension.runtime import numpy_generator

WORDS, LONGEST = 300_000, 5  # of the made language; words of the longest query
AT_ONCE = 10_000  # captions: a part
CHECKED = 2_000  # captions whose matches are compared with the peers'
# The command line, and then the most memory that the process had in kB; getrusage would tell that of this one, its parent.
COMMAND = """
import sys
from ostension.cli.main import main
if status := main(sys.argv[1:]):
    sys.exit(status)
with open("/proc/self/status") as lines:
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")), end="")
"""


def main() -> None:
    parsed = arguments(
        __doc__ or "", queries=(500_000, "queries"), captions=(2_000_000, "captions of the long run"),
        peer_captions=(20_000, "captions that peers are given"), loop_captions=(12, "captions that the loop is given"),
        staged=(200_000, "captions of the run through the stages"),
    )  # fmt: skip
    language = Language()
    queries = language.queries(parsed.queries)
    figures = {
        "memory of matching, MB": long_run(language, queries, parsed.captions),
        "matching, one process": against_peers(language, queries, parsed),
        "through the stages": staged(language, queries, parsed.staged),
    }
    for title, rows in figures.items():
        table(title, rows)
    settings = {key: getattr(parsed, key) for key in ("queries", "captions", "peer_captions", "loop_captions", "staged")}
    write_record(parsed.record, "curate_match", settings, figures)


class Language:
    """A made language: word number k is drawn with probability 1 / (k + 1), and frequent words are short."""

    def __init__(self):
        random = numpy_generator("benchmark language")
        syllables = np.array([c + v + e for c in "bcdfghjklmnprstvwz" for v in "aeiou" for e in ("", "n", "r", "s", "t")])
        words: dict[str, None] = {}
        while len(words) < WORDS:
            sizes = 1 + np.minimum(4, np.log(len(words) + 3) / np.log(60) + random.random(20_000) * 1.6).astype(int)
            picks = random.integers(0, len(syllables), (20_000, 5))
            words.update(dict.fromkeys("".join(syllables[row[:size]]) for size, row in zip(sizes, picks, strict=True)))
        self.words = np.array(list(words)[:WORDS], dtype=object)

    def drawn(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Words of a text, by Zipf's law."""
        return self.words[np.minimum((WORDS + 1.0) ** random.random(count) - 1, WORDS - 1).astype(int)]

    def queries(self, count: int) -> list[str]:
        """Half of them words, the rest two to five of them."""
        random, found = numpy_generator("benchmark queries"), dict.fromkeys(self.words[: count // 2].tolist())
        for size, share in ((2, 0.88), (3, 0.96), (4, 0.99), (LONGEST, 1.0)):
            while len(found) < count * share:
                rows = self.drawn(20_000 * size, random).reshape(-1, size)
                found.update(dict.fromkeys(" ".join(row) for row in rows))
        return list(found)[:count]

    def captions(self, count: int) -> Iterator[list[str]]:
        """Lists of up to AT_ONCE captions, made when they are asked for."""
        for start in range(0, count, AT_ONCE):
            random = numpy_generator("benchmark captions", start)
            size = min(AT_ONCE, count - start)
            sizes = np.clip(random.lognormal(2.2, 0.5, size).astype(int), 1, 60)
            ends = np.cumsum(sizes).tolist()
            words = self.drawn(ends[-1], random).tolist()
            marks = np.where(random.random(size) < 0.5, ".", "").tolist()
            yield [
                " ".join(words[end - length : end]) + mark
                for length, end, mark in zip(sizes.tolist(), ends, marks, strict=True)
            ]


def resident() -> float:
    """Megabytes that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def long_run(language: Language, queries: list[str], count: int) -> dict[str, dict[str, float]]:
    """Match, count and balance captions as they come; memory after shares of them."""
    before, start = resident(), time.process_time()
    matcher = Matcher(queries)
    rows = {
        "table of the queries": {"s": time.process_time() - start, "held": matcher.nbytes / 1e6, "grown": resident() - before}
    }
    counts, seconds, done, found = np.zeros(len(queries), dtype=np.int64), 0.0, 0, 0
    for captions in language.captions(count):
        start = time.process_time()
        matches = matcher.match_texts(captions)
        counts += query_counts(matches, len(queries))
        seconds += time.process_time() - start
        done, found = done + len(captions), found + len(matches.entries)
        if any(done - len(captions) < count * share <= done for share in (0.1, 0.5, 1.0)):
            rows[f"after {done:,} captions"] = {"s": seconds, "grown": resident() - before, "captions/s": done / seconds}
    probabilities = query_probabilities(counts, count / 2000)
    kept = expected = 0.0
    for number, captions in enumerate(language.captions(count // 10)):
        matches = matcher.match_texts(captions)
        ids = np.arange(len(captions)) + number * AT_ONCE
        expected += keep_probabilities(matches, probabilities).sum()
        kept += draw_offline(matches, probabilities, ids).sum()
    rows["balanced, kept against expected"] = {"ratio": kept / expected}
    return rows


def against_peers(language: Language, queries: list[str], parsed) -> dict[str, dict[str, float]]:
    """Captions a second of processor time, taking turns; all find the same."""
    captions = [caption for part in language.captions(parsed.peer_captions) for caption in part]
    searches: dict[str, tuple[float, Callable[[list[str]], Matches]]] = {}
    for name, make in (("ours", ours), ("pyahocorasick", pyahocorasick), ("ahocorasick_rs", ahocorasick_rs)):
        if name == "ours" or importlib.util.find_spec("ahocorasick" if name == "pyahocorasick" else name):
            start = time.process_time()
            search = make(queries)
            searches[name] = time.process_time() - start, search
    expected = searches["ours"][1](captions[:CHECKED])
    for _, search in searches.values():
        assert np.array_equal(search(captions[:CHECKED]).entries, expected.entries)
    best = dict.fromkeys(searches, float("inf"))
    for _ in range(parsed.rounds):
        for name, (_, search) in searches.items():
            start = time.process_time()
            search(captions)
            best[name] = min(best[name], time.process_time() - start)
    rates = {name: len(captions) / seconds for name, seconds in best.items()}

    spaced, few = [f" {query} " for query in queries], captions[: parsed.loop_captions]
    start = time.process_time()
    found = [[number for number, query in enumerate(spaced) if query in text] for text in map(PUBLISHED.text, few)]
    rates["published loop"] = len(few) / (time.process_time() - start)
    assert found == [expected[row].tolist() for row in range(len(few))]
    return {
        name: {"captions/s": rate, "ours is faster by": rates["ours"] / rate}
        | ({"made in, s": searches[name][0]} if name in searches else {})
        for name, rate in rates.items()
    }


def ours(queries: list[str]) -> Callable[[list[str]], Matches]:
    return Matcher(queries).match_texts


def pyahocorasick(queries: list[str]) -> Callable[[list[str]], Matches]:
    """As MetaCLIP releases it."""
    import ahocorasick

    automaton = ahocorasick.Automaton()
    for number, query in enumerate(queries):
        automaton.add_word(f" {query} ", number)
    automaton.make_automaton()
    return lambda texts: Matches.of([sorted({n for _, n in automaton.iter(PUBLISHED.text(text))}) for text in texts])


def ahocorasick_rs(queries: list[str]) -> Callable[[list[str]], Matches]:
    """The faster of its automata for so many queries."""
    from ahocorasick_rs import AhoCorasick, Implementation

    kind = Implementation.ContiguousNFA
    automaton = AhoCorasick([f" {query} " for query in queries], implementation=kind, store_patterns=False)
    find = automaton.find_matches_as_indexes
    return lambda texts: Matches.of([sorted({n for n, _, _ in find(PUBLISHED.text(text), overlapping=True)}) for text in texts])


def staged(language: Language, queries: list[str], count: int) -> dict[str, dict[str, float]]:
    """The commands on a file of captions: rows a second of processor time of all processes, and what they hold at most."""
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "queries.txt").write_text("".join(f"{query}\n" for query in queries), encoding="utf-8")
        with open(folder / "captions.txt", "w", encoding="utf-8") as handle:
            for captions in language.captions(count):
                handle.writelines(f"{caption}\n" for caption in captions)
        for workers in (0, 2):
            work = str(folder / f"work{workers}")
            begin = [str(folder / "captions.txt"), "-o", work, "--queries", str(folder / "queries.txt")]
            for stage, options in (("match", begin), ("balance", [work, "--limit", str(count // 2000)])):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                command = [sys.executable, "-c", COMMAND, "curate", stage, *options, "--workers", str(workers), "--json"]
                printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                printed, peak = printed.rsplit("\n", 1)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                what = "reading and match" if stage == "match" else stage
                rows[f"{what}, {workers or 'no'} workers"] = {
                    "rows/s": json.loads(printed)[0]["rows"] / seconds,
                    "s": seconds,
                    "peak of the command, MB": int(peak) / 1e3,
                }
        folders = [
            [path.relative_to(folder / name) for path in sorted((folder / name).rglob("*.parquet"))]
            for name in ("work0", "work2")
        ]
        assert folders[0] == folders[1]
        assert all((folder / "work0" / path).read_bytes() == (folder / "work2" / path).read_bytes() for path in folders[0])
    return rows


if __name__ == "__main__":
    runtime.set_threads(1)
    main()
