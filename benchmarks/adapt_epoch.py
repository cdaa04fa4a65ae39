"""An epoch of CoOp, 16 shots of 100 classes, on kept features against the published loop, on the same tiny tower.

The published loop (CoOp's code, on Dassl) reads and decodes every picture again in every epoch, cuts a random part of it,
resizes that and mirrors every second one, sends it through the image tower, and in every step sends all 77 positions of all
prompts through the text tower, forward and backward. Here it runs in our own training loop, with our blocks, our batches and
the same weights, and Pillow does with the pictures what it does there, so the ratio is that of the work alone. Ours has the
features of the views, which serve every epoch, seed and method once they are there (the last row), and computes what prompts
share once.

Pictures are JPEGs of 500 x 375 made on the spot, with the spectrum of photos and some edges, 57 KB each. Of 100 prompts with 16
contexts ours still has to compute some 600 of the 7,700 positions, so that words alone give a ratio of 13; the rest is what
pictures cost. Two towers: the smallest of our models (32 pixels), and one of the same width for CLIP's 224 (patches of 32).

Each row: seconds of processor time of an epoch, how many times faster than the published loop in the same run, and how far the
contexts are apart after an epoch on the middles of 160 pictures, over the way that they went. A run ends with an error where
they are not equal.

    python benchmarks/adapt_epoch.py [--classes 100] [--shots 16] [--record FILE]
"""

from __future__ import annotations

import dataclasses
import io
import math
import time
from typing import Any

import _measure
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ostension.adapt._examples import CROPS, Labelled
from ostension.adapt._fit import Recipe, fit_addition
from ostension.adapt.coop import Config, CoOp
from ostension.data.pairs import Pair, Subset
from ostension.files import sha256_bytes
from ostension.image.augment import CropConfig, random_box
from ostension.model.clip import CLIP
from ostension.model.insert import TextInsert
from ostension.model.presets import preset
from ostension.runtime import numpy_generator
from ostension.text.prompts import class_names

LENGTH, CONTEXTS, APART = 77, 16, 1e-3  # positions of a prompt; learned ones; float32
EPOCHS, SAME = 3, 160  # epochs of ours that are timed; pictures that both loops see for the comparison of contexts
PHOTOS, WIDE, HIGH, QUALITY = 64, 500, 375, 85  # different ones, which take turns


class PublishedCoOp(CoOp):
    """CoOp as its code runs it: pictures through the tower in every step, all positions of all prompts through theirs."""

    kind, needs_images = "coop-published", True

    def weights(self, features: Tensor | None = None) -> Tensor:
        rows = F.pad(self.prompts.rows, (0, LENGTH - CONTEXTS - self.prompts.rows.shape[1]), value=self.model.tokenizer.pad_id)
        insert = TextInsert(context=self.context, position=self.prompts.position)
        return self.model.encode_text(rows, normalize=True, insert=insert, plain=True)

    @torch.no_grad()
    def image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, normalize=True)


