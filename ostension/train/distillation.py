"""The objective "distillation": the contrastive loss, and with it the similarities that a teacher sees in the same batch.

With z the student's and t the teacher's logits, p the teacher's softmax over a row and q that over a column,

    L = L_contrastive + w/2B sum_i CE(p_i, z_i) + w/2B sum_j CE(q_j, z_j),
    CE(p_i, z_i) = lse_j z_ij - sum_j p_ij z_ij                                                              (1)

and w = 1 (open_clip's `DistillClipLoss`). A teacher's scale is part of its logits, and biases cancel in the softmax.

The teacher's embeddings are constants of the batch: they are computed with the pieces of a large batch, travel between
processes as the rows do, and have no gradients. Of several processes each takes the rows and the columns of its own pairs.
Their rows meet those of all others, whose gradients come back to where they belong (`everyone`), so that gradients are W
times this process's share, as in `losses`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ostension.config import require, to_tree
from ostension.errors import ConfigError
from ostension.formats.load import load
from ostension.losses import LossConfig
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint
from ostension.shapes import Float
from ostension.text.tokenizer import pack
from ostension.train.batches import Batch
from ostension.train.objective import Contrastive, Embedded, StepLoss
from ostension.world import current


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Contrast, and agree with a teacher.

    Attributes:
        teacher: a model's folder or file, of any layout that `formats.load` reads.
        loss: the contrastive part; its `chunk_rows` holds for both.
        weight: w in equation (1).
        teacher_dtype: "auto" is bfloat16 where the processor has units for it.
    """

    kind: Literal["distillation"] = "distillation"
    teacher: Path
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    weight: float = 1.0
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"

    def __post_init__(self):
        require(self.weight > 0, "objective.weight", self.weight, "more than 0")

    def build(self, model: CLIP) -> Distillation:
        """The objective; reads the teacher."""
        return Distillation(model, load(self.teacher, device="cpu", dtype=self.teacher_dtype), self)


class Distillation(Contrastive):
    """Trains a student; the teacher is no part of what is trained, saved or averaged."""

    def __init__(self, model: CLIP, teacher: CLIP, config: DistillationConfig):
        super().__init__(model, config.loss)
        self.settings, self.teacher = config, teacher.eval().requires_grad_(False)
        self._identity = {**to_tree(config), "teacher": fingerprint(teacher)}

    def check(self) -> None:
        """Raise a `ConfigError` if the teacher cannot see what the student sees."""
        super().check()
        check_teacher(self.model, self.teacher, self.settings.teacher)

    def embed(self, batch: Batch) -> Embedded:
        if batch.images.ndim != 4 or batch.tokens.is_floating_point():
            raise ConfigError("the batches hold features of frozen towers", expected="pictures and tokens for the teacher")
        embedded = super().embed(batch)
        if self.teacher.device != batch.images.device:
            self.teacher.to(batch.images.device)
        with torch.no_grad():
            image = self.teacher.encode_image(self._pixels(batch.images), normalize=True)
            text = self.teacher.encode_text(self._tokens(batch.tokens), normalize=True)
        return dataclasses.replace(embedded, constants={"teacher_image": image, "teacher_text": text})

    def loss(self, embedded: Embedded, groups: Tensor | None) -> StepLoss:
        contrast = super().loss(embedded, groups)
        rows, constants = embedded.rows, embedded.constants
        agreement = distillation_loss(
            rows["image"], rows["text"], self.model.scale(), constants["teacher_image"], constants["teacher_text"],
            self.teacher.scale().detach(), chunk_rows=self.config.chunk_rows,
        )  # fmt: skip
        parts = {"contrastive_loss": contrast.loss.detach(), "distillation_loss": agreement.detach()}
        return StepLoss(contrast.loss + self.settings.weight * agreement, {**contrast.measured, **parts})

    def identity(self) -> Mapping[str, object]:
        return self._identity

    def _pixels(self, images: Tensor) -> Tensor:
        """The student's pixels with the teacher's mean and spread."""
        ours, theirs = self.model.config.preprocess, self.teacher.config.preprocess
        if (ours.mean, ours.std) == (theirs.mean, theirs.std):
            return images
        mean, std, their_mean, their_std = (
            images.new_tensor(values)[:, None, None] for values in (ours.mean, ours.std, theirs.mean, theirs.std)
        )
        return (images * std + mean - their_mean) / their_std

    def _tokens(self, tokens: Tensor) -> Tensor:
        """The student's rows, cut to the teacher's context with the end token last and padded as the teacher knows it."""
        tokenizer, text = self.teacher.tokenizer, self.teacher.config.text
        ends = tokens.eq(tokenizer.end_id).int().argmax(dim=1).tolist()
        length = text.context_length
        rows = [row[: end + 1] for row, end in zip(tokens.tolist(), ends, strict=True)]
        rows = [row if len(row) <= length else [*row[: length - 1], row[-1]] for row in rows]
        return pack(rows, tokenizer.pad_id, length if text.sees_padding else None).to(tokens.device)


