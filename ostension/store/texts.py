"""Embeddings of texts by what they say: a string is embedded once for a model and a tokenizer, whoever asks for it.

A study of templates then costs only the strings that are new. Letters: N texts, E embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ostension.errors import DataError
from ostension.model.clip import CLIP
from ostension.model.modes import evaluating
from ostension.store.folder import Store
from ostension.store.key import Level, ModelKey, SetKey, Stored
from ostension.store.sets import EmbeddingSet

BATCH = 1024
WAIT_S = 300.0


def text_key(model: CLIP | ModelKey, *, level: Level = "post", stored: Stored = "float32", truncate: bool = False) -> SetKey:
    """The key of a model's texts. Texts that were cut are other texts, and are kept apart."""
    made = model if isinstance(model, ModelKey) else ModelKey.of(model)
    return SetKey(
        kind="texts", weights=made.weights, inputs=made.tokenizer, computed=made.computed, stored=stored,
        split="truncated" if truncate else "", level=level,
    )  # fmt: skip


def text_embeddings(
    store: Store,
    model: CLIP,
    texts: Sequence[str],
    *,
    level: Level = "post",
    made: ModelKey | None = None,
    stored: Stored = "float32",
    truncate: bool = False,
    batch_size: int = BATCH,
    wait_s: float = WAIT_S,
) -> np.ndarray:
    """(N, E) float32 rows of texts in their order; what the store lacks is computed and added.

    Several processes may do this at once: each adds what still lacks when its turn comes. Texts are padded to the longest of
    their batch, so the last bits of a row can depend on what was asked for together; they stay as they were stored first.

    Args:
        level: "post" for unit rows in the joint space, "pre" for (N, W) features before the projection.
        made: the model's key, if it is known; else its weights are hashed at each call.
        stored: the numbers on the disk. Texts are few, so the default loses nothing.
        truncate: cut texts that are too long instead of refusing them.
        wait_s: how long to wait for another writer.

    Raises:
        DataError: for what is no text, or a text that is too long.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"texts of type {type(texts).__name__}", expected="a list of strings")
    key = text_key(made or model, level=level, stored=stored, truncate=truncate)
    folder = store.folder(key)
    if not texts:
        return _computed(model, [""], level, truncate)[:0]
    hashes = text_hashes(texts)
    opened = _Known(folder)
    missing = [place for place, row in enumerate(opened.find(hashes)) if row < 0]
    if missing:
        wanted = list(dict.fromkeys(texts[place] for place in missing))
        parts = [
            _computed(model, wanted[start : start + batch_size], level, truncate) for start in range(0, len(wanted), batch_size)
        ]
        rows = np.concatenate(parts)
        with store.writer(key, merge=True, wait_s=wait_s) as writer:
            added = text_hashes(wanted)
            lacking = np.flatnonzero(_Known(folder).find(added) < 0)  # another process may have been faster
            if len(lacking):
                columns = {"id": [wanted[place] for place in lacking], "hash": added[lacking, 0], "hash_2": added[lacking, 1]}
                writer.append(rows[lacking], **columns)
        opened = _Known(folder)
    return opened.rows(opened.find(hashes))


def _computed(model: CLIP, texts: Sequence[str], level: Level, truncate: bool) -> np.ndarray:
    if level == "post":
        return model.embed_texts(texts, batch_size=len(texts), truncate=truncate).cpu().numpy()
    with torch.no_grad(), evaluating(model):
        tokens = model.tokenizer(texts, truncate=truncate)
        return model.text_features(tokens, ("pooled",))["pooled"].float().cpu().numpy()


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """(N, 2) uint64: the 128 bits of each text's BLAKE2b."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


class _Known:
    """The texts of a set at one moment, found by their hashes."""

    def __init__(self, folder: Path):
        self._set = EmbeddingSet(folder) if (folder / "manifest.json").is_file() else None
        if self._set is None or not len(self._set):
            self._set = None
            self._hashes = np.zeros((0, 2), np.uint64)
        else:
            self._hashes = np.stack([np.asarray(self._set.column(name)) for name in ("hash", "hash_2")], axis=1)
        self._order = np.lexsort((self._hashes[:, 1], self._hashes[:, 0]))

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """(N,) the row of each text, -1 where there is none."""
        known = _comparable(self._hashes[self._order])
        wanted = _comparable(hashes)
        places = np.searchsorted(known, wanted)
        inside = places < len(known)
        hit = np.zeros(len(wanted), bool)
        hit[inside] = known[places[inside]] == wanted[inside]
        out = np.full(len(wanted), -1, np.int64)
        out[hit] = self._order[places[hit]]
        return out

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        assert self._set is not None and (numbers >= 0).all()
        return np.asarray(self._set.rows[numbers], dtype=np.float32)


def _comparable(hashes: np.ndarray) -> np.ndarray:
    """Pairs of numbers as one value each that sorts as they do."""
    return np.ascontiguousarray(hashes).view([("first", "<u8"), ("second", "<u8")]).reshape(-1)
