"""Concepts: a vocabulary of nouns read off captions, those that a picture shows in a model's eyes, and a captioner's prompt.

**Vocabulary.** No parser is at hand, so nouns are what stands where nouns stand. A caption is cut into runs of content words at
punctuation and at function words. A run behind a determiner or a number ("a black dog on ...") is a noun phrase, and its last
word the head; words in -ing and -ed end a run behind the determiner ("a man wearing ..."), and so does what looks like a verb
behind "a" or "an" ("a dog runs": the head of "a" is no plural). In a caption without determiners ("grinning face with big
eyes") each run is a noun phrase. A word is a noun if it is a head in at least `head_share` of its places, or stands on a list
that is given (WordNet's nouns, a list of queries), whose entries of several words are found too. Plurals in -s count as their
singulars where those are words too. That is a rule of thumb for English: for other languages give a list.

**Retrieval.** The concepts of a picture are the k whose texts, in one template, are nearest to it by the model's embeddings.

**Prompt.** "dog, grass, ball:" in front of the caption, cut to half of the context by leaving out the last concepts.

How NLIP parses nouns, the size of its vocabulary and its k are not known to us; these are our choices.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import regex
from torch import Tensor

from ostension.config import require
from ostension.errors import DataError
from ostension.files import read_json, sha256_json, write_json
from ostension.model.clip import CLIP
from ostension.shapes import Float, Int
from ostension.text.prompts import fill
from ostension.text.tokenizer import Tokenizer

FORMAT = 1
TEMPLATE = "a photo of a {}"
_DETERMINERS = (
    "a an the this that these those his her its their my your our some any no each every another other several many few both"
    " one two three four five six seven eight nine ten"
)
_OTHERS = (
    "and or but nor as if while when where than then so of in on at by for from to with without into onto over under above"
    " below behind beside between near against along across around through during before after off up down out about towards"
    " toward upon within is are was were be been being am do does did has have had having can could will would shall should may"
    " might must not it he she they we you i him them us me who whom whose which what there here very too also just"
)
DETERMINERS = frozenset(_DETERMINERS.split())
FUNCTION_WORDS = DETERMINERS | frozenset(_OTHERS.split())
SINGULAR = frozenset(["a", "an", "another", "each", "every", "one", "this", "that"])
_PIECES = regex.compile(r"[\p{L}][\p{L}'’-]*|\d+|[^\s\p{L}\d]")
_LETTER = regex.compile(r"\p{L}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptsConfig:
    """Which nouns become concepts.

    Attributes:
        size: the most concepts; the most frequent ones are taken.
        min_count: captions that a concept stands in.
        head_share: of a word's places, those in which it heads a noun phrase.
    """

    size: int = 2000
    min_count: int = 3
    head_share: float = 0.5

    def __post_init__(self):
        for key in ("size", "min_count"):
            require(getattr(self, key) >= 1, f"concepts.{key}", getattr(self, key), "1 or more")
        require(0 < self.head_share <= 1, "concepts.head_share", self.head_share, "more than 0, at most 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concepts:
    """A vocabulary, the most frequent first.

    Attributes:
        words: the concepts.
        counts: captions in which each stands.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.words)

    def fingerprint(self) -> str:
        return sha256_json([list(self.words), list(self.counts)])

    def save(self, path: str | Path) -> None:
        """Write {"format": 1, "concepts": [[word, count], ...]}."""
        write_json(Path(path), {"format": FORMAT, "concepts": list(zip(self.words, self.counts, strict=True))})

    @classmethod
    def load(cls, path: str | Path) -> Concepts:
        """Read what `save` wrote.

        Raises:
            DataError: for anything else.
        """
        tree: Any = read_json(Path(path))
        try:
            assert tree["format"] == FORMAT
            words, counts = zip(*((str(word), int(count)) for word, count in tree["concepts"]), strict=True)
        except (AssertionError, KeyError, TypeError, ValueError):
            raise DataError("is no vocabulary of concepts", source=path, expected=f"one of format {FORMAT}") from None
        return cls(words=words, counts=counts)