def check_teacher(student: CLIP, teacher: CLIP, source: object) -> None:
    """Raise a `ConfigError` unless the teacher can read the student's pictures and tokens.

    Means and spreads of the pixels may differ, and context lengths and padding of the tokens: both are converted. How a
    picture is cut is the student's affair, and the teacher sees the same cut.
    """
    sizes = [model.config.vision.image_size for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the teacher takes pictures of {sizes[1]} pixels", source=source, expected=f"the student's {sizes[0]}",
            fix="save a resized teacher: save(load(TEACHER, image_size=...), FOLDER)",
        )  # fmt: skip
    ours, theirs = (
        {key: value for key, value in to_tree(model.config.tokenizer).items() if key not in ("context_length", "pad", "pad_id")}
        for model in (student, teacher)
    )
    if ours != theirs:
        differing = next(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
        raise ConfigError(
            f"the teacher's tokenizer is another one: {differing} is {theirs.get(differing)!r}",
            source=source,
            expected=f"the student's {ours.get(differing)!r}: its ids would mean other words",
            fix="give the student the teacher's tokenizer",
        )


def distillation_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    teacher_image: Float[Tensor, "B F"],
    teacher_text: Float[Tensor, "B F"],
    teacher_scale: Float[Tensor, ""],
    *,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """The teacher's part of equation (1) without its weight, of the whole batch; of several processes each brings its pairs.

    Args:
        chunk_rows: rows of the similarity matrix at a time, computed again on the way back; None for all b at once.
    """
    wide = torch.promote_types(image.dtype, torch.float32)
    image, text, scale, teacher_scale = (value.to(wide) for value in (image, text, scale, teacher_scale))
    teacher_image, teacher_text = teacher_image.to(wide), teacher_text.to(wide)
    world = current()
    terms = (
        _direction(image, everyone(text), scale, teacher_image, world.rows(teacher_text), teacher_scale, chunk_rows),
        _direction(text, everyone(image), scale, teacher_text, world.rows(teacher_image), teacher_scale, chunk_rows),
    )
    own = (terms[0] + terms[1]) / (2 * len(image))
    return own if world.size == 1 else own + (world.mean(own.detach()) - own.detach())


def _direction(rows, columns, scale, teacher_rows, teacher_columns, teacher_scale, chunk_rows: int | None) -> Tensor:
    """The sum over rows of CE(softmax of the teacher's logits, the student's log-softmax)."""

    def chunk(rows, columns, scale, teacher_rows):
        logits = scale * (rows @ columns.T)
        targets = (teacher_scale * (teacher_rows @ teacher_columns.T)).softmax(dim=1)
        return -(targets * logits.log_softmax(dim=1)).sum()

    if chunk_rows is None:
        return chunk(rows, columns, scale, teacher_rows)
    parts = zip(rows.split(chunk_rows), teacher_rows.split(chunk_rows), strict=True)
    return torch.stack([checkpoint(chunk, part, columns, scale, taught, use_reentrant=False) for part, taught in parts]).sum()


class _Everyone(torch.autograd.Function):
    """The rows of all processes; the gradient of each row is the sum over all that used it."""

    @staticmethod
    def forward(ctx, local):
        return current().rows(local)

    @staticmethod
    def backward(ctx, gradient):
        return current().sum_to_rows(gradient)


def everyone(local: Tensor) -> Tensor:
    """The rows of all processes below each other, with gradients."""
    return local if current().size == 1 else _Everyone.apply(local)
