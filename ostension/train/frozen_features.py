"""Features of frozen towers, computed once and kept in files: what a run that trains heads only reads at every step.

    FOLDER/image-KEY/manifest.json      what the features are of: weights, preprocessing, data, crops, dtype
    FOLDER/image-KEY/part-00000.npy     (n, k, W): k crops of each of the first 1,024 pairs
    FOLDER/image-KEY/part-00000.json    the pairs of the part that could not be read, with the reasons
    FOLDER/text-KEY/part-00000.npy      (m, W): every caption of these pairs, one after the other
    FOLDER/captions-KEY/part-00000.npy  (n,) keys, captions and their shares as JSON in UTF-8, beside part-00000.ends.npy

KEY is a hash of the manifest, so features of other weights, data or settings lie elsewhere and nothing is ever stale. A
part gets its name when it is complete: a run that was killed goes on with the next one, and several processes can work at
once, each from another place of the row; whoever is second finds the part done. Parts are mapped into memory, not read.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ostension.config import to_tree
from ostension.data.pairs import Pair, PairSource
from ostension.errors import CheckpointError, DataError, LimitError
from ostension.files import atomic_path, read_json, sha256_json, write_json
from ostension.formats.towers import HEADS
from ostension.image.transforms import Transform
from ostension.model.clip import CLIP
from ostension.model.taps import Taps
from ostension.runtime import numpy_generator
from ostension.text.tokenizer import Tokenizer
from ostension.train.batches import pad_tokens, token_rows
from ostension.train.precision import Masters

PART = 1024  # pairs: at 768 float32 numbers a picture, 3 MB
BATCH = 64  # pictures, and eight times as many texts, that pass a tower together
VERSION = 1
Stored = Literal["float32", "float16", "bfloat16"]
Computed = Literal["fp32", "bf16"]
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """How features are made and kept.

    Attributes:
        crops: k of each picture; 0 is the model's own preprocessing, once.
        seed: of the places of the crops.
        stored: the numbers on the disk.
        computed: the towers' precision.
    """

    crops: int
    seed: int
    stored: Stored
    computed: Computed

    @property
    def rows(self) -> int:
        """Rows of each picture."""
        return max(1, self.crops)


class Parts:
    """The parts of one kind of features in a folder, `PART` pairs each; `arrays` of a part are `.npy` files."""

    def __init__(self, root: Path, kind: str, facts: Mapping[str, Any], num_pairs: int):
        self.facts = {"version": VERSION, "kind": kind, "part": PART, "num_pairs": num_pairs, **facts}
        self.folder = root / f"{kind}-{sha256_json(self.facts)[:16]}"
        self.num_pairs, self.kind = num_pairs, kind

    @property
    def count(self) -> int:
        return -(-self.num_pairs // PART)

    def pairs(self, part: int) -> range:
        """The pairs of a part."""
        return range(part * PART, min((part + 1) * PART, self.num_pairs))

    def path(self, part: int, suffix: str) -> Path:
        return self.folder / f"part-{part:05d}{suffix}"

    def complete(self, part: int) -> bool:
        """Whether the part is there; its JSON file is written last."""
        return self.path(part, ".json").is_file()

    def write(self, part: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write a part, whole or not at all.

        Raises:
            DataError: if the disk does not take it.
        """
        try:
            if not (self.folder / "manifest.json").is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / "manifest.json", self.facts)
            for suffix, array in arrays.items():
                with atomic_path(self.path(part, suffix)) as temporary, open(temporary, "wb") as handle:
                    np.save(handle, array)
            write_json(self.path(part, ".json"), dict(facts))
        except OSError as error:
            raise DataError(f"features cannot be written: {error.strerror}", source=self.folder, fix="make room") from None

    def array(self, part: int, suffix: str = ".npy") -> np.ndarray:
        """An array of a part, mapped into memory.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        path = self.path(part, suffix)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CheckpointError(
                f"features cannot be read ({error})", source=path, fix="remove the file and the .json beside it"
            ) from None

    def facts_of(self, part: int) -> dict[str, Any]:
        return read_json(self.path(part, ".json"), CheckpointError)

    def missing(self) -> Iterator[int]:
        """The parts that are to be made, from this process's place on; asked again before each."""
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        first = self.count * rank // size
        for part in (*range(first, self.count), *range(first)):
            if not self.complete(part):
                yield part


