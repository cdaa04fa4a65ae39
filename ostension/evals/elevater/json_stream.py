"""JSON read a value at a time, for files that are larger than memory and may be hostile.

A submission is one object of a gigabyte or more, nearly all of it rows of numbers. The reader walks into the outer objects
and lists (`fields`, `items`) and hands out one inner value at a time (`value`). Bytes in all, letters of one value, nesting
and length of names are limited; whatever is not JSON is one line with its place.
"""

from __future__ import annotations

import codecs
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn

from ostension.errors import DataError, LimitError

READ_BYTES = 1 << 20
MAX_BYTES = 8 << 30  # ImageNet beside the twenty sets, three seeds: 1.8 GB
MAX_VALUE = 32 << 20  # letters of one inner value; a row of ImageNet has 10,000
MAX_DEPTH = 8
MAX_NAME = 200
MAX_REASON = 120
# What reading a cut or spoilt archive raises.
_SPOILT = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_SPACE = " \t\n\r"
_STRUCTURE = re.compile(r'["\[\]{}]')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SCALAR_END = re.compile(r"[,\]}\s]")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_JSON = json.JSONDecoder(parse_constant=_refuse)


class JsonStream:
    """A JSON document.

    Args:
        handle: of bytes.
        source: the file, for messages.
        max_bytes: what may be read in all.
    """

    def __init__(self, handle: io.BufferedIOBase, source: object, *, max_bytes: int = MAX_BYTES):
        self.source, self.max_bytes = source, max_bytes
        self._handle, self._decoder = handle, codecs.getincrementaldecoder("utf-8")()
        self._text, self._place, self._before, self._read = "", 0, 0, 0
        self._ended = False

    def fields(self) -> Iterator[str]:
        """The names in an object; after each, its value must be read.

        Raises:
            DataError: for a name that comes twice.
        """
        seen: set[str] = set()
        self._expect("{")
        if self._next() == "}":
            self._place += 1
            return
        while True:
            name = self.value(limit=MAX_NAME)
            if not isinstance(name, str):
                self._fail("a name of a field is no text")
            if name in seen:
                self._fail(f"the field {name!r} comes twice")
            seen.add(name)
            self._expect(":")
            yield name
            if not self._goes_on("}"):
                return

    def items(self) -> Iterator[int]:
        """The numbers of a list's items, from 0; after each, its value must be read."""
        self._expect("[")
        if self._next() == "]":
            self._place += 1
            return
        index = 0
        while True:
            yield index
            index += 1
            if not self._goes_on("]"):
                return

    def value(self, *, limit: int = MAX_VALUE, numbers: bool = False) -> Any:
        """One whole value.

        Args:
            limit: letters that it may have.
            numbers: nothing but lists and numbers may be in it.

        Raises:
            LimitError: if it is too long or nested too deeply.
            DataError: if it is not JSON; NaN and infinities are not.
        """
        self._next()
        start = self._place
        text = self.text(limit=limit, numbers=numbers)
        try:
            return _JSON.decode(text)
        except ValueError as error:
            self._fail(f"not JSON: {reason_of(error)}", start)

    def text(self, *, limit: int = MAX_VALUE, numbers: bool = False) -> str:
        """One whole value as it is written; whether what is between its brackets is JSON is not looked at."""
        self._next()
        end = self._value_end(limit, numbers)
        text = self._text[self._place : end]
        self._place = end
        return text

    def end(self) -> None:
        """Nothing may follow."""
        if self._next(needed=False):
            self._fail("something follows the document")

    def _value_end(self, limit: int, numbers: bool) -> int:
        """Where the value that starts here ends."""
        start, place, depth = self._place, self._place, 0
        first = self._text[start]
        if first not in '"[{':
            while (match := _SCALAR_END.search(self._text, place)) is None:
                place = len(self._text)
                self._check_length(place - start, limit)
                if not self._more():
                    return len(self._text)
            self._check_length(match.start() - start, limit)
            return match.start()
        while True:
            match = _STRUCTURE.search(self._text, place)
            if match is None:
                place = len(self._text)
                self._check_length(place - start, limit)
                self._more_or_fail()
                continue
            place = match.end()
            self._check_length(place - start, limit)
            letter = match.group()
            if numbers and letter in '"{}':
                self._fail(f"{letter!r} among numbers", match.start())
            if letter == '"':
                while (string := _STRING.match(self._text, place - 1)) is None:
                    self._check_length(len(self._text) - start, limit)
                    self._more_or_fail()
                place = string.end()
                self._check_length(place - start, limit)
            elif letter in "[{":
                depth += 1
                if depth > MAX_DEPTH:
                    raise LimitError(f"nested deeper than {MAX_DEPTH} at letter {self._before + place:,}", source=self.source)
            else:
                depth -= 1
            if depth <= 0:
                return place

    def _next(self, *, needed: bool = True) -> str:
        """The next letter that is no space, without passing it."""
        if self._place > READ_BYTES:
            self._text, self._before, self._place = self._text[self._place :], self._before + self._place, 0
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in _SPACE:
                    return self._text[self._place]
                self._place += 1
            self._text, self._before, self._place = "", self._before + self._place, 0
            if not self._more():
                if needed:
                    self._fail("it ends too early")
                return ""

    def _expect(self, letter: str) -> None:
        found = self._next()
        if found != letter:
            self._fail(f"{found!r} where {letter!r} was expected")
        self._place += 1

    def _goes_on(self, closing: str) -> bool:
        found = self._next()
        if found not in (",", closing):
            self._fail(f"{found!r} where ',' or {closing!r} was expected")
        self._place += 1
        return found == ","

    def _more(self) -> bool:
        """Read on; false at the end."""
        if self._ended:
            return False
        try:
            data = self._handle.read(READ_BYTES)
            self._read += len(data)
            if self._read > self.max_bytes:
                raise LimitError(f"holds more than {self.max_bytes:,} bytes", source=self.source)
            self._ended = not data
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8: {error.reason}", source=self.source) from None
        except _SPOILT as error:
            raise DataError(f"cannot be read: {reason_of(error)}", source=self.source) from None
        self._text += text
        return bool(text) or not self._ended

    def _more_or_fail(self) -> None:
        if not self._more():
            self._fail("it ends too early")

    def _check_length(self, length: int, limit: int) -> None:
        if length > limit:
            where = f"at letter {self._before + self._place:,}"
            raise LimitError(f"a value of more than {limit:,} letters {where}", source=self.source)

    def _fail(self, what: str, place: int | None = None) -> NoReturn:
        at = self._before + (self._place if place is None else place)
        raise DataError(f"{what} (letter {at:,})", source=self.source, expected="a submission in JSON")


def reason_of(error: Exception) -> str:
    """The beginning of an error's own words, which in a hostile file may be long or none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:MAX_REASON]
