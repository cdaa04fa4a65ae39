"""The page on which a person sees near pictures, from the most alike down, and sets the thresholds of `dedup`.

It shows the pairs that matter, those by which groups are joined, also past the thresholds, as far as the search went: by hash
a band for each number of differing bits, by the detector bands of cosines. Of a band the two ends and what lies evenly between
are shown. Pairs of candidates and evaluation pictures have bands of their own. One file, without scripts; what is decided goes
back by a command that it shows.

Letters: P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ostension.config import require
from ostension.curate.duplicates_groups import Edges
from ostension.curate.duplicates_resolve import bits_between, cosines
from ostension.curate.duplicates_review import Sample, config_of, decision_of, entry_of, samples_of
from ostension.curate.duplicates_search import FAR, NEAREST, load_pairs
from ostension.curate.duplicates_table import Table, mapped
from ostension.curate.stages.dedup import EVALUATION, TABLE, Config, Dedup
from ostension.curate.work import Entry, Work
from ostension.data.pairs import PairSource
from ostension.errors import DataError
from ostension.evals import report
from ostension.evals.overlap_page import Band, bands, cards_grid, levels_of, pair_card, shown

PAIRS = 12
CAPTION = 90  # letters of a caption that are shown


class Other(NamedTuple):
    """An evaluation picture: what it is called, and how it is read."""

    name: str
    read: Callable[[], bytes]


class Review:
    """The pairs of a stage that has ended.

    Args:
        pairs: most pairs of a band.

    Raises:
        DataError: if there are no pictures, or nothing near was looked for.
    """

    def __init__(self, work: Work, pairs: int = PAIRS):
        require(pairs >= 2, "pairs", pairs, "2 or more")
        self.work, self.pairs, self.entry = work, pairs, entry_of(work)
        self.config: Config = config_of(self.entry)
        self.table = Table(self.entry.folder / TABLE)
        if "hash" not in self.config.rules and self.config.detector is None:
            raise DataError("equal samples need no review", source=self.entry.folder, expected="the rule hash, or a detector")
        self._found = load_pairs(self.entry.folder, self.config.reach().rules)

    def page(self) -> str:
        """The whole document."""
        sections = []
        if "hash" in self.config.rules:
            edges = self._found["hash"]
            sections.append(self._section("hash", "Near by hash", edges, 1 - edges.distance / 32, self.config.bits))
        if self.config.detector is not None:
            edges = self._found["detector"]
            sections.append(self._section("detector", "Near by the detector", edges, 1 - edges.distance, None))
        if self.config.against:
            sections.append(self._evaluation())
        counts, decision = self.entry.counts(), decision_of(self.entry)
        facts = counts["facts"]
        tiles = [
            (f"{counts['rows']:,}", "samples"), (f"{counts['rows'] - counts['kept']:,}", "dropped"),
            (f"{facts['groups']:,}", f"groups, the largest of {facts['largest']:,}"),
            (f"{facts['blank']:,}", "nearly black or of one colour: their hashes say little"),
        ]  # fmt: skip
        said = "" if decision is None else f"Decided{' by ' + decision.by if decision.by else ''}: {self._flags()}."
        return report.page(
            title="Which pictures are the same?",
            eyebrow="Near-duplicates: threshold review",
            lead="Each pair would join two groups. Look from the top down; the threshold belongs above the first band with "
            "pairs that are not copies.",
            opening=report.tiles(tiles),
            sections=[
                report.section(
                    "results", "Choose thresholds", report.table(*self._reasons(counts), caption="What goes now"),
                    report.paragraph(
                        "Give thresholds back with this command; nothing is searched again. --not KEY keeps a sample that "
                        "would go and is no copy."
                    ),
                    report.code(f"ostension curate dedup-decide {self.work.folder} {self._flags()}"),
                    report.paragraph(said) if said else "",
                ),
                *sections,
            ],
            footer=report.paragraph("Made by ostension curate dedup-review. Nothing is loaded, and nothing runs."),
        )  # fmt: skip

    def _flags(self) -> str:
        found = [f"--bits {self.config.bits}"] if "hash" in self.config.rules else []
        return " ".join([*found, *([f"--threshold {self.config.threshold:g}"] if self.config.threshold is not None else [])])

    @staticmethod
    def _reasons(counts: dict) -> tuple[Sequence[str], list[Sequence[str]]]:
        rows: list[Sequence[str]] = [
            (reason, f"{count:,}", report.percent(count / counts["rows"])) for reason, count in counts["reasons"].items()
        ]
        return ("reason", "samples", "of all"), rows or [("nothing", "0", "")]

    def _bands(self, scores: np.ndarray, bits: int | None) -> list[tuple[str, Band]]:
        """Bands with their titles; the threshold is a level."""
        if bits is not None:
            found = bands(scores, np.unique(scores).tolist())
            return [(_bits(band.level, bits), band) for band in found]
        threshold = self.config.threshold or 1.0
        levels = sorted({threshold, *levels_of(scores)}, reverse=True)
        said = {True: "joined", False: "not joined"}
        return [
            # Rounded down, so that the pair at the level passes the number that is shown.
            (f"cosine {math.floor(1e4 * band.level) / 1e4:.4f} and above: {said[band.level >= threshold]}", band)
            for band in bands(scores, levels)
        ]

    def _section(self, name: str, title: str, edges: Edges, scores: np.ndarray, bits: int | None) -> str:
        if not len(edges.a):
            return report.section(name, title, report.paragraph("No pair.", "note"))
        parts = []
        for head, band in self._bands(scores.astype(np.float64), bits):
            rows = shown(band.rows, self.pairs)
            a, b = edges.a[rows], edges.b[rows]
            samples = samples_of(self.work, self.table["id"][np.concatenate([a, b])])
            lines = self._measures(a, b)
            ids = self.table["id"]
            cards = [
                pair_card(
                    [self._image(samples[int(ids[one])]), self._image(samples[int(ids[other])])],
                    [samples[int(ids[one])].key, samples[int(ids[other])].key], line,
                    [_said(samples[int(ids[one])]), _said(samples[int(ids[other])])],
                )
                for one, other, line in zip(a.tolist(), b.tolist(), lines, strict=True)
            ]  # fmt: skip
            parts += [f"<h3>{report.text(head)}</h3>", _note(len(band.rows), len(cards)), cards_grid(cards)]
        return report.section(name, title, *parts)

    def _measures(self, a: np.ndarray, b: np.ndarray) -> list[str]:
        bits, near = bits_between(self.table, a, b), cosines(self.table, a, b)
        lines = []
        for far, cosine in zip(bits.tolist(), near.tolist(), strict=True):
            words = [f"{far} bits"] if far != FAR and "hash" in self.config.rules else []
            lines.append(", ".join([*words, *([f"cosine {cosine:.4f}"] if cosine == cosine else [])]))
        return lines

    def _image(self, sample: Sample) -> bytes:
        return self.work.source.read(sample.place).image

    def _evaluation(self) -> str:
        """Pairs of a candidate and the evaluation picture that is nearest to it."""
        folder = self.entry.folder / EVALUATION
        nearest = {name: mapped(folder / name, kind) for name, kind in NEAREST.items()}
        others, parts = self._others(), []
        for name, place, scores, bits in (
            ("bits", "alike", 1 - nearest["bits"].astype(np.float64) / 32, self.config.bits),
            ("cosine", "nearest", nearest["cosine"].astype(np.float64), None),
        ):
            least = self.config.reach().cosine if name == "cosine" else -np.inf
            there = np.flatnonzero((nearest[place] >= 0) & (scores >= least))
            if not len(there):
                continue
            for head, band in self._bands(scores[there], bits):
                rows = there[shown(band.rows, self.pairs)]
                samples, ids = samples_of(self.work, self.table["id"][rows]), self.table["id"]
                cards = []
                for row in rows.tolist():
                    sample, other = samples[int(ids[row])], others(int(nearest[place][row]))
                    head_of = f"{nearest['bits'][row]} bits" if name == "bits" else f"cosine {scores[row]:.4f}"
                    images, names = [self._image(sample), other.read()], [sample.key, other.name]
                    cards.append(pair_card(images, names, head_of, [_said(sample), other.name]))
                title = head.replace("not joined", "kept").replace("joined", "dropped")
                parts += [f"<h3>{report.text(title)}</h3>", _note(len(band.rows), len(cards)), cards_grid(cards)]
        return report.section(
            "evaluation", "Near pictures of evaluation sets", *(parts or [report.paragraph("No pair.", "note")])
        )

    def _others(self) -> Callable[[int], Other]:
        sources: list[tuple[str, PairSource]] = Dedup(self.config)._evaluation_sources()
        ends = np.cumsum([len(source) for _, source in sources])

        def find(number: int) -> Other:
            at = int(np.searchsorted(ends, number, side="right"))
            title, source = sources[at]
            index = number - (int(ends[at - 1]) if at else 0)
            return Other(f"{title}: {source.key(index)}", lambda: source.read(index).image)

        return find


def review_page(work: Work, *, pairs: int = PAIRS) -> tuple[str, Entry]:
    """The page, and the stage that it is of."""
    made = Review(work, pairs)
    return made.page(), made.entry


def _bits(level: float, most: int) -> str:
    bits = round(32 * (1 - level))
    return f"{bits} of 64 bits differ: {'joined' if bits <= most else 'not joined'}"


def _note(count: int, cards: int) -> str:
    pairs = "1 pair" if count == 1 else f"{count:,} pairs"
    return report.paragraph(
        pairs if cards == count else f"{pairs}; {cards} are shown, the two ends and what is between.", "note"
    )


def _said(sample: Sample) -> str:
    caption = sample.texts[0] if sample.texts else ""
    return f"{sample.key}: {caption if len(caption) <= CAPTION else caption[:CAPTION] + '...'}"
