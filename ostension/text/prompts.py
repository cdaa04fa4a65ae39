"""Prompts: templates and class names as data, checked, filled, and composed as token ids.

A template is a text with one `{}`; filled with a class name it is a prompt. The published prompts of the 27 data sets of the
CLIP paper ship as data (`prompt_set`), letter by letter as OpenAI published them.

    compose(tokenizer, templates("openai_imagenet"), class_names("imagenet"))     # 1,000 x 80 rows of ids

Source: data/prompts.md and notebooks/Prompt_Engineering_for_ImageNet.ipynb of openai/CLIP (scripts/build_prompts.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostension.errors import ConfigError, DataError, unknown_name
from ostension.files import read_json

if TYPE_CHECKING:
    from ostension.text.tokenizer import Tokenizer

    # What a caller may give; the run-time checker of the tests must not speak before our own messages do.
    TemplatesLike = str | Iterable[str]
    ClassNamesLike = Iterable[str | Iterable[str]]
else:
    TemplatesLike = ClassNamesLike = Any

PROMPTS_FILE = Path(__file__).parent / "data" / "prompts.json"
PLACEHOLDER = "{}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The published prompts of one data set.

    Attributes:
        name: our name of it.
        title: its heading in OpenAI's list.
        classes: every class as the tuple of its names, in the published order (not always the order of the labels). Only
            FER2013 has classes of several names; their prompts are pooled.
        templates: the published templates.
    """

    name: str
    title: str
    classes: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The first name of every class."""
        return tuple(names[0] for names in self.classes)


def prompt_set_names() -> list[str]:
    """The names that `prompt_set` and `class_names` know."""
    return sorted(_published())


def prompt_set(name: str) -> PromptSet:
    """The published prompts of the data set `name`.

    Raises:
        ConfigError: for an unknown name; it lists the nearest three.
    """
    if name not in _published():
        raise unknown_name("data set of prompts", name, _published())
    return _published()[name]


def class_names(name: str) -> tuple[str, ...]:
    """The published class names of the data set `name`, one a class; raises as `prompt_set` does."""
    return prompt_set(name).class_names


def template_names() -> list[str]:
    """The names that `templates` knows."""
    return sorted(_template_sets())


def templates(name: str) -> tuple[str, ...]:
    """The templates called `name`: "openai_imagenet" (80), "openai_imagenet_best7", "photo", "bare", a data set's own
    published ones by its name ("cifar10"), or CoOp's hand-written one ("coop_dtd").

    Raises:
        ConfigError: for an unknown name; it lists the nearest three. A name never falls back to somebody else's templates.
    """
    if name not in _template_sets():
        raise unknown_name("set of templates", name, _template_sets())
    return _template_sets()[name]


def as_templates(value: TemplatesLike) -> tuple[str, ...]:
    """Checked templates from a sequence of them, from a single one, or from the name of a set.

    Raises:
        ConfigError: for an empty list, a template without exactly one `{}`, one given twice, or an unknown name.
    """
    if isinstance(value, str):
        return (check_template(value),) if PLACEHOLDER in value else templates(value)
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise ConfigError(f"the templates are {value!r}", expected="a list of texts, one text, or the name of a set")
    checked = tuple(check_template(template, f"templates[{index}]") for index, template in enumerate(value))
    if not checked:
        raise ConfigError("there are no templates", expected="one at least", fix="'{}' is the bare class name")
    for index, template in enumerate(checked):
        if checked.index(template) < index:
            raise ConfigError(f"templates[{index}] is {template!r}, as is templates[{checked.index(template)}]")
    return checked


def as_classes(names: ClassNamesLike) -> tuple[tuple[str, ...], ...]:
    """Checked class names, every class as the tuple of its names; a class is given by one name or by several.

    Raises:
        DataError: for an empty list, an empty name, what is not text, or a name that two classes share: these would have
            equal scores everywhere. Only a published set taken whole may repeat a name, as ImageNet's does.
    """
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise DataError(f"the class names are {names!r}", expected="a list of texts")
    classes = tuple(_names_of_class(names, index) for index, names in enumerate(names))
    if not classes:
        raise DataError("there are no class names", expected="one at least")
    seen: dict[str, int] = {}
    for index, class_ in enumerate(classes):
        for name in class_:
            first = seen.setdefault(" ".join(name.split()), index)
            if (first != index or class_.count(name) > 1) and classes not in _published_classes():
                raise DataError(
                    f"class_names[{index}] is {name!r}, as is class_names[{first}]",
                    expected="a different name for every class",
                    fix="say what sets them apart, as in 'crane (bird)'",
                )
    return classes


def check_template(template: Any, where: str = "the template") -> str:
    """`template`, if it has exactly one `{}`.

    Raises:
        ConfigError: if it has not, or is not text; `where` says where it came from.
    """
    if not isinstance(template, str):
        raise ConfigError(f"{where} is {template!r}", expected="a text with one {}")
    count = template.count(PLACEHOLDER)
    if count != 1:
        found = "no {}" if count == 0 else f"{count} times {{}}"
        raise ConfigError(f"{where} is {template!r}, with {found}", expected="one {}, where the class name goes")
    return template


def fill(template: str, class_name: str) -> str:
    """The prompt: `template` with `class_name` in its place; braces in the name are ordinary characters.

    Raises:
        ConfigError: for a template without exactly one `{}`.
    """
    return check_template(template).replace(PLACEHOLDER, class_name)


def compose(
    tokenizer: Tokenizer, templates: TemplatesLike, class_names: ClassNamesLike, *, truncate: bool = False
) -> list[list[list[int]]]:
    """The token ids of every prompt, `[class][template]`, equal to those of `tokenizer.ragged` on the filled prompts.

    Templates and names are tokenised once and their ids are joined: M + C texts instead of M x C. Where a word would reach
    from one part into the other (`{}s`, a name that ends in a full stop before one), and for what is not plain ASCII (whose
    repair looks at the whole line), the filled prompt is tokenised instead.

    A class of several names has the prompts of its first name, then those of its second, and so on.

    Raises:
        ConfigError, DataError: for templates and names that `as_templates` and `as_classes` refuse.
        LimitError: for a prompt of more tokens than `tokenizer.context_length`, unless `truncate` cuts it.
    """
    composer = _Composer(tokenizer, as_templates(templates), truncate)
    rows = [[row for name in names for row in composer.rows(name)] for names in as_classes(class_names)]
    if composer.num_cut:
        tokenizer.count_truncated(composer.num_cut, sum(map(len, rows)))
    return rows


class _Composer:
    """The templates of one `compose`, cut at their placeholders and tokenised."""

    def __init__(self, tokenizer: Tokenizer, templates: tuple[str, ...], truncate: bool):
        self.tokenizer, self.templates, self.truncate = tokenizer, templates, truncate
        self.num_cut = 0
        parts = [template.split(PLACEHOLDER) for template in templates]
        self.pieces = [(tokenizer.piece(before), tokenizer.piece(after)) for before, after in parts]
        before = [] if tokenizer.start_id is None else [tokenizer.start_id]
        self.joints = [
            (before + (left.ids if left else []), (right.ids if right else []) + [tokenizer.end_id])
            for left, right in self.pieces
        ]
        self.longest = max(len(left) + len(right) for left, right in self.joints)
        self.glued: dict[tuple[str, str], list[int]] = {}

    def rows(self, name: str) -> list[list[int]]:
        """The ids of every template filled with `name`."""
        piece = self.tokenizer.piece(name)
        if piece is None:
            return self._plain(name, range(len(self.templates)))
        ids = piece.ids
        rows = [left + ids + right for left, right in self.joints]
        glued = self._glued(piece.first, piece.last)
        for index, row in zip(glued, self._plain(name, glued), strict=True):
            rows[index] = row
        if self.longest + len(ids) > self.tokenizer.context_length:
            rows = [self._fitted(row, index, name) for index, row in enumerate(rows)]
        return rows

    def _plain(self, name: str, indices: Sequence[int]) -> list[list[int]]:
        prompts = [self.templates[index].replace(PLACEHOLDER, name) for index in indices]
        return self.tokenizer.ragged(prompts, truncate=self.truncate)

    def _glued(self, first: str, last: str) -> list[int]:
        """Templates that cannot be composed with a name that begins with `first` and ends with `last`."""
        if (first, last) not in self.glued:
            self.glued[first, last] = [
                index
                for index, (left, right) in enumerate(self.pieces)
                if not (left and right and _words_end(left.last, first) and _words_end(last, right.first))
            ]
        return self.glued[first, last]

    def _fitted(self, row: list[int], index: int, name: str) -> list[int]:
        length = self.tokenizer.context_length
        if len(row) <= length:
            return row
        if not self.truncate:
            raise self.tokenizer.too_long(self.templates[index].replace(PLACEHOLDER, name), f"class {name!r}")
        self.num_cut += 1
        return [*row[: length - 1], self.tokenizer.end_id]


def _words_end(left: str, right: str) -> bool:
    """Whether every word ends at the border between two printable ASCII characters ("" is the border of the text).

    Words are contractions, runs of letters, single digits, and runs of the rest. An apostrophe before a letter may begin a
    contraction; otherwise a word goes on only from letter to letter and from rest to rest.
    """
    if not left or not right or left == " " or right == " " or left.isdigit() or right.isdigit():
        return True
    if left.isalpha():
        return not right.isalpha()
    return right.isalpha() and left != "'"


def _names_of_class(names: object, index: int) -> tuple[str, ...]:
    where = f"class_names[{index}]"
    names = (names,) if isinstance(names, str) else names
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise DataError(f"{where} is {names!r}", expected="a text, or several for a class of several names")
    names = tuple(names)
    if not names:
        raise DataError(f"{where} has no name", expected="one at least")
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"{where} is {name!r}", expected="a text")
        if not name.strip():
            raise DataError(f"{where} is {name!r}", expected="a name that is not empty")
    return names


@functools.cache
def _data() -> dict[str, Any]:
    return read_json(PROMPTS_FILE)


@functools.cache
def _published() -> dict[str, PromptSet]:
    return {
        name: PromptSet(
            name=name,
            title=one["title"],
            classes=tuple((names,) if isinstance(names, str) else tuple(names) for names in one["classes"]),
            templates=tuple(one["templates"]),
        )
        for name, one in _data()["sets"].items()
    }


@functools.cache
def _published_classes() -> frozenset[tuple[tuple[str, ...], ...]]:
    return frozenset(one.classes for one in _published().values())


@functools.cache
def _template_sets() -> dict[str, tuple[str, ...]]:
    sets: dict[str, tuple[str, ...]] = {"photo": ("a photo of a {}.",), "bare": (PLACEHOLDER,)}
    sets |= {name: one.templates for name, one in _published().items()}
    sets |= {name: tuple(listed) for name, listed in _data()["templates"].items()}
    return sets | {"openai_imagenet": sets["imagenet"]}
