"""The page on which a person sets the threshold: pairs of evaluation and training pictures, from the most alike down.

Pairs come in bands between levels of similarity, and each level says how much of the set lies above it. The levels are those
that 5, 10, 20, 50, ... pictures reach, whatever the scale of the detector, or the ones asked for. One looks from the top
down and stops above the band in which the first pairs are not copies. The page is one file, without scripts; the decision
goes back by a command that it shows.

Letters: N evaluation pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ostension.config import require
from ostension.data.pairs import PairSource
from ostension.errors import DataError, LimitError
from ostension.evals import report
from ostension.evals.charts import Line, line_chart
from ostension.evals.overlap_neighbours import Neighbours
from ostension.evals.overlap_review import flags, scores_of
from ostension.image.decode import open_image
from ostension.shapes import Float

THUMB_PX, PAIRS = 128, 12
FIRST, STEPS = 5, (1, 2, 5)
MAX_LEVELS = 14
CURVE_POINTS = 120
GRID = "grid-template-columns:repeat(auto-fill,minmax(210px,1fr));overflow-wrap:anywhere"


class Band(NamedTuple):
    """Pairs from a level (with it) up to the next higher one: the level, pictures at or above it, and the band's rows."""

    level: float
    above: int
    rows: np.ndarray


def levels_of(scores: Float[np.ndarray, " N"]) -> list[float]:
    """The similarities that 5, 10, 20, 50, ... and all pictures reach, falling, each once."""
    falling = np.sort(scores)[::-1]
    ranks = [step * 10**power for power in range(8) for step in STEPS if step * 10**power >= FIRST]
    found = [float(falling[rank - 1]) for rank in [*(rank for rank in ranks if rank < len(falling)), len(falling)]]
    return list(dict.fromkeys(found))[:MAX_LEVELS]


def bands(scores: Float[np.ndarray, " N"], levels: Sequence[float]) -> list[Band]:
    """The pairs between levels, each band's rows from the most alike down; what is below the last level is left out."""
    order = np.argsort(-scores, kind="stable")
    found, start = [], 0
    for level in sorted(levels, reverse=True):
        stop = int((scores >= level).sum())
        if stop > start:
            found.append(Band(level, stop, order[start:stop]))
        start = stop
    return found


