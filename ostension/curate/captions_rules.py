"""Rules for captions, each caption judged alone: length, titles, repetition, words of lists, language, a hook for scores."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ostension.config import require
from ostension.curate.captions_language import UNKNOWN, Identifier
from ostension.curate.captions_repetition import longest_character_run, longest_word_run, repeated_share
from ostension.curate.captions_titles import kind_of_title
from ostension.curate.captions_unsafe import Hook
from ostension.curate.captions_words import WordList, words_of

Title = Literal["file-name", "camera-settings", "address", "boilerplate", "copyright", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """Rules for captions. What is not given is as the preset says, or off; 0 is no limit.

    Attributes:
        min_words: words at least, as spaces divide them.
        max_words: words at most.
        min_characters: characters at least, spaces between included.
        max_characters: characters at most.
        titles: the kinds of titles that go: file-name, camera-settings, address, boilerplate, copyright; or none.
        max_character_run: how often a letter or a sign may follow itself, itself included.
        max_word_run: how often a word may follow itself, itself included.
        max_repeated: the largest share of words that came before in the caption (from 8 words on).
        words: a file of words and phrases, one a line: a caption has one of them, or goes. "none" for no such rule.
        languages: the languages that stay (ISO 639: en, de, ...), or any.
        language_model: a fastText model of languages, such as lid.176.bin, if not the one that the extra brings.
        min_language: what the most likely language has as probability at least; below, the language is unknown.
        unknown_language: what is done with a caption of unknown language; it goes if nothing is said.
        max_pairs: a caption that more pairs have, whatever its case and spaces, goes; counted over all pairs.
    """

    min_words: int | None = None
    max_words: int | None = None
    min_characters: int | None = None
    max_characters: int | None = None
    titles: tuple[Title, ...] | None = None
    max_character_run: int | None = None
    max_word_run: int | None = None
    max_repeated: float | None = None
    words: str | None = None
    languages: tuple[str, ...] | None = None
    language_model: str | None = None
    min_language: float | None = None
    unknown_language: Literal["keep", "drop"] | None = None
    max_pairs: int | None = None

    def __post_init__(self):
        for name in (
            "min_words", "max_words", "min_characters", "max_characters", "max_character_run", "max_word_run", "max_pairs",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value is None or value >= 0, f"captions.{name}", value, "0 or more; 0 is no limit")
        for name in ("max_repeated", "min_language"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"captions.{name}", value, "0 to 1")
        for title in self.titles or ():
            require(title in typing.get_args(Title), "captions.titles", title, ", ".join(typing.get_args(Title)))
        for language in self.languages or ():
            plain = language.isalpha() and language == language.lower()
            require(plain, "captions.languages", language, "codes such as en, or any")

    @property
    def wanted_languages(self) -> tuple[str, ...]:
        return () if self.languages is None or "any" in self.languages else self.languages

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of titles that go, as `captions_titles` calls them."""
        titles = () if self.titles is None or "none" in self.titles else self.titles
        return tuple(title.replace("-", " ") for title in titles)

    @property
    def word_file(self) -> str:
        return "" if self.words in (None, "none") else str(self.words)

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        numbers = (
            self.min_words, self.max_words, self.min_characters, self.max_characters, self.max_character_run, self.max_word_run,
            self.max_pairs,
        )  # fmt: skip
        repeated = self.max_repeated is not None and self.max_repeated < 1
        return any(numbers) or repeated or bool(self.kinds or self.word_file or self.wanted_languages)


