"""Drop pairs whose caption and picture do not agree, by the cosine of their embeddings under any model.

    score(pair) = max over its captions t of f(picture) . g(t)        f, g: unit rows of the model's towers

By a threshold (LAION kept 0.28 and more with CLIP ViT-B/32, 0.3 in its first set) or by a share of all, or of each source
(DataComp's best simple rule keeps the top 30 % by CLIP ViT-L/14). A threshold belongs to a model: cosines of another have
another spread. Without either, scores are written and nothing is dropped.

Columns: `score`, of the pair; `scores`, of each caption.

Source: Schuhmann et al., LAION-5B (2022), section 3; Gadre et al., DataComp (2023), section 3.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ostension.config import require
from ostension.curate.base import Columns, Part
from ostension.curate.model_stage import ModelStage
from ostension.curate.score_shares import Counts, rounded
from ostension.errors import ConfigError, require_extra

EXTRA = "curate"
LOW = "low agreement"
UNREADABLE = "unreadable"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        model: a model, as every command takes one.
        threshold: scores of at least this stay.
        top: the share of scores, from the highest, that stays.
        by: a field of the source (of its JSON or its table) whose values have shares of their own; empty for one of all.
        captions: best judges a pair by its best caption and keeps all of them; each judges every caption, and drops those.
        store: a folder that keeps embeddings, so that they are computed once; one that `embed` filled from the same source is
            used as it is. Empty keeps none.
        batch_size: pictures that pass the tower together.
        device: where the model computes.
        dtype: of its weights: float32, bfloat16, or auto for what is fast on this processor.
    """

    model: str
    threshold: float | None = None
    top: float | None = None
    by: str = ""
    captions: Literal["best", "each"] = "best"
    store: str = ""
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        require(bool(self.model), "model", self.model, "a model's folder or file")
        require(self.threshold is None or -1 <= self.threshold <= 1, "threshold", self.threshold, "a cosine, -1 to 1")
        require(self.top is None or 0 < self.top <= 1, "top", self.top, "a share above 0, 1 at most")
        if self.threshold is not None and self.top is not None:
            raise ConfigError("threshold and top are both set", expected="one of them")
        require(not self.by or self.top is not None, "by", self.by, "top beside it, since a threshold is the same for all")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