class Captions:
    """Keys and captions of all pairs, so that a run from features never reads a picture."""

    def __init__(self, root: Path, source: PairSource):
        self.parts = Parts(root, "captions", {"data": source.fingerprint()}, len(source))
        self._read = functools.lru_cache(maxsize=None)(self._mapped)

    def extract(self, source: PairSource, progress: Progress) -> None:
        for part in self.parts.missing():
            lines, reasons = [], {}
            for index in self.parts.pairs(part):
                try:
                    pair = source.read(index)
                    lines.append(json.dumps([pair.key, pair.texts, pair.weights]).encode())
                except (DataError, LimitError) as error:
                    reasons[str(index)] = error.what
                    lines.append(json.dumps([source.key(index), [], []]).encode())
            ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
            flat = np.frombuffer(b"".join(lines), dtype=np.uint8)
            counts = np.array([len(json.loads(line)[1]) for line in lines], dtype=np.int64)
            self.parts.write(part, {".npy": flat, ".ends.npy": ends, ".counts.npy": counts}, {"rejects": reasons})
            progress("captions", part + 1, self.parts.count)

    def _mapped(self, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, str]]:
        ends, counts = np.array(self.parts.array(part, ".ends.npy")), np.array(self.parts.array(part, ".counts.npy"))
        firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return self.parts.array(part), ends, firsts, self.parts.facts_of(part)["rejects"]

    def pair(self, index: int) -> Pair:
        """The pair without its picture.

        Raises:
            DataError: if it could not be read.
        """
        part, row = divmod(index, PART)
        flat, ends, _, rejects = self._read(part)
        if rejects and str(index) in rejects:
            raise DataError(rejects[str(index)])
        start = int(ends[row - 1]) if row else 0
        key, texts, weights = json.loads(flat[start : int(ends[row])].tobytes())
        return Pair(key=key, image=b"", texts=tuple(texts), meta={}, weights=tuple(weights))

    def first_text(self, index: int) -> int:
        """The row, within its part, of a pair's first caption."""
        part, row = divmod(index, PART)
        return int(self._read(part)[2][row])


