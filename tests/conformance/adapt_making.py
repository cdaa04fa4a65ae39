"""A tiny model and a few labelled pictures for the tests of methods."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from ostension.adapt._examples import Examples, Labelled
from ostension.data.pairs import Pair, Summary
from ostension.files import sha256_json
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.model.towers.config import BertConfig

NAMES = ("cat", "large dog", "kite (bird of prey)", "airplane")


def tiny_clip(seed: int = 0) -> CLIP:
    """A tiny model whose context holds sixteen vectors and a name."""
    base = preset("tiny-vit")
    text, tokenizer = (dataclasses.replace(part, context_length=48) for part in (base.text, base.tokenizer))
    return CLIP(dataclasses.replace(base, text=text, tokenizer=tokenizer), seed=seed).eval()


def bert_clip() -> CLIP:
    """A tiny model whose text tower takes no contexts."""
    base = preset("tiny-vit")
    text = BertConfig(
        context_length=base.text.context_length, vocab_size=base.text.vocab_size, width=32, layers=2, head_width=16, pool="mean"
    )
    return CLIP(dataclasses.replace(base, text=text), seed=0).eval()


class Pictures:
    """A source of random pictures in memory."""

    def __init__(self, count: int, seed: int = 0):
        self.seed, self.images = seed, []
        generator = np.random.default_rng(seed)
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
            self.images.append(buffer.getvalue())

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> Pair:
        return Pair(key=str(index), image=self.images[index], texts=(), meta={})

    def fingerprint(self) -> str:
        return sha256_json(["random pictures", self.seed, len(self.images)])

    def image_digests(self) -> np.ndarray:
        return np.arange(len(self.images), dtype=np.uint64)

    def summary(self) -> Summary:
        return Summary(num_pairs=len(self.images), num_bytes=sum(map(len, self.images)), rejects={})


def examples(classes: int = 4, each: int = 3) -> Examples:
    targets = np.repeat(np.arange(classes), each)
    domains = np.arange(len(targets)) % 2
    train = Labelled(source=Pictures(len(targets)), targets=targets, domains=domains, name="train")
    val = Labelled(source=Pictures(classes, seed=1), targets=np.arange(classes), domains=np.arange(classes) % 2, name="val")
    return Examples(class_names=NAMES[:classes], train=train, val=val)
