"""What a run needs of inputs besides what protocols need: what there is, what was looked at, what a result depends on."""

from __future__ import annotations

import abc

import numpy as np

from ostension.evals.inputs import Inputs


class RunInputs(Inputs):
    """Inputs that a run can resume on.

    Attributes:
        measured: the record's name of the split that stands for "test".
        used: the hashes of the data that was looked at, by "task/split"; empty texts for splits that turned out missing.
        notes: what a reader of the result has to know, one line each.
    """

    measured: str
    used: dict[str, str]
    notes: list[str]

    @abc.abstractmethod
    def missing(self, split: str) -> str | None:
        """Why there are no samples of a split; None if there are.

        Raises:
            ConfigError, DataError: if there is no data at all, or it cannot be read.
        """

    @abc.abstractmethod
    def fresh(self, fold: str | None = None) -> RunInputs:
        """The same inputs with nothing used yet, in an official fold; what was read stays read."""

    @abc.abstractmethod
    def identity(self) -> dict[str, str]:
        """What numbers depend on besides the data of splits."""

    @abc.abstractmethod
    def fingerprint(self, name: str) -> str:
        """The hash now of the data "task/split", as in `used`."""

    @abc.abstractmethod
    def data_notes(self) -> list[str]:
        """What differs from the record in what was used."""

    @abc.abstractmethod
    def folds(self) -> tuple[str, ...]:
        """The names of the task's official folds, if its data has them."""

    @abc.abstractmethod
    def targets(self, split: str) -> np.ndarray | None:
        """The targets of a split without its rows."""
