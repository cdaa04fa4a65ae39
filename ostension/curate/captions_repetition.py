"""Captions that repeat themselves, and captions that many pairs share.

Within a caption: the longest run of one character, the longest run of one word, and the share of words that came before,

    repeated(words) = 1 - |distinct words| / |words|    for captions of at least 8 words

which is 0 where every word is new. Below 8 words function words decide the share, and it is taken as 0.

Over the whole: how many pairs have a caption, whatever its case and spaces. Counting is exact up to collisions of 64-bit hashes
(a chance of one in 37 million for a million captions). Hashes go to 256 files by their last 8 bits, each is counted alone,
and what more pairs than allowed share is kept. A hash takes 8 bytes on the disk on the way, a 256th of them lie in memory.

Source: captions shared by more than ten images are left out of ALIGN (Jia et al., 2021, section 3.1); shares of repeated words
are common in cleaning text of the web (Rae et al., 2021, appendix A1).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

FEW_WORDS = 8
FILES = 256
_RUN = re.compile(r"([^\W\d_]|[^\w\s])\1+")


def longest_character_run(text: str) -> int:
    """How often the most repeated character follows itself, itself included: 4 for "sooooo?". Digits and spaces count not."""
    return max((match.end() - match.start() for match in _RUN.finditer(text)), default=min(len(text), 1))


def longest_word_run(words: Sequence[str]) -> int:
    """How often a word (case-folded already) follows itself, itself included."""
    longest = run = 0
    before = None
    for word in words:
        run = run + 1 if word == before else 1
        longest, before = max(longest, run), word
    return longest


def repeated_share(words: Sequence[str]) -> float:
    """The share of words that came before in the caption; see the equation above."""
    return 1 - len(set(words)) / len(words) if len(words) >= FEW_WORDS else 0.0


def caption_hash(text: str) -> int:
    """64 bits of a caption's BLAKE2b, whatever its case and spaces."""
    plain = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "little")


def count_shared(batches: Iterable[np.ndarray], most: int, folder: Path, *, files: int = FILES) -> np.ndarray:
    """The hashes (uint64, ascending) that come more than `most` times in all batches together.

    Args:
        batches: hashes, each once for each pair.
        folder: for the files on the way, which are removed.
        files: how many, of which each is counted alone.
    """
    paths = [folder / f"captions-{number:02x}.tmp" for number in range(files)]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open(path, "wb")) for path in paths]
        for hashes in batches:
            hashes = np.asarray(hashes, "<u8")
            places = (hashes % np.uint64(files)).astype(np.int64)
            hashes = hashes[np.argsort(places, kind="stable")]
            ends = np.cumsum(np.bincount(places, minlength=files))
            for file, part in zip(opened, np.split(hashes, ends[:-1]), strict=True):
                file.write(part.tobytes())
    found = []
    for path in paths:
        values, counts = np.unique(np.fromfile(path, "<u8"), return_counts=True)
        found.append(values[counts > most])
        path.unlink()
    return np.sort(np.concatenate(found))
