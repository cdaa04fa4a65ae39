"""The classes of a predictor in a query: where words would be embedded, the rows W of classes with these names are taken.

Whatever a method learned of a class is then searched for, among pictures that the untouched image tower embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ostension.errors import ConfigError, unknown_name
from ostension.model.predictor import Predictor
from ostension.store.key import ModelKey
from ostension.store.sets import EmbeddingSet


class ClassRows:
    """Stands for a model in `query.vectors`.

    Args:
        predictor: its W must be a constant matrix over the model's own embeddings.
        source: where it comes from, for errors.
        opened: the set that is searched in.

    Raises:
        ConfigError: for a predictor whose rows are not ones of the collection's space.
        DataError: if another model made the set.
    """

    def __init__(self, predictor: Predictor, source: object, opened: EmbeddingSet):
        if predictor.depends != "nothing" or predictor.own_images or predictor.level != "post":
            raise ConfigError(
                f"a {predictor.kind!r} predictor", source=source,
                expected="one that compares the model's own embeddings of pictures with a fixed row for each class",
            )  # fmt: skip
        ModelKey.of(predictor.encoder).check(opened.key, opened.folder)
        self._predictor, self._source = predictor, source

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, E) the rows of classes with these names.

        Raises:
            ConfigError: for a name that the predictor does not have.
        """
        names = self._predictor.class_names
        unknown = next((text for text in texts if text not in names), None)
        if unknown is not None:
            raise unknown_name("class", unknown, names, source=self._source)
        return self._predictor.weights[[names.index(text) for text in texts]].detach().float().cpu().numpy()

    def embed_images(self, images: Any, batch_size: int = 32) -> Any:
        """(N, E) unit rows of pictures."""
        return self._predictor.encoder.embed_images(images, batch_size=batch_size)
