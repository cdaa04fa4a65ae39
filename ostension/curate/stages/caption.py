"""Say a synthetic caption for each picture with a captioner that reads concepts, and mix it with the originals by noise.

The captioner's own model retrieves the `concepts` nearest concepts of a vocabulary (`train.concepts`), and the caption goes on
from them. The synthetic caption comes behind the originals, none of which is lost. How likely each is to be drawn in training
follows from the pair's noise, which the stage `noise` has written: the noisier, the more often the synthetic one
(`data.completed`).

Columns: `texts`, originals and the synthetic one; `sources`, "original" or "synthetic" for each; `weights`, how likely each is
to be drawn; `said`, the synthetic caption, empty where none was said (below `above`, or nothing came); `concepts`. What
`ostension curate write` makes of them is read back with `Layout(texts=("captions",), weights="lineage/caption.weights")`.

Sampling draws by the seed and a pair's number, so captions depend neither on workers nor on what else is in the part, up to the
rounding of sums in batches of other sizes.

Source: Huang et al., NLIP (2023); what is our reading of it, the pages on NLIP say.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ostension.config import require
from ostension.curate.base import Columns, Part, Stage
from ostension.data.completed import FLOOR, caption_weights
from ostension.errors import DataError, LimitError, require_extra
from ostension.files import sha256_file

if TYPE_CHECKING:
    from ostension.model.captioner import CaptionModel, Sampling
    from ostension.train.concepts import ConceptRetriever

EXTRA = "curate"
UNREADABLE = "unreadable"
NOISE = "noise.noise"
SOURCES = ("original", "synthetic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        model: a folder of a model with a captioner.
        vocabulary: a file of concepts; empty for a captioner that reads none.
        concepts: of each picture.
        above: pairs of at least this noise get a caption; 0 is all.
        floor: the least share of originals, and of the synthetic caption.
        beams: captions that are followed at a time.
        temperature: draw tokens with it, instead of the likeliest; 0 draws none.
        top_p: the likeliest tokens that together have this probability are drawn from.
        seed: of what is drawn.
        batch_size: pictures that pass the tower together.
        device: where the model computes.
        dtype: of its weights: float32, bfloat16, or auto for what is fast on this processor.
    """

    model: str
    vocabulary: str = ""
    concepts: int = 5
    above: float = 0.0
    floor: float = FLOOR
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 0.9
    seed: int = 0
    batch_size: int = 32
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        require(bool(self.model), "model", self.model, "a folder with a captioner")
        for name in ("concepts", "beams", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(0 <= self.above < 1, "above", self.above, "from 0 up to, not including, 1")
        require(0 <= self.floor <= 0.5, "floor", self.floor, "from 0 to 0.5")
        require(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        require(self.beams == 1 or self.temperature == 0, "beams", self.beams, "1 where tokens are drawn")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "more than 0, at most 1")


class Caption(Stage):
    """Synthetic captions beside the originals."""

    name, config_type = "caption", Config

    def check(self) -> None:
        """Load the captioner and the vocabulary."""
        _ = self.captioner, self.retriever

    def inputs(self) -> dict[str, Any]:
        """The files of the captioner and of the vocabulary."""
        folder, vocabulary = Path(self.config.model), self.config.vocabulary
        files = {name: sha256_file(folder / name) for name in ("model.safetensors", "captioner.safetensors")}
        return {**files, "vocabulary": sha256_file(Path(vocabulary)) if vocabulary else None}

    @functools.cached_property
    def captioner(self) -> CaptionModel:
        from ostension.formats.parts import load_captioner

        return load_captioner(self.config.model, device=self.config.device, dtype=self.config.dtype)

    @functools.cached_property
    def retriever(self) -> ConceptRetriever | None:
        from ostension.train.concepts import ConceptRetriever, Concepts

        if not self.config.vocabulary:
            return None
        return ConceptRetriever(self.captioner.model, Concepts.load(self.config.vocabulary))

    @functools.cached_property
    def sampling(self) -> Sampling | None:
        from ostension.model.captioner import Sampling

        config = self.config
        return Sampling(seed=config.seed, temperature=config.temperature, top_p=config.top_p) if config.temperature else None

    def map(self, part: Part) -> Columns:
        if not part.has_pictures:
            fix = "get the pictures first"
            raise DataError("caption needs pictures, and the source holds captions alone", source=part.name, fix=fix)
        arrow = require_extra("pyarrow", EXTRA)
        noise = np.nan_to_num(np.array(part.column(NOISE).to_pylist(), np.float64))
        bad: set[int] = set()
        said: dict[int, tuple[str, list[str]]] = {}
        wanted = np.flatnonzero(noise >= self.config.above).tolist()
        for start in range(0, len(wanted), self.config.batch_size):
            self._say(part, wanted[start : start + self.config.batch_size], said, bad)
        texts, sources, weights = [], [], []
        for row, originals in enumerate(part.texts):
            synthetic = [said[row][0]] if row in said and said[row][0] else []
            texts.append([*originals, *synthetic])
            sources.append([SOURCES[0]] * len(originals) + [SOURCES[1]] * len(synthetic))
            weights.append(caption_weights(len(originals), len(synthetic), float(noise[row]), self.config.floor))
        rows = range(len(part))
        return {
            "dropped": [UNREADABLE if row in bad else None for row in rows],
            "texts": texts,
            "sources": arrow.array(sources, arrow.list_(arrow.string())),
            "weights": arrow.array(weights, arrow.list_(arrow.float64())),
            "said": arrow.array([said[row][0] if row in said else "" for row in rows], arrow.string()),
            "concepts": arrow.array([said[row][1] if row in said else [] for row in rows], arrow.list_(arrow.string())),
        }

    def _say(self, part: Part, rows: list[int], said: dict[int, tuple[str, list[str]]], bad: set[int]) -> None:
        """Captions and concepts of some rows; those whose picture cannot be read are noted."""
        import torch

        from ostension.curate.embeddings import one_thread
        from ostension.image.decode import read_picture
        from ostension.train.concepts import concept_prompt

        model = self.captioner.model
        limits = model.transform.config
        good, planes = [], []
        for row in rows:
            try:
                name = part.keys[row]
                picture = read_picture(part.image(row), max_pixels=limits.max_pixels, max_bytes=limits.max_bytes, name=name)
                planes.append(model.transform.pixels(picture.image, name=name))
                good.append(row)
            except (DataError, LimitError):
                bad.add(row)
        if not good:
            return
        with one_thread():
            pixels = model.transform.normalize(torch.stack(planes))
            concepts: list[list[str]] = [[] for _ in good]
            if self.retriever is not None:
                count = min(self.config.concepts, len(self.retriever.concepts))
                concepts = self.retriever.names(model.embed_images(pixels, batch_size=len(good)), count)
            captions = self.captioner.caption(
                pixels, beams=self.config.beams, batch_size=len(good), sampling=self.sampling,
                prompts=[concept_prompt(model.tokenizer, words) for words in concepts],
                keys=part.ids()[good].tolist(),
            )  # fmt: skip
        said.update({row: (caption.strip(), words) for row, caption, words in zip(good, captions, concepts, strict=True)})
