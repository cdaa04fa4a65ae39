"""The parts of an audit: what is audited, the thresholds with their reasons, and a finding.

Letters: C classes, M templates, N images, E embedding, R reference words, A added classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ostension.config import require, to_tree
from ostension.errors import DataError
from ostension.evals.metrics import Interval
from ostension.shapes import Float, Int

Severity = Literal["high", "medium", "low"]
SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low")
SEVERITY_WORDS = {
    "high": "wrong answers are to be expected: change it before it is used",
    "medium": "look at it: it is likely to cost accuracy, or its errors will not be even",
    "low": "know it: it costs little, or cannot be told from what was given",
}
# Kinds in the order of the report, each with what it means for a reader who knows none of this.
KINDS = {
    "missed": ("Classes that are missed", "Labelled pictures of a class that are called something else."),
    "close": ("Names that mean nearly the same to the model",
              "The rows of two names lie so close together that hardly any picture can tell them apart."),
    "attractor": ("Classes that take too much", "A class that wins pictures because its name fits a little of everything."),
    "contested": ("Classes that share their pictures", "Pictures for which two classes come out nearly level."),
    "never": ("Classes that never win", "Names that no picture was given."),
    "groups": ("Classes that depend on the group", "How often a class is given differs between groups of the samples."),
    "nothing-fits": ("Pictures of none of the classes", "A classifier must choose; here is how sure it is when it is wrong."),
    "probabilities": ("What a probability means", "Whether a threshold on the probability does what one thinks it does."),
    "unstable": ("Names that change with the prompt", "The answer depends on the words around the name."),
    "template": ("Templates that disagree", "One template gives other answers than the rest of them together."),
    "ambiguous": ("Names with several senses", "The model has one row for a name, whichever sense is meant."),
    "names": ("How names are written", "The model reads names as words of a caption; ids and underscores are no words."),
    "undecided": ("Decisions that hang on a hair", "Pictures whose best two classes are within odds of 2 to 1."),
    "vague": ("Names that are near to everything", "Words that the model has no clear picture of lie between the others."),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where a finding begins. How they were calibrated: docs/howto/class-design.md.

    Attributes:
        close: relative squared distance of two names, 1 being that of unrelated words. Below 0.3 lie, among 723,003 pairs of
            LVIS names with the released ViT-B/32, 141 pairs: synonyms, kinds, parts, and words without a picture of their own.
        same: the same where two names are as good as one.
        vague: share of the other names that lie near one (below `near`), at least ten and five times the median name's.
        near: see `vague`.
        contested: share of the pictures of two classes that are undecided between them.
        odds: two classes are undecided where their odds are within this.
        undecided: share of a class's pictures that are undecided.
        flips: share of (picture, template) whose label differs from that of all templates together.
        template_gap: how much less than the median template one agrees with all of them together.
        spread: how many times the median spread over templates a name has, and `spread_z` its robust z-score.
        forced: share of pictures that are called `sure` of another class when their own is taken away.
        sure: a probability that people take for certainty.
        takes: share of all pictures that one class takes, and how many times its even share, 1/C, that is at least.
        effect: Cramer's V between class and group (0.1 is small, 0.3 medium, 0.5 large in Cohen's words).
        missed: share of a class's labelled pictures that are called another class.
        significance: of tests, corrected over all tests of a kind.
        min_images: a class with fewer pictures is not judged by shares of them.
    """

    close: float = 0.3
    same: float = 0.15
    vague: float = 0.025
    near: float = 0.45
    contested: float = 0.25
    odds: float = 2.0
    undecided: float = 0.4
    flips: float = 0.2
    template_gap: float = 0.15
    spread: float = 2.0
    spread_z: float = 3.5
    forced: float = 0.25
    sure: float = 0.9
    takes: float = 0.02
    takes_times: float = 3.0
    effect: float = 0.1
    missed: float = 0.25
    significance: float = 0.05
    min_images: int = 20

    def __post_init__(self):
        for field in dataclasses.fields(self):
            require(getattr(self, field.name) > 0, field.name, getattr(self, field.name), "above 0")
        require(self.odds > 1, "odds", self.odds, "above 1")
        require(self.same <= self.close, "same", self.same, f"at most close = {self.close:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to change, or to know.

    Attributes:
        kind: a key of `KINDS`.
        classes: the names that it is about; empty if it is about the list.
        severity: a key of `SEVERITY_WORDS`.
        evidence: what was seen, in one line with its numbers.
        value: the number that the rule looks at, with its `interval` where there is one.
        count: pictures, prompts or pairs that it rests on.
        rule: when this is reported, in words.
        suggestion: what to do, in one line.
    """

    kind: str
    classes: tuple[str, ...]
    severity: Severity
    evidence: str
    value: float
    rule: str
    suggestion: str
    interval: Interval | None = None
    count: int = 1

    def __post_init__(self):
        assert self.kind in KINDS and self.severity in SEVERITY_WORDS

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return to_tree(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is audited: names at least, and whatever else there is. What is missing is not checked, and the audit says so.

    Attributes:
        names: what the classes are called.
        rows: (C, E) unit rows of the classes, as they would be used.
        scale: the multiplier of the cosines.
        templates: what the rows were made with.
        template_rows: (M, C, E) unit rows of the classes under each single template.
        used: how many of the templates, the first ones, the rows were made with; the others are only tried. All if None.
        reference: (R, E) unit rows of words that have nothing to do with each other, in the same templates.
        senses: for each name of several known senses, the senses in words with their cosine to the name's row.
        images: (N, E) unit rows of pictures.
        ids: of the pictures.
        targets: (N,) their classes.
        groups: (N,) by field.
        added: rows (E,) of classes that might be added, by name.
        lengths: tokens of the longest prompt of each class, and `context_length` that there is room for.

    Raises:
        DataError: for parts that do not belong together.
    """

    names: tuple[str, ...]
    rows: Float[np.ndarray, "C E"] | None = None
    scale: float = 100.0
    templates: tuple[str, ...] = ()
    template_rows: Float[np.ndarray, "M C E"] | None = None
    used: int | None = None
    reference: Float[np.ndarray, "R E"] | None = None
    senses: Mapping[str, tuple[tuple[str, float], ...]] = dataclasses.field(default_factory=dict)
    images: Float[np.ndarray, "N E"] | None = None
    ids: tuple[str, ...] = ()
    targets: np.ndarray | None = None
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    added: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    context_length: int | None = None

    def __post_init__(self):
        if len(self.names) < 2:
            raise DataError(f"there are {len(self.names)} class names", expected="two or more")
        if self.rows is not None and len(self.rows) != len(self.names):
            raise DataError(f"{len(self.rows)} rows for {len(self.names)} names", expected="one a class")
        if self.template_rows is not None and self.template_rows.shape[:2] != (len(self.templates), len(self.names)):
            raise DataError(f"rows of templates of shape {self.template_rows.shape}", expected="(templates, classes, E)")
        if self.images is None:
            if self.targets is not None or self.groups:
                raise DataError("there are labels or groups and no pictures", expected="pictures that they are of")
            return
        if self.rows is None or self.rows.shape[1] != self.images.shape[1]:
            what = "no rows" if self.rows is None else f"rows of width {self.rows.shape[1]}"
            raise DataError(f"{what} for pictures of width {self.images.shape[1]}", expected="rows in the same space")
        parts: dict[str, Any] = {"ids": self.ids or None, "targets": self.targets, **self.groups}
        for name, values in parts.items():
            if values is not None and len(values) != len(self.images):
                raise DataError(f"{len(values)} {name}", expected=f"{len(self.images)}, one a picture")
        if self.targets is not None and not np.isin(self.targets, np.arange(len(self.names))).all():
            raise DataError(f"labels up to {self.targets.max()}", expected=f"0 to {len(self.names) - 1}")

    def uses(self, template: int) -> bool:
        """Whether the rows were made with that template, so that it can be left out."""
        return self.used is None or template < self.used


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What a classifier says of pictures, computed once for all checks.

    Attributes:
        logits: (N, C).
        probabilities: (N, C) of the softmax.
        order: (N, 3) the best classes, best first (two where there are but two).
        margins: (N,) logit of the best class minus that of the second: the log of their odds.
    """

    logits: Float[np.ndarray, "N C"]
    probabilities: Float[np.ndarray, "N C"]
    order: Int[np.ndarray, "N K"]
    margins: Float[np.ndarray, " N"]

    @property
    def best(self) -> Int[np.ndarray, " N"]:
        return self.order[:, 0]

    @staticmethod
    def of(logits: Float[np.ndarray, "N C"]) -> Answers:
        """From logits; equal ones are ordered by index."""
        # Three passes for the best three: sorting all classes of 50,000 pictures would take most of the audit's time.
        rest, rows, best = logits.copy(), np.arange(len(logits)), []
        for _ in range(min(3, logits.shape[1])):
            best.append(rest.argmax(axis=1))
            rest[rows, best[-1]] = -np.inf
        order = np.stack(best, axis=1)
        ranked = np.take_along_axis(logits, order, axis=1)
        shifted = np.exp(logits - ranked[:, :1])
        return Answers(
            logits=logits,
            probabilities=shifted / shifted.sum(axis=1, keepdims=True),
            order=order,
            margins=ranked[:, 0] - ranked[:, 1],
        )


MAX_SHOWN = 60  # letters of a name in a sentence


def quoted(*names: str) -> str:
    """Names in quotes, with "and" before the last; very long ones are shortened."""
    marked = [f"'{name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + '...'}'" for name in names]
    return marked[0] if len(marked) == 1 else ", ".join(marked[:-1]) + " and " + marked[-1]


def percent(share: float) -> str:
    """A share for a sentence: 3.4 %, 12 %."""
    return f"{100 * share:.2g} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def between(interval: Interval) -> str:
    """An interval of a share for a sentence."""
    return f"{percent(interval.low)} to {percent(interval.high)}"
