"""The Stage contract: one step of curation is one file, a function of parts of the candidates.

A stage is a module of `curate.stages`, found by its name, with two things in it:

    class Config: ...          # a frozen dataclass: its settings
    class Match(Stage): ...    # name, config_type, and `map`; `reduce` and `decide` too where it looks at the whole

The candidates lie in parts of consecutive rows (`work`). A stage is given the rows of a part that still live and gives columns
of as many values; what it drops it gives a reason for. A part's columns depend on its rows, the settings and the facts alone:
that is why one process, many, and a cluster give the same bytes, and why a run that was killed goes on part by part.

Letters: n rows of a part.
"""

from __future__ import annotations

import abc
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ostension.errors import ConfigError, DataError
from ostension.registry import ModuleRegistry

STAGES = ModuleRegistry("ostension.curate.stages", "stage")
DROPPED, TEXTS, TEXT_REASONS = "dropped", "texts", "text_reasons"
Columns = Mapping[str, Any]


class Part:
    """The rows of one part that still live.

    Args:
        read: gives a column of the work folder ("texts", "match.queries"), aligned with `rows`.
        picture: gives the encoded picture at a place in the source.

    Attributes:
        number: of the part.
        rows: (n,) int32 places in the part.
        size: places that a part has.
        name: what to call it in messages.
    """

    def __init__(
        self, number: int, rows: np.ndarray, size: int, read: Callable[[str], Any], picture: Callable[[int], bytes], name: str
    ):
        self.number, self.rows, self.size, self.name = number, rows, size, name
        self._read, self._picture = read, picture

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Any:
        """A column as a pyarrow array of n values: of the candidates ("url"), or of an earlier stage ("match.queries").

        Raises:
            ConfigError: if no earlier stage has written it.
        """
        return self._read(name)

    @functools.cached_property
    def keys(self) -> list[str]:
        """Where the samples lie."""
        return self.column("key").to_pylist()

    @functools.cached_property
    def texts(self) -> list[tuple[str, ...]]:
        """The captions that earlier stages have left."""
        return [tuple(texts) for texts in self.column(TEXTS).to_pylist()]

    @functools.cached_property
    def urls(self) -> list[str | None]:
        return self.column("url").to_pylist()

    @functools.cached_property
    def meta(self) -> list[dict[str, Any]]:
        """Whatever else the source knows."""
        return [json.loads(text) if text else {} for text in self.column("meta").to_pylist()]

    def ids(self) -> np.ndarray:
        """(n,) int64 numbers that no other candidate has, and that never change: part times size plus row."""
        return np.int64(self.number) * self.size + self.rows

    @functools.cached_property
    def _places(self) -> list[int]:
        return self.column("place").to_pylist()

    @property
    def has_pictures(self) -> bool:
        """Whether all rows have a picture in the source."""
        return all(place >= 0 for place in self._places)

    def image(self, index: int) -> bytes:
        """The encoded picture of row `index`.

        Raises:
            DataError: if it cannot be read, or there is none.
        """
        place = self._places[index]
        if place < 0:
            raise DataError(
                "no picture: the source holds captions alone", source=self.keys[index], fix="get the pictures first"
            )
        return self._picture(place)


class Stage(abc.ABC):
    """One step of curation.

    Args:
        config: its settings. Nothing is opened here; what is expensive (an automaton, a model) is made on first use, in the
            process that maps.

    Attributes:
        name: of its file.
        config_type: its settings.
        last: whether it is meant to be the last that drops rows, since it counts what is left.
        numbers: columns that hold lists of numbers of something, with the Parquet file in the stage's folder, and its column,
            that says of what: a lineage names them.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Any]]
    last: ClassVar[bool] = False
    numbers: ClassVar[Mapping[str, tuple[str, str]]] = {}
    _kinds: ClassVar[dict[str, type[Stage]]] = {}

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "name" in cls.__dict__:
            Stage._kinds[cls.name] = cls

    def __init__(self, config: Any):
        self.config = config

    def check(self) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse settings that cannot be carried out (a file that is missing), before anything is computed."""

    def inputs(self) -> dict[str, Any]:
        """JSON-able hashes of what the settings point to (a list of queries, a model): parts made with others are made anew."""
        return {}

    @abc.abstractmethod
    def map(self, part: Part) -> Columns:
        """Columns of n values, each row on its own.

        Three names mean something to all: "dropped" (a reason, None keeps the row), "texts" (lists of captions, which later
        stages then see), "text_reasons" (for each caption why it went, or None).
        """

    def reduce(self, parts: Iterable[tuple[Part, Any]], folder: Path) -> dict[str, Any]:
        """Facts of the whole, from the parts with what `map` made of them (pyarrow tables), in order.

        With `decide` it is what that goes by; without, it sums up what `map` has decided.

        Args:
            parts: can be gone through more than once; each time all files are read.
            folder: of the stage, for files that `decide` and reports read.
        """
        return {}

    def decide(self, part: Part, mapped: Any, facts: Mapping[str, Any], folder: Path) -> Columns:
        """The columns that the stage ends in, as of `map`, from a part, its mapped columns, and the facts; by default those."""
        return {name: mapped[name] for name in mapped.column_names if name != "row"}

    def looks_at_whole(self) -> bool:
        """Whether it has a second pass; a stage may have one with some settings only."""
        return type(self).decide is not Stage.decide

    def sums_up(self) -> bool:
        """Whether it has facts of the whole that it does not decide by."""
        return type(self).reduce is not Stage.reduce and not self.looks_at_whole()

    def figures(self, facts: Mapping[str, Any], folder: Path) -> list[Any]:
        """What a report shows of it besides counts by reason."""
        return []


def load_stage(name: str, source: object = None) -> type[Stage]:
    """The stage called `name`.

    Args:
        source: where the name stands, for the message.

    Raises:
        ConfigError: for an unknown name, with the nearest three.
    """
    try:
        STAGES.load(name)
    except ConfigError as error:
        raise ConfigError(error.what, source=source, expected=error.expected, fix=error.fix) from None
    return Stage._kinds[name.replace("_", "-")]
