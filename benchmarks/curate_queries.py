"""Counting words and pairs for a query list: bytes a second against plain loops, and memory by the size of the corpus.

The corpus is made: lines of words by Zipf's law, some with punctuation. "published loop" is the way of MetaCLIP's builder, a
character at a time into dictionaries; "regex and Counter" is the usual short form. Both keep every word and pair in memory.

    python benchmarks/curate_queries.py --record benchmarks/records/curate_queries.json
"""

from __future__ import annotations

import collections
import gzip
import itertools
import re
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _measure import arguments, table, write_record
from curate_match import Language

RULES = re.compile(r"[^\W_]+(?:['&/_-][^\W_]+)*")
PAIRS_FROM = 10  # least count of the pairs that are added up
COUNT = """
import resource, sys, time
from pathlib import Path
import pyarrow.compute, pyarrow.parquet, ostension.data.open
from ostension.curate.queries.corpora import Reading, open_corpora
from ostension.curate.queries.counting import count
start = time.process_time()
counts = count(open_corpora([sys.argv[1]], Reading()), Path(sys.argv[2]))
counts.pairs(int(sys.argv[3]), lambda *_: None)
print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, counts.num_words)
"""


def main() -> None:
    parsed = arguments(
        __doc__ or "", megabytes=(16, "of the corpus that all are given"), large=(96, "megabytes of the long run"),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = made(folder / "small.txt", parsed.megabytes), made(folder / "large.txt", parsed.large)
        packed = folder / "small.txt.gz"
        packed.write_bytes(gzip.compress(small.read_bytes(), 6))
        ours = {text.name: ours_on(text, folder) for text in (small, packed, large)}
        peers = {"published loop": published(small), "regex and Counter": short(small)}
    rate = {name: parsed.megabytes / seconds for name, (seconds, _, _) in {**peers, "ostension": ours["small.txt"]}.items()}
    found = {name: words for name, (_, _, words) in {**peers, "ostension": ours["small.txt"]}.items()}
    assert len(set(found.values())) == 1, found  # all count the same words
    figures = {
        f"counting {parsed.megabytes} MB": {
            name: {"MB/s": rate[name], "x published": rate[name] / rate["published loop"]} for name in rate
        },
        "by size and form": {
            name: {"MB/s": size / seconds, "peak memory, MB": memory}
            for (name, (seconds, memory, _)), size in zip(
                ours.items(), (parsed.megabytes, parsed.megabytes, parsed.large), strict=True
            )
        },
    }
    for title, rows in figures.items():
        table(title, rows)
    write_record(parsed.record, "curate_queries", {"megabytes": parsed.megabytes, "large": parsed.large}, figures)


def made(path: Path, megabytes: int) -> Path:
    """A corpus of so many megabytes."""
    language, size = Language(), 0
    with open(path, "w", encoding="utf-8") as handle:
        for number, captions in enumerate(language.captions(10**9)):
            for place, line in enumerate(captions):
                text = line if (number + place) % 3 else line.replace(" ", ", ", 1)
                size += handle.write(text + "\n")
                if size >= megabytes * 1_000_000:
                    return path
    return path


def ours_on(path: Path, folder: Path) -> tuple[float, float, int]:
    """Seconds of processor time, peak memory in MB and words, in a process of its own."""
    code = [sys.executable, "-c", COUNT, str(path), str(folder / f"counts-{path.name}"), str(PAIRS_FROM)]
    seconds, memory, words = subprocess.run(code, capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(memory) / 1e3, int(words)


def published(path: Path) -> tuple[float, float, int]:
    start = time.process_time()
    words: dict[str, int] = collections.defaultdict(int)
    pairs: dict[str, int] = collections.defaultdict(int)
    for line in path.read_text(encoding="utf-8").split("\n"):
        tokens: list[str] = []
        current: list[str] = []
        for letter in line:
            if letter in string.punctuation:
                if current:
                    tokens.append("".join(current))
                    current = []
                tokens.append(letter)
            elif letter.isspace():
                if current:
                    tokens.append("".join(current))
                    current = []
            else:
                current.append(letter)
        if current:
            tokens.append("".join(current))
        before = None
        for token in tokens:
            if all(letter in string.punctuation for letter in token):
                before = None
                continue
            words[token] += 1
            if before is not None:
                pairs[f"{before} {token}"] += 1
            before = token
    return time.process_time() - start, 0.0, sum(words.values())


def short(path: Path) -> tuple[float, float, int]:
    start = time.process_time()
    words: collections.Counter[str] = collections.Counter()
    pairs: collections.Counter[tuple[str, str]] = collections.Counter()
    for line in path.read_text(encoding="utf-8").split("\n"):
        for phrase in re.split(r"[,.;:?!`]", line):
            found = RULES.findall(phrase)
            words.update(found)
            pairs.update(itertools.pairwise(found))
    return time.process_time() - start, 0.0, words.total()


if __name__ == "__main__":
    main()
