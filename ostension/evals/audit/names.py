"""Checks of names as they are written: what is no word in a caption, repeats, plurals, one name inside another, length.

Nothing here needs a model; with one, the length of prompts in tokens is known too.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ostension.evals.audit.parts import Finding, Severity, Subject, quoted

WORDNET = re.compile(r"^n\d{8}$")
NUMBERED = re.compile(r"^(?:class|label|cls|category|id)?[ _-]*\d+$", re.IGNORECASE)
CAMEL = re.compile(r"[a-z]{2}[A-Z]")  # and not iPod
ARTICLE = re.compile(r"^(?:a|an|the)\s", re.IGNORECASE)
SEVERAL = re.compile(r"[,;/|]|\sor\s", re.IGNORECASE)
LEFTOVER = re.compile(
    r"^(?:others?|none(?: of (?:these|the above))?|background|misc|miscellaneous|unknown|no .+|not .+|n/?a)$", re.IGNORECASE
)
VOWEL_SOUND = re.compile(r"^[aeio]", re.IGNORECASE)  # "u" is either: a unicorn, an umbrella
MOJIBAKE = re.compile("\ufffd|\u00c3[\u0080-\u00bf]|\u00e2\u20ac")

# What is wrong, whether a name has it, how bad it is, what to do.
RULES: tuple[tuple[str, Callable[[str], bool], Severity, str], ...] = (
    ("is an id and not a name", lambda name: bool(WORDNET.match(name) or NUMBERED.match(name)), "high",
     "write what is to be seen, in the words of a caption"),
    ("has broken letters", lambda name: bool(MOJIBAKE.search(name)), "high", "repair the encoding of the list"),
    ("says what is not there, or that nothing fits", lambda name: bool(LEFTOVER.match(name)), "high",
     "a model of captions cannot see an absence: name what is there instead, or reject pictures by a threshold"),
    ("has underscores", lambda name: "_" in name, "medium", "write spaces"),
    ("is written in camel case", lambda name: bool(CAMEL.search(name)) and "_" not in name, "medium", "write spaces"),
    ("lists several names", lambda name: bool(SEVERAL.search(name)), "medium",
     "give the class several names, each by itself: they are averaged"),
    ("has quotes", lambda name: any(mark in name for mark in "\"“”«»`"), "medium",
     "leave them out, unless text in the picture is meant"),
    ("has brackets", lambda name: any(mark in name for mark in "()[]{}<>"), "low",
     "write the distinction as words: 'bow, a weapon' and not 'bow (weapon)'"),
    ("ends in a punctuation mark", lambda name: bool(re.search(r"[.,:;!?]$", name.strip())), "low",
     "leave it out: templates end in one"),
    ("has spaces at an end or in a row", lambda name: name != " ".join(name.split()), "low", "leave them out"),
    ("is written in capitals", lambda name: len(name) > 4 and name.isupper() and name.isalpha(), "low",
     "write it as in a caption, unless it is an abbreviation"),
)  # fmt: skip
PLACEHOLDER_ARTICLE = re.compile(r"\b(a|an|the) \{\}", re.IGNORECASE)
MAX_LISTED = 5


def check_names(subject: Subject) -> list[Finding]:
    """Findings about how names are written, one for each rule, with the classes that it is about."""
    found = [
        _finding(tuple(name for name in subject.names if has(name)), what, severity, fix) for what, has, severity, fix in RULES
    ]
    found += [_articles(subject), _wrong_article(subject), *_repeats(subject), *_inside(subject), _too_long(subject)]
    return [finding for finding in found if finding is not None]


def folded(name: str) -> str:
    """A name without case, underscores, hyphens, brackets' contents and double spaces."""
    return " ".join(re.sub(r"[_\-]+", " ", re.sub(r"\(.*?\)", "", name)).casefold().split())


