"""Keep pairs whose picture lies in a cluster that some picture of a target set is nearest to.

All pictures' embeddings are put into clusters; those that are the nearest one of at least one target picture stay, with all
that is in them. DataComp's image-based filter does so with 100,000 clusters and ImageNet's training pictures, after a rule for
captions (`filter --preset datacomp-captions`); its best set has passed this stage and `agreement --top 0.3` both.

What is kept is what the target set looks like, and what a model that was measured on that set is then good at. Never take test
pictures as the target.

Columns: `cluster`, and the `cosine` to its centre. The first pass also leaves the embeddings in the stage's folder, two bytes a
number.

Source: Gadre et al., DataComp (2023), section 3.3; baselines/apply_filter.py of its code.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import require
from ostension.curate.base import Columns, Part
from ostension.curate.model_stage import ModelStage
from ostension.errors import DataError, require_extra

EXTRA = "curate"
CENTRES, KEPT = "centres.npy", "kept.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        model: a model, as every command takes one.
        pictures: the target set: pictures in a folder, or any source of pairs.
        clusters: how many; each should have tens of pairs.
        sample: pairs a cluster from which the centres are found, at most.
        store: a folder that keeps embeddings, as of `agreement`. Empty keeps none.
        batch_size: pictures that pass the tower together.
        device: where the model computes.
        dtype: of its weights: float32, bfloat16, or auto for what is fast on this processor.
        seed: of the sample and of the first centres.
    """

    model: str
    pictures: str
    clusters: int = 1000
    sample: int = 50
    store: str = ""
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self):
        require(bool(self.model), "model", self.model, "a model's folder or file")
        require(bool(self.pictures), "pictures", self.pictures, "a folder of pictures or a source of pairs")
        require(self.clusters >= 2, "clusters", self.clusters, "2 or more")
        require(self.sample >= 1, "sample", self.sample, "1 or more")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


class Target(ModelStage):
    """Pairs by the cluster of their picture."""

    name, config_type = "target", Config

    def check(self) -> None:
        """Load the model and open the target set."""
        super().check()
        _ = self.source

    def inputs(self) -> dict[str, Any]:
        """The model, and the content of the target set."""
        return {**super().inputs(), "target": self.source.fingerprint()}

    @functools.cached_property
    def source(self) -> Any:
        from ostension.data.pictures import open_pictures

        return open_pictures(self.config.pictures)

    def map(self, part: Part) -> Columns:
        self.need_pictures(part)
        arrow = require_extra("pyarrow", EXTRA)
        rows, bad = self.embedder.pictures(part)
        flat = arrow.array(rows.astype(np.float16).ravel())
        return {
            "dropped": ["unreadable" if row in bad else None for row in range(len(part))],
            "row_of_picture": arrow.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
        }

    def reduce(self, parts: Iterable[tuple[Part, Any]], folder: Path) -> dict[str, Any]:
        """Centres of the pairs' clusters, and which of them target pictures are nearest to."""
        from ostension.curate.clusters import Sample, k_means, nearest

        sample = Sample(self.config.clusters * self.config.sample, self.config.seed)
        for part, mapped in parts:
            good = mapped["dropped"].is_null().to_numpy()
            sample.add(part.ids()[good], _rows(mapped)[good])
        if not sample.seen:
            raise DataError("no picture can be used, so there are no clusters", source=self.name)
        centres = k_means(sample.rows(), self.config.clusters, self.config.seed)
        targets = self._targets()
        places, cosines = nearest(targets, centres)
        kept = np.unique(places)
        np.save(folder / CENTRES, centres)
        np.save(folder / KEPT, kept)
        return {
            "clusters": len(centres), "kept_clusters": len(kept), "sampled": len(sample.rows()), "targets": len(targets),
            "cosine_of_targets": round(float(cosines.mean()), 4),
        }  # fmt: skip

    def decide(self, part: Part, mapped: Any, facts: Mapping[str, Any], folder: Path) -> Columns:
        from ostension.curate.clusters import nearest

        centres, kept = np.load(folder / CENTRES), np.load(folder / KEPT)
        places, cosines = nearest(_rows(mapped).astype(np.float32), centres)
        near = np.isin(places, kept)
        before = mapped["dropped"].to_pylist()
        reasons = [reason or (None if close else "far from the target") for reason, close in zip(before, near, strict=True)]
        known = np.array([reason is None for reason in before], bool)
        arrow = require_extra("pyarrow", EXTRA)
        return {
            "dropped": reasons,
            "cluster": arrow.array(places, arrow.int32(), mask=~known),
            "cosine": arrow.array(cosines, arrow.float32(), mask=~known),
        }

    def _targets(self) -> np.ndarray:
        """(N, E) unit rows of the target pictures; those that cannot be read are left out."""
        from ostension.store.fill import embed
        from ostension.store.folder import Store

        embedder = self.embedder
        with tempfile.TemporaryDirectory(prefix="ostension-target-") as folder:
            store = embedder.store or Store(folder)
            found = embed(store, embedder.model, self.source, made=embedder.made, bad="list", batch_size=self.config.batch_size)
            rows = np.asarray(found["post", 0].rows[:], np.float32)
        if not len(rows):
            raise DataError("no picture in it can be used", source=self.config.pictures)
        return rows


def _rows(mapped: Any) -> np.ndarray:
    """(n, E) float16 rows of a mapped part."""
    column = mapped["row_of_picture"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(mapped), -1)
