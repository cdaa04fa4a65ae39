"""Words and marks of an English text set apart by spaces, as NLTK's `word_tokenize` does it.

ELEVATER passes every piece of knowledge through that function before it joins the prompt, so it decides what the text tower
reads: `can't` becomes `ca n't`, `"` becomes `` or '', `).` becomes `) .`. The rules are those of the Penn Treebank with
NLTK's additions (3.7 and later). One part differs: NLTK finds the ends of sentences with a trained model, here they are
found by rule. That can only move a space before a full stop inside the text, which CLIP's tokenizer does not see; on all
published files of knowledge its tokens are the same (docs/howto/elevater.md).

Source: the Treebank's tokenization rules; NLTK's `tokenize/destructive.py`, read for the order of the rules.
"""

from __future__ import annotations

import re

# Each rule puts spaces around what it finds. They run in this order over one sentence.
_OPENING = (
    (r"([«“‘„]|`+)", r" \1 "),
    (r'^"', "``"),
    (r"(``)", r" \1 "),
    (r"([ (\[{<])(\"|'{2})", r"\1 `` "),
    (r"(?i)(?<!\w)(')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", r"\1 "),  # an opening quote, but not the clitic of "'ve"
)
_MARKS = (
    (r"([^.])(\.)([\]\)}>\"'»”’ ]*)\s*$", r"\1 \2 \3 "),  # the sentence's last full stop, before what closes it
    (r"([:,])([^\d])", r" \1 \2"),  # but 3,000 and 12:30 stay whole
    (r"([:,])$", r" \1 "),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&]", r" \g<0> "),
    (r"[\u2012-\u2015]", r" \g<0> "),  # dashes
    (r"([^.])(\.)([\]\)}>\"']*)\s*$", r"\1 \2\3 "),
    (r"[?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"\*", r" \g<0> "),
    (r"[\]\[(){}<>]", r" \g<0> "),
    (r"--", " -- "),
)
_CLOSING = (
    (r"([»”’])", r" \1 "),
    (r"''", " '' "),
    (r'"', " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
    (r"(?i)\b(can)(not)\b", r" \1 \2 "),
    (r"(?i)\b(d)('ye)\b", r" \1 \2 "),
    (r"(?i)\b(gim|lem)(me)\b", r" \1 \2 "),
    (r"(?i)\b(gon)(na)\b", r" \1 \2 "),
    (r"(?i)\b(got)(ta)\b", r" \1 \2 "),
    (r"(?i)\b(more)('n)\b", r" \1 \2 "),
    (r"(?i)\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r"(?i) ('t)(is|was)\b", r" \1 \2 "),
)
_COMPILED = tuple(
    tuple((re.compile(pattern), replacement) for pattern, replacement in rules) for rules in (_OPENING, _MARKS, _CLOSING)
)
# An end of a sentence: a mark, what closes quotes and brackets, space, and no small letter after it.
_END = re.compile(r"(?<=[.!?])[\"'’”)\]]*\s+(?=[^\sa-z])")
# A full stop after these is part of the word: initials, and abbreviations that the published texts have.
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]|etc|cf|vs|approx|esp|St|Mt|Dr|Mr|Mrs|ca|c|No|no)\.$")


def word_tokens(text: str) -> list[str]:
    """The words and marks of `text`, in order."""
    return [token for sentence in _sentences(text) for token in _sentence_tokens(sentence)]


def _sentences(text: str) -> list[str]:
    found, start = [], 0
    for match in _END.finditer(text):
        if not _ABBREVIATED.search(text[start : match.start()]):
            found.append(text[start : match.end()].strip())
            start = match.end()
    return [*found, text[start:].strip()]


def _sentence_tokens(sentence: str) -> list[str]:
    opening, marks, closing = _COMPILED
    for pattern, replacement in (*opening, *marks):
        sentence = pattern.sub(replacement, sentence)
    sentence = f" {sentence} "
    for pattern, replacement in closing:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()
