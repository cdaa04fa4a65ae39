"""The audit's word lists: words with several visible senses, and words that have nothing to do with each other."""

from __future__ import annotations

import functools
from pathlib import Path

from ostension.data.task import read_record
from ostension.evals.audit.names import folded, singular

DATA = Path(__file__).parents[1] / "data"


@functools.cache
def reference_words() -> tuple[str, ...]:
    """Everyday words that have nothing to do with each other."""
    return tuple(read_record(DATA / "reference_words.toml", "a list of words")["words"])


@functools.cache
def known_senses() -> dict[str, tuple[str, ...]]:
    """Words with several visible senses, and the senses as names."""
    found = read_record(DATA / "senses.toml", "a list of senses")["senses"]
    return {word: tuple(senses) for word, senses in found.items()}


def senses_of(name: str) -> tuple[str, ...]:
    """The visible senses of a class name; none where it is one sense, not on the list, or says which in brackets."""
    if "(" in name:
        return ()
    words = folded(name)
    return known_senses().get(words) or known_senses().get(singular(words)) or ()
