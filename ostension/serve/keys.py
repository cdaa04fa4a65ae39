"""Reading keys: from a file, from the environment. They are never shown, in no message and no log."""

from __future__ import annotations

import os
from pathlib import Path

from ostension.errors import DataError

VARIABLE = "OSTENSION_KEYS"
MIN_LENGTH = 16


def read_keys(path: str | Path | None) -> tuple[str, ...]:
    """The keys of a file, one a line (blank lines and those that begin with # are left out), and of OSTENSION_KEYS, which
    holds them between commas.

    Raises:
        DataError: for a file that cannot be read, or a key that is too short or holds spaces. Keys are not shown.
    """
    found: list[str] = []
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot be read ({type(error).__name__})", source=path, expected="one key a line") from None
        lines = [line.strip() for line in lines]
        found += _checked([line for line in lines if line and not line.startswith("#")], str(path))
        if not found:
            raise DataError("holds no key", source=path, expected="one key a line")
    given = [key.strip() for key in os.environ.get(VARIABLE, "").split(",")]
    found += _checked([key for key in given if key], f"the environment variable {VARIABLE}")
    return tuple(dict.fromkeys(found))


def _checked(keys: list[str], source: str) -> list[str]:
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise DataError(
                f"key {number} has {len(key)} characters or holds spaces", source=source,
                expected=f"{MIN_LENGTH} or more of ASCII without spaces",
                fix="make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )  # fmt: skip
    return keys
