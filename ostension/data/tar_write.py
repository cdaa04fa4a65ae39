"""Tar shards in the webdataset and img2dataset layout, written so that the same pairs give the same bytes.

Headers hold nothing but names and sizes: no owner, no time. What the index of the shard needs is noted while writing, so that
the shard is not read again.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ostension.data.arrays import joined_texts
from ostension.data.pairs import image_digest
from ostension.data.tar_index import INDEX_SUFFIX, ShardIndex, save_index

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}


class TarWriter:
    """A shard that is being written to `handle`.

    Attributes:
        size: bytes so far.
        num_pairs: pairs so far.
    """

    def __init__(self, handle: BinaryIO):
        self.size = self.num_pairs = 0
        self._handle = handle
        self._hash = hashlib.sha256()
        self._keys: list[str] = []
        self._spans: list[tuple[tuple[int, int], ...]] = []
        self._digests: list[int] = []

    def add(self, key: str, image: bytes, suffix: str, text: str, metadata: Mapping[str, Any]) -> None:
        """Append the members KEY.SUFFIX, KEY.txt and KEY.json."""
        described = json.dumps(metadata, separators=(",", ":"), allow_nan=False)
        parts = {suffix: image, "txt": text.encode("utf-8"), "json": described.encode("utf-8")}
        self._spans.append(tuple(self._member(f"{key}.{ending}", data) for ending, data in parts.items()))
        self._keys.append(key)
        self._digests.append(image_digest(image))
        self.num_pairs += 1

    def finish(self) -> str:
        """Write the end mark; the SHA-256 of the whole shard."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -end % tarfile.RECORDSIZE - self.size))
        return self._hash.hexdigest()

    def save_index(self, shard: Path) -> None:
        """Write the index of the finished shard, which lies at `shard` now, beside it."""
        keys, key_ends = joined_texts(self._keys)
        spans = np.array(self._spans, dtype=np.int64).reshape(len(self._spans), 3, 2)
        index = ShardIndex(
            key_ends=key_ends, keys=keys, image=spans[:, 0], text=spans[:, 1], json=spans[:, 2],
            digest=np.array(self._digests, dtype=np.uint64), tar_size=self.size, tar_sha256=self._hash.hexdigest(),
            tar_mtime_ns=shard.stat().st_mtime_ns, rejects={}, torn=None,
        )  # fmt: skip
        save_index(index, shard.with_name(shard.name + INDEX_SUFFIX))

    def _member(self, name: str, data: bytes) -> tuple[int, int]:
        header = tarfile.TarInfo(name)  # mode 0644, and zero for the time and the owner
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset, len(data)

    def _write(self, data: bytes) -> None:
        self._handle.write(data)
        self._hash.update(data)
        self.size += len(data)
