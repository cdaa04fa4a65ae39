"""Labelled pictures in tar shards (webdataset's form): KEY.jpg with KEY.cls, or with a field of KEY.json."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from ostension.data.pairs import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, MAX_TEXT_BYTES
from ostension.data.sets.base import LabelledSet, label_texts, split_word
from ostension.data.tar_scan import Member, TornArchive, scan
from ostension.data.task_parts import Source
from ostension.errors import DataError, LimitError
from ostension.image.signatures import VIDEO_SUFFIXES

LABEL_MEMBER = "cls"


class ShardSet(LabelledSet):
    """The samples of tar shards, shard after shard; ids are SHARD/KEY.

    Args:
        shards: the files, in order. The split is the word that a shard's name, or its folder's, begins with.
        source: `label` is the field of the JSON that holds the label, or "cls" (the default); `texts` that of captions.

    Raises:
        DataError: for a torn shard, and for a sample without picture or label.
    """

    def __init__(self, shards: list[Path], source: Source | None = None, *, several: bool = False):
        source = source or Source(kind="shards")
        field = source.label or LABEL_MEMBER
        ids: list[str] = []
        splits: list[str] = []
        labels: list[tuple[str, ...]] = []
        texts: list[tuple[str, ...]] = []
        fields: list[dict[str, str]] = []
        self._images: list[tuple[Path, Member]] = []
        rejects: Counter[str] = Counter()
        for shard in shards:
            split = split_word(shard.name) or split_word(shard.parent.name) or ""
            for key, members in _samples(shard, rejects).items():
                where = f"{shard} ({key})"
                picture = next((members[suffix] for suffix in members if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES), None)
                if picture is None:
                    raise DataError("no picture", source=where, expected="KEY.jpg beside KEY.cls or KEY.json")
                meta = _json(shard, members["json"], where) if "json" in members else {}
                self._images.append((shard, picture))
                ids.append(f"{shard.name.removesuffix('.tar')}/{key}")
                splits.append(split)
                fields.append({name: str(value) for name, value in meta.items() if isinstance(value, (str, int))})
                if source.texts is not None:
                    labels.append(())
                    texts.append(_captions(meta.get(source.texts), where))
                elif field == LABEL_MEMBER and LABEL_MEMBER in members:
                    text = _bytes(shard, members[LABEL_MEMBER], MAX_TEXT_BYTES, where).decode("utf-8", "replace")
                    labels.append(label_texts(text, where, several=several))
                else:
                    labels.append(label_texts(meta.get("label" if field == LABEL_MEMBER else field), where, several=several))
        common = set.intersection(*map(set, fields)) if fields else set()
        self.levels_in_ids = 1
        super().__init__(
            shards[0] if len(shards) == 1 else shards[0].parent,
            ids,
            labels,
            splits=splits if any(splits) else None,
            fields={name: [values[name] for values in fields] for name in sorted(common)},
            texts=texts or None,
            rejects=rejects,
        )
        self._shards = shards

    def image(self, index: int) -> bytes:
        shard, member = self._images[index]
        return _bytes(shard, member, MAX_IMAGE_BYTES, self.ids[index])

    def content(self) -> list[Any]:
        return [[shard.name, shard.stat().st_size, shard.stat().st_mtime_ns] for shard in self._shards]


def _samples(shard: Path, rejects: Counter[str]) -> dict[str, dict[str, Member]]:
    """The members of a shard by key and suffix, in their order."""
    found: dict[str, dict[str, Member]] = {}
    try:
        with open(shard, "rb") as handle:
            descriptor = handle.fileno()
            for member in scan(lambda at, count: os.pread(descriptor, count, at), os.fstat(descriptor).st_size):
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if member.problem is not None or not stem or not suffix:
                    rejects[member.problem or "no sample by its name"] += 1
                    continue
                found.setdefault(f"{folder}/{stem}".lstrip("/"), {})[suffix.casefold()] = member
    except TornArchive as error:
        raise DataError(str(error), source=shard, fix="fetch the shard again") from None
    except OSError as error:
        raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=shard) from None
    return found


def _bytes(shard: Path, member: Member, limit: int, where: str) -> bytes:
    if member.size > limit:
        raise LimitError(f"member of {member.size} bytes", source=where, expected=f"at most {limit}")
    with open(shard, "rb") as handle:
        handle.seek(member.offset)
        data = handle.read(member.size)
    if len(data) < member.size:
        raise DataError("the shard has shrunk", source=where)
    return data


def _json(shard: Path, member: Member, where: str) -> dict[str, Any]:
    try:
        tree = json.loads(_bytes(shard, member, MAX_TEXT_BYTES, where))
    except (ValueError, RecursionError):
        raise DataError("metadata is not JSON", source=where) from None
    if not isinstance(tree, dict):
        raise DataError("metadata is no JSON object", source=where)
    return tree


def _captions(value: Any, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"captions are {value!r}", source=where, expected="a text or a list of texts")
    return tuple(texts)
