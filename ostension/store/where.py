"""Filters on what is known of each row: `label = cat and width >= 640`, or the same as a JSON tree.

    text       label = cat and (width >= 640 or not camera in (c1, "c 2")) and texts contains "dog"
    tree       {"label": "cat", "width": {"gte": 640}}, with {"and": [..]}, {"or": [..]}, {"not": ..} around

| in text | in a tree | true where |
|---|---|---|
| `=` or `==`, `!=` | eq, ne | the value is that one; `!=` is the opposite of `=` |
| `<`, `<=`, `>`, `>=` | lt, lte, gt, gte | numbers by size; texts by their letters, so that dates as 2026-11-22 are in order |
| `in (a, b)`, `not in (a, b)` | in, nin | it is one of them, or none |
| `contains x` | contains | the text has x in it, whatever the case |
| `prefix x` | prefix | the text begins with x, whatever the case |
| `exists` | exists | the row has such a value at all; in a tree true or false |

A field is a column of the set, or a key of the source's JSON fields, with dots for keys within keys; `label` stands for
`labels` and `text` for `texts`. Where a row has a list, one of its values is enough. A row without the field passes no
comparison, and so passes the opposite ones. Words are texts, numbers are numbers, true and false are themselves; quotes
make a text of anything. A number in the data that was kept as text compares as a number with numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ostension.errors import UsageError, nearest

Scalar = str | int | float | bool
SIGNS = {"=": "eq", "==": "eq", "!=": "ne", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
OPERATORS = ("eq", "ne", "lt", "lte", "gt", "gte", "in", "nin", "contains", "prefix", "exists")
ALIASES = {"label": "labels", "text": "texts"}
DEPTH = 64  # nested brackets; more is nobody's filter
_TOKEN = re.compile(
    r"\s*(?:(?P<quoted>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')|(?P<sign><=|>=|!=|==|=|<|>)|(?P<mark>[(),])"
    r"|(?P<word>[^\s()=<>!,\"']+))"
)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


class Values(Protocol):
    """What a filter asks of a table: the different values of a field and where each is."""

    def rows_where(self, field: str, test: Callable[[Any], bool]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Where:
    """A filter: `op` is a comparison of `field` with `value`, or and, or, not of `parts`."""

    op: str
    field: str = ""
    value: Any = None
    parts: tuple[Where, ...] = ()

    def mask(self, table: Values) -> np.ndarray:
        """(N,) True where a row passes.

        Raises:
            ConfigError: for a field that the table does not have.
        """
        if self.op == "not":
            return ~self.parts[0].mask(table)
        if self.op in ("and", "or"):
            join = np.logical_and if self.op == "and" else np.logical_or
            return join.reduce([part.mask(table) for part in self.parts])
        if self.op in ("ne", "nin"):
            return ~table.rows_where(self.field, _test("eq" if self.op == "ne" else "in", self.value))
        found = table.rows_where(self.field, _test(self.op, self.value))
        return ~found if self.op == "exists" and self.value is False else found

    def names(self) -> list[str]:
        """The fields that the filter asks for, each once."""
        if self.parts:
            return list(dict.fromkeys(name for part in self.parts for name in part.names()))
        return [self.field]

    def tree(self) -> Any:
        """The filter as a JSON tree."""
        if self.op == "not":
            return {"not": self.parts[0].tree()}
        if self.parts:
            return {self.op: [part.tree() for part in self.parts]}
        return {self.field: {self.op: list(self.value) if isinstance(self.value, tuple) else self.value}}

    def __str__(self) -> str:
        if self.op == "not":
            return f"not {_bracketed(self.parts[0])}"
        if self.parts:
            return f" {self.op} ".join(_bracketed(part) for part in self.parts)
        field = _shown_word(self.field)
        if self.op == "exists":
            return f"{field} exists" if self.value else f"not {field} exists"
        if self.op in ("in", "nin"):
            return f"{field} {'not ' if self.op == 'nin' else ''}in ({', '.join(map(_shown, self.value))})"
        sign = {name: sign for sign, name in SIGNS.items() if sign != "=="}.get(self.op, self.op)
        return f"{field} {sign} {_shown(self.value)}"


def parse(given: str | Mapping[str, Any]) -> Where:
    """The filter that a text or a JSON tree says.

    Raises:
        UsageError: for what is none, with the place.
    """
    if isinstance(given, str):
        return _Reader(given).whole()
    return _of_tree(given, 0)


def _test(op: str, value: Any) -> Callable[[Any], bool]:
    """Whether one value of a row passes a comparison."""
    if op == "exists":
        return lambda found: True
    if op == "in":
        tests = [_test("eq", one) for one in value]
        return lambda found: any(test(found) for test in tests)
    if op in ("contains", "prefix"):
        part = _as_text(value).casefold()
        if op == "contains":
            return lambda found: part in _as_text(found).casefold()
        return lambda found: _as_text(found).casefold().startswith(part)

    def compared(found: Any) -> bool:
        left, right = _alike(found, value)
        if left is None:
            return False
        if op == "eq":
            return bool(left == right)
        if op == "lt":
            return bool(left < right)
        if op == "lte":
            return bool(left <= right)
        return bool(left > right) if op == "gt" else bool(left >= right)

    return compared


def _alike(found: Any, value: Any) -> tuple[Any, Any]:
    """Both as numbers, both as texts, or nothing where they cannot be compared."""
    if isinstance(found, bool) or isinstance(value, bool):
        return (str(found).lower(), str(value).lower()) if isinstance(found, (bool, str)) else (None, None)
    if isinstance(value, str):
        return _as_text(found), value
    if isinstance(found, str):
        return (_number(found), value) if _NUMBER.fullmatch(found.strip()) else (None, None)
    return found, value


def _as_text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _of_tree(tree: Any, depth: int) -> Where:
    if not isinstance(tree, Mapping) or not tree:
        raise UsageError(f"a filter of type {type(tree).__name__}", expected='an object as {"label": "cat"}, not empty')
    if depth > DEPTH:
        raise UsageError("a filter with too many levels", expected=f"{DEPTH} at most")
    parts = [_entry(name, value, depth) for name, value in tree.items()]
    return parts[0] if len(parts) == 1 else Where("and", parts=tuple(parts))


def _entry(name: Any, value: Any, depth: int) -> Where:
    if name in ("and", "or") and isinstance(value, list):
        if not value:
            raise UsageError(f"{name!r} of nothing in the filter", expected="a list of filters")
        parts = tuple(_of_tree(part, depth + 1) for part in value)
        return parts[0] if len(parts) == 1 else Where(name, parts=parts)
    if name == "not" and isinstance(value, Mapping):
        return Where("not", parts=(_of_tree(value, depth + 1),))
    if not isinstance(name, str) or not name:
        raise UsageError(f"a field called {name!r} in the filter", expected="a name")
    if isinstance(value, Mapping):
        if not value:
            raise UsageError(f"no comparison for {name!r} in the filter", expected=f"one of {', '.join(OPERATORS)}")
        parts = tuple(_compared(name, op, operand) for op, operand in value.items())
        return parts[0] if len(parts) == 1 else Where("and", parts=parts)
    if isinstance(value, list):
        return _compared(name, "in", value)
    return _compared(name, "eq", value)


def _compared(name: str, op: Any, operand: Any) -> Where:
    if op not in OPERATORS:
        close = ", ".join(nearest(str(op), OPERATORS))
        raise UsageError(f"{name!r} is compared by {op!r} in the filter", expected=f"a known comparison; nearest: {close}")
    if op in ("in", "nin"):
        if not isinstance(operand, (list, tuple)) or not operand:
            raise UsageError(f"{name!r} is compared with {operand!r} by {op!r}", expected="a list of values, not empty")
        return Where(op, name, tuple(_scalar(name, value) for value in operand))
    if op == "exists" and not isinstance(operand, bool):
        raise UsageError(f"'exists' of {name!r} is {operand!r}", expected="true or false")
    return Where(op, name, _scalar(name, operand))


def _scalar(name: str, value: Any) -> Scalar:
    finite = not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, (str, bool, int, float)) and finite:
        return value
    raise UsageError(f"{name!r} is compared with {value!r}", expected="a text, a finite number, true or false")


class _Reader:
    """Reads a filter from left to right; or binds weakest, then and, then not."""

    def __init__(self, text: str):
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                start = place + len(text[place:]) - len(text[place:].lstrip())
                raise self._problem(f"{text[start : start + 20]!r} cannot be read", start, "quotes around texts, in pairs")
            kind = str(match.lastgroup)
            self.tokens.append((kind, match.group(kind), match.start(kind)))
            place = match.end()
        self.next = 0

    def whole(self) -> Where:
        if not self.tokens:
            raise UsageError("an empty filter", expected="a comparison as: label = cat")
        found = self._either(0)
        if self.next < len(self.tokens):
            raise self._unexpected("'and', 'or' or the end; a text of several words needs quotes")
        return found

    def _either(self, depth: int) -> Where:
        return self._joined("or", lambda: self._joined("and", lambda: self._negated(depth)))

    def _joined(self, word: str, part: Callable[[], Where]) -> Where:
        parts = [part()]
        while self._word() == word:
            self.next += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else Where(word, parts=tuple(parts))

    def _negated(self, depth: int) -> Where:
        if depth > DEPTH:
            raise self._problem("too many levels", 0, f"{DEPTH} at most")
        if self._word() == "not" and not self._is_sign(self.next + 1):
            self.next += 1
            return Where("not", parts=(self._negated(depth + 1),))
        if self._peek() == ("mark", "("):
            self.next += 1
            found = self._either(depth + 1)
            if self._peek() != ("mark", ")"):
                raise self._unexpected("a closing bracket")
            self.next += 1
            return found
        return self._comparison()

    def _comparison(self) -> Where:
        kind, _ = self._peek()
        if kind not in ("word", "quoted"):
            raise self._unexpected("the name of a field")
        field = str(self._text(self.tokens[self.next]))
        self.next += 1
        kind, shown = self._peek()
        word = self._word()
        if kind == "sign":
            self.next += 1
            return Where(SIGNS[shown], field, self._value())
        if word == "exists":
            self.next += 1
            return Where("exists", field, True)
        if word in ("contains", "prefix"):
            self.next += 1
            return Where(word, field, self._value())
        if word == "not":
            self.next += 1
            if self._word() != "in":
                raise self._unexpected("'in' after 'not'")
            self.next += 1
            return Where("nin", field, self._list())
        if word == "in":
            self.next += 1
            return Where("in", field, self._list())
        raise self._unexpected(f"a comparison after {field!r}: = != < <= > >= in contains prefix exists")

    def _list(self) -> tuple[Scalar, ...]:
        if self._peek() != ("mark", "("):
            raise self._unexpected("a list in brackets as (cat, dog)")
        values = []
        while True:
            self.next += 1
            values.append(self._value())
            if self._peek() == ("mark", ")"):
                self.next += 1
                return tuple(values)
            if self._peek() != ("mark", ","):
                raise self._unexpected("a comma or a closing bracket")

    def _value(self) -> Scalar:
        kind, text = self._peek()
        if kind not in ("word", "quoted"):
            raise self._unexpected("a value")
        token = self.tokens[self.next]
        self.next += 1
        if kind == "quoted":
            return self._text(token)
        if _NUMBER.fullmatch(text):
            number = _number(text)
            return number if math.isfinite(number) else text
        return {"true": True, "false": False}.get(text, text)

    @staticmethod
    def _text(token: tuple[str, str, int]) -> str:
        kind, text, _ = token
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL) if kind == "quoted" else text

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.next][:2] if self.next < len(self.tokens) else ("end", "")

    def _word(self) -> str:
        """The next token in lower case if it is an unquoted word."""
        kind, text = self._peek()
        return text.lower() if kind == "word" else ""

    def _is_sign(self, place: int) -> bool:
        return place < len(self.tokens) and self.tokens[place][0] == "sign"

    def _unexpected(self, expected: str) -> UsageError:
        if self.next < len(self.tokens):
            _, text, place = self.tokens[self.next]
            return self._problem(f"{text!r} at character {place + 1}", place, expected)
        return self._problem("it ends too early", len(self.text), expected)

    def _problem(self, what: str, place: int, expected: str) -> UsageError:
        shown = self.text if len(self.text) <= 80 else f"...{self.text[max(0, place - 30) : place + 40]}..."
        return UsageError(what, source=f"filter {shown!r}", expected=expected)


def _bracketed(part: Where) -> str:
    return f"({part})" if part.parts and part.op != "not" else str(part)


_WORDS = ("and", "or", "not", "in", "contains", "prefix", "exists", "true", "false")


def _shown(value: Scalar) -> str:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return f'"{value}"'
    return _shown_word(value) if isinstance(value, str) else _as_text(value)


def _shown_word(text: str) -> str:
    if re.fullmatch(r"[^\s()=<>!,\"']+", text) and text.lower() not in _WORDS:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
