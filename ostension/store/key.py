"""What a set of embeddings is of: everything that decides its numbers, readable, and its hash, which names the folder.

Letters: N rows, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from ostension.config import require
from ostension.errors import DataError
from ostension.files import sha256_json

if TYPE_CHECKING:
    from ostension.model.clip import CLIP

Kind = Literal["images", "texts"]
Level = Literal["pre", "post"]
Stored = Literal["float16", "float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetKey:
    """The key of one set.

    Attributes:
        kind: rows of images, or of texts.
        weights: the fingerprint of the model (`model.fingerprint`), or any other hash of what computes the rows.
        inputs: the preprocessing of images or the tokenizer of texts, as a JSON tree.
        computed: the dtype of the weights; with an engine other than torch its name and precision.
        stored: the dtype of the rows on the disk.
        data: the fingerprint of the source; empty for texts, which are known by themselves.
        split: the split's name, empty if there are none.
        level: "pre" before the projection, "post" in the joint space, where rows are unit rows.
        view: None for the model's own preprocessing, else what draws the random view, with its number.
    """

    kind: Kind
    weights: str
    inputs: Mapping[str, Any]
    computed: str = "float32"
    stored: Stored = "float16"
    data: str = ""
    split: str = ""
    level: Level = "post"
    view: Mapping[str, Any] | None = None

    def __post_init__(self):
        for name, known in (("kind", Kind), ("level", Level), ("stored", Stored)):
            value = getattr(self, name)
            require(value in get_args(known), f"key.{name}", value, f"one of {', '.join(get_args(known))}")

    def tree(self) -> dict[str, Any]:
        """The key as a JSON tree."""
        tree = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**tree, "inputs": dict(self.inputs), "view": None if self.view is None else dict(self.view)}

    def sha256(self) -> str:
        """The hash of the tree."""
        return sha256_json(self.tree())

    @property
    def folder(self) -> str:
        """The name of the set's folder."""
        return f"{self.kind}-{self.sha256()[:16]}"

    @staticmethod
    def of_tree(tree: Any, source: object) -> SetKey:
        """The key in a manifest.

        Raises:
            DataError: if it is none.
        """
        names = {field.name for field in dataclasses.fields(SetKey)}
        if not isinstance(tree, dict) or set(tree) != names:
            raise DataError("a key with other entries", source=source, expected=", ".join(sorted(names)))
        return SetKey(**tree)


@dataclasses.dataclass(frozen=True)
class ModelKey:
    """What of a model stands in its keys; computed once, since it reads all weights."""

    weights: str
    preprocess: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    computed: str

    @staticmethod
    def of(model: CLIP) -> ModelKey:
        """The key of a model as it is now."""
        from ostension.config import to_tree
        from ostension.model.fingerprint import fingerprint

        return ModelKey(
            weights=fingerprint(model),
            preprocess=to_tree(model.transform.config),
            tokenizer=to_tree(getattr(model.config, "tokenizer", None)) or {},  # a detector of duplicates has none
            # An encoder in another engine says which one and in what it computes.
            computed=getattr(model, "computed", None) or str(model.dtype).removeprefix("torch."),
        )

    def check(self, key: SetKey, source: object) -> None:
        """Refuse a set that another model made.

        Raises:
            DataError: with both hashes, of the weights or of the preprocessing (the tokenizer).
        """
        if key.weights != self.weights:
            raise _another("model", key.weights, self.weights, source)
        mine = self.preprocess if key.kind == "images" else self.tokenizer
        if dict(key.inputs) != dict(mine):
            what = "transform" if key.kind == "images" else "tokenizer"
            raise _another(what, sha256_json(dict(key.inputs)), sha256_json(dict(mine)), source)


def _another(what: str, theirs: str, ours: str, source: object) -> DataError:
    return DataError(
        f"embeddings of the {what} {theirs[:16]}, and this {what} is {ours[:16]}",
        source=source, fix=f"use the {what} that made them, or embed the data with this one",
    )  # fmt: skip
