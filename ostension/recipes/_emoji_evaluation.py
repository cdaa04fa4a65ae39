"""What the demo measures: the protocols of the paper on the emoji style and names that training never saw.

Every number becomes a record, beside chance and beside a baseline that may look at labelled pictures of the same names in
the training styles but understands nothing: the nearest picture, pixel by pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ostension.data.embedded import EmojiSet
from ostension.evals import metrics
from ostension.evals.layout import in_cells, tsne
from ostension.evals.linear_probe import choose_strength, few_shot, shots_to_match
from ostension.evals.pixels import nearest_pixel_scores
from ostension.evals.records import Record
from ostension.evals.retrieval import RECALL_AT, retrieval
from ostension.evals.scores import accuracy
from ostension.evals.zero_shot import difference, zero_shot
from ostension.files import sha256_json
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint
from ostension.model.predictor import Predictor
from ostension.runtime import numpy_generator

BARE = ("{}",)
PIXEL_SIDE = 32  # the baseline's resolution; 64 changed its accuracy by less than its interval and costs four times as much
GALLERY_SIZE = 8
# Fixed here before any result was seen, like the seed that draws the names.
FREE_QUERIES = ("something sweet to eat", "a sad face", "it can fly", "cold weather", "red fruit", "a person at work")


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A question: the pictures of these rows, among these candidate concepts."""

    name: str
    title: str
    rows: np.ndarray
    candidates: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """A text and the pictures (rows of the set) nearest to it, best first; `meant` is the right one, if there is one."""

    words: str
    found: tuple[int, ...]
    meant: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A picture (row of the set) with its most probable names."""

    row: int
    best: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that the report shows.

    Attributes:
        records: by "PROTOCOL/VIEW".
        seen_queries, new_queries: galleries of names of training and of held-out names, drawn by the seed.
        free_queries: galleries of the fixed free texts.
        hits, misses: held-out names in the new style, drawn by the seed.
        map_rows, map_cells: rows of the set in the new style, and the cell (column, row) of each.
        map_size: columns and rows of the map.
        worth: labelled pictures a name at which a linear probe equals zero-shot, None if more than there are.
    """

    records: dict[str, Record]
    seen_queries: list[Query]
    new_queries: list[Query]
    free_queries: list[Query]
    hits: list[Answer]
    misses: list[Answer]
    map_rows: np.ndarray
    map_cells: np.ndarray
    map_size: tuple[int, int]
    worth: float | None