class Agreement(ModelStage):
    """Pairs by the agreement of picture and captions."""

    name, config_type = "agreement", Config

    def looks_at_whole(self) -> bool:
        """Where a share is kept."""
        return self.config.top is not None

    def map(self, part: Part) -> Columns:
        self.need_pictures(part)
        arrow = require_extra("pyarrow", EXTRA)
        counts = np.array([len(texts) for texts in part.texts], np.int64)
        owners = np.repeat(np.arange(len(part)), counts)
        pictures, bad = self.embedder.pictures(part)
        good = np.array([row not in bad for row in range(len(part))], bool)
        texts = [text for row, texts in enumerate(part.texts) if good[row] for text in texts]
        scores = np.full(len(owners), np.nan)
        if texts:
            used = good[owners]
            # In float64, whose sums of these products do not depend on their order in the digits that are kept.
            products = self.embedder.captions(part, texts).astype(np.float64) * pictures[owners[used]]
            scores[used] = rounded(products.sum(axis=1))
        best = np.full(len(part), np.nan)
        np.fmax.at(best, owners, scores)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        columns: dict[str, Any] = {
            "dropped": [None if good[row] else UNREADABLE for row in range(len(part))],
            "score": arrow.array(best, arrow.float32(), from_pandas=True),
            "scores": arrow.ListArray.from_arrays(offsets, arrow.array(scores, arrow.float32(), from_pandas=True)),
        }
        if self.looks_at_whole():
            values = [str(meta.get(self.config.by, "")) for meta in part.meta] if self.config.by else [""] * len(part)
            return {**columns, "by": arrow.array(values, arrow.string())}
        if self.config.threshold is None:
            return columns
        least = np.full(len(part), self.config.threshold)
        return {**columns, **self._kept(part.texts, columns["dropped"], columns["scores"], least)}

    def reduce(self, parts: Iterable[tuple[Part, Any]], folder: Path) -> dict[str, Any]:
        """The scores' histogram; and for a share, the score that it reaches, of each group."""
        counts = Counts(self.config.by)
        for _, mapped in parts:
            named = "by" in mapped.column_names
            groups = np.array(mapped["by"].to_pylist() if named else [""] * len(mapped), object)
            column = mapped["score" if self.config.captions == "best" else "scores"].combine_chunks()
            if self.config.captions == "each":
                groups = np.repeat(groups, np.diff(column.offsets.to_numpy()))
                column = column.flatten()
            scores = rounded(column.to_numpy(zero_copy_only=False))
            known = ~np.isnan(scores)
            for group in sorted(set(groups[known].tolist())):
                counts.add(group, scores[known & (groups == group)])
        facts: dict[str, Any] = {"histogram": counts.histogram()}
        if self.config.top is not None:
            facts["reached"] = counts.reached_by(self.config.top)
        return facts

    def figures(self, facts: Mapping[str, Any], folder: Path) -> list[Any]:
        from ostension.curate.filter_figures import histogram

        if not facts["histogram"]["counts"]:
            return []
        reached = facts.get("reached", {})
        limit = self.config.threshold if self.config.threshold is not None else reached.get("") if len(reached) == 1 else None
        says = "Scores of pairs, by their best caption." if self.config.captions == "best" else "Scores of captions."
        if limit is not None:
            says += f" Those of at least {limit:.5g} stay."
        elif reached:
            listed = ", ".join(f"{group or 'none'} {score:.3f}" for group, score in list(reached.items())[:8])
            more = ", ..." if len(reached) > 8 else ""
            says += f" Each {self.config.by} has a share of its own, which reaches: {listed}{more}."
        edges, counts = facts["histogram"]["edges"], facts["histogram"]["counts"]
        return [histogram("agreement-scores", "How well pictures and captions agree", says, "cosine", edges, counts, limit)]

    def decide(self, part: Part, mapped: Any, facts: Mapping[str, Any], folder: Path) -> Columns:
        names = [name for name in mapped.column_names if name not in ("row", "by")]
        columns: dict[str, Any] = {name: mapped[name].combine_chunks() for name in names}
        # A group whose pictures are all unreadable reaches nothing, and its rows are dropped already.
        least = np.array([facts["reached"].get(group, 1.0) for group in mapped["by"].to_pylist()])
        return {**columns, **self._kept(part.texts, columns["dropped"].to_pylist(), columns["scores"], least)}

    def _kept(
        self, texts: Sequence[tuple[str, ...]], dropped: Sequence[str | None], scores: Any, least: np.ndarray
    ) -> dict[str, Any]:
        """The columns of what goes, from the scores of the captions and what each row's have to reach."""
        counts = np.diff(scores.offsets.to_numpy())
        # Rounded again, since the columns hold float32; a caption of an unreadable picture has none, and is below everything.
        values = np.nan_to_num(rounded(scores.flatten().to_numpy(zero_copy_only=False)), nan=-np.inf)
        enough = (values >= np.repeat(least, counts)).tolist()
        ends = np.cumsum(counts).tolist()
        rows = [enough[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]
        gone = [reason or (None if any(row) else LOW) for reason, row in zip(dropped, rows, strict=True)]
        if self.config.captions == "best":
            return {"dropped": gone}
        left = [[text for text, one in zip(found, row, strict=True) if one] for found, row in zip(texts, rows, strict=True)]
        reasons = [[why or (None if one else LOW) for one in row] for row, why in zip(rows, dropped, strict=True)]
        return {"dropped": gone, "texts": left, "text_reasons": reasons}
