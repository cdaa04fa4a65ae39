"""Hooks for unsafe content: functions of your own over captions and pictures, by their names.

No classifier and no list of words comes with the library: none that we know can be shipped with its source and its errors
stated. A list of words (`captions_words`) finds words and not meaning: it drops captions about health and about history, and
passes what is unsafe in other words. A classifier is as good as what it was trained on, and nobody here has measured yours.
What is left after a filter has not been found safe; it has not been found unsafe by that list and that function.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import ConfigError, DataError

_ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Hook:
    """A function of the user's, by its entry name: a list of captions (or of encoded pictures) to a score for each.

    Args:
        entry: "package.module:function".
        setting: where it is named, for messages.

    Raises:
        ConfigError: if there is no such function, on first use.
    """

    def __init__(self, entry: str, setting: str):
        if not _ENTRY.fullmatch(entry):
            raise ConfigError(f"{setting} is {entry!r}", expected="the name of a function, as package.module:function")
        self.entry, self.setting = entry, setting
        self._called: Callable[[list[Any]], Any] | None = None

    def sha256(self) -> str:
        """The hash of the module's file, which stands for the function; of the name alone where there is no file."""
        name = self.entry.partition(":")[0]
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise self._missing("no such module")
        path = Path(found.origin) if found.origin else None
        raw = path.read_bytes() if path is not None and path.is_file() else name.encode()
        return hashlib.sha256(raw).hexdigest()

    def __call__(self, values: Sequence[Any], names: Sequence[str]) -> np.ndarray:
        """(N,) float32 scores of the values; `names` are what to call them in messages.

        Raises:
            DataError: if the function fails, or does not give a finite number for each value.
        """
        self.check()
        assert self._called is not None
        where = f"{self.entry} at {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else "") if names else self.entry
        try:
            scores = np.asarray(self._called(list(values)), np.float32)
        except Exception as error:  # whatever the user's code raises
            what = f"failed: {type(error).__name__}: {error}"
            raise DataError(what, source=where, fix=f"mend the function in {self.setting}") from None
        if scores.shape != (len(values),):
            raise DataError(f"gave scores of shape {scores.shape}", source=where, expected=f"one for each of {len(values)}")
        if not np.isfinite(scores).all():
            bad = names[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise DataError("gave a score that is not finite", source=f"{self.entry} at {bad}", expected="numbers")
        return scores

    def check(self) -> None:
        """Find the function.

        Raises:
            ConfigError: if there is none.
        """
        if self._called is None:
            self._called = self._load()

    def _load(self) -> Callable[[list[Any]], Any]:
        module, _, function = self.entry.partition(":")
        try:
            found = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            raise self._missing(str(error)) from None
        except AttributeError:
            raise self._missing(f"no function {function!r} in it") from None
        except Exception as error:  # whatever the module does when it is imported
            raise self._missing(f"its import failed: {type(error).__name__}: {error}") from None
        if not callable(found):
            raise self._missing(f"{function!r} is no function")
        return found

    def _missing(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self.setting} is {self.entry!r}: {why}", expected="a function in a module that can be imported",
            fix="put its folder on PYTHONPATH",
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_called": None}
