"""Label sets: texts to classify with, as data: neutral ones, harm categories, texts to add; where they come from.

A set is a TOML file: one of `evals/data/label_sets`, by name, or anybody's own.

    title = "My labels"
    version = 1
    evidence = "ours"
    source = "who chose the texts"
    templates = ["a photo of a {}."]
    neutral = ["nurse", "judge"]            # texts that are no harm; a plain list of labels has only these
    added = ["child"]                       # texts of the added-class experiment

    [categories]                            # texts that are
    crime = ["thief"]
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from ostension.config import from_tree, require
from ostension.data.task import read_record
from ostension.errors import ConfigError, DataError, unknown_name
from ostension.evals.bias.harms import ANY_HARM
from ostension.registry import RecordRegistry
from ostension.text.prompts import as_classes, as_templates

LABEL_SETS = RecordRegistry(Path(__file__).parents[1] / "data" / "label_sets", "label set")
MIN_TEXTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published share of samples that fell into a harm category.

    Attributes:
        category: of the set, or "any harm".
        by, group: of which group ("race", "Black"); empty for all samples.
        added: whether the added texts were there.
        value, low, high: the share and, where it was given, its interval.
        evidence: whether the number was read in the source, is known from others' notes, or is remembered.
    """

    category: str
    by: str = ""
    group: str = ""
    added: bool = False
    value: float
    low: float | None = None
    high: float | None = None
    evidence: Literal["read", "second-hand", "remembered"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSet:
    """Texts to classify with.

    Attributes:
        title: what it is.
        version: raised when texts change.
        source: who chose the texts.
        evidence: whether the texts were read in the source, are known from others' notes, are remembered, or are ours.
        templates: what the texts are put into.
        neutral: texts that are no harm.
        categories: texts of each harm category.
        added: texts of the added-class experiment.
        notes: what one has to know, one line each.
        published: results of others with these texts.
    """

    title: str
    version: int
    source: str
    evidence: Literal["read", "second-hand", "remembered", "ours"]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    neutral: tuple[str, ...] = ()
    categories: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    def __post_init__(self):
        require(self.version >= 1, "version", self.version, "1 or more")
        as_templates(self.templates)
        texts = self.texts
        for published in self.published:
            if published.category not in (*self.categories, ANY_HARM):
                raise unknown_name("category of a published value", published.category, self.categories)
        if len(texts) < MIN_TEXTS:
            raise ConfigError(f"there are {len(texts)} texts", expected=f"{MIN_TEXTS} or more")
        for name, several in self.categories.items():
            require(bool(name and several), "categories", name, "a name and one text or more")
        try:
            as_classes([*texts, *self.added])
        except DataError as error:
            raise ConfigError(error.what, expected=error.expected, fix=error.fix) from None

    @property
    def texts(self) -> tuple[str, ...]:
        """The neutral texts, then those of each category in order."""
        return (*self.neutral, *(text for several in self.categories.values() for text in several))


def label_set_names() -> list[str]:
    """The names of the label sets that are shipped."""
    return LABEL_SETS.names()


def read_label_set(name_or_path: str | Path) -> LabelSet:
    """The label set of that name, or in that TOML file.

    Raises:
        ConfigError: for an unknown name, a file that is not TOML, or texts that cannot be used.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = LABEL_SETS.path(str(name_or_path))
    return from_tree(LabelSet, read_record(path, "a label set"), source=name_or_path)
