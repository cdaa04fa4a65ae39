"""What is picked along the line between two heads: the plain way's picks, whatever was done to be quicker."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostension.errors import DataError
from ostension.model.predictor import Predictor
from ostension.weights import heads
from ostension.weights.heads import End, Head, head_of, picks_of_heads, picks_of_logits
from ostension.weights.line import head_line

ALPHAS = tuple(step / 10 for step in range(11))


def numbers(seed, *shape, scale=1.0):
    return np.random.default_rng(seed).standard_normal(shape) * scale


def end(head, rows):
    """An end whose own logits are products in float64, in float32."""
    return End(head, rows, lambda chosen: head.logits(rows[chosen]).astype(np.float32))


def plain(start, end, alphas=ALPHAS):
    ends = [one.head.logits(one.rows).astype(np.float32) for one in (start, end)]
    return np.stack([head_line(*ends, alpha).argmax(axis=1) for alpha in alphas])


@pytest.mark.parametrize("seed", range(4))
def test_picks_are_those_of_float64_at_every_alpha(seed, monkeypatch):
    monkeypatch.setattr(heads, "BLOCK", 500)  # several blocks, the last one smaller
    wide, narrow = numbers(seed, 137, 300).astype(np.float32), numbers(seed + 10, 137, 40).astype(np.float32)
    start = end(Head(numbers(seed + 20, 300, 17, scale=0.1), np.zeros(17)), wide)
    other = end(Head(numbers(seed + 30, 40, 17), numbers(seed + 40, 17, scale=3)), narrow)
    picks = picks_of_heads(start, other, ALPHAS)
    assert picks.shape == (11, 137) and len(np.unique(picks)) > 5
    assert np.array_equal(picks, plain(start, other))
    assert np.array_equal(picks_of_heads(start, other.scaled(7.0), (0.5,))[0], plain(start, other.scaled(7.0), (0.5,))[0])


def test_rows_that_rounding_cannot_part_are_decided_the_plain_way(monkeypatch):
    """Classes in pairs that differ by a few units in the last place, and by nothing."""
    rows = numbers(1, 400, 64).astype(np.float32)
    matrix = np.repeat(numbers(2, 64, 6), 3, axis=1)
    matrix[:, 1::3] *= 1 + 2e-7
    start, other = end(Head(matrix, np.zeros(18)), rows), end(Head(matrix[:, ::-1].copy(), np.zeros(18)), rows)
    asked = []
    exact = start.exact
    start = End(start.head, rows, lambda chosen: asked.append(len(chosen)) or exact(chosen))
    monkeypatch.setattr(heads, "ASKED", 150)
    assert np.array_equal(picks_of_heads(start, other, ALPHAS), plain(start, other))
    assert asked == [150, 150, 100]


def test_few_rows_are_close_where_words_lie_close_together():
    rows = numbers(3, 2000, 512)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    cone = numbers(4, 512, 1) * 5 + numbers(5, 512, 50)  # cosines of 0.96 between classes
    start, other = end(Head(cone, np.zeros(50)), rows), end(Head(numbers(6, 512, 50), np.zeros(50)), rows)
    asked = []
    seen = End(start.head, rows, lambda chosen: asked.append(len(chosen)) or start.exact(chosen))
    assert np.array_equal(picks_of_heads(seen, other, ALPHAS), plain(start, other))
    assert sum(asked) < 60


def test_a_class_that_is_never_given_is_never_picked():
    rows = numbers(7, 50, 8).astype(np.float32)
    never = np.array([0, -np.inf, 0, 0, 0.5])
    start, other = end(Head(numbers(8, 8, 5), never), rows), end(Head(numbers(9, 8, 5), np.zeros(5)), rows)
    for ends in ((start, other), (other, start), (start, start)):
        picks = picks_of_heads(*ends, ALPHAS)
        with np.errstate(invalid="ignore"):
            assert np.array_equal(picks, plain(*ends))
        logits = [one.head.logits(rows).astype(np.float32) for one in ends]
        assert np.array_equal(picks_of_logits(*logits, ALPHAS), picks)
        assert not (picks[1:-1] == 1).any()


def test_logits_that_are_there_give_the_same_picks(monkeypatch):
    monkeypatch.setattr(heads, "BLOCK", 64)
    start, other = (np.round(numbers(seed, 90, 9), 1).astype(np.float32) for seed in (10, 11))  # many equal ones
    expected = np.stack([head_line(start, other, alpha).argmax(axis=1) for alpha in ALPHAS])
    assert np.array_equal(picks_of_logits(start, other, ALPHAS), expected)
    one = np.zeros((3, 1), np.float32)
    assert np.array_equal(picks_of_logits(one, one, (0.5,)), np.zeros((1, 3)))


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_a_row_without_a_largest_logit_is_named(bad):
    logits = np.zeros((5, 3), np.float32)
    broken = logits.copy()
    broken[3] = bad
    with pytest.raises(DataError, match="row 3 of the logits has no largest number"):
        picks_of_logits(logits, broken, (0.0, 0.5, 1.0))


class Bent(Predictor):
    kind = "bent"

    def logits(self, embeddings):
        found = super().logits(embeddings)
        return found + 1e-4 * found.square()


class Shallow(Predictor):
    """Computes in float32 what is asked for in float32."""

    kind = "shallow"

    def logits(self, embeddings):
        return self.scale * embeddings @ self.weights.to(embeddings.dtype).T


class Offset(Predictor):
    kind = "offset"
    bias = torch.tensor([0.0, -torch.inf, 1.5], dtype=torch.float64)

    def logits(self, embeddings):
        found = super().logits(embeddings.double()) + self.bias
        return found.to(torch.float64 if embeddings.dtype == torch.float64 else torch.float32)


def test_a_head_is_read_off_predictors_that_are_one():
    weights = torch.nn.functional.normalize(torch.from_numpy(numbers(12, 3, 200)).float(), dim=-1)
    given = {"class_names": ("a", "b", "c"), "weights": weights, "scale": 20.0}
    rows = numbers(13, 10, 200).astype(np.float32)
    for kind in (Predictor, Offset):
        predictor = kind(**given)
        head = head_of(predictor)
        assert head is not None
        found = predictor.logits(torch.from_numpy(rows)).numpy()
        np.testing.assert_array_equal(found, head.logits(rows).astype(np.float32))
    assert head_of(Bent(**given)) is None and head_of(Shallow(**given)) is None
