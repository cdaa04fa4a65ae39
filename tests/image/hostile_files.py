"""Run in a process of its own: opens 200 hostile files within limits on memory, prints what happened as JSON."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from ostension.errors import DataError, LimitError
from ostension.image.decode import open_image
from ostension.image.signatures import reads
from ostension.runtime import numpy_generator, peak_memory_bytes

COUNT = 200
ALLOWANCE = 300 * 2**20
MODES = {"JPEG": ("RGB", "CMYK"), "WEBP": ("RGBA", "RGB"), "GIF": ("P", "L"), "AVIF": ("RGB",)}
PLAIN_MODES = ("RGB", "L", "P", "1")

random = numpy_generator(26, "hostile images")


def noise(count: int) -> bytes:
    return random.integers(0, 256, count, dtype=np.uint8).tobytes()


def samples() -> list[bytes]:
    files = []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        for mode in MODES.get(kind, PLAIN_MODES) if reads(kind) else ():
            buffer = io.BytesIO()
            pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(buffer, kind)
            files.append(buffer.getvalue())
    return files


def png(width: int, height: int, depth: int, colour: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(random.integers(0, 2)))
    body = zlib.compress(noise(2_000)) if random.random() < 0.5 else noise(2_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)


def bmp(width: int, height: int, bits: int, compression: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 1_000_000, 0, 0, 54) + header + noise(3_000)


def gif(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + noise(6)
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHBB", 0, 0, width, height, 0, 8) + noise(500)


def claim(index: int) -> bytes:
    """A small file whose header tells of sixty million pixels, just within the limit."""
    width = int(random.integers(2_000, 8_000))
    size = (width, 60_000_000 // width)
    return (png(*size, 8, 2), png(*size, 16, 6), bmp(*size, 8, 1), bmp(*size, 24, 0), gif(*size))[index % 5]


def hostile(index: int, files: list[bytes]) -> bytes:
    data = files[index % len(files)]
    way = index % 5
    if way == 0:  # the signature, then noise
        return data[: int(random.integers(8, 33))] + noise(int(random.integers(0, 20_000)))
    if way == 1:  # a sound header, then noise
        sound = max(32, len(data) // 4)
        return data[:sound] + noise(len(data) - sound)
    if way == 2:
        return data[: int(random.integers(3, len(data) - 1))]
    if way == 3:
        return claim(index // 5)
    broken = bytearray(data)  # a few bytes of the head changed
    for place in random.integers(2, min(len(data), 200), 12):
        broken[place] = int(random.integers(0, 256))
    return bytes(broken)


def main() -> None:
    warnings.simplefilter("error")
    files = samples()
    for data in files:
        open_image(data)
    space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    # With the address space limited, a decoder that asks for more fails at once, and has to fail cleanly.
    resource.setrlimit(resource.RLIMIT_AS, (space + ALLOWANCE,) * 2)
    before = peak_memory_bytes()
    slowest, outcomes = 0.0, {"opened": 0, "DataError": 0, "LimitError": 0}
    for index in range(COUNT):
        data = hostile(index, files)
        start = time.process_time()
        try:
            open_image(data, name=f"file {index}")
            outcome = "opened"
        except (DataError, LimitError) as error:
            outcome = type(error).__name__
            assert str(error).startswith(f"file {index}: ") and "\n" not in str(error), str(error)
        slowest = max(slowest, time.process_time() - start)
        outcomes[outcome] += 1
    json.dump({"slowest_s": slowest, "memory": peak_memory_bytes() - before, "outcomes": outcomes}, sys.stdout)


if __name__ == "__main__":
    main()