def build_concepts(captions: Iterable[str], config: ConceptsConfig | None = None, nouns: Collection[str] = ()) -> Concepts:
    """The concepts of some captions.

    Args:
        nouns: entries that are concepts wherever they stand, of one word or several.

    Raises:
        DataError: if there is none.
    """
    config = config or ConceptsConfig()
    listed = {tuple(words_of(entry)) for entry in nouns}
    longest = max((len(entry) for entry in listed), default=0)
    seen: Counter[str] = Counter()
    heads: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for caption in captions:
        words = words_of(caption)
        seen.update(set(words))
        heads.update(set(noun_heads(caption)))
        for length in range(1, min(longest, len(words)) + 1):
            spans = {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}
            found.update(" ".join(span) for span in spans & listed)
    for word, count in heads.items():
        if word not in found and count >= config.head_share * seen[word]:
            found[word] = seen[word]
    for word in list(found):
        single = word[:-1]
        if word.endswith("s") and not word.endswith("ss") and single in found and (word,) not in listed:
            found[single] += found.pop(word)
    kept = [(word, count) for word, count in found.items() if count >= config.min_count]
    kept = sorted(kept, key=lambda entry: (-entry[1], entry[0]))[: config.size]
    if not kept:
        raise DataError("the captions have no concepts", expected=f"nouns in {config.min_count} captions or more")
    return Concepts(words=tuple(word for word, _ in kept), counts=tuple(count for _, count in kept))


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, punctuation and numbers left out."""
    return [piece for piece in _PIECES.findall(text.lower()) if _LETTER.match(piece)]


def noun_heads(caption: str) -> list[str]:
    """The heads of a caption's noun phrases, by the rules at the head of this file."""
    pieces = _PIECES.findall(caption.lower())
    bare = not any(piece in DETERMINERS for piece in pieces)
    heads: list[str] = []
    run: list[str] = []
    determiner: str | None = None

    def end() -> None:
        words = run
        if determiner is not None or bare:
            verb = next((place for place, word in enumerate(words) if place and word.endswith(("ing", "ed"))), len(words))
            words = words[:verb]
            if determiner in SINGULAR and len(words) > 1 and words[-1].endswith("s") and not words[-1].endswith(("ss", "us")):
                words = words[:-1]
            if words:
                heads.append(words[-1])
        run.clear()

    for piece in pieces:
        if _LETTER.match(piece) and piece not in FUNCTION_WORDS:
            run.append(piece)
            continue
        end()
        determiner = piece if piece in DETERMINERS or piece.isdigit() else None
    end()
    return heads


class ConceptRetriever:
    """Finds the concepts of pictures by a model's embeddings.

    Attributes:
        rows: (C, E) unit embeddings of the concepts in the template.
    """

    def __init__(self, model: CLIP, concepts: Concepts, template: str = TEMPLATE):
        self.concepts = concepts
        self.rows = model.embed_texts([fill(template, word) for word in concepts.words], truncate=True)

    def top(self, images: Float[Tensor, "N E"], k: int) -> Int[Tensor, "N K"]:
        """For each unit image embedding the numbers of its k nearest concepts, the nearest first."""
        require(1 <= k <= len(self.concepts), "k", k, f"1 to the {len(self.concepts)} concepts")
        scores = images.to(self.rows) @ self.rows.T
        return scores.argsort(dim=1, descending=True, stable=True)[:, :k]

    def names(self, images: Float[Tensor, "N E"], k: int) -> list[list[str]]:
        """The same as words."""
        return [[self.concepts.words[number] for number in row] for row in self.top(images, k).tolist()]


def concept_prompt(tokenizer: Tokenizer, concepts: Sequence[str]) -> list[int]:
    """The ids, with the start token, that stand before a caption: as many concepts as half of the context holds."""
    assert tokenizer.start_id is not None
    room = tokenizer.context_length // 2 - 1
    for count in range(len(concepts), 0, -1):
        ids = tokenizer.encode(", ".join(concepts[:count]) + ":")
        if len(ids) <= room:
            return [tokenizer.start_id, *ids]
    return [tokenizer.start_id]


def prompted_rows(
    tokenizer: Tokenizer, concepts: Sequence[Sequence[str]], captions: Sequence[str]
) -> tuple[list[list[int]], list[int]]:
    """Rows of prompt, caption and end token, cut to the context; and where the captions begin."""
    rows, firsts = [], []
    for words, caption in zip(concepts, captions, strict=True):
        prompt = concept_prompt(tokenizer, words)
        room = tokenizer.context_length - len(prompt) - 1
        rows.append([*prompt, *tokenizer.encode(caption)[:room], tokenizer.end_id])
        firsts.append(len(prompt))
    return rows, firsts