class Features:
    """The features of one frozen tower over all pairs."""

    def __init__(
        self, root: Path, side: Literal["image", "text"], model: CLIP, data: str, size: int, settings: FeatureSettings
    ):
        tower, config = (model.visual, model.config.vision) if side == "image" else (model.text, model.config.text)
        self.side, self.settings = side, settings
        shape: dict[str, Any] = {"tower": {**to_tree(config), "projection": None}, "weights": trunk_hash(tower), "data": data}
        if side == "image":
            shape |= {"preprocess": to_tree(model.config.preprocess), "crops": settings.crops}
            shape |= {"seed": settings.seed} if settings.crops else {}
        else:
            shape |= {"tokenizer": to_tree(model.config.tokenizer)}
        self.parts = Parts(root, side, {**shape, "stored": settings.stored, "computed": settings.computed}, size)
        self._array = functools.lru_cache(maxsize=None)(self.parts.array)

    def rejects(self) -> dict[int, str]:
        """Pairs that have no features, with the reasons."""
        found = (self.parts.facts_of(part)["rejects"] for part in range(self.parts.count))
        return {int(index): reason for part in found for index, reason in part.items()}

    def rows(self, indices: Sequence[int], places: Sequence[int]) -> Tensor:
        """(B, W): of each pair one row, by its crop, or by its caption's row within the part."""
        rows = []
        for index, place in zip(indices, places, strict=True):
            array = self._array(index // PART)
            rows.append(array[index % PART, place] if self.side == "image" else array[place])
        return _from_stored(np.stack(rows), self.settings.stored)

    def extract(self, model: CLIP, source: PairSource, captions: Captions, progress: Progress) -> None:
        """Compute the parts that are not there."""
        todo = self.parts.missing()
        first = next(todo, None)
        if first is None:
            return
        tower = copy.deepcopy(model.visual if self.side == "image" else model.text)
        Masters(tower, torch.bfloat16 if self.settings.computed == "bf16" else torch.float32)
        tower.eval()
        for part in (first, *todo):
            rows, rejects = (
                self._images(tower, model.transform, source, part)
                if self.side == "image"
                else self._texts(tower, model.tokenizer, captions, part)
            )
            self.parts.write(part, {".npy": _to_stored(rows, self.settings.stored)}, {"rejects": rejects})
            progress(self.side, part + 1, self.parts.count)

    def _images(self, tower: nn.Module, transform: Transform, source: PairSource, part: int) -> tuple[Tensor, dict[str, str]]:
        pairs, k = self.parts.pairs(part), self.settings.rows
        rejects: dict[str, str] = {}
        rows: Tensor | None = None
        waiting: list[Tensor] = []
        where: list[int] = []

        def flush(rows: Tensor | None) -> Tensor:
            found = pooled(tower, torch.stack(waiting)).float().cpu()
            rows = found.new_zeros(len(pairs), k, found.shape[1]) if rows is None else rows
            rows.view(-1, found.shape[1])[where] = found
            waiting.clear()
            where.clear()
            return rows

        for offset, index in enumerate(pairs):
            try:
                crops = [transform(view, place=place) for view, place in self._views(source.read(index).image, index)]
            except (DataError, LimitError) as error:
                rejects[str(index)] = error.what
                continue
            waiting += crops
            where += range(offset * k, offset * k + k)
            if len(waiting) >= BATCH:
                rows = flush(rows)
        if waiting:
            rows = flush(rows)
        if rows is None:
            raise DataError(f"none of the pictures {pairs[0]} to {pairs[-1]} can be read ({rejects[str(pairs[0])]})")
        return rows, rejects

    def _views(self, image: bytes, index: int) -> Iterator[tuple[bytes, tuple[float, float] | None]]:
        for crop in range(self.settings.rows):
            drawn = numpy_generator(self.settings.seed, "crop", index, crop).random(2)
            yield image, (float(drawn[0]), float(drawn[1])) if self.settings.crops else None

    def _texts(self, tower: nn.Module, tokenizer: Tokenizer, captions: Captions, part: int) -> tuple[Tensor, dict[str, str]]:
        texts: list[str] = []
        for index in self.parts.pairs(part):
            try:
                texts += captions.pair(index).texts
            except DataError:
                continue  # has no captions, and no rows
        batches = [texts[start : start + 8 * BATCH] for start in range(0, len(texts), 8 * BATCH)]
        found = []
        for batch in batches:
            tokens = pad_tokens(token_rows(tokenizer, batch)[0], tokenizer.pad_id, tower.config)  # type: ignore[arg-type]
            found.append(pooled(tower, tokens).float().cpu())
        return torch.cat(found) if found else torch.zeros(0, 1), {}


@torch.no_grad()
def pooled(tower: Any, inputs: Tensor) -> Tensor:
    """A tower's features before its projection."""
    weight = next(tower.parameters())
    wanted = Taps(("pooled",), tower.tap_names())
    tower(inputs.to(weight.device, weight.dtype if inputs.is_floating_point() else None), taps=wanted)
    return wanted.result()["pooled"]


def trunk_hash(tower: nn.Module) -> str:
    """The SHA-256 of all weights of a tower before its projection, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        if name not in HEADS:
            value = tensor.detach().cpu().contiguous()
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _to_stored(rows: Tensor, stored: Stored) -> np.ndarray:
    if stored == "bfloat16":  # numpy does not know it
        return rows.to(torch.bfloat16).view(torch.int16).numpy()
    return rows.numpy().astype(stored)


def _from_stored(rows: np.ndarray, stored: Stored) -> Tensor:
    tensor = torch.from_numpy(rows)
    return (tensor.view(torch.bfloat16) if stored == "bfloat16" else tensor).float()
