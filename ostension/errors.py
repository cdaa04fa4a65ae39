"""The errors that a user can cause, each one clear line.

A message says what was wrong with the offending value, where it came from, what was expected and how to mend it.
`assert` is for what only we can cause; everything else raises one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OstensionError(Exception):
    """Base of every error that a user can cause; the command line prints `str(error)` and exits with `exit_code`.

    Args:
        what: what was wrong, with the offending value.
        source: where the value came from (a file, a flag, a record).
        expected: what would have been right.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, source: object = None, expected: str | None = None, fix: str | None = None):
        self.what, self.source, self.expected, self.fix = what, source, expected, fix
        parts = [what if source is None else f"{source}: {what}"]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(fix)
        super().__init__("; ".join(" ".join(part.split()) for part in parts))

    def __reduce__(self):
        return _rebuild, (type(self), self.what, None if self.source is None else str(self.source), self.expected, self.fix)


def _rebuild(cls, what, source, expected, fix):
    """Rebuild an error that crossed a process boundary."""
    return cls(what, source=source, expected=expected, fix=fix)


class ConfigError(OstensionError):
    """A setting, a flag, a name or a combination of them that cannot be meant."""


class UsageError(ConfigError):
    """A command that cannot be carried out as typed (exit status 2)."""

    exit_code = 2


class DataError(OstensionError):
    """An image, a text, a shard or a table that cannot be used."""


class CheckpointError(OstensionError):
    """Weights or a saved state that cannot be loaded or trusted."""


class LimitError(OstensionError):
    """An input past a limit on bytes, pixels, tokens or items."""


class DivergenceError(OstensionError):
    """Training met a non-finite loss or gradient and stopped before the optimiser moved (exit status 3)."""

    exit_code = 3


class ProcessError(OstensionError):
    """Another process of the run has ended, does not answer, or stopped with a problem, whose exit status is taken."""

    def __init__(self, what: str, *, exit_code: int = 1, **rest):
        super().__init__(what, **rest)
        self.exit_code = exit_code


class MissingExtraError(OstensionError):
    """A feature whose optional packages are not installed."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names of `known` that are closest to `name`, best first (case ignored)."""
    by_folded: dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(candidate.casefold(), candidate)
    folded = difflib.get_close_matches(name.casefold(), list(by_folded), n=count, cutoff=0.0)
    return [by_folded[match] for match in folded]


def unknown_name(kind: str, name: str, known: Iterable[str], *, source: object = None, fix: str | None = None) -> ConfigError:
    """A `ConfigError` for an unknown `name`, listing the nearest three known ones."""
    close = nearest(name, known)
    listed = ", ".join(repr(match) for match in close) or "none are known"
    return ConfigError(
        f"unknown {kind} {name!r}", source=source, expected=f"one of the known names; nearest: {listed}", fix=fix
    )


def require_extra(module: str, extra: str):
    """Import and return an optional `module`, or say which extra brings it.

    Raises:
        MissingExtraError: if the module is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"this needs the package {module.split('.')[0]!r}, which cannot be imported ({error})",
            fix=f"install it with: pip install 'ostension[{extra}]'",
        ) from None
