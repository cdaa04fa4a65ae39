"""Run in a process of its own: transforms strips one pixel wide, prints the memory and time that it took as JSON."""

from __future__ import annotations

import io
import json
import sys
import time

import numpy as np
from PIL import Image

from ostension.image.transforms import PreprocessConfig, Transform
from ostension.runtime import peak_memory_bytes


def strip(width: int, height: int) -> bytes:
    pixels = np.arange(width * height * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def main() -> None:
    transforms = [Transform(PreprocessConfig(image_size=224, mode=mode)) for mode in ("openai-exact", "convert-first", "fast")]
    for transform in transforms:
        transform(strip(300, 260))
    before = peak_memory_bytes()
    start = time.process_time()
    for size in ((1, 4_000), (4_000, 1), (1, 65_000), (65_000, 1)):
        for transform in transforms:
            assert transform(strip(*size)).isfinite().all()
    json.dump({"memory": peak_memory_bytes() - before, "seconds": time.process_time() - start}, sys.stdout)


if __name__ == "__main__":
    main()