def singular(name: str) -> str:
    """A name whose last word has lost the ending of a plural, as far as spelling tells."""
    for ending, instead in (("ies", "y"), ("ves", "f"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x")):
        if name.endswith(ending) and len(name) > len(ending) + 1:
            return name[: -len(ending)] + instead
    if name.endswith("s") and not name.endswith(("ss", "us", "is")) and len(name) > 3:
        return name[:-1]
    return name


def contains(longer: str, shorter: str) -> bool:
    """Whether all words of `shorter` stand in `longer` in a row, and it has more."""
    longer_words, words = folded(longer).split(), folded(shorter).split()
    span = len(words)
    return 0 < span < len(longer_words) and any(
        longer_words[at : at + span] == words for at in range(len(longer_words) - span + 1)
    )


def relation(first: str, second: str) -> str:
    """What spelling says of two names, as a clause, or nothing."""
    if folded(first) == folded(second):
        return "the same words, written differently"
    if singular(folded(first)) == singular(folded(second)):
        return "one the plural of the other"
    for longer, shorter in ((first, second), (second, first)):
        if contains(longer, shorter):
            return f"{quoted(shorter)} is inside {quoted(longer)}"
    return ""


def _finding(classes: tuple[str, ...], what: str, severity: Severity, fix: str, rule: str = "any such name") -> Finding | None:
    if not classes:
        return None
    shown = quoted(*classes[:MAX_LISTED])
    if len(classes) > 1:
        more = f" and {len(classes) - MAX_LISTED} more" if len(classes) > MAX_LISTED else ""
        evidence = f"{len(classes)} names; each {what}: {shown}{more}"
    else:
        evidence = f"{shown} {what}"
    return Finding(
        kind="names", classes=classes, severity=severity, evidence=evidence, value=float(len(classes)), rule=rule,
        suggestion=fix, count=len(classes),
    )  # fmt: skip


def _articles(subject: Subject) -> Finding | None:
    if not any(PLACEHOLDER_ARTICLE.search(template) for template in subject.templates):
        return None
    classes = tuple(name for name in subject.names if ARTICLE.match(name))
    return _finding(classes, "begins with an article, as the templates do", "medium", "leave the article to the template",
                    "a name with an article in a template with one ('a photo of a a cat')")  # fmt: skip


def _wrong_article(subject: Subject) -> Finding | None:
    """Templates with "a" before a vowel: published ones have it, so that it is only said once."""
    if not subject.templates or not all(re.search(r"\ba \{\}", template) for template in subject.templates):
        return None
    classes = tuple(name for name in subject.names if VOWEL_SOUND.match(name))
    return _finding(classes, "gets 'a' where English has 'an'", "low", "add a template without an article, such as '{}'",
                    "every template has 'a {}'; OpenAI's own have too, and it seldom matters")  # fmt: skip


def _repeats(subject: Subject) -> list[Finding]:
    found: list[Finding | None] = []
    for key, what in ((folded, "the same words"), (lambda name: singular(folded(name)), "singular and plural of one word")):
        by_key: dict[str, list[str]] = {}
        for name in subject.names:
            by_key.setdefault(key(name), []).append(name)
        for several in by_key.values():
            same = len({folded(name) for name in several}) < len(several)
            if len(several) > 1 and (key is folded or not same):
                # Words in brackets may tell two names apart for the model; the check of rows knows.
                bracketed = any("(" in name for name in several)
                found.append(
                    _finding(tuple(several), f"is one of {len(several)} names with {what}", "medium" if bracketed else "high",
                             "make them one class, or name what tells them apart", "names that differ in spelling only")
                )  # fmt: skip
    return [finding for finding in found if finding is not None]


def _inside(subject: Subject) -> list[Finding]:
    """One finding for all pairs: alone it is no fault, but such pairs are where to look first."""
    by_words: dict[str, list[str]] = {}
    for name in subject.names:
        for word in set(folded(name).split()):
            by_words.setdefault(word, []).append(name)
    pairs = []
    for name in subject.names:
        words = folded(name).split()
        # Only names with its rarest word can hold it.
        able = min((by_words[word] for word in words), key=len, default=[])
        pairs += [(name, other) for other in able if contains(other, name)]
    if not pairs:
        return []
    shown = "; ".join(f"{quoted(short)} in {quoted(long)}" for short, long in pairs[:MAX_LISTED])
    more = f"; and {len(pairs) - MAX_LISTED} more" if len(pairs) > MAX_LISTED else ""
    return [
        Finding(
            kind="names", classes=tuple(dict.fromkeys(name for pair in pairs for name in pair)), severity="low",
            evidence=f"{len(pairs)} {'name stands' if len(pairs) == 1 else 'names stand'} inside another: {shown}{more}",
            value=float(len(pairs)),
            rule="all words of a name stand in another one",
            suggestion="if the shorter one is the general class, say what it holds beside the longer one, or drop it",
            count=len(pairs),
        )
    ]  # fmt: skip


def _too_long(subject: Subject) -> Finding | None:
    if subject.context_length is None or not subject.lengths:
        return None
    classes = tuple(
        name for name, length in zip(subject.names, subject.lengths, strict=True) if length > subject.context_length
    )
    return _finding(classes, f"makes prompts of more than {subject.context_length} tokens", "high",
                    "shorten it: the end of the prompt would be cut off", "a prompt longer than the context")  # fmt: skip
