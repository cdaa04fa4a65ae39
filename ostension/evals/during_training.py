"""Evaluation during training: zero-shot accuracy, retrieval, and the loss on held-out pairs, every so many steps.

What is measured is data: tasks with labelled pictures, and sources of pairs. Pictures are decoded once and kept in bytes
up to a limit; embeddings are kept for one evaluation, scores only for a block of rows, so memory grows with the number of
held-out samples and not with its square. Nothing is random and nothing is dropped: a sample that cannot be used ends the
run with a line that names it, when it is opened if possible.

A checkpoint that is chosen by a measurement (`train.best`) was chosen on that split. It must be one for validation; what is
reported at the end must be measured on another.

Letters: N pictures, M texts, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ostension.config import require
from ostension.data.labelled import LABEL, label_of, open_labelled
from ostension.data.loader import InOrder, Loader
from ostension.data.open import EMBEDDED, open_pairs
from ostension.data.pairs import Pair, PairSource
from ostension.data.sets.folder import FolderSet
from ostension.data.task import Split, Task, read_task
from ostension.errors import ConfigError, DataError, unknown_name
from ostension.evals import metrics
from ostension.evals.retrieval import retrieval
from ostension.image.transforms import Transform
from ostension.losses import LossConfig, batch_loss
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.shapes import Float, Int
from ostension.text.prompts import compose
from ostension.train.batches import pad_tokens, token_rows

TOP_K = (1, 5)
EMBEDDED_LABEL = "concept"
FOLDER_TEMPLATES = ("a photo of a {}.",)
SCORES = 2**24  # similarities held at a time: 64 MB
TEXT_ROWS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Labelled pictures to be named by words.

    Attributes:
        data: a folder with one subfolder a class, or pairs with a label in their metadata ("emoji:SPLIT" are such).
        task: the record (a name or a TOML file) with class names and templates. A folder can do without: its classes are
            then called as their subfolders, "_" read as a space, in "a photo of a {}.".
        split: which split of the task the data is, for the name of the measurement; the record's count is checked.
        label: where pairs have their label key: its name in their metadata ("label", or the embedded set's "concept").
        candidates: whether all classes of the task compete, or those "present" in the data.
    """

    data: str
    task: str | None = None
    split: str | None = None
    label: str | None = None
    candidates: Literal["all", "present"] = "all"

    @property
    def embedded(self) -> bool:
        """Whether the data is the embedded set."""
        return self.data.partition(":")[0] == EMBEDDED and not Path(self.data).exists()

    @property
    def name(self) -> str:
        """What the measurements are called: TASK:SPLIT."""
        if self.embedded:
            return self.data
        return f"{Path(self.task).stem if self.task else 'folder'}:{self.split or Path(self.data).name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What a run measures on the way; it decides nothing about the run's result.

    Attributes:
        zero_shot: top-1 and top-5 accuracy on labelled pictures.
        pairs: sources of held-out pairs: recall at 1, 5 and 10 both ways, and the loss over all of them as one batch.
        batch_size: pictures in one forward pass.
        cache_mb: memory for decoded pictures; those that do not fit are decoded anew each time.
        workers: processes that decode what does not fit.
    """

    kind: Literal["tasks"] = "tasks"
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    pairs: tuple[str, ...] = ()
    batch_size: int = 256
    cache_mb: int = 512
    workers: int = 0

    def __post_init__(self):
        require(bool(self.zero_shot or self.pairs), "evaluation", "empty", "a task or a source of pairs")
        require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "1 or more")
        for key in ("cache_mb", "workers"):
            require(getattr(self, key) >= 0, f"evaluation.{key}", getattr(self, key), "0 or more")
        names = [*(task.name for task in self.zero_shot), *(f"{data}, pairs" for data in self.pairs)]
        for name in names:
            require(names.count(name) == 1, "evaluation", f"{name}, twice", "each once; give the second a split name")

    def build(self, model: CLIP) -> Evaluation:
        """Open everything, for a model's transform and tokenizer.

        Raises:
            DataError: for data that cannot be read, a label that is no class of the task, a split of another size.
            ConfigError: for an unknown task or split.
        """
        return Evaluation(self, model)


def parse_task(text: str) -> ZeroShotConfig:
    """`DATA`, `TASK=DATA` or `TASK@SPLIT=DATA` as a configuration."""
    task, equals, data = text.partition("=")
    if not equals:
        return ZeroShotConfig(data=text)
    name, at, split = task.rpartition("@")
    return ZeroShotConfig(data=data, task=name if at else task, split=split if at else None)


class Evaluation:
    """Measures a model: `evaluation(model, step)` gives numbers by `NAME/METRIC`, the same for the same weights."""

    def __init__(self, config: EvaluationConfig, model: CLIP):
        cache = Cache(config.cache_mb * 1_000_000)
        held: dict[str, Pictures] = {}

        def pictures(data: str, source: PairSource) -> Pictures:
            # A source that serves as task and as pairs is decoded and embedded once.
            key = source.fingerprint()
            if key not in held:
                held[key] = Pictures(source, model.transform, cache, config.batch_size, config.workers)
            return held[key]

        self.tasks = [LabelledPictures(task, pictures) for task in config.zero_shot]
        for task in self.tasks:  # a prompt that is too long is told now and not after the first steps
            compose(model.tokenizer, task.templates, [name for names in task.class_names for name in names])
        self.pairs = [_HeldOutPairs(data, pictures, model) for data in config.pairs]

    @torch.no_grad()
    def __call__(self, model: CLIP, step: int) -> dict[str, float]:
        embedded: dict[int, Tensor] = {}
        found: dict[str, float] = {}
        classifiers: dict[tuple, Tensor] = {}
        for task in self.tasks:
            words = (task.class_names, task.templates)
            if words not in classifiers:
                classifiers[words] = class_weights(model, *words)
            rows, weights = _embed(model, task.pictures, embedded), classifiers[words]
            found |= task.measure(part @ weights.T for part in rows.split(max(1, SCORES // len(weights))))
        for pairs in self.pairs:
            found |= pairs.measure(model, _embed(model, pairs.pictures, embedded))
        return found


class Cache:
    """A number of bytes that several holders of pictures share."""

    def __init__(self, limit: int):
        self.left = limit

    def take(self, size: int) -> bool:
        """Whether there is room for `size` bytes more, which is then taken."""
        if size > self.left:
            return False
        self.left -= size
        return True


class Pictures:
    """The pictures of a source, in blocks and in order; the first blocks are kept in bytes as far as the cache has room."""

    def __init__(self, source: PairSource, transform: Transform, cache: Cache, batch_size: int, workers: int = 0):
        self.source, self.transform, self.cache = source, transform, cache
        order = InOrder(len(source), batch_size)
        self._num_blocks = order.num_steps
        self._loader = Loader(source, order, _Pixels(transform), workers=workers, strict=True)
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.source)

    def blocks(self) -> Iterator[Float[Tensor, "B 3 S S"]]:
        """Preprocessed pictures.

        Raises:
            DataError, LimitError: naming a picture that cannot be read or decoded.
        """
        for pixels in self._kept:
            yield self.transform.normalize(pixels)
        done = len(self._kept)
        if done < self._num_blocks:
            for index, loaded in enumerate(self._loader.batches(done, self._num_blocks), done):
                pixels = torch.from_numpy(loaded.images)
                if index == len(self._kept) and self.cache.take(pixels.numel()):
                    self._kept.append(pixels)
                yield self.transform.normalize(pixels)


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """A pair's picture in bytes, before normalisation."""

    transform: Transform

    def __call__(self, pair: Pair, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        return self.transform.pixels(pair.image).numpy(), ""


class LabelledPictures:
    """A task's pictures with the class of each.

    Attributes:
        targets: (N,) positions in `class_names`.
        class_names: the names of each candidate class.
    """

    def __init__(self, config: ZeroShotConfig, pictures: Callable[[str, PairSource], Pictures]):
        self.name, source = config.name, open_labelled(config.data)
        task = _task_of(config, source)
        field = config.label or (EMBEDDED_LABEL if config.embedded else LABEL)
        labels = [label_of(source.read(index), field) for index in range(len(source))]
        names: dict[str, tuple[str, ...]]
        self.templates: tuple[str, ...]
        if task is None:
            names = {label: (label.replace("_", " "),) for label in sorted(set(labels))}
            self.templates, self.metric = FOLDER_TEMPLATES, "accuracy"
        else:
            names, self.templates, self.metric = task.label_names(), task.prompt_templates(), task.metric
            labels = [task.key_of(label) or label for label in labels]
            _check_split(config, task, len(source))
        for index, label in enumerate(labels):
            if label not in names:
                raise DataError(
                    f"the label {label!r} is no class of the task {config.task!r}", source=source.key(index),
                    expected=f"one of its {len(names)} keys, such as {next(iter(names))!r}",
                )  # fmt: skip
        if config.candidates == "present":
            names = {key: names[key] for key in names if key in set(labels)}
        places = {key: place for place, key in enumerate(names)}
        self.targets: Int[np.ndarray, " N"] = np.array([places[label] for label in labels], dtype=np.int64)
        self.class_names = tuple(names.values())
        self.pictures = pictures(config.data, source)

    def measure(self, scores: Iterable[Float[Tensor, "B C"]]) -> dict[str, float]:
        """Accuracies from the scores of all pictures, in order and in blocks of any size."""
        found, hits, start = [], [], 0
        for part in scores:
            block = part.float().cpu().numpy()
            targets = self.targets[start : start + len(block)]
            found.append(metrics.ranks(block, targets))
            hits.append(block.argmax(axis=1))
            start += len(block)
        assert start == len(self.targets), (start, len(self.targets))
        ranks, classes = np.concatenate(found), len(self.class_names)
        measured = {f"top{k}": metrics.recall_at_k(ranks, k) for k in TOP_K if k == 1 or k < classes}
        if self.metric == "mean_per_class":
            measured["mean_per_class"] = metrics.mean_per_class_accuracy(np.concatenate(hits), self.targets)
        measured |= {"samples": start, "classes": classes}
        return {f"{self.name}/{name}": value for name, value in measured.items()}


class _HeldOutPairs:
    """Pairs that training does not see, and the token rows of their texts."""

    def __init__(self, data: str, pictures: Callable[[str, PairSource], Pictures], model: CLIP):
        self.name, source = data, open_pairs(data)
        texts = [_texts(source.read(index)) for index in range(len(source))]
        self.rows, self.cut = token_rows(model.tokenizer, [text for several in texts for text in several])
        counts = np.array([len(several) for several in texts])
        self.groups = np.repeat(np.arange(len(texts)), counts)
        self.first = torch.from_numpy(np.cumsum(counts) - counts)
        self.pictures = pictures(data, source)

    def measure(self, model: CLIP, images: Float[Tensor, "N E"]) -> dict[str, float]:
        """Retrieval among all pairs, and the model's own loss over all pictures with their first texts, exact."""
        texts = embed_token_rows(model, self.rows)
        record = retrieval(
            images.cpu().numpy(), texts.cpu().numpy(), np.arange(len(images)), self.groups,
            subject=self.name, config={}, hashes={},
        )  # fmt: skip
        measured = {name: metric.value for name, metric in record.metrics.items()}
        kind: Literal["contrastive", "sigmoid"] = "contrastive" if model.logit_bias is None else "sigmoid"
        config = LossConfig(kind=kind, chunk_rows=max(1, SCORES // len(images)))
        loss = batch_loss(images, texts[self.first.to(texts.device)], model.scale(), config=config, bias=model.logit_bias)
        measured |= {"loss": float(loss.loss), "samples": len(images), "texts": len(self.rows), "texts_cut": self.cut}
        return {f"{self.name}/{name}": value for name, value in measured.items()}


def class_weights(model: CLIP, class_names: Sequence[Sequence[str]], templates: Sequence[str]) -> Float[Tensor, "C E"]:
    """Unit rows of a prompt ensemble over all names of each class."""
    return Predictor.zero_shot(model, class_names, templates).weights.to(model.device)


def embed_token_rows(model: CLIP, rows: Sequence[Sequence[int]]) -> Float[Tensor, "M E"]:
    """Unit embeddings of token rows, in float32."""
    parts = []
    for start in range(0, len(rows), TEXT_ROWS):
        tokens = pad_tokens(rows[start : start + TEXT_ROWS], model.tokenizer.pad_id, model.config.text)
        parts.append(model.encode_text(tokens, normalize=True).float())
    return torch.cat(parts)


def _embed(model: CLIP, pictures: Pictures, embedded: dict[int, Tensor]) -> Float[Tensor, "N E"]:
    """Unit embeddings of all pictures, once an evaluation."""
    if id(pictures) not in embedded:
        rows = [model.embed_images(block, batch_size=len(block)) for block in pictures.blocks()]
        embedded[id(pictures)] = torch.cat(rows)
    return embedded[id(pictures)]


def _texts(pair: Pair) -> list[str]:
    texts = [text for text in pair.texts if text.strip()]
    if not texts:
        raise DataError("no caption", source=pair.key, expected="held-out pairs that all have one")
    return texts


def _task_of(config: ZeroShotConfig, source: PairSource) -> Task | None:
    """The task's record; the embedded set has its own, and a folder can do without."""
    if config.task is not None:
        return read_task(config.task)
    if config.embedded:
        return read_task(EMBEDDED)
    if isinstance(source, FolderSet):
        return None
    raise ConfigError(
        f"the evaluation on {config.data!r} has no task", expected="class names and templates for its labels",
        fix="name one: TASK=DATA, or a TOML file in TASK's place",
    )  # fmt: skip


def _check_split(config: ZeroShotConfig, task: Task, count: int) -> None:
    split = config.split
    if config.embedded and split is None:
        split = config.data.partition(":")[2] or None
        if split not in task.splits:
            return  # "emoji" and "emoji:all" are no split
    if split is None:
        return
    if split not in task.splits:
        raise unknown_name("split", split, task.splits, source=config.task)
    expected: Split = task.splits[split]
    if count != expected.count:
        raise DataError(
            f"{count} samples in the split {split!r}", source=config.data, expected=f"{expected.count}, as the task says"
        )
