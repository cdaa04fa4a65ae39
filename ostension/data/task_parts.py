"""The parts of a task record: splits, sources, published values, and the rules of chance."""

from __future__ import annotations

import dataclasses
import math
from pathlib import PurePosixPath
from typing import Any, Literal

from ostension.config import require
from ostension.errors import ConfigError

Kind = Literal["classify", "multilabel", "retrieval", "video", "group"]
Metric = Literal[
    "accuracy", "mean_per_class", "map_11_point", "roc_auc", "mean_top1_top5", "macro_f1_present", "worst_group", "pm_k",
    "recall_at_k",
]  # fmt: skip
SourceKind = Literal["folder", "csv", "parquet", "shards", "npz", "hf", "karpathy", "text", "written", "embedded"]
# How well a number is known: read in its source, read in somebody's notes of it, remembered and checked against other
# numbers, or only remembered.
Evidence = Literal["read", "second-hand", "remembered-checked", "remembered"]

# Which settings mean something to which kind of source.
_SOURCE_FIELDS: dict[str, frozenset[str]] = {
    "folder": frozenset({"levels"}),
    "csv": frozenset({"image", "images", "label", "split", "id", "texts"}),
    "parquet": frozenset({"image", "label", "split", "id", "texts"}),
    "shards": frozenset({"label", "texts"}),
    "npz": frozenset({"image", "label", "embeddings"}),
    "hf": frozenset({"image", "label", "id", "texts"}),
    "karpathy": frozenset({"images"}),
    "text": frozenset(),
    "written": frozenset(),
    "embedded": frozenset({"label"}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a task.

    Attributes:
        count: the number of samples that it must have.
        ids_sha256: hash of its sample ids in order (`labelled_set.ids_sha256`), where known.
        select: which samples belong to it, by their field ("split", "domain", a column): one of the values. Without it,
            those whose split has this split's name.
        classes_only: the data also has samples of classes that are none of the task's; they are not of this split.
        evidence: how well the count is known.
        note: what to know about it.
    """

    count: int
    ids_sha256: str | None = None
    select: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    classes_only: bool = False
    evidence: Evidence = "read"
    note: str = ""

    def __post_init__(self):
        require(self.count >= 1, "split count", self.count, "1 or more")
        require(all(self.select.values()), "select", self.select, "one value or more for each field")
        if self.ids_sha256 is not None:
            require(_is_sha256(self.ids_sha256), "ids_sha256", self.ids_sha256, "64 hexadecimal digits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folds:
    """Official repetitions whose results are averaged.

    Attributes:
        count: how many there are.
        split: what changes between them: the training samples ("train"), or training and test samples ("both").
        train, test: samples of each part in one fold, where it is the same in all.
        field: where a sample says which folds it belongs to.
    """

    count: int
    split: Literal["train", "both"]
    train: int | None = None
    test: int | None = None
    field: str = "fold"

    def __post_init__(self):
        require(self.count >= 2, "folds.count", self.count, "2 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A form in which the data may lie.

    Attributes:
        kind: folder (of class folders), csv (images and labels), parquet, shards (tar), npz (arrays), hf (a folder of the
            Hugging Face library), karpathy (a JSON of captions and splits), text (sentences, drawn when read), written
            (pictures with a word on them, `label=X_text=Y.png`), embedded (shipped with this package).
        path: below the folder of data; may have a pattern for shards.
        levels: of a folder, what each level of folders says: "split", "label", "domain" or another group's name.
        image, label, split, id, texts: columns, array names ("{split}_images") or fields of a sample's JSON.
        images: of a csv or a Karpathy file, the folder below the file's that its image paths are relative to.
        embeddings: of an npz, the array of ready embeddings instead of images.
        holds: the one split that it holds, where the data itself does not say.
        url, sha256, num_bytes: where one file may be fetched from, if the user allows it, and what must arrive.
    """

    kind: SourceKind
    path: str = ""
    levels: tuple[str, ...] | None = None
    image: str | None = None
    images: str | None = None
    label: str | None = None
    split: str | None = None
    id: str | None = None
    texts: str | None = None
    embeddings: str | None = None
    holds: str | None = None
    url: str | None = None
    sha256: str | None = None
    num_bytes: int | None = None

    def __post_init__(self):
        check_inside(self.path, "source path")
        check_inside(self.images or "", "images")
        for field in ("levels", "image", "images", "label", "split", "id", "texts", "embeddings"):
            if getattr(self, field) is not None and field not in _SOURCE_FIELDS[self.kind]:
                raise ConfigError(f"{field} has no effect on a source of kind {self.kind!r}", expected="it left out")
        if self.levels is not None:
            require(self.levels.count("label") == 1, "levels", self.levels, 'a list with "label" once')
            require(len(set(self.levels)) == len(self.levels), "levels", self.levels, "different names")
        fetched = (self.url, self.sha256, self.num_bytes)
        require(all(fetched) or not any(fetched), "url, sha256, num_bytes", fetched, "all three or none")
        if self.url is not None and self.sha256 is not None:
            require(self.url.startswith(("https://", "http://")), "url", self.url, "an http address")
            require(_is_sha256(self.sha256), "sha256", self.sha256, "64 hexadecimal digits")
            require(bool(self.path), "path", self.path, "the name that the fetched file gets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessChange:
    """Settings of `image.transforms.PreprocessConfig` that a task may change; a test holds the two together.

    They stand here once more, because records must be readable without the model's packages.
    """

    resize: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    short_side: int | None = None
    alpha: Literal["white", "drop"] = "white"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oracle:
    """Published results, in percent, that a correct evaluation comes near to.

    Attributes:
        protocol: "zero-shot", "linear-probe", or another protocol's name.
        metric: what was measured, if not the task's metric.
        weights: which weights of the models.
        values: percent by the name of a preset.
        tolerance: how far from them a correct result may lie, in points.
        source: where they were published.
        evidence: how well they are known here.
        gate: whether a result outside the tolerance is a failure; otherwise it is only shown beside.
        note: what to know about them.
    """

    protocol: str
    metric: str = ""
    weights: Literal["openai", "laion2b", "imagenet"] = "openai"
    values: dict[str, float]
    tolerance: float
    source: str
    evidence: Evidence
    gate: bool = False
    note: str = ""

    def __post_init__(self):
        require(bool(self.values), "oracle values", self.values, "one model or more")
        for model, value in self.values.items():
            require(math.isfinite(value) and 0 <= value <= 100, f"oracle value of {model}", value, "percent, 0 to 100")
        require(math.isfinite(self.tolerance) and self.tolerance > 0, "oracle tolerance", self.tolerance, "points above 0")
        require(not self.gate or self.evidence != "remembered", "oracle gate", self.gate, "false for what is only remembered")


def check_inside(path: str, what: str) -> None:
    """Raise a `ConfigError` for a path that leaves the folder which it is relative to."""
    parts = PurePosixPath(path.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in path[:3] or "\0" in path:
        raise ConfigError(f"{what} is {path!r}, which lies outside the data", expected="a path below the folder of data")


def chance_level(metric: Metric, num_classes: int, num_samples: int | None) -> tuple[float | None, str]:
    """What a guesser reaches who knows nothing about the picture, and by which rule; None if it depends on the labels.

    Args:
        num_samples: images to choose among, for retrieval.
    """
    one = 1 / num_classes if num_classes else None
    if metric == "recall_at_k":
        return (None if num_samples is None else 1 / num_samples), "R@1 of a random order: 1 / images (R@k: k times that)"
    if metric == "map_11_point":
        return None, "mean share of positives, which depends on the labels"
    if metric == "roc_auc":
        return 0.5, "one half, for any share of positives"
    if metric == "mean_top1_top5":
        return (1 + min(5, num_classes)) / (2 * num_classes), "(1 + 5) / 2C"
    rules: dict[str, str] = {
        "worst_group": "1 / C in every group; the worst of small groups falls below it",
        "macro_f1_present": "1 / C for balanced classes, less for others",
        "pm_k": "1 / C for the anchors (pm-0)",
    }
    return one, rules.get(metric, "1 / C")


def _is_sha256(text: Any) -> bool:
    return isinstance(text, str) and len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
