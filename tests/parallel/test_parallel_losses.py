"""The losses over several processes: those of one process, for the towers, the scale and the bias."""

from __future__ import annotations

import pytest

CASES = [
    ("contrastive", "separate", None), ("contrastive", "separate", 3), ("contrastive", "share", None),
    ("contrastive", "share", 1), ("contrastive", "ignore", None), ("contrastive", "ignore", 3),
    ("sigmoid", "separate", None), ("sigmoid", "separate", 3), ("sigmoid", "share", 3), ("sigmoid", "ignore", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(processes):
    """The loss of one process, in its plain form, by case."""
    found = {}

    def get(kind, duplicates):
        if (kind, duplicates) not in found:
            settings = {"kind": kind, "duplicates": duplicates, "chunk_rows": None}
            (found[kind, duplicates],) = processes.run("loss_and_gradients", 1, **settings)
        return found[kind, duplicates]

    return get


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("kind", "duplicates", "chunk_rows"), CASES)
def test_loss_and_gradients_are_those_of_one_process(processes, whole, kind, duplicates, chunk_rows, size):
    expected = whole(kind, duplicates)
    found = processes.run("loss_and_gradients", size, kind=kind, duplicates=duplicates, chunk_rows=chunk_rows)
    assert len(expected["gradients"]) == 2 * 20 + 1 + (kind == "sigmoid")
    for answer in found:
        assert answer["loss"] == pytest.approx(expected["loss"], abs=1e-12)
        assert answer["accuracies"] == pytest.approx(expected["accuracies"])
        assert answer["gradients"] == pytest.approx(expected["gradients"], abs=1e-10)


@pytest.mark.parametrize(("duplicates", "chunk_rows"), [("separate", None), ("separate", 3), ("share", 2), ("ignore", None)])
def test_targets_that_know_of_noise_are_those_of_one_process(processes, duplicates, chunk_rows):
    settings = {"kind": "contrastive", "duplicates": duplicates, "noisy": True}
    (expected,) = processes.run("loss_and_gradients", 1, **settings, chunk_rows=None)
    for answer in processes.run("loss_and_gradients", 2, **settings, chunk_rows=chunk_rows):
        assert answer["loss"] == pytest.approx(expected["loss"], abs=1e-12)
        assert answer["gradients"] == pytest.approx(expected["gradients"], abs=1e-10)
