"""What to search for, as arithmetic with words, items of the store and pictures: `sunset - people + 0.5*@boat-17`.

    query   [sign] term (sign term)...          sign: + or - with a space on both sides; the first one may be left out
    term    [number*] (words | "words" | @id | @"id" | image:FILE | image:"FILE")

A sign needs spaces, so `black-and-white` and `t-shirt` are words as they stand. Quotes around a whole term, an id or a file
keep it together: `"yin - yang"`, `@"me - you.jpg"`. Only a number directly before a `*` is a weight. The vector is the unit
vector of the sum

    q = unit( sum over terms of  sign * weight * unit(embedding of the term) )
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from ostension.errors import DataError, UsageError

Kind = Literal["text", "id", "image"]
MOST = 64  # terms of one query
MOST_WEIGHT = 1e6  # of a term, past which no other counts
IMAGE = "image:"
_SIGN = re.compile(r"(?:^\s*|(?<=\s))([+-])\s+")
_WEIGHT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*\*\s*")
_QUOTED = re.compile(r"(@|image:|)(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')\s*(?=$|(?<=\s)[+-]\s)", re.DOTALL)
_KINDS: dict[str, Kind] = {"": "text", "@": "id", IMAGE: "image"}
_LEAST = 1e-6  # a sum that is shorter has no direction worth searching for


class Embedder(Protocol):
    """What of a model a query needs."""

    def embed_images(self, images: Any, batch_size: int = ...) -> Any: ...
    def embed_texts(self, texts: Sequence[str]) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Term:
    """A text, the id of an item, or a picture (a path, or whatever `embed_images` takes), with its signed weight."""

    kind: Kind
    value: Any
    weight: float = 1.0

    def __str__(self) -> str:
        size = abs(self.weight)
        head = next(head for head, kind in _KINDS.items() if kind == self.kind)
        shown = self.value if isinstance(self.value, str) else f"<{type(self.value).__name__}>"
        # Read between other terms; what begins like a quoted one could end with the quotes of a later one.
        around = [("text", "x"), (self.kind, shown), ("text", "x")]
        if _read(f"x + {head}{shown} + x") != around or shown[:1] in ('"', "'"):
            shown = '"' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return ("" if size == 1 else f"{size:.17g}*") + head + shown


@dataclasses.dataclass(frozen=True)
class Expression:
    """A sum of terms."""

    terms: tuple[Term, ...]

    def __add__(self, other: Expression) -> Expression:
        return Expression(self.terms + other.terms)

    def __str__(self) -> str:
        parts = [("- " if term.weight < 0 else "+ ") + str(term) for term in self.terms]
        return " ".join(parts).removeprefix("+ ")

    def vector(self, model: Embedder | None, items: Callable[[Sequence[str]], np.ndarray] | None = None) -> np.ndarray:
        """The unit vector (E,) to search with; see `vectors` for many."""
        return vectors([self], model, items)[0]


def vectors(
    expressions: Sequence[Expression],
    model: Embedder | None,
    items: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> np.ndarray:
    """(Q, E) float32 unit vectors of expressions; texts and pictures of all of them are embedded together, each once.

    Args:
        model: embeds texts and pictures; None where there are none.
        items: gives the rows of ids.

    Raises:
        UsageError: for texts or pictures without a model.
        DataError: for terms that cancel each other, or a picture that cannot be read.
    """
    known: dict[tuple[str, Any], np.ndarray] = {}
    for kind in ("text", "id", "image"):
        values = list(dict.fromkeys(term.value for one in expressions for term in one.terms if term.kind == kind))
        if not values:
            continue
        if kind == "id":
            if items is None:
                raise UsageError(f"the item @{values[0]} is asked for", expected="texts or pictures; there is no store here")
            rows = np.asarray(items(values), np.float64)
        elif model is None:
            raise UsageError(f"a {kind} is asked for without a model", expected="a model that can embed it")
        else:
            embedded = model.embed_texts(values) if kind == "text" else model.embed_images(values)
            rows = embedded.detach().cpu().double().numpy() if hasattr(embedded, "detach") else np.asarray(embedded, float)
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        known.update({(kind, value): row for value, row in zip(values, rows, strict=True)})
    found = []
    for one in expressions:
        total = sum(term.weight * known[term.kind, term.value] for term in one.terms)
        length = float(np.linalg.norm(total))
        if not length > _LEAST * max(abs(term.weight) for term in one.terms):
            raise DataError(f"the terms of {str(one)!r} cancel each other", expected="a sum with a direction")
        found.append(total / length)
    return np.stack(found).astype(np.float32)


def parse(text: str) -> Expression:
    """The expression that a text says.

    Raises:
        UsageError: for no terms, an empty one, or too many.
    """
    if not text.strip():
        raise UsageError("an empty query", expected='words as "a dog on the beach"')
    terms = [_term(words, sign, text) for sign, words in _split(text)]
    if len(terms) > MOST:
        raise UsageError(f"a query of {len(terms)} terms", expected=f"{MOST} at most")
    if all(term.weight == 0 for term in terms):
        raise UsageError(f"the query {text!r} has only weights of 0", expected="a weight above 0")
    return Expression(tuple(terms))


def _split(text: str) -> list[tuple[float, str]]:
    """The terms of a query with their signs; what is in quotes is not looked into."""
    found: list[tuple[float, str]] = []
    sign, place, start = 1.0, 0, 0
    first = _SIGN.match(text)
    if first:
        sign, place = _value(first.group(1)), first.end()
    start = place
    while True:
        head = _WEIGHT.match(text, start)
        begin = head.end() if head else start
        quoted = _QUOTED.match(text, begin)
        next_sign = _SIGN.search(text, quoted.end() if quoted else begin)
        found.append((sign, text[start : next_sign.start() if next_sign else len(text)].strip()))
        if next_sign is None:
            return found
        sign, start = _value(next_sign.group(1)), next_sign.end()


def _value(sign: str) -> float:
    return 1.0 if sign == "+" else -1.0


def _term(words: str, sign: float, text: str) -> Term:
    weight = 1.0
    head = _WEIGHT.match(words)
    if head:
        weight, words = float(head.group(1)), words[head.end() :]
        if not weight <= MOST_WEIGHT:
            raise UsageError(
                f"a weight of {head.group(1)[:20]}", expected=f"{MOST_WEIGHT:,.0f} at most; quotes make words of it"
            )
    if quoted := _QUOTED.fullmatch(words):
        inside = re.sub(r"\\(.)", r"\1", quoted.group(2)[1:-1], flags=re.DOTALL)
        return Term(_KINDS[quoted.group(1)], _filled(inside, text), sign * weight)
    if words.startswith("@"):
        return Term("id", _filled(words[1:].strip(), text), sign * weight)
    if words.startswith(IMAGE):
        return Term("image", _filled(words.removeprefix(IMAGE).strip(), text), sign * weight)
    return Term("text", _filled(words, text), sign * weight)


def _filled(words: str, text: str) -> str:
    if not words.strip():
        raise UsageError(f"an empty term in the query {text!r}", expected="words, @id or image:FILE after each sign")
    return words


def _read(words: str) -> list[tuple[Kind | None, Any]]:
    """The terms that a query is read as; no kind for one with a weight."""
    try:
        return [(term.kind if term.weight == 1 else None, term.value) for term in parse(words).terms]
    except UsageError:
        return []
