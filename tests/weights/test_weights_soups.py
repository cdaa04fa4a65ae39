"""Greedy soups against their definition, early rejection against the plain way, and live lines against files."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_samples import moved, state, tiny, weights, written

from ostension.errors import ConfigError
from ostension.formats.load import load
from ostension.weights import arithmetic
from ostension.weights.kernel import Mixed, block_of
from ostension.weights.line import Line, Point, choose, curve, head_line
from ostension.weights.soups import CHUNK, Samples, greedy_soup, not_worse


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("models"), tiny()
    return [written(moved(base, seed, 0.02), folder / f"m{seed}") for seed in range(3)]


def projection_of(folder):
    return state(folder)["visual.proj"].double().view(-1)


class Signs(Samples):
    """A sample is right where an element of one tensor is above its threshold."""

    def __init__(self, folders):
        self.limit = torch.stack([projection_of(folder) for folder in folders]).median(dim=0).values
        self.count = len(self.limit)

    def judge(self, model):
        answers = (projection_of(model) >= self.limit).numpy()
        return lambda positions: answers[positions]


def test_a_greedy_soup_is_never_below_the_best_model_and_ignores_the_order(folders, tmp_path):
    samples = Signs(folders)

    def score(folder):
        return float(samples.judge(folder)(np.arange(samples.count)).mean())

    best = max(map(score, folders))
    found = []
    for number, order in enumerate(itertools.permutations(folders)):
        for kind, scorer in (("plain", score), ("early", samples)):
            result = greedy_soup(order, tmp_path / f"{kind}-{number}", scorer)
            assert result.score >= best and score(tmp_path / f"{kind}-{number}") == result.score
            found.append((result.members, weights(tmp_path / f"{kind}-{number}")))
    assert len(set(found)) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_model_that_spoils_the_soup_stays_out(folders, tmp_path):
    good = set(map(str, folders[:2]))

    def score(folder):
        if str(folder) in good:
            return 0.8
        return 0.1 if str(folder) == str(folders[2]) else 0.8 - 0.5 * (score.calls.append(1) or len(score.calls) == 2)

    score.calls = []
    result = greedy_soup(folders, tmp_path / "soup", score)
    assert set(result.members) == good
    arithmetic.soup(folders[:2], tmp_path / "two")
    assert weights(tmp_path / "soup") == weights(tmp_path / "two")


def test_scores_that_are_not_numbers_and_models_named_twice_are_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="finite"):
        greedy_soup(folders, tmp_path / "x", lambda folder: float("nan"))
    with pytest.raises(ConfigError, match="each once"):
        greedy_soup([folders[0]] * 2, tmp_path / "x", lambda folder: 1.0)
    assert not (tmp_path / "x").exists()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=400))
@settings(max_examples=100, deadline=None)
def test_early_rejection_decides_as_the_whole_score_would(pairs):
    before, after = (np.array(column, bool) for column in zip(*pairs, strict=True))
    found, seen = not_worse(before, lambda positions: after[positions])
    assert (found is not None) == (after.sum() >= before.sum())
    assert seen <= len(before)
    if found is not None:
        assert np.array_equal(found, after)


def test_a_bad_candidate_is_rejected_after_few_samples():
    right = np.ones(10_000, bool)
    assert not_worse(right, lambda positions: np.zeros(len(positions), bool)) == (None, CHUNK)


class Rows:
    """Rows of numbers as the kernel's sources."""

    def __init__(self, number, values):
        self.name, self.digest = str(number), f"{hash(tuple(values.tolist()))}"
        self.dtypes, self.shapes = {"w": values.dtype}, {"w": tuple(values.shape)}


NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=5), st.randoms())
@settings(max_examples=100, deadline=None)
def test_a_mean_is_the_rounded_exact_mean_in_any_order(columns, random):
    tensors = [torch.tensor(column, dtype=torch.float32) for column in columns]

    def mean(order):
        chosen = [tensors[index] for index in order]
        sources = [Rows(index, value) for index, value in zip(order, chosen, strict=True)]
        output = Mixed((1.0,) * len(chosen), float(len(chosen)))
        return block_of(sources, output, "w", dict(enumerate(chosen)), torch.float32)

    order = list(range(len(tensors)))
    first = mean(order)
    random.shuffle(order)
    assert torch.equal(mean(order).view(torch.int32), first.view(torch.int32))
    exact = torch.stack(tensors).double().mean(dim=0)
    scale = torch.stack(tensors).double().abs().max(dim=0).values
    assert ((first.double() - exact).abs() <= 1.2e-7 * exact.abs() + 1e-14 * scale + 1e-44).all()


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.floats(-3, 3), st.integers(2, 9))
@settings(max_examples=100, deadline=None)
def test_any_affine_combination_of_equals_is_the_identity(values, alpha, count):
    row = torch.tensor(values, dtype=torch.float32)
    for output in (Mixed((1 - alpha, alpha)), Mixed((1.0,) * count, float(count))):
        sources = [Rows(index, row) for index in range(len(output.coefficients))]
        found = block_of(sources, output, "w", dict.fromkeys(range(len(sources)), row), torch.float32)
        assert torch.equal(found.view(torch.int32), row.view(torch.int32))


def test_a_live_model_has_the_numbers_of_the_file(folders, tmp_path):
    start, end = (load(folder, dtype="float32") for folder in folders[:2])
    line = Line(start, end)
    for alpha in (0.0, 0.35, 1.0):
        arithmetic.interpolate(*folders[:2], {alpha: tmp_path / f"{alpha}"})
        live = line.at(alpha).state_dict()
        with Line.of_files(*folders[:2], dtype="float32") as between:
            read = between.at(alpha).state_dict()
        for name, value in state(tmp_path / f"{alpha}").items():
            assert torch.equal(live[name], value) and torch.equal(read[name], value), name


def test_a_live_model_shares_what_both_ends_have_in_common_and_changes_neither():
    start = tiny()
    with torch.no_grad():
        start.visual.conv1.weight.view(-1)[:5] = -0.0
    end = moved(start, 1)
    end.text.load_state_dict(start.text.state_dict())
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in (start, end)]
    line = Line(start, end)
    for alpha in (0.3, 0.0, 1.0):
        live = line.at(alpha).state_dict()
        assert live["text.text_projection"].data_ptr() == start.state_dict()["text.text_projection"].data_ptr()
        for model, kept, place in ((start, before[0], 0.0), (end, before[1], 1.0)):
            for name, value in model.state_dict().items():
                assert torch.equal(value, kept[name])
                if alpha == place and value.is_floating_point():
                    assert torch.equal(live[name].view(torch.int32), value.view(torch.int32)), name


def test_lines_of_decimal_shares_do_not_depend_on_which_end_comes_first(folders, tmp_path):
    arithmetic.interpolate(*folders[:2], {0.35: tmp_path / "one"})
    arithmetic.interpolate(*folders[1::-1], {0.65: tmp_path / "other"})
    assert weights(tmp_path / "one") == weights(tmp_path / "other")


def test_a_curve_is_measured_and_its_point_chosen_on_both_sides(folders):
    line = Line(*(load(folder, dtype="float32") for folder in folders[:2]))
    points = curve(line, (0, 0.5, 1), lambda model: {"new": float(model.visual.proj.detach()[0, 0]), "old": 1.0})
    assert [point.alpha for point in points] == [0, 0.5, 1]
    assert points[1].scores["new"] == pytest.approx((points[0].scores["new"] + points[2].scores["new"]) / 2)
    grid = [Point(a, 0.0, {"new": new, "old": old}) for a, new, old in ((0, 0.2, 0.8), (0.5, 0.8, 0.75), (1, 0.9, 0.4))]
    assert choose(grid, ["new"], ["old"]).alpha == 0.5
    assert choose(grid, ["new"], []).alpha == 1


def test_logits_of_heads_are_linear_along_the_line():
    generator = np.random.default_rng(0)
    rows, one, two = (generator.normal(size=shape).astype(np.float32) for shape in ((20, 8), (5, 8), (5, 8)))
    for alpha in (0, 0.3, 1):
        direct = rows @ ((1 - alpha) * one + alpha * two).T
        assert np.allclose(head_line(rows @ one.T, rows @ two.T, alpha), direct, atol=1e-5)
    assert head_line(one, two, 0) is one and head_line(one, two, 1) is two
