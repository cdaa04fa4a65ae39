"""Exact counts of the words and pairs of corpora of any size, in one pass, by any number of processes, over many kills.

Each chunk is counted on its own, and its words and pairs are written as sorted runs (`runs`): a function of the chunk alone, so
it does not matter who counts it or when. A chunk whose runs are there is not counted again. In the end the runs are added up.
Pairs come after words, because only those of frequent words are wanted: a pair is no more frequent than its rarer word.

    COUNTS/counting.json               what is counted and how; another corpus or another rule is refused
    COUNTS/chunks/000000-pairs.parquet, 000000-words.parquet, 000000.json    the last one says that the chunk is done
    COUNTS/words.parquet               all words with their counts, sorted by their bytes
    COUNTS/pairs-5.parquet             pairs seen 5 times or more, by the numbers of their words among those as frequent

Memory: a worker holds one chunk of text with its words, merging `FAN_IN` batches, and the pairs' step the frequent words.
"""

from __future__ import annotations

import collections
import dataclasses
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import to_tree
from ostension.curate.queries.corpora import CHUNK_BYTES, Chunk, Corpus, plan
from ostension.curate.queries.runs import NUMBERS, WORDS, Batch, merge_files, read_run, write_run
from ostension.curate.queries.segment import RULE, Case, Segmented, segment
from ostension.curate.queries.texts import Texts
from ostension.data.workers import in_line, in_processes
from ostension.errors import DataError
from ostension.files import PARTIAL_SUFFIX, folder_lock, read_json, write_json

FORMAT = 1
_NAME = "counting.json"
Progress = Callable[[str, int], None]  # what was done, and how many more letters or rows of it


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counted corpora.

    Attributes:
        folder: where the counts lie.
        num_words: words in all, N of the pointwise mutual information.
        num_texts: texts that were read.
        num_letters: letters that were read.
        num_long: runs of letters that were too long to be words.
        rejects: what was no text, by reason.
        by_count: for each count that a word has, how many words have it, most frequent first.
    """

    folder: Path
    num_words: int
    num_texts: int
    num_letters: int
    num_long: int
    rejects: dict[str, int]
    by_count: dict[int, int]

    def batches(self) -> Iterator[Batch]:
        """All words (binary Arrow arrays, sorted by their bytes) with their counts."""
        return read_run(self.folder / "words.parquet")

    def words(self, min_count: int) -> tuple[Any, np.ndarray]:
        """Words seen at least so often, with their counts, sorted by their bytes."""
        import pyarrow as pa

        found = [(words.filter(pa.array(counts >= min_count)), counts[counts >= min_count]) for words, counts in self.batches()]
        if not found:
            return pa.array([], pa.binary()), np.zeros(0, np.int64)
        return pa.concat_arrays([words for words, _ in found]), np.concatenate([counts for _, counts in found])

    def num_with(self, min_count: int) -> int:
        """How many words were seen at least so often."""
        return sum(words for count, words in self.by_count.items() if count >= min_count)

    def pairs(self, min_count: int, progress: Progress) -> Pairs:
        """The pairs that were seen at least so often."""
        return _pairs(self, min_count, progress)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of words seen at least so often.

    Attributes:
        words: the words that are as frequent (a binary Arrow array, sorted by bytes), with counts.
        path: the run of pairs; a key is the first word's number * 2**32 + the second one's.
    """

    words: Any
    counts: np.ndarray
    path: Path

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """First words, second words (int64 numbers), counts; in the order of the words' bytes."""
        for keys, counts in read_run(self.path):
            yield *split_keys(keys), counts