def shown(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of a band's rows: its two ends and what lies evenly between."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]


def review_page(
    neighbours: Neighbours,
    evaluation: PairSource,
    training: PairSource,
    *,
    task: str,
    folder: str,
    levels: Sequence[float] = (),
    pairs: int = PAIRS,
) -> str:
    """The whole document.

    Args:
        evaluation, training: the sources that were searched.
        task: the set's name.
        folder: of the search, for the commands on the page.
        levels: similarities between bands; by default as `levels_of`.
        pairs: most pairs of a band.

    Raises:
        DataError: if a source does not hold what was searched.
    """
    require(pairs >= 2, "pairs", pairs, "2 or more")
    for name, source in (("evaluation", evaluation), ("training", training)):
        expected = neighbours.facts.get("fingerprints", {}).get(name)
        if expected is not None and source.fingerprint() != expected:
            raise DataError(f"the {name} set is not the one that was searched", expected=f"fingerprint {expected[:16]}")
    scores = scores_of(neighbours)
    paired = scores > -1
    if not paired.any():
        raise DataError("there is no pair to look at: no file is in both sets, and nothing else was compared by")
    found = bands(scores, levels or levels_of(scores[paired]))
    by_cosine = bool(neighbours.similarity.shape[1])
    sections, flagged = [], 0
    for number, band in enumerate(found):
        cards = [_card(neighbours, row, scores, evaluation, training) for row in shown(band.rows, pairs).tolist()]
        flagged += sum(card.flagged for card in cards)
        reach = f"{_words(band.level, True)} and above" if by_cosine else f"at most {_words(band.level, False)}"
        title = f"{reach}: {band.above:,} of {len(scores):,}"
        says = f"{_pairs(len(band.rows))} in this band"
        says += "." if len(cards) == len(band.rows) else f"; {len(cards):,} are shown, the two ends and what is between."
        sections.append(report.section(f"band-{number}", title, report.paragraph(says, "note"), cards_grid(cards)))
    odd = _disagreements(neighbours, pairs) if by_cosine else np.zeros(0, np.int64)
    if len(odd):
        cards = [_card(neighbours, row, scores, evaluation, training, alike=True) for row in odd.tolist()]
        says = "At most 4 of the 64 bits of their hashes differ, but the detector finds others nearer. Most are chance."
        note = report.paragraph(says, "note")
        sections.append(report.section("hash", "Alike by hash, not to the detector", note, cards_grid(cards)))
    return report.page(
        title=f"Which pictures of {task} were in training?",
        eyebrow="Data overlap: threshold review",
        lead="Each pair is a picture of the evaluation set and the training picture that is most like it. "
        "Look from the top down; the threshold belongs above the first band with pairs that are not copies.",
        opening=report.tiles(_tiles(neighbours, scores, flagged)),
        sections=[_choice(neighbours, found, scores, folder, by_cosine), *sections],
        footer=report.paragraph("Made by ostension eval overlap review. Nothing is loaded from anywhere, and nothing runs."),
    )


class Card(NamedTuple):
    """A pair as HTML, and whether one of its pictures is a trap (`overlap_review.flags`)."""

    html: str
    flagged: bool


def _card(
    neighbours: Neighbours, row: int, scores: np.ndarray, evaluation: PairSource, training: PairSource, alike: bool = False
) -> Card:
    match = int(neighbours.alike[row]) if alike else neighbours.match(row)
    words = []
    if neighbours.same_file[row] >= 0:
        words.append("same file")
    if neighbours.bits[row] >= 0:
        words.append(f"hashes differ in {neighbours.bits[row]} of 64 bits")
    one, other = evaluation.read(int(neighbours.samples[row])), training.read(neighbours.training_samples[match])
    names = neighbours.ids[row], neighbours.training_ids[match]
    return pair_card((one.image, other.image), names, f"{scores[row]:.4f}", [", ".join(words), *names])


def pair_card(images: Sequence[bytes], names: Sequence[str], head: str, lines: Sequence[str]) -> Card:
    """Pictures side by side over what is said of them.

    Args:
        images: encoded; the traps that the first one is are named.
        head: the line that stands out.
        lines: below it.

    Raises:
        DataError: for a picture that cannot be shown.
    """
    pictures: list[str] = []
    marks: list[str] = []
    for image, name in zip(images, names, strict=True):
        try:
            picture = open_image(image, name=name)
        except (DataError, LimitError) as problem:  # it was readable when it was searched
            raise DataError(f"cannot be shown: {problem.what}", source=name) from None
        if not pictures:
            marks = list(flags(picture))
        pictures.append(report.thumb(report.image_data(picture, THUMB_PX), name))
    notice = "".join(f'<b style="color:var(--c2)">{report.text(mark)}</b>' for mark in marks)
    html = (
        f'<li><div class="four">{"".join(pictures)}</div><b>{report.text(head)}</b>{notice}'
        f"<span>{'<br>'.join(report.text(line) for line in lines)}</span></li>"
    )
    return Card(html, bool(marks))


def cards_grid(cards: Sequence[Card]) -> str:
    """Cards beside each other, as many as fit."""
    return f'<ul class="styles" style="{GRID}">' + "".join(card.html for card in cards) + "</ul>"


def _tiles(neighbours: Neighbours, scores: np.ndarray, flagged: int) -> list[tuple[str, str]]:
    training = neighbours.facts.get("counts", {}).get("training", 0)
    return [
        (f"{len(neighbours):,}", "evaluation pictures"),
        (f"{training:,}", "training pictures"),
        (f"{int((neighbours.same_file >= 0).sum()):,}", "evaluation pictures whose very file is in training"),
        (f"{flagged:,}", "of the pairs below are nearly black, of one colour or tiny: a high similarity says little of them"),
    ]


def _choice(neighbours: Neighbours, found: Sequence[Band], scores: np.ndarray, folder: str, by_cosine: bool) -> str:
    rows = []
    for band in found:
        same = int((neighbours.same_file[scores >= band.level] >= 0).sum())
        rows.append((_words(band.level, by_cosine), f"{band.above:,}", report.percent(band.above / len(scores)), f"{same:,}"))
    head = ("threshold" if by_cosine else "most differing bits", "pictures at or above", "of the set", "same file")
    falling = np.sort(scores)[::-1]
    places = np.unique(np.linspace(0, len(falling) - 1, min(CURVE_POINTS, len(falling))).astype(int))
    points = [(float(falling[place]), (place + 1) / len(falling)) for place in places[::-1].tolist()]
    chart = line_chart(
        [Line(name="at or above", points=points)], title="Share of the set by threshold", x_label="similarity",
        description="The share of evaluation pictures whose nearest training picture is at least so similar.",
        y_format=lambda value: f"{100 * value:g} %", y_from_zero=True, width=660, height=240,
    )  # fmt: skip
    middle = found[len(found) // 2]
    flag = f"--threshold {_words(middle.level, True)}" if by_cosine else f"--bits {_bits(middle.level)}"
    return report.section(
        "results", "Choose a threshold",
        report.table(head, rows, caption="Levels and what lies above them"),
        f'<div style="margin:18px 0">{report.figure("How much of the set each threshold would call an overlap", chart)}</div>',
        report.paragraph(
            "Give the threshold back with this command (the number is an example). --not ID takes out a pair that passes and "
            "is no copy; --drop-flagged takes out all that are nearly black, of one colour or tiny."
        ),
        report.code(f"ostension eval overlap decide {folder} {flag}"),
    )  # fmt: skip


def _words(level: float, by_cosine: bool) -> str:
    # Rounded down, so that the pair at the level passes the number that is shown.
    return f"{math.floor(1e4 * level) / 1e4:.4f}" if by_cosine else f"{_bits(level)} bits"


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count:,} pairs"


def _bits(level: float) -> int:
    return round(32 * (1 - level))


def _disagreements(neighbours: Neighbours, count: int) -> np.ndarray:
    """Pictures whose hash has a near neighbour that is not among the detector's, the least similar by the detector first."""
    close = np.flatnonzero((neighbours.bits >= 0) & (neighbours.bits <= 4) & (neighbours.same_file < 0))
    other = np.array([row for row in close.tolist() if neighbours.alike[row] not in neighbours.nearest[row]], dtype=np.int64)
    return other[np.argsort(neighbours.best[other], kind="stable")][:count]
