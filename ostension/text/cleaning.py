"""Text as the tokenizers want it: repaired, without HTML entities, one space between words, lower case.

Two cleanings belong to CLIP weights, OpenAI's and Hugging Face's, and a third to SigLIP's. Each is exact, and each has a
guard that recognises plain ASCII, on which the repairs provably do nothing: most captions take that way.

Every step is linear in the length of the text. Two steps of the references are not, and are mended here without changing
what they give: NFC is quadratic on long runs of combining marks in the wrong order, and ftfy peels one `&amp;` a pass.
"""

from __future__ import annotations

import functools
import html
import itertools
import re
import string
import unicodedata

import ftfy
import regex
from ftfy import fixes
from ftfy.badness import is_bad

# The regex module, not re: its \s leaves out the separators U+001C to U+001F, as the reference's does.
_WHITESPACE = regex.compile(r"\s+")
_SURROGATE = re.compile("[\ud800-\udfff]")

# ASCII that ftfy and html.unescape leave alone: printable or ordinary whitespace, and no "&" that could begin an entity
# (their names begin with a letter or "#").
_PLAIN_LINES = re.compile(r"(?:[\t\n\f\r -%'-~]|&(?![#A-Za-z]))*")

# The order is ftfy's (fix_and_explain of ftfy 6.1 to 6.3, after entities and encodings, before NFC).
_FIXERS = (
    fixes.fix_c1_controls,
    fixes.fix_latin_ligatures,
    fixes.fix_character_width,
    fixes.uncurl_quotes,
    fixes.fix_line_breaks,
    fixes.fix_surrogates,
    fixes.remove_terminal_escapes,
    fixes.remove_control_chars,
)
# Every character that one of them changes (and more: a test asks them about all others).
_FIXABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\u02bc\u2000-\u206f\u3000\ud800-\udfff\uf000-\uffff]"
)
_FTFY_DEFAULTS = ftfy.TextFixerConfig(explain=False)
_FTFY_MAX_LINE = 1_000_000  # ftfy's max_decode_length: it cuts longer lines there

# An "&" that was escaped again and again. The tail after the last ampersand is left to the fixers.
_AMPERSAND_CHAIN = re.compile(r"&(?:(?:amp|AMP|#0{0,20}38|#[xX]0{0,20}26);){16,}")
# A run of marks shorter than this cannot cost NFC much.
_MARK_RUN = regex.compile(r"\p{M}{64,}")
# A decimal reference, for Python refuses to read integers of more than 4,300 digits.
_REFERENCE = re.compile(r"&#0*([0-9]{1,8})[0-9]*")


def is_plain_openai(text: str) -> bool:
    """Whether OpenAI's cleaning of `text` is only whitespace and lower case."""
    if text.isascii():
        if text.isprintable() and "&" not in text:
            return True
        return _PLAIN_LINES.fullmatch(text) is not None
    return False


def is_plain_hf(text: str) -> bool:
    """Whether Hugging Face's cleaning of `text` is only whitespace and lower case."""
    return text.isascii() and text.isprintable()


def clean_openai(text: str) -> str:
    """`text` as OpenAI's tokenizer reads it: ftfy, HTML unescaped twice, whitespace collapsed, lower case.

    Source: clip/simple_tokenizer.py of openai/CLIP (`basic_clean`, `whitespace_clean`, `encode`).
    """
    text = _unescape(_unescape(fix_text(text))).strip()
    return _WHITESPACE.sub(" ", text).strip().lower()


def clean_hf(text: str) -> str:
    """`text` as Hugging Face's CLIPTokenizer reads it: NFC, whitespace collapsed, lower case letter by letter.

    Lone surrogates, which the original refuses, become U+FFFD. Leading and trailing spaces, which carry no tokens, go. Case
    and normal form of characters newer than this Python's Unicode may differ from the original's.
    Source: transformers 5, models/clip/tokenization_clip.py.
    """
    text = _WHITESPACE.sub(" ", nfc(_SURROGATE.sub("\ufffd", text)))
    # Rust lower-cases without context: a capital sigma at the end of a word is not written as a final sigma.
    return text.replace("Σ", "σ").lower().strip(" ")


def clean_siglip(text: str, lowercase: bool, canonicalize: bool) -> str:
    """`text` as SigLIP's tokenizer reads it: lower case; underscores to spaces, no ASCII punctuation, single spaces.

    Source: `canonicalize_text` of google-research/big_vision (prompt_engineering.py). Hugging Face's SiglipTokenizer drops
    underscores where this writes a space.
    """
    text = _SURROGATE.sub("\ufffd", text)
    if lowercase:
        text = text.lower()
    if canonicalize:
        text = text.replace("_", " ").translate(_NO_PUNCTUATION)
        text = " ".join(text.split())
    return text


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def fix_text(text: str) -> str:
    """What `ftfy.fix_text` gives, in time linear in the text: mojibake, entities, quotes, widths, controls, NFC.

    Source: ftfy 6.3 (`fix_text`, `fix_and_explain`): line by line, every fixer in order until nothing changes; entities are
    decoded until the first line with a "<" in it.
    """
    unescape = True
    fixed = []
    for line in _lines(text):
        if unescape and "<" in line:
            unescape = False
        if _PLAIN_LINES.fullmatch(line) and "\r" not in line:
            fixed.append(line)
        elif len(line) <= _MAX_REMEMBERED:
            fixed.append(_fix_short_line(line, unescape))
        else:
            fixed.append(_fix_line(line, unescape))
    return "".join(fixed)


def nfc(text: str) -> str:
    """The normal form NFC, in time n log n for any text.

    Python sorts combining marks by insertion. A long run is sorted here first, by the rule of the standard (stably, by
    combining class, between marks of class zero), which does not change its normal form.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _MARK_RUN.sub(_sort_marks, text))


def _lines(text: str) -> list[str]:
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    if len(text) <= _FTFY_MAX_LINE:
        return lines
    return [line[at : at + _FTFY_MAX_LINE] for line in lines for at in range(0, len(line), _FTFY_MAX_LINE)]


def _fix_line(line: str, unescape: bool) -> str:
    while True:
        before = line
        if unescape and "&" in line:
            line = fixes.unescape_html(_AMPERSAND_CHAIN.sub("&amp;", line))
        if is_bad(line):  # otherwise fix_encoding leaves it alone, but takes ten times as long to say so
            line = ftfy.fix_encoding(line, _FTFY_DEFAULTS)
        if _FIXABLE.search(line):
            for fixer in _FIXERS:
                line = fixer(line)
        line = nfc(line)
        if line == before:
            return line


# Short lines repeat (in a text of a million line breaks, and among captions); long ones would only fill the memory.
_MAX_REMEMBERED = 256
_fix_short_line = functools.lru_cache(maxsize=1024)(_fix_line)


def _sort_marks(run) -> str:
    decomposed = "".join(unicodedata.normalize("NFD", mark) for mark in run[0])
    ordered: list[str] = []
    for _, group in itertools.groupby(decomposed, key=lambda mark: unicodedata.combining(mark) > 0):
        ordered += sorted(group, key=unicodedata.combining)  # stable, so marks of class zero stay as they are
    return "".join(ordered)


def _unescape(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:
        return html.unescape(_REFERENCE.sub(r"&#\1", text))
