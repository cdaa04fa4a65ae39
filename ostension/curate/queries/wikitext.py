"""Articles of a MediaWiki dump, and their wikitext reduced to text.

XML: pages are read one by one, and nothing outside of them; a document type is refused, so that there are no entities but
XML's own five and no way to make a short file long. Redirects and pages outside the main namespace are left out.

Wikitext: what stands in the running text of the article stays. Gone are templates, tables, references, comments, formulas,
code, galleries, file and category links; a link leaves its words, bold and italics leave nothing. That is a reduction for
counting words, not a rendering: a template that would print words prints none. Each step passes over the text once, whatever is
in it; braces that are never closed are left out alone, so that one typing mistake does not swallow an article.
"""

from __future__ import annotations

import collections
import html
import re
from collections.abc import Iterator
from typing import Any
from xml.parsers import expat

from ostension.errors import DataError

MAX_PAGE = 64_000_000  # letters of one page
_PAGE = b"<page"
_GAP = "\ufffd"  # what stood on both sides of something that is gone are no neighbours
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_DROPPED = "ref|math|chem|gallery|syntaxhighlight|source|timeline|score|imagemap|templatedata|graph|code|pre|nowiki|hiero|ce"
_TAG = re.compile(rf"<(/?)({_DROPPED})\b([^<>]*)>", re.IGNORECASE)
_ANY_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_BRACES = re.compile(r"\{\{|\}\}|\{\||\|\}(?!\}(?!\}))")  # `|}}` is the end of a template, `|}}}` that of a table in one
_BRACKETS = re.compile(r"\[\[|\]\]|\n")
_MAX_NESTED = 8  # links in links
_EXTERNAL = re.compile(r"\[(?:(?:https?:|ftp:)?//|mailto:)[^\s\[\]]*+([^\[\]\n]*+)\]")
_ADDRESS = re.compile(r"(?:https?|ftp)://[^\s\[\]<>|{}]+")
_QUOTES = re.compile(r"'{2,5}")
_LINE_START = re.compile(r"^[ \t]*(?:[*#:;]+|-{4,})", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*(={1,6})(.+?)\1[ \t]*$", re.MULTILINE)
_SWITCH = re.compile(r"__[A-Z]+__")
_HIDDEN = re.compile(  # links that show nothing in the text, with the words for it in a few large languages
    r"^\s*(?:file|image|category|media|datei|bild|kategorie|fichier|catégorie|archivo|imagen|categoría|immagine|categoria|"
    r"ficheiro|imagem|файл|категория|plik|kategoria|bestand|categorie|[a-z]{2,3})\s*:", re.IGNORECASE,
)  # fmt: skip


def articles(data: bytes, source: object) -> Iterator[tuple[str, str]]:
    """Title and wikitext of each article in a piece of a dump that begins and ends between two pages.

    Of a page with several revisions the last one counts.

    Raises:
        DataError: if it is no well-formed XML, or a page is larger than any is.
    """
    first, last = data.find(_PAGE), data.rfind(b"</page>")
    if first < 0 or last < first:
        return
    reader = _Pages(source)
    for start in range(first, last + len(b"</page>"), 1 << 20):
        reader.feed(data[start : min(start + (1 << 20), last + len(b"</page>"))])
        yield from reader.pages
        reader.pages.clear()


class _Pages:
    """Collects the articles of what it is fed."""

    def __init__(self, source: object):
        self.source = source
        self.pages: list[tuple[str, str]] = []
        self._parser = expat.ParserCreate(encoding="utf-8")
        self._parser.buffer_text = True
        self._parser.StartElementHandler, self._parser.EndElementHandler = self._start, self._end
        self._parser.CharacterDataHandler = self._text
        self._page: dict[str, Any] = {}
        self._name: str | None = None
        self._letters = 0
        self._found: list[str] = []
        self._parser.Parse(b"<pages>", False)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.Parse(data, False)
        except expat.ExpatError as error:
            what = expat.errors.messages[error.code]
            raise DataError(f"not XML: {what} in the piece's line {error.lineno:,}", source=self.source) from None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "page":
            self._page = {"redirect": False}
        elif name == "redirect":
            self._page["redirect"] = True
        if name in ("title", "ns", "text"):
            self._name, self._found, self._letters = name, [], 0

    def _text(self, text: str) -> None:
        if self._name is not None:
            self._letters += len(text)
            if self._letters > MAX_PAGE:
                raise DataError(f"a page of more than {MAX_PAGE:,} letters", source=self.source)
            self._found.append(text)

    def _end(self, name: str) -> None:
        if name == self._name:
            self._page[name], self._name = "".join(self._found), None
        elif name == "page" and self._page.get("ns", "0").strip() == "0" and not self._page["redirect"]:
            self.pages.append((self._page.get("title", ""), self._page.get("text", "")))


def plain(wikitext: str) -> str:
    """The running text of an article; paragraphs and headings are lines."""
    text = _COMMENT.sub("", wikitext) if "<!--" in wikitext else wikitext
    text = _without_tags(text)
    text = _without_braces(text)
    text = _with_links(text)
    text = _EXTERNAL.sub(r"\1", text)
    text = _ADDRESS.sub(_GAP, text)
    text = _ANY_TAG.sub(" ", text)
    text = html.unescape(text)
    text = _HEADING.sub(r"\2", _SWITCH.sub("", text))
    return _LINE_START.sub("", _QUOTES.sub("", text))


def _without_tags(text: str) -> str:
    """The text without elements that hold no words of it; one that is never closed goes alone."""
    if "<" not in text:
        return text
    kept, start, tags = [], 0, list(_TAG.finditer(text))
    closing: dict[str, collections.deque[int]] = {}
    for number, tag in enumerate(tags):
        if tag[1]:
            closing.setdefault(tag[2].lower(), collections.deque()).append(number)
    for number, tag in enumerate(tags):
        if tag.start() < start:
            continue
        kept.append(text[start : tag.start()])
        start = tag.end()
        ends = closing.get(tag[2].lower(), collections.deque())
        while ends and ends[0] < number:
            ends.popleft()
        if not tag[1] and not tag[3].rstrip().endswith("/") and ends:
            start = tags[ends[0]].end()
    kept.append(text[start:])
    return "".join(kept)


def _without_braces(text: str) -> str:
    """The text without templates and tables, nested ones too."""
    opened: list[tuple[str, int]] = []
    number = {"{{": 0, "{|": 0}
    regions: list[tuple[int, int]] = []
    for found in _BRACES.finditer(text):
        mark = found[0]
        if mark in number:
            opened.append((mark, found.start()))
            number[mark] += 1
            continue
        opening = "{{" if mark == "}}" else "{|"
        if not number[opening]:
            continue
        while True:
            last, start = opened.pop()
            number[last] -= 1
            if last == opening:
                break
        while regions and regions[-1][0] > start:
            regions.pop()
        regions.append((start, found.end()))
    kept, at = [], 0
    for start, end in regions:
        kept.append(text[at:start])
        at = end
    kept.append(text[at:])
    return _GAP.join(kept)


def _with_links(text: str) -> str:
    """Links as the words that they show: `[[a|b]]` is b; links to files and categories are nothing."""
    levels: list[list[str]] = [[]]
    start = 0
    for found in _BRACKETS.finditer(text):
        levels[-1].append(text[start : found.start()])
        start = found.end()
        if found[0] == "[[":
            if len(levels) <= _MAX_NESTED:
                levels.append([])
        elif found[0] == "]]":
            _close(levels, 1)
        else:
            _close(levels, len(levels))  # a link ends with its line
            levels[-1].append("\n")
    levels[-1].append(text[start:])
    return "".join(part for level in levels for part in level)


def _close(levels: list[list[str]], count: int) -> None:
    """Put the words of the innermost `count` links into the text around them."""
    while count and len(levels) > 1:
        inside = "".join(levels.pop())
        levels[-1].append(_GAP if _HIDDEN.match(inside) else inside.rpartition("|")[2])
        count -= 1
