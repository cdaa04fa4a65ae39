"""Small sets and pictures for the tests of the store."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ostension.data.pairs import Pair, Summary, image_digest
from ostension.errors import DataError
from ostension.store.key import SetKey


def key(**changes) -> SetKey:
    return SetKey(**({"kind": "images", "weights": "a" * 64, "inputs": {"image_size": 8}, "stored": "float32"} | changes))


def unit_rows(seed: int, count: int, width: int = 8) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def names(start: int, count: int) -> list[str]:
    return [f"id{number}" for number in range(start, start + count)]


def picture(seed: int, mode: str = "RGB", side: tuple[int, int] = (40, 36), form: str = "PNG") -> bytes:
    bands = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, bands), dtype=np.uint8)
    image = Image.fromarray(coarse[..., 0] if bands == 1 else coarse).resize(side, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


class Pictures:
    """A labelled source in memory; numbers in `broken` are no pictures. It can be sent to workers."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()):
        modes = ("RGB", "RGBA", "L")
        self.images = [b"no picture" if n in broken else picture(n, modes[n % 3]) for n in range(count)]

    def __len__(self):
        return len(self.images)

    def key(self, index):
        return f"p{index}"

    def read(self, index):
        meta = {"label": "even" if index % 2 == 0 else "odd", "camera": f"c{index % 3}"}
        return Pair(key=self.key(index), image=self.images[index], texts=(f"picture {index}",), meta=meta)

    def fingerprint(self):
        return f"pictures {len(self)}"

    def image_digests(self):
        return np.array([image_digest(image) for image in self.images], dtype=np.uint64)

    def summary(self):
        return Summary(num_pairs=len(self), num_bytes=0, rejects={})


class StopsAt(Pictures):
    """A source that cannot be read past a number, once."""

    def __init__(self, count: int, stop: int):
        super().__init__(count)
        self.stop = stop

    def read(self, index):
        if index >= self.stop:
            raise DataError("the disk is gone", source=self.key(index))
        return super().read(index)

    def fingerprint(self):
        return f"pictures {len(self)}"
