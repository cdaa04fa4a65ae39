"""Losses that need no other pairs, over several processes: the gradients and the value of one."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("kind", ["captioning", "language-model", "bag-prediction"])
def test_losses_of_single_pairs_over_two_processes_are_those_of_one(processes, kind):
    (expected,) = processes.run("own_gradients", 1, kind=kind)
    found = processes.run("own_gradients", 2, kind=kind)
    assert found[0]["loss"] == found[1]["loss"] == pytest.approx(expected["loss"], abs=1e-10)
    for answer in found:
        assert answer["gradients"] == pytest.approx(expected["gradients"], abs=1e-10)