def split_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the first and of the second words of pairs."""
    return (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def count(
    corpora: Sequence[Corpus], folder: Path, *, case: Case = "kept", workers: int = 0, chunk_bytes: int = CHUNK_BYTES,
    scratch: bool = False, progress: Progress = lambda *_: None,
) -> Counts:  # fmt: skip
    """The counts of corpora in `folder`, where work that was stopped goes on.

    Args:
        scratch: counts of something else in the folder are removed instead of refused.

    Raises:
        DataError: if the folder holds other counts, is in use, or a corpus cannot be read.
    """
    settings = {
        "format": FORMAT, "rule": RULE, "unicode": unicodedata.unidata_version, "case": case, "chunk_bytes": chunk_bytes,
        "corpora": [to_tree(dataclasses.replace(corpus, name=Path(corpus.name).name)) for corpus in corpora],
    }  # fmt: skip
    with folder_lock(folder):
        claim(folder, _NAME, settings, scratch)
        chunks = folder / "chunks"
        chunks.mkdir(exist_ok=True)
        for torn in chunks.glob(f".*{PARTIAL_SUFFIX}"):  # of a count that was killed
            torn.unlink()
        done = frozenset(int(path.stem) for path in chunks.glob("*.json"))
        facts = [read_json(chunks / f"{number:06d}.json") for number in sorted(done)]
        for found in facts:
            progress("counted before", found["num_letters"])
        spool = folder / "spool"
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir()
        work = CountChunk(tuple(corpora), case, chunks)
        tasks = plan(corpora, spool, done, chunk_bytes)
        for found in in_processes(work, tasks, workers, timeout_s=3600.0) if workers > 1 else in_line(work, tasks):
            facts.append(found)
            progress("counted", found["num_letters"])
        shutil.rmtree(spool, ignore_errors=True)
        return _added_up(folder, facts, progress)


def claim(folder: Path, name: str, settings: dict[str, Any], scratch: bool) -> None:
    """Say in file `name` what the folder's counts are of, or find the same said there.

    Raises:
        DataError: if it holds counts of something else, unless they are scratch, or things that are no counts.
    """
    path = folder / name
    if path.is_file() and read_json(path) == settings:
        return
    inside = [one for one in folder.iterdir() if not one.name.startswith(".")]
    if path.is_file() and scratch:
        for one in inside:
            shutil.rmtree(one) if one.is_dir() else one.unlink()
    elif path.is_file():
        what = "counts of other files, or with other settings"
        raise DataError(what, source=folder, fix="name another folder, or remove this one")
    elif inside:
        raise DataError("a folder with other things in it", source=folder, expected="an empty one, or one with counts")
    write_json(path, settings)


@dataclasses.dataclass(frozen=True)
class CountChunk:
    """Counts a chunk and writes its runs; what a worker does."""

    corpora: tuple[Corpus, ...]
    case: Case
    folder: Path

    def __call__(self, task: Any, note: Callable[[str], None]) -> dict[str, Any]:
        chunk: Chunk = task
        texts = Texts(self.corpora, self.case)
        segments: list[Segmented] = []
        for span in chunk.spans:
            note(self.corpora[span.corpus].name)
            segments += map(segment, texts.pieces(span))
            if span.spool is not None:
                Path(span.spool).unlink()
        name = self.folder / f"{chunk.number:06d}"
        words, pairs = _tally(segments)
        write_run(name.with_name(name.name + "-pairs.parquet"), _sliced(*pairs))
        write_run(name.with_name(name.name + "-words.parquet"), _sliced(*words))
        facts = {
            "num_words": int(words[1].sum()), "num_texts": texts.num_texts, "num_letters": texts.num_letters,
            "num_long": sum(found.num_long for found in segments), "rejects": dict(+texts.rejects),
        }  # fmt: skip
        write_json(name.with_suffix(".json"), facts)
        return facts


def _tally(segments: list[Segmented]) -> tuple[Batch, Batch]:
    """The words and the pairs of all segments, sorted; the numbers of words in pairs are places in the sorted words."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = [one for one in segments if len(one.ids)]
    if not found:
        return (pa.array([], pa.binary()), np.zeros(0, np.int64)), (np.zeros(0, np.uint64), np.zeros(0, np.int64))
    every = pa.concat_arrays([one.vocabulary for one in found]).dictionary_encode()
    order = pc.sort_indices(every.dictionary).to_numpy()
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order))
    places = numbers[every.indices.to_numpy()]
    counts = np.zeros(len(order), np.int64)
    keys: list[np.ndarray] = []
    start = 0
    for one in found:
        own = places[start : start + len(one.vocabulary)]
        start += len(one.vocabulary)
        counts[own] += np.bincount(one.ids, minlength=len(own))
        ids = own[one.ids].view(np.uint64)
        keys.append(((ids[:-1] << np.uint64(32)) | ids[1:])[one.linked])
    joined = np.concatenate(keys)
    joined.sort()
    firsts = np.flatnonzero(np.concatenate([[True], joined[1:] != joined[:-1]])) if len(joined) else np.zeros(0, np.int64)
    repeats = np.diff(firsts, append=len(joined))
    return (every.dictionary.take(pa.array(order)), counts), (joined[firsts], repeats)


def _sliced(keys: Any, counts: np.ndarray) -> Iterator[Batch]:
    if len(counts):
        yield keys, counts


def _added_up(folder: Path, facts: list[dict[str, Any]], progress: Progress) -> Counts:
    """Merge the words of all chunks, unless that was done before."""
    path, totals = folder / "words.parquet", folder / "totals.json"
    if not totals.is_file():
        by_count: collections.Counter[int] = collections.Counter()

        def batches() -> Iterator[Batch]:
            for words, counts in merge_files(sorted((folder / "chunks").glob("*-words.parquet")), WORDS, folder):
                values, times = np.unique(counts, return_counts=True)
                by_count.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
                progress("words added up", len(counts))
                yield words, counts

        write_run(path, batches())
        rejects: collections.Counter[str] = collections.Counter()
        for found in facts:
            rejects.update(found["rejects"])
        sums = {name: sum(found[name] for found in facts) for name in ("num_words", "num_texts", "num_letters", "num_long")}
        write_json(totals, {**sums, "rejects": dict(rejects), "by_count": sorted(by_count.items(), reverse=True)})
    found = read_json(totals)
    return Counts(folder=folder, **{**found, "by_count": dict(map(tuple, found["by_count"]))})


def _pairs(counts: Counts, min_count: int, progress: Progress) -> Pairs:
    import pyarrow.compute as pc

    words, numbers = counts.words(min_count)
    path = counts.folder / f"pairs-{min_count}.parquet"

    def read(run: Path) -> Iterator[Batch]:
        """The pairs of a chunk, by the numbers of the frequent words; both kinds of numbers are in the order of the bytes."""
        own = [batch for batch, _ in read_run(run.with_name(run.name.replace("-pairs", "-words")))]
        places = [pc.index_in(batch, value_set=words).fill_null(-1).to_numpy() for batch in own]
        if not places:
            return
        renamed = np.concatenate(places).astype(np.int64)
        for keys, times in read_run(run):
            first, second = (renamed[part] for part in split_keys(keys))
            kept = (first >= 0) & (second >= 0)
            yield ((first[kept] << 32) | second[kept]).astype(np.uint64), times[kept]

    def frequent() -> Iterator[Batch]:
        runs = sorted((counts.folder / "chunks").glob("*-pairs.parquet"))
        for keys, times in merge_files(runs, NUMBERS, counts.folder, read):
            progress("pairs added up", len(keys))
            kept = times >= min_count
            if kept.any():
                yield keys[kept], times[kept]

    if not path.is_file():
        write_run(path, frequent())
    return Pairs(words, numbers, path)