class Photos:
    """So many pictures, encoded."""

    def __init__(self, count: int):
        self.files = [photo(number) for number in range(min(count, PHOTOS))]
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Pair:
        return Pair(key=str(index), image=self.files[index % len(self.files)], texts=(), meta={})

    def key(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return sha256_bytes(b"".join(self.files))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DasslPictures(Labelled):
    """Pictures as Dassl's loader makes them, one after the other."""

    def pixels(
        self, model: CLIP, indices: np.ndarray, *, seed: int = 0, epoch: int | None = None, crop: CropConfig = CROPS
    ) -> Tensor:
        if epoch is None:
            return super().pixels(model, indices, crop=crop)
        config, found = model.transform.config, []
        mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
        for index in indices.tolist():
            generator = numpy_generator(seed, "view", epoch, index)
            picture = Image.open(io.BytesIO(self.source.read(index).image)).convert("RGB")
            side = model.config.vision.image_size
            part = picture.crop(random_box(picture.size, crop, generator)).resize((side, side), Image.Resampling.BICUBIC)
            if generator.random() < 0.5:
                part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous().float().div(255)
            found.append((pixels - mean) / std)
        return torch.stack(found)


def photo(number: int) -> bytes:
    """A JPEG with the falling spectrum of photos and a dozen edges."""
    generator = numpy_generator(0, "adapt epoch", number)
    down, across = np.fft.fftfreq(HIGH)[:, None], np.fft.rfftfreq(WIDE)[None]
    frequency = np.hypot(down, across)
    frequency[0, 0] = 1.0

    def field(slope: float) -> np.ndarray:
        waves = frequency**-slope * np.exp(2j * np.pi * generator.random(frequency.shape))
        values = np.fft.irfft2(waves, s=(HIGH, WIDE))
        return values / values.std()

    pixels = 128 + 45 * field(1.3)[..., None] + 25 * np.stack([field(1.8) for _ in range(3)], axis=-1)
    for _ in range(12):
        left, top, wide, high = generator.integers((WIDE, HIGH, 100, 100))
        pixels[top : top + 20 + high, left : left + 20 + wide] += generator.normal(0, 35, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def tiny_tower(side: int, patch: int) -> CLIP:
    """The smallest of our models, with CLIP's tokens and 77 positions, for pictures of some size."""
    base, large = preset("tiny-vit"), preset("ViT-B-32")
    text = dataclasses.replace(base.text, context_length=LENGTH, vocab_size=large.text.vocab_size)
    vision = dataclasses.replace(base.vision, image_size=side, patch_size=patch)
    preprocess = dataclasses.replace(base.preprocess, image_size=side)
    config = dataclasses.replace(base, text=text, vision=vision, preprocess=preprocess, tokenizer=large.tokenizer)
    model = CLIP(config, seed=0).eval()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))  # as trained models have it
    return model


def fitted(addition: CoOp, data: Labelled, recipe: Recipe) -> tuple[list[float], Tensor]:
    """Seconds of processor time up to the end of each epoch, and the contexts."""
    ends, start = [], time.process_time()
    fit_addition(addition, data, recipe, seed=1, progress=lambda now: ends.append(time.process_time() - start))
    return ends, addition.context.detach()


def epochs(model: CLIP, names: list[str], data: Labelled, rounds: int) -> dict[str, dict[str, Any]]:
    """An epoch of each loop, and the features."""

    def made(kind: type[CoOp]) -> CoOp:
        return kind(model, Config(length=CONTEXTS), names, seed=1)

    first = made(CoOp).context.detach().clone()
    few = DasslPictures(source=Subset(data.source, range(min(SAME, len(data)))), targets=data.targets[:SAME])
    middles = [fitted(made(kind), few, Recipe(epochs=1, views=0))[1] for kind in (CoOp, PublishedCoOp)]
    distance = float((middles[0] - middles[1]).abs().max() / (middles[1] - first).abs().max())
    if not distance <= APART:
        raise SystemExit(f"contexts differ by {distance:.2g} of their way; expected at most {APART:g}")
    ours, plain, once, recipe = math.inf, math.inf, math.inf, Recipe(epochs=1 + EPOCHS, views=1)
    for _ in range(rounds):
        ends, _ = fitted(made(CoOp), data, recipe)
        own = np.diff(ends).tolist()
        ours, once = min(ours, *own), min(once, ends[0] - min(own))
        plain = min(plain, *fitted(made(PublishedCoOp), data, dataclasses.replace(recipe, epochs=1))[0])
    return {
        "published: pictures, 77 positions": {"s": plain, "x published": 1.0},
        "ostension: kept features": {"s": ours, "x published": plain / ours, "apart": distance},
        "the features of a view, once": {"s": once},
    }


def main() -> None:
    options = _measure.arguments(__doc__ or "", classes=(100, "classes"), shots=(16, "pictures of each"))
    count, names = options.classes * options.shots, list(class_names("imagenet"))[: options.classes]
    data = DasslPictures(source=Photos(count), targets=np.arange(count) % options.classes)
    figures = {}
    for title, side, patch in (("32 pixels, patches of 8", 32, 8), ("224 pixels, patches of 32", 224, 32)):
        figures[title] = epochs(tiny_tower(side, patch), names, data, options.rounds)
        _measure.table(f"CoOp, {options.shots} shots of {options.classes} classes: {title}", figures[title])
    settings = {"classes": options.classes, "shots": options.shots, "batch": Recipe().batch_size, "contexts": CONTEXTS,
                "model": "tiny-vit", "rounds": options.rounds}  # fmt: skip
    _measure.write_record(options.record, "adapt_epoch", settings, figures)


if __name__ == "__main__":
    main()
