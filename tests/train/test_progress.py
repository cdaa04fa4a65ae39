"""What a person sees of a run: lines in a file, a bar on a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ostension.train.progress import Progress, brief, duration, measurements

RECORD = {
    "kind": "step", "step": 10, "loss": 3.25, "image_accuracy": 0.5, "text_accuracy": 0.25, "temperature": 0.07,
    "grad_norm": 1.5, "lr": 1e-3, "pairs_per_s": 250.4, "idle_share": 0.02, "peak_memory_mb": 512, "data_s": 0.01,
    "step_s": 1.02, "eta_s": 3700.0, "samples_seen": 2560, "logit_scale": 2.66, "texts_cut": 0, "skipped": 0, "rejects": {},
}  # fmt: skip


def test_plain_lines_say_what_a_person_asks():
    stream = io.StringIO()
    progress = Progress(stream)
    progress.open(Path("run"), {"steps": 100, "step": 0, "num_samples": 1000})
    progress.write(RECORD)
    progress.write({"kind": "checkpoint", "step": 10, "time": 0, "path": "step_00000010", "deleted": []})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "step 10/100 | epoch 2 [560/1000 (56 %)] | loss 3.2500, acc i>t 50.0 % t>i 25.0 %, temperature 0.0700, grad 1.5, "
        "lr 0.001, 250 pairs/s, idle 2 %, 512 MB | data 0.010 s, step 1.020 s | ETA 1:01:40"
    )
    progress.write({"kind": "skip", "step": 11, "time": 0, "loss": "nan", "keys": ["a", "b", "c", "d", "e"]})
    assert stream.getvalue().splitlines()[2] == "skip at step 11: loss nan, keys a, b, c and 2 more"
    assert lines[1] == "checkpoint at step 10: path step_00000010, deleted []"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    progress = Progress(stream)
    progress.open(Path("run"), {"steps": 100, "step": 5, "num_samples": 1000})
    progress.write(RECORD)
    progress.write({"kind": "warning", "step": 10, "time": 0, "message": "disk full"})
    progress.write({"kind": "checkpoint", "step": 10, "time": 0, "path": "x", "deleted": []})
    progress.close()
    shown = stream.getvalue()
    assert "10/100" in shown
    assert "ETA 1:01:40 loss 3.250 acc 50/25% T 0.07 250 pairs/s idle 2%" in shown
    assert "warning at step 10: message disk full" in shown
    assert "checkpoint" not in shown


def test_the_bar_fits_a_narrow_terminal():
    late = {**RECORD, "step": 98_000, "temperature": 0.0123, "pairs_per_s": 1250.0, "loss": 12.3456}
    assert len(f" 98% |#| 98000/100000 {brief(late)}") <= 88
    assert len(f" 98% |#| 980/1000 {brief(RECORD)}") <= 80


def test_what_another_objective_measures_is_named_too():
    without = {name: value for name, value in RECORD.items() if name not in ("image_accuracy", "text_accuracy", "temperature")}
    told = measurements({**without, "caption_loss": 2.5, "skipped": 3})
    assert told.startswith("loss 3.2500, skipped 3, caption loss 2.5, grad 1.5")
    assert "acc" not in brief(without)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_not_finite_are_shown_as_they_are(value):
    broken = {**RECORD, "loss": value, "image_accuracy": value, "temperature": value, "grad_norm": value}
    assert f"loss {value} acc {value}/25% T {value}" in brief(broken)
    assert f"acc i>t {value} % t>i 25.0 %, temperature {value}" in measurements(broken)


def test_durations_read_as_people_write_them():
    assert [duration(seconds) for seconds in (0, 59.6, 61, 3600 * 5 + 62)] == ["0:00", "1:00", "1:01", "5:01:02"]