class Judge:
    """What the rules say of captions.

    Args:
        rules: for captions.
        unsafe_words: a file of words that captions must not have; empty for none.
        hook: a function that gives captions scores, and the score from which they go.
    """

    def __init__(self, rules: Captions, unsafe_words: str = "", hook: tuple[Hook, float] | None = None):
        self.rules, self.unsafe_words, self.hook = rules, unsafe_words, hook
        self._titles = rules.kinds

    def __call__(self, texts: Sequence[str], names: Sequence[str]) -> tuple[list[str | None], dict[str, list[Any]]]:
        """For each caption the reason to go, or None; and what was found, by name, None where a caption was gone before.

        Found are "language" and "language_p" where languages are asked for, "unsafe_caption" where a hook is.
        """
        reasons = [self.reason(text) for text in texts]
        found: dict[str, list[Any]] = {}
        if self.rules.wanted_languages:
            left = [place for place, reason in enumerate(reasons) if reason is None]
            names_found, likely = self.identifier([texts[place] for place in left])
            found["language"], found["language_p"] = [None] * len(texts), [None] * len(texts)
            for place, name, chance in zip(left, names_found, likely.tolist(), strict=True):
                found["language"][place], found["language_p"][place] = name, chance
                reasons[place] = self._by_language(name, chance)
        if self.hook is not None:
            function, least = self.hook
            left = [place for place, reason in enumerate(reasons) if reason is None]
            scores = function([texts[place] for place in left], [names[place] for place in left]) if left else np.zeros(0)
            found["unsafe_caption"] = [None] * len(texts)
            for place, score in zip(left, scores.tolist(), strict=True):
                found["unsafe_caption"][place] = score
                reasons[place] = "unsafe caption" if score >= least else None
        return reasons, found

    def reason(self, text: str) -> str | None:
        """Why a caption goes by what it says alone, without language and hook; None if it stays."""
        rules, words = self.rules, text.split()
        if not words:
            return "no text"
        if rules.min_words and len(words) < rules.min_words:
            return "too few words"
        if rules.max_words and len(words) > rules.max_words:
            return "too many words"
        if rules.min_characters and len(text) < rules.min_characters:
            return "too few characters"
        if rules.max_characters and len(text) > rules.max_characters:
            return "too many characters"
        if self._titles and (kind := kind_of_title(text, self._titles)) is not None:
            return kind
        return self._by_repetition(text) or self._by_words(text)

    def check(self) -> None:
        """Open what the rules point to, so that what is missing is known at once."""
        if self.rules.wanted_languages:
            _ = self.identifier
        _ = self.wanted, self.unwanted
        if self.hook is not None:
            self.hook[0].check()

    def inputs(self) -> dict[str, Any]:
        """The hashes of what the rules point to."""
        found: dict[str, Any] = {}
        if self.rules.wanted_languages:
            found["language_model"] = self.identifier.sha256()
        for name, words in (("words", self.wanted), ("unsafe_words", self.unwanted)):
            if words is not None:
                found[name] = words.sha256
        if self.hook is not None:
            found["unsafe_captions"] = self.hook[0].sha256()
        return found

    @functools.cached_property
    def identifier(self) -> Identifier:
        return Identifier(self.rules.language_model or "")

    @functools.cached_property
    def wanted(self) -> WordList | None:
        return WordList(self.rules.word_file) if self.rules.word_file else None

    @functools.cached_property
    def unwanted(self) -> WordList | None:
        return WordList(self.unsafe_words) if self.unsafe_words else None

    def _by_repetition(self, text: str) -> str | None:
        rules = self.rules
        if rules.max_character_run and longest_character_run(text) > rules.max_character_run:
            return "repeated characters"
        if rules.max_word_run or rules.max_repeated is not None:
            words = words_of(text)
            if rules.max_word_run and longest_word_run(words) > rules.max_word_run:
                return "repeated words"
            if rules.max_repeated is not None and repeated_share(words) > rules.max_repeated:
                return "repeated words"
        return None

    def _by_words(self, text: str) -> str | None:
        if self.unwanted is not None and self.unwanted.find(text) is not None:
            return "unsafe word"
        if self.wanted is not None and self.wanted.find(text) is None:
            return "no wanted word"
        return None

    def _by_language(self, name: str, chance: float) -> str | None:
        if name == UNKNOWN or chance < (self.rules.min_language or 0.0):
            return None if self.rules.unknown_language == "keep" else "unknown language"
        return None if name in self.rules.wanted_languages else "other language"
