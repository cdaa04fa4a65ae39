"""Text4Vis: videos by their frames, against a frozen classifier: rows of the class names, or of what else may stand for them.

    logits = exp(s) v W.T        v = unit(mean over clips and frames of T(f_1 .. f_F)),    W frozen unit rows

f are the tower's projected embeddings of the frames, T nothing or a transformer over the frames of a clip with its input added.
Trained are the image tower, T and s. W is of the prompts, random, orthonormal, of LDA on the training videos, or of another
language model (`_classifiers`). With a frozen tower all runs on kept features of frames.

Source: Wu et al. 2023 and their code.
Letters: B videos, F frames of a clip, V clips and crops of a video, C classes, E embedding, S pixels a side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.adapt._classifiers import lda_rows, orthonormal_rows, random_rows, rows_of_names
from ostension.adapt._fit import Progress, Recipe, fit_addition
from ostension.adapt._frames import Clips
from ostension.adapt._temporal import Temporal
from ostension.adapt._tuning import Tuned
from ostension.adapt.base import AdditionPredictor, Examples, Labelled, Spec
from ostension.config import require
from ostension.errors import ConfigError, DataError
from ostension.image.clips import ClipConfig, fixed_views
from ostension.image.video import Video, open_video
from ostension.model.clip import CLIP
from ostension.runtime import numpy_generator
from ostension.shapes import Float

BLOCK_FRAMES = 64  # of videos that are predicted through a tower of their own
TEMPLATE = "a video of a person {}."

SPEC = Spec(
    title="Text4Vis",
    paper='Wu, Sun, Ouyang. "Revisiting Classifier: Transferring Vision-Language Models for Video Recognition". AAAI 2023, '
    "arXiv:2207.01297",
    trains="the image tower (unless frozen), a transformer over frames if asked for, the logits' scale",
    takes="videos",
    neutral={"pooling": "none"},
    neutral_template=TEMPLATE,
    departures=(
        "at test the middle frame of each segment, as the code's own source (TSN) has it; the code takes the first",
        "one view at test is the model's own preprocessing, so that one frame is classified as a picture is",
        "three crops go along the longer side; the code cuts along the width",
        "the learned scale at test, under the model's cap; the code multiplies by 100",
        "the learning rate moves in every step; the code moves it in every tenth",
        "no RandAugment: the settings ask for it, the call is commented out",
        "positions for as many frames as a clip has; the code has a row for each of the text's positions",
        "with few videos an epoch is one pass over them; the code repeats them up to the length of the whole set",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Text4Vis's settings.

    Attributes:
        classifier: what W is: "text", "random", "orthonormal", "lda", or "language-model".
        template: of the prompts, for "text".
        language_model: rows of the class names (a file), or a model of transformers, for "language-model".
        videos_per_class: training videos that LDA is fitted on, at most.
        shrinkage: of LDA's scatter towards a sphere; 0 takes the pseudo-inverse.
        pooling: "none" is the mean over frames, "transformer" one over the frames of a clip before it.
        layers: of that transformer.
        heads: of it; None takes the text tower's.
        tower: "trained" with the rest, or "frozen", which keeps features of frames.
        clip: which frames are seen; clips and crops count at test.
        warmup_epochs: in which the learning rate rises evenly from zero.
        recipe: how it is trained; `rates` are of the tower and the scale. Directions of motion need `recipe.crop.mirror=false`.
    """

    classifier: Literal["text", "random", "orthonormal", "lda", "language-model"] = "text"
    template: str = TEMPLATE
    language_model: str = ""
    videos_per_class: int = 60
    shrinkage: float = 0.0
    pooling: Literal["none", "transformer"] = "none"
    layers: int = 6
    heads: int | None = None
    tower: Literal["trained", "frozen"] = "trained"
    clip: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    warmup_epochs: int = 5
    recipe: Recipe = dataclasses.field(
        default_factory=lambda: Recipe(
            epochs=30, batch_size=256, optimizer="adamw", lr=5e-5, weight_decay=0.2, schedule="cosine_by_step", warmup_epochs=0,
            rates={"visual.": 0.1, "logit_scale": 0.1},
        )
    )  # fmt: skip

    def __post_init__(self):
        require(self.videos_per_class >= 1, "videos_per_class", self.videos_per_class, "1 or more")
        require(0 <= self.shrinkage <= 1, "shrinkage", self.shrinkage, "0 to 1")
        require(self.layers >= 1, "layers", self.layers, "1 or more")
        require(self.heads is None or self.heads >= 1, "heads", self.heads, "1 or more, or nothing")
        require(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "0 or more")
        if self.recipe.warmup_steps or (self.warmup_epochs and self.recipe.schedule != "cosine_by_step"):
            what = f"warmup_epochs {self.warmup_epochs} with the schedule {self.recipe.schedule} and warmup_steps of its own"
            raise ConfigError(what, expected="schedule cosine_by_step without warmup_steps, or warmup_epochs 0")
        if self.shrinkage and self.classifier != "lda":
            raise ConfigError(f"shrinkage {self.shrinkage} with classifier {self.classifier}", expected="classifier lda, or 0")
        if (self.classifier == "language-model") != bool(self.language_model):
            raise ConfigError(
                f"classifier {self.classifier} with language_model {self.language_model!r}",
                expected="language_model with classifier language-model, and only with it",
            )


