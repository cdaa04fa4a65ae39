"""How a cleaned text is split into words, and the two modes of CLIP's tokenizer: guard, cleaning and split together.

A word is a contraction, a run of letters, one digit, or a run of anything else but whitespace. The special tokens of the
references' patterns are left out: in a user's text their spellings are ordinary characters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import regex

from ostension.text import cleaning

# Letters and numbers that came after Unicode 16, the version that Hugging Face's tokenizers knows (measured on 0.23.3, all
# code points). The regex module is ahead of it, and of Python.
_NEWER_LETTERS = (
    r"\u0558\u058B-\u058C\u088F\u0C5C\u0CDC\u208F\u209D-\u209F\uA7CE-\uA7CF\uA7D2\uA7D4\uA7DD\uA7E2\uA7F1\uAB6C-\uAB6D"
    r"\U000107BB-\U000107BF\U00010940-\U00010959\U00010EC5-\U00010EC7\U00010ED9-\U00010EEE\U00011B0A\U00011DB0-\U00011DDB"
    r"\U00011DF1\U00016EA0-\U00016ED3\U00016FF2-\U00016FF3\U000187F8-\U000187FF\U00018CD6-\U00018CDA\U00018D09-\U00018D20"
    r"\U00018D80-\U00018DF2\U00018E00-\U000191D2\U0001B123-\U0001B128\U0001B168\U0001D6A6\U0001DF1F-\U0001DF24"
    r"\U0001DF2B-\U0001DF96\U0001DFCD-\U0001DFFF\U0001E6C0-\U0001E6FF\U0002B73A-\U0002B73F\U0002B81E\U0002CEA2-\U0002CEAD"
    r"\U000323B0-\U00033479\U0003D000-\U0003FC3F"
)
_NEWER_NUMBERS = r"\U00011DE0-\U00011DE9\U0001246F\U00012475-\U0001247F\U00012550-\U00012686\U00016FF4-\U00016FF6"

_CONTRACTION = r"'s|'t|'re|'ve|'m|'ll|'d"
# Source: clip/simple_tokenizer.py of openai/CLIP. It ignores case, so a long s after an apostrophe is a contraction too.
_OPENAI = regex.compile(_CONTRACTION + r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
# Source: models/clip/tokenization_clip.py of transformers 5, which does not.
_LETTER, _NUMBER = rf"[\p{{L}}--[{_NEWER_LETTERS}]]", rf"[\p{{N}}--[{_NEWER_NUMBERS}]]"
_HF = regex.compile(rf"{_CONTRACTION}|{_LETTER}+|{_NUMBER}|[^\s{_LETTER}{_NUMBER}]+", regex.V1)


class Mode(NamedTuple):
    """One way to read a text.

    Attributes:
        is_plain: whether cleaning a text is only whitespace and lower case.
        clean: the text with single spaces between what whitespace separated.
        split: the words of a cleaned text.
    """

    is_plain: Callable[[str], bool]
    clean: Callable[[str], str]
    split: Callable[[str], list[str]]


MODES = {
    "openai": Mode(cleaning.is_plain_openai, cleaning.clean_openai, _OPENAI.findall),
    "hf": Mode(cleaning.is_plain_hf, cleaning.clean_hf, _HF.findall),
}