class EmojiEvaluation:
    """Evaluates one model; embeddings are computed once and shared by the protocols."""

    def __init__(self, model: CLIP, emoji: EmojiSet, templates: Sequence[str], *, seed: int = 0):
        self.model, self.emoji, self.templates, self.seed = model, emoji, tuple(templates), seed
        self.new_style = np.union1d(emoji.rows("new-style-seen-names"), emoji.rows("new-style-new-names"))
        self.is_new_style = emoji.style == emoji.style[self.new_style[0]]
        self.held_out = np.flatnonzero([concept.held_out for concept in emoji.concepts])
        self.views = self._views()
        names = list(emoji.names())
        self.ensemble = Predictor.zero_shot(model, names, self.templates)
        self.bare = Predictor.zero_shot(model, names, BARE)
        self.probe_rows = np.flatnonzero(np.isin(emoji.concept, self.held_out))
        self.embedded = np.union1d(self.new_style, self.probe_rows)
        # Rows of pictures that nothing asks for stay zero.
        self.images = np.zeros((len(emoji), model.config.embed_dim), dtype=np.float32)
        self.images[self.embedded] = model.embed_images(pictures(emoji, self.embedded), batch_size=256).cpu().numpy()
        self.hashes = {
            "model": fingerprint(model),
            "data": emoji.fingerprint,
            "class_list": sha256_json(names),
            "prompts": sha256_json([list(self.templates), names]),
        }

    def run(self, languages: Sequence[str] = ()) -> Evaluation:
        """All protocols."""
        records: dict[str, Record] = {}
        for view in self.views:
            records |= self.measure_view(view)
        probe = self.probe()
        records["linear-probe/new-names"] = probe
        for language in languages:
            records |= self.measure_language(language)
        curve = {int(name.split("_")[0]): metric.value for name, metric in probe.metrics.items()}
        zero_shot_value = records["zero-shot/new-names"].metrics["top1"].value
        hits, misses = self.answers()
        cells, size = self.map()
        return Evaluation(
            records=records,
            seen_queries=self.name_queries(self.views[0].candidates),
            new_queries=self.name_queries(self.held_out),
            free_queries=[self.query(words, None) for words in FREE_QUERIES],
            hits=hits,
            misses=misses,
            map_rows=self.new_style,
            map_cells=cells,
            map_size=size,
            worth=shots_to_match(curve, zero_shot_value) if len(curve) > 1 else None,
        )

    def logits(self, view: View, predictor: Predictor) -> np.ndarray:
        """The predictor's logits (N, C) of a view's pictures over its candidates."""
        weights = predictor.weights.cpu().numpy()[view.candidates]
        return predictor.scale * self.images[view.rows] @ weights.T

    def targets(self, view: View) -> np.ndarray:
        """The position of each picture's concept among the view's candidates (N,)."""
        return np.searchsorted(view.candidates, self.emoji.concept[view.rows])

    def measure_view(self, view: View) -> dict[str, Record]:
        """Zero-shot with the ensemble and with bare names, their difference, retrieval, and the pixel baseline of each."""
        about: dict[str, Any] = {"subject": view.title, "hashes": self.hashes}
        targets = self.targets(view)
        ensemble, bare, pixels = self.logits(view, self.ensemble), self.logits(view, self.bare), self.pixel_scores(view)
        right = {name: metrics.ranks(scores, targets) < 1 for name, scores in (("ensemble", ensemble), ("bare", bare))}
        gap = Record(
            protocol="prompt-ensemble", metrics={"top1_gain": difference(right["ensemble"], right["bare"], seed=self.seed)},
            config={"templates": list(self.templates), "against": list(BARE)}, counts={"samples": len(targets)},
            seeds=(self.seed,), **about,
        )  # fmt: skip
        names = self.ensemble.weights.cpu().numpy()[view.candidates]
        return {
            f"zero-shot/{view.name}": zero_shot(ensemble, targets, config={"templates": list(self.templates)}, **about),
            f"zero-shot-bare/{view.name}": zero_shot(bare, targets, config={"templates": list(BARE)}, **about),
            f"prompt-ensemble/{view.name}": gap,
            f"retrieval/{view.name}": retrieval(
                self.images[view.rows], names, self.emoji.concept[view.rows], view.candidates,
                config={"templates": list(self.templates)}, **about,
            ),
            f"nearest-pixels/{view.name}": self.pixel_record(view, pixels, targets),
        }  # fmt: skip

    def pixel_scores(self, view: View) -> np.ndarray:
        """Scores (N, C) of the nearest labelled picture of each candidate, in the training styles other than the view's."""
        emoji = self.emoji
        asked = np.isin(emoji.style, emoji.style[view.rows])
        references = np.flatnonzero(np.isin(emoji.concept, view.candidates) & ~self.is_new_style & ~asked)
        classes = np.searchsorted(view.candidates, emoji.concept[references])
        return nearest_pixel_scores(
            small_pictures(emoji, view.rows), small_pictures(emoji, references), classes, len(view.candidates)
        )

    def pixel_record(self, view: View, scores: np.ndarray, targets: np.ndarray) -> Record:
        """Top-k of the pixel baseline, and the retrieval of the picture for each name."""
        found, by_name = metrics.ranks(scores, targets), metrics.ranks(scores[:, targets].T.copy(), np.arange(len(targets)))
        classes = scores.shape[1]
        measured = {f"top{k}": accuracy(found < k, chance=min(1.0, k / classes)) for k in (1, 5)}
        measured |= {f"text_to_image_r{k}": accuracy(by_name < k, chance=min(1.0, k / len(scores))) for k in RECALL_AT}
        measured |= {f"image_to_text_r{k}": accuracy(found < k, chance=min(1.0, k / classes)) for k in RECALL_AT}
        return Record(
            protocol="nearest-pixels", subject=view.title, metrics=measured, hashes=self.hashes,
            config={"side": PIXEL_SIDE, "references": "pictures of the same names in the other training styles"},
            counts={"samples": len(scores), "classes": classes},
        )  # fmt: skip

    def probe(self) -> Record:
        """Linear probes on 1, 2, ... labelled pictures of each held-out name, tested in the new style."""
        emoji = self.emoji
        new = self.is_new_style[self.probe_rows]
        train, test = self.probe_rows[~new], self.probe_rows[new]
        labels = np.searchsorted(self.held_out, emoji.concept)
        strength, scores = choose_strength(self.images[train], labels[train], emoji.style[train])
        fewest = int(np.bincount(labels[train]).min())
        return few_shot(
            self.images[train], labels[train], self.images[test], labels[test],
            shots=range(1, fewest + 1), strength=strength, seeds=tuple(range(5)), subject="new style, new names",
            config={"features": "embedding", "strength_chosen_by": "left-out styles", "scores": scores}, hashes=self.hashes,
        )  # fmt: skip

    def measure_language(self, language: str) -> dict[str, Record]:
        """Zero-shot with the names of another language, bare, on the new style."""
        names = list(self.emoji.names(language))
        longest = self.model.config.tokenizer.context_length
        cut = sum(len(ids) > longest - 2 for ids in map(self.model.tokenizer.encode, names))
        rows = self.model.embed_texts(names, truncate=True)
        predictor = Predictor(class_names=names, weights=rows, scale=self.bare.scale)
        config = {"templates": list(BARE), "language": language, "truncated_names": cut}
        return {
            f"language/{language}/{view.name}": zero_shot(
                self.logits(view, predictor), self.targets(view), subject=view.title, config=config, hashes=self.hashes
            )
            for view in self.views[:2]
        }

    def name_queries(self, concepts: np.ndarray, count: int = 6) -> list[Query]:
        """Galleries for the names of some of these concepts, drawn by the seed."""
        drawn = numpy_generator(self.seed, "gallery").permutation(concepts)[:count]
        return [self.query(self.emoji.concepts[index].name, int(index)) for index in drawn]

    def query(self, words: str, concept: int | None) -> Query:
        """The pictures of the new style nearest to a text in the ensemble of templates."""
        text = Predictor.zero_shot(self.model, [words], self.templates).weights[0].cpu().numpy()
        order = np.argsort(-(self.images[self.new_style] @ text), kind="stable")[:GALLERY_SIZE]
        rows = self.new_style
        meant = None if concept is None else int(rows[self.emoji.concept[rows] == concept][0])
        return Query(words=words, found=tuple(int(rows[place]) for place in order), meant=meant)

    def answers(self, count: int = 9) -> tuple[list[Answer], list[Answer]]:
        """Right and wrong answers over the held-out names in the new style, drawn by the seed."""
        view = self.views[1]
        logits, targets = self.logits(view, self.ensemble), self.targets(view)
        right = logits.argmax(1) == targets
        generator = numpy_generator(self.seed, "answers")
        chosen = [generator.permutation(np.flatnonzero(mask))[:count] for mask in (right, ~right)]
        return tuple([self._answer(view, logits[i], int(view.rows[i])) for i in places] for places in chosen)  # type: ignore[return-value]

    def map(self) -> tuple[np.ndarray, tuple[int, int]]:
        """A cell for each picture of the new style, on a grid half as wide again as it is high."""
        count = len(self.new_style)
        columns = int(np.ceil(np.sqrt(1.5 * 1.25 * count)))  # a quarter of the cells stay free, so that groups stand apart
        rows = int(np.ceil(1.25 * count / columns))
        places = tsne(self.images[self.new_style], perplexity=min(20.0, count / 4))
        return in_cells(places, columns=columns, rows=rows), (columns, rows)

    def _answer(self, view: View, logits: np.ndarray, row: int) -> Answer:
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[:3]
        names = self.emoji.names()
        return Answer(row=row, best=tuple((names[view.candidates[place]], float(probabilities[place])) for place in best))

    def _views(self) -> list[View]:
        emoji = self.emoji
        everything = np.arange(len(emoji.concepts))
        seen = np.setdiff1d(everything, self.held_out)
        return [
            View(name="seen-names", title="new style, seen names", rows=emoji.rows("new-style-seen-names"), candidates=seen),
            View(
                name="new-names", title="new style, new names", rows=emoji.rows("new-style-new-names"),
                candidates=self.held_out,
            ),
            View(
                name="familiar-style", title="familiar style, new names", rows=emoji.rows("seen-style-new-names"),
                candidates=self.held_out,
            ),
            View(name="all-names", title="new style, all names", rows=self.new_style, candidates=everything),
        ]  # fmt: skip


def pictures(emoji: EmojiSet, rows: np.ndarray) -> list[Image.Image]:
    """The pictures of these rows, with their transparency."""
    return [Image.fromarray(emoji.pixels[row], "RGBA") for row in rows]


def small_pictures(emoji: EmojiSet, rows: np.ndarray) -> np.ndarray:
    """The pictures of these rows on white, as the baseline sees them, (N, 32, 32, 3) uint8."""
    small = np.empty((len(rows), PIXEL_SIDE, PIXEL_SIDE, 3), dtype=np.uint8)
    for place, picture in enumerate(pictures(emoji, rows)):
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        small[place] = np.asarray(white.convert("RGB").resize((PIXEL_SIDE, PIXEL_SIDE), Image.Resampling.BOX))
    return small
