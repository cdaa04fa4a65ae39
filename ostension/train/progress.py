"""What a person sees of a run: a progress bar on a terminal, plain lines anywhere else, on stderr.

The bar fits 80 columns: time left, loss, accuracies, temperature, pairs a second, idle share. A line has all there is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from ostension.runlog import number

# Of a "step" record: what a line says in words of its own, or not at all.
WORDED = (
    "kind", "step", "time", "loss", "image_accuracy", "text_accuracy", "temperature", "logit_scale", "grad_norm", "lr",
    "samples_seen", "epoch", "step_s", "data_s", "idle_share", "pairs_per_s", "eta_s", "peak_memory_mb", "texts_cut",
)  # fmt: skip


class Progress:
    """Shows the records of a run as they come; a `Tracker`."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self._bar: tqdm | None = None

    def open(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._steps, self._num_samples = facts["steps"], facts["num_samples"]
        if self.stream.isatty():
            self._bar = tqdm(
                total=self._steps, initial=facts["step"], file=self.stream, unit="step", dynamic_ncols=True,
                bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {desc}",
            )

    def write(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "step":
            if self._bar is None:
                self._say(step_line(record, self._steps, self._num_samples))
            else:
                self._bar.set_description_str(brief(record), refresh=False)
                self._bar.update(record["step"] - self._bar.n)
        elif record["kind"] != "checkpoint" or self._bar is None:
            self._say(event_line(record))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)


def step_line(record: Mapping[str, Any], steps: int, num_samples: int) -> str:
    """One interval as a line: epoch, samples of the epoch, then the measurements."""
    step, samples = record["step"], record["samples_seen"]
    epoch, into = divmod(samples, num_samples)
    return (
        f"step {step}/{steps} | epoch {epoch} [{into}/{num_samples} ({100 * into / num_samples:.0f} %)] | "
        f"{measurements(record)} | data {record['data_s']:.3f} s, step {record['step_s']:.3f} s | "
        f"ETA {duration(record['eta_s'])}"
    )


def brief(record: Mapping[str, Any]) -> str:
    """What the bar says beside itself, with the shortest names."""
    pairs = ""
    if "image_accuracy" in record:
        image, text = (_percent(record[name], ".0f") for name in ("image_accuracy", "text_accuracy"))
        pairs = f" acc {image}/{text}% T {_number(record['temperature'], '.3g')}"
    return (
        f"ETA {duration(record['eta_s'])} loss {_number(record['loss'], '.3f')}{pairs} "
        f"{record['pairs_per_s']:.0f} pairs/s idle {100 * record['idle_share']:.0f}%"
    )


def measurements(record: Mapping[str, Any]) -> str:
    """Loss, accuracies in the batch (image to text, text to image) and temperature where there are any, rates.

    Whatever else an objective measured stands after them by its name.
    """
    pairs = ""
    if "image_accuracy" in record:
        image, text = (_percent(record[name], ".1f") for name in ("image_accuracy", "text_accuracy"))
        pairs = f"acc i>t {image} % t>i {text} %, temperature {_number(record['temperature'], '.4f')}, "
    others = "".join(
        f"{name.replace('_', ' ')} {_number(value, '.4g')}, "
        for name, value in record.items()
        if name not in WORDED and number(value)  # counts of what never happened are not worth their room
    )
    return (
        f"loss {_number(record['loss'], '.4f')}, {pairs}{others}"
        f"grad {_number(record['grad_norm'], '.3g')}, lr {record['lr']:.3g}, "
        f"{record['pairs_per_s']:.0f} pairs/s, idle {100 * record['idle_share']:.0f} %, {record['peak_memory_mb']} MB"
    )


def event_line(record: Mapping[str, Any]) -> str:
    """Anything that is not a step, as `kind at step N: name value, ...`."""
    values = ", ".join(f"{name} {_plain(value)}" for name, value in record.items() if name not in ("kind", "step", "time"))
    return f"{record['kind']} at step {record['step']}" + (f": {values}" if values else "")


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(value: float | str, form: str) -> str:
    return value if isinstance(value, str) else format(value, form)


def _percent(value: float | str, form: str) -> str:
    return value if isinstance(value, str) else format(100 * value, form)


def _plain(value: object) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"{', '.join(map(str, value[:3]))} and {len(value) - 3} more"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