class Text4Vis(Tuned):
    kind, config_type, takes = "text4vis", Config, "videos"
    rows: Tensor

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        trained = config.tower == "trained"
        self.__dict__["parts"] = ("visual", "logit_scale") if trained else ("logit_scale",)  # read where copies are made
        super().__init__(model, config, class_names, seed=seed)
        width = model.config.embed_dim
        self.needs_images, self.binds = trained, config.classifier == "text"
        if self.binds:
            rows = model.classifier(self.class_names, [config.template]).weights
        else:
            rows = torch.zeros(self.num_classes, width)  # until `fit`, or a saved predictor, fills them
        self.register_buffer("rows", rows, persistent=not self.binds)
        self.temporal = None
        if config.pooling == "transformer":
            heads = config.heads or int(getattr(model.config.text, "heads", 0)) or 1
            self.temporal = Temporal(width, config.clip.frames, config.layers, heads, seed=seed)

    def scale(self) -> Float[Tensor, ""]:
        return self.live.scale()

    def weights(self, features: Tensor | None = None) -> Float[Tensor, "C E"]:
        return self.rows

    def image(self, images: Float[Tensor, "B *F 3 S S"]) -> Float[Tensor, "B E"]:
        """v of videos' frames, or of pictures, which are videos of one frame."""
        frames = images if images.ndim == 5 else images[:, None]
        return self.pooled(self._projected(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]))

    def pooled(self, frames: Float[Tensor, "B VF E"]) -> Float[Tensor, "B E"]:
        """v of projected embeddings of frames: unit rows."""
        count, length = frames.shape[1], self.config.clip.frames
        if count > length and count % length:
            raise DataError(f"{count} frames of a video", expected=f"at most {length}, or whole clips of {length}")
        clips = frames.unflatten(1, (-1, min(count, length)))
        if self.temporal is not None:
            clips = clips + self.temporal(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        return F.normalize(clips.mean(dim=(1, 2)), dim=-1)

    def cosines(self, features: Tensor, weights: Float[Tensor, "C E"]) -> Float[Tensor, "B C"]:
        """Of v, or of kept features of frames (B, F, E)."""
        return super().cosines(features if features.ndim == 2 else self.pooled(features), weights)

    def pixels(self, pictures: Sequence[Any], *, workers: int = 0) -> Float[Tensor, "B VF 3 S S"]:
        """The preprocessed frames of videos: each a file, a folder or a list of frames, bytes, or one picture."""
        with ThreadPoolExecutor(max(1, workers)) as pool:
            return torch.stack(list(pool.map(self._frames, pictures)))

    def _frames(self, source: Any) -> Float[Tensor, "VF 3 S S"]:
        transform = self.model.transform
        limits: dict[str, Any] = {"max_pixels": transform.config.max_pixels, "max_bytes": transform.config.max_bytes}
        video = source if isinstance(source, Video) else open_video(source, **limits)
        return transform.normalize(fixed_views(video, transform, self.config.clip))

    @torch.no_grad()
    def split_rows(self, data: Labelled) -> Float[Tensor, "N E"]:
        """v of all videos of a split."""
        videos, device = Clips.of(data, self.config.clip), self.model.device
        if self.needs_images:
            each = max(1, BLOCK_FRAMES // (self.config.clip.frames * self.config.clip.clips * self.config.clip.crops))
            blocks = np.array_split(np.arange(len(videos)), -(-len(videos) // each))
            return torch.cat([self.image(videos.pixels(self.model, block).to(device)).cpu() for block in blocks])
        return self.pooled(videos.features(self.model)[0].to(device)).cpu()

    def fill(self, data: Clips, seed: int) -> None:
        """W of another kind than the prompts, from the training videos where it needs them."""
        config, width = self.config, self.model.config.embed_dim
        if config.classifier == "random":
            rows = random_rows(self.num_classes, width, seed)
        elif config.classifier == "orthonormal":
            rows = orthonormal_rows(self.num_classes, width, seed)
        elif config.classifier == "lda":
            chosen = _some_of_each(data.targets, config.videos_per_class, seed)
            features = F.normalize(data.features(self.model)[0].mean(dim=1), dim=-1)[chosen]
            rows = lda_rows(features, data.labels[chosen], self.num_classes, config.shrinkage)
        elif config.classifier == "language-model":
            rows = rows_of_names(config.language_model, self.class_names, width, seed)
        else:
            return
        self.rows.copy_(rows)

    def _projected(self, images: Float[Tensor, "BF 3 S S"]) -> Float[Tensor, "BF E"]:
        found = self.live.encode_image(images)
        return found if found.dtype == torch.float64 else found.float()


def fit(
    model: CLIP, examples: Examples, config: Config, *, seed: int = 0, folder: Path | None = None,
    progress: Progress | None = None,
) -> AdditionPredictor:  # fmt: skip
    once = dataclasses.replace(config.clip, clips=1, crops=1)  # several views are for tests
    train = Clips.of(examples.train, once)
    val = None if examples.val is None else Clips.of(examples.val, once)
    steps = max(1, len(train) // config.recipe.batch_size)
    recipe = dataclasses.replace(config.recipe, warmup_steps=config.warmup_epochs * steps)
    addition = Text4Vis(model, config, examples.class_names, seed=seed)
    addition.fill(train, seed)
    addition.to(model.device)
    fit_addition(addition, train, recipe, val=val, seed=seed, folder=folder, progress=progress)
    return addition.predictor([config.template] if addition.binds else ())


def _some_of_each(targets: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Positions of at most so many samples of each class, drawn."""
    generator = numpy_generator(seed, "classifier", "lda")
    members = (np.flatnonzero(targets == label) for label in np.unique(targets))
    return np.sort(np.concatenate([generator.permutation(found)[:most] for found in members]))
