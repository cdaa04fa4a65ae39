"""Hostile files, each batch in a process of its own, with memory measured beyond what the imports took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(script: str) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name(script))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


@pytest.mark.slow
def test_two_hundred_hostile_files_give_clean_errors_quickly_and_in_little_memory():
    report = run("hostile_files.py")
    assert report["memory"] < 300 * 2**20
    assert report["slowest_s"] < 1
    # The rest are changed files that are still pictures, and pictures past a limit.
    assert report["outcomes"]["DataError"] > 140, report
    assert sum(report["outcomes"].values()) == 200


@pytest.mark.slow
def test_a_strip_one_pixel_wide_costs_no_memory_for_what_the_crop_throws_away():
    report = run("long_strips.py")
    assert report["memory"] < 25 * 2**20  # a full resize of the first strip alone takes 800 MB
    assert report["seconds"] < 5
