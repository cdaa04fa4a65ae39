"""Other programs that watch a run: TensorBoard, Weights & Biases, Trackio, each a `Tracker` that gets the numbers.

Their packages are imported when one is asked for, so that a missing one is told before the run and not in it. The run's
own log stands beside them in any case; `RunLog` sees to it that a tracker that fails ends nothing.

wandb and trackio know a run by an id. It is drawn once and kept in the run folder (`trackers.json`), so that a resumed run
goes on in the same curves. Steps that were lost with a process come a second time; both are sent with the step as a value
of its own (`step`), because a service that only knows rising steps would drop them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.errors import require_extra, unknown_name
from ostension.files import read_json, write_json
from ostension.runlog import MEASURED, Tracker, number
from ostension.train.run_folder import CONFIG_NAME

IDS_NAME = "trackers.json"
PROJECT = "ostension"


def named_trackers(names: Sequence[str]) -> list[Tracker]:
    """The trackers of these names, each once.

    Raises:
        ConfigError: for an unknown name.
        MissingExtraError: if the package of one is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS, source="--track")
    return [TRACKERS[name]() for name in dict.fromkeys(names)]


class TensorBoard:
    """Writes the numbers of "step" and "evaluation" records as TensorBoard scalars under `tensorboard/`."""

    def __init__(self) -> None:
        self._module = require_extra("torch.utils.tensorboard", "track")

    def open(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._writer = self._module.SummaryWriter(str(folder / "tensorboard"))

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in measured(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Sends the numbers to Weights & Biases: project WANDB_PROJECT or "ostension", files under `wandb/` of the run folder.

    Its own settings hold as everywhere: WANDB_MODE=offline keeps everything on disk for `wandb sync`.
    """

    def __init__(self) -> None:
        self._module = require_extra("wandb", "track")

    def open(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._run = self._module.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", folder.name),
            id=kept_id(folder, "wandb"),
            resume="allow",
            dir=str(folder),
            config=about(folder, facts),
            # Its capture of the terminal would take the progress bar for output, line by line.
            settings=self._module.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Mapping[str, Any]) -> None:
        values = measured(record)
        if values:
            self._run.log({**values, "step": record["step"]})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Sends the numbers to Trackio, which keeps them on this machine: project TRACKIO_PROJECT or "ostension".

    TRACKIO_DIR says where; `trackio show` shows them.
    """

    def __init__(self) -> None:
        self._module = require_extra("trackio", "trackio")

    def open(self, folder: Path, facts: Mapping[str, Any]) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # it greets on stdout, which is for results
            self._run = self._module.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                # Trackio knows a run by its name, and run folders of one name are common.
                name=f"{folder.name}-{kept_id(folder, 'trackio')}",
                resume="allow",
                config=about(folder, facts),
            )

    def write(self, record: Mapping[str, Any]) -> None:
        values = measured(record)
        if values:
            self._run.log(values, step=record["step"])

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._module.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def measured(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a "step" or "evaluation" record, as `KIND/NAME`; those that are not finite come as floats."""
    if record["kind"] not in MEASURED:
        return {}
    found = {name: number(value) for name, value in record.items() if name not in ("kind", "step", "time")}
    return {f"{record['kind']}/{name}": value for name, value in found.items() if value is not None}


def about(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a service is told of a run once: every setting, versions, git state."""
    path = folder / CONFIG_NAME
    settings = read_json(path) if path.is_file() else {}
    return {**settings, "run": {name: value for name, value in facts.items() if name not in ("process", "step")}}


def kept_id(folder: Path, service: str) -> str:
    """The id by which a service knows the run of `folder`: drawn at the first call, the same ever after."""
    path = folder / IDS_NAME
    ids = read_json(path) if path.is_file() else {}
    if service not in ids:
        ids = {**ids, service: secrets.token_hex(4)}  # a name, so not a function of the seed: two runs may share that
        write_json(path, ids)
    return str(ids[service])
