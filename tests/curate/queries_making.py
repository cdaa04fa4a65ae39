"""Plain counts to compare with, and corpora made on the spot."""

from __future__ import annotations

import collections
import itertools
import unicodedata

import numpy as np

from ostension.runtime import numpy_generator

JOINERS = "'\u2019-\u2010\u2011&/_\u00b7\u00ad\u200c\u200d"
HAN = ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))


def kind(letter):
    """The rule of `segment`, a character at a time."""
    if letter in JOINERS:
        return "joiner"
    if any(low <= ord(letter) <= high for low, high in HAN):
        return "alone"
    category = unicodedata.category(letter)
    if letter in "`\ufffd\0":
        return "other"
    if category[0] in "LMN" or category in ("Sc", "So"):
        return "word"
    return "space" if category[0] == "Z" or category == "Cc" else "other"


def plain_words(text):
    """Words of a text, and for each but the last whether the next is its neighbour."""
    text = unicodedata.normalize("NFC", text)
    kinds = [kind(letter) for letter in text]
    for place in range(1, len(text) - 1):
        if kinds[place] == "joiner" and kinds[place - 1] == "word" == kinds[place + 1]:
            kinds[place] = "inner"
    words, ends, starts = [], [], []
    for place, letter in enumerate(text):
        if kinds[place] in ("word", "inner") and words and ends[-1] == place and kinds[place - 1] in ("word", "inner"):
            words[-1] += letter
            ends[-1] = place + 1
        elif kinds[place] in ("word", "inner", "alone"):
            words.append(letter)
            starts.append(place)
            ends.append(place + 1)
    linked = []
    for place in range(len(words) - 1):
        between = kinds[ends[place] : starts[place + 1]]
        alone = [kinds[starts[one]] == "alone" for one in (place, place + 1)]
        near = alone[0] == alone[1] and (not between) == alone[0]
        linked.append(near and all(one == "space" for one in between))
    kept = [place for place, word in enumerate(words) if len(word) <= 64]
    links = [linked[one] and other == one + 1 for one, other in itertools.pairwise(kept)]
    return [words[place] for place in kept], links


def plain_counts(texts, case="kept"):
    """Counts of words and of pairs over texts."""
    words, pairs = collections.Counter(), collections.Counter()
    for text in texts:
        found, linked = plain_words(text.casefold() if case == "folded" else text)
        words.update(found)
        pairs.update(pair for pair, near in zip(itertools.pairwise(found), linked, strict=True) if near)
    return words, pairs


def made_texts(number, seed=0):
    """Texts with a vocabulary like that of a language: few frequent words, many rare ones, capitals, marks, other scripts."""
    generator = numpy_generator(seed, "made texts")
    known = [f"w{place}" for place in range(300)] + ["New", "York", "t-shirt", "naïve", "猫", "東京", "don't", "Straße", "❤"]
    texts = []
    for length in generator.integers(1, 25, number):
        places = np.minimum(generator.zipf(1.3, length) - 1, len(known) - 1)
        marks = generator.choice([" ", " ", " ", " ", ", ", ". ", " (", ") "], length)
        texts.append("".join(known[place] + mark for place, mark in zip(places, marks, strict=True)).strip())
    return texts


def counted_words(counts):
    return {
        word.decode(): int(count)
        for words, numbers in counts.batches()
        for word, count in zip(words.to_pylist(), numbers, strict=True)
    }


def counted_pairs(counts, min_count):
    pairs = counts.pairs(min_count, lambda *_: None)
    words = [word.decode() for word in pairs.words.to_pylist()]
    return {
        (words[one], words[other]): int(count)
        for batch in pairs.batches()
        for one, other, count in zip(*batch, strict=True)
    }
