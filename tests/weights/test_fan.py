"""Models around one start: parallel patches that commute, exact ends, and the search for their alphas."""

from __future__ import annotations

import pytest
import torch

from ostension.errors import CheckpointError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.weights.fan import Fan, search
from ostension.weights.line import GRID, Line


def tiny(seed: int = 0) -> CLIP:
    return CLIP(preset("tiny-vit"), seed=seed).eval()


def moved(start: CLIP, words: tuple[str, ...], seed: int) -> CLIP:
    """A copy of which the tensors whose names contain a word have moved."""
    model, generator = tiny(), torch.Generator().manual_seed(seed)
    state = {name: value.clone() for name, value in start.state_dict().items()}
    for name, value in state.items():
        if any(word in name for word in words) and value.is_floating_point():
            state[name] = value + 0.1 * torch.randn(value.shape, generator=generator)
    model.load_state_dict(state)
    return model


def bits(model: CLIP) -> dict[str, bytes]:
    return {name: value.contiguous().view(-1).numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.fixture
def start() -> CLIP:
    model = tiny()
    with torch.no_grad():
        model.visual.ln_post.bias.fill_(-0.0)
    return model


def test_its_ends_are_the_models_to_the_bit(start):
    one, two = moved(start, ("visual",), 1), moved(start, ("visual",), 2)
    fan = Fan(start, [one, two])
    assert bits(fan.at((0, 0))) == bits(start)
    assert bits(fan.at((1, 0))) == bits(one) and bits(fan.at((0, 1))) == bits(two)
    assert bits(fan.at((0, 0))) == bits(start)  # also after it was another


def test_the_sum_is_that_of_the_differences(start):
    one, two = moved(start, ("visual",), 1), moved(start, ("visual",), 2)
    found = Fan(start, [one, two]).at((0.3, 0.6)).state_dict()
    for name, value in start.state_dict().items():
        wide = value.double()
        wanted = wide + 0.3 * (one.state_dict()[name] - wide) + 0.6 * (two.state_dict()[name] - wide)
        torch.testing.assert_close(found[name].double(), wanted, rtol=0, atol=1e-6)


def test_the_order_of_the_ends_changes_no_bit(start):
    ends = [moved(start, ("visual",), seed) for seed in (1, 2, 3)]
    assert bits(Fan(start, ends).at((0.3, 0.6, 0.15))) == bits(Fan(start, [ends[2], ends[0], ends[1]]).at((0.15, 0.3, 0.6)))


def test_ends_that_moved_different_weights_do_not_disturb_each_other(start):
    early, late = moved(start, ("resblocks.0.",), 1), moved(start, ("ln_post", "visual.proj"), 2)
    both = bits(Fan(start, [early, late]).at((0.35, 0.8)))
    alone = bits(Fan(start, [early]).at((0.35,))), bits(Fan(start, [late]).at((0.8,)))
    first = bits(start)
    for name, value in both.items():
        assert value == (alone[0][name] if alone[0][name] != first[name] else alone[1][name])
    one_after_the_other = Fan(Fan(start, [early]).at((0.35,)), [moved_onto(start, early, 0.35, late)]).at((0.8,))
    for name, value in one_after_the_other.state_dict().items():
        torch.testing.assert_close(value, torch.frombuffer(bytearray(both[name]), dtype=value.dtype).view(value.shape))


def moved_onto(start, early, alpha, late):
    """The model patched with `early`, with the late weights at their end."""
    model = tiny()
    state = dict(Fan(start, [early]).at((alpha,)).state_dict())
    ends = {name: value for name, value in late.state_dict().items() if "ln_post" in name or name == "visual.proj"}
    model.load_state_dict(state | ends)
    return model


def test_one_end_is_a_line_up_to_rounding(start):
    end = moved(start, ("visual",), 1)
    for alpha in (0.25, 0.5, 0.95):
        line, fan = Line(start, end).at(alpha), Fan(start, [end]).at((alpha,))
        for name, value in line.state_dict().items():
            torch.testing.assert_close(value, fan.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_models_of_other_shapes_are_refused(start):
    with pytest.raises(CheckpointError, match="'visual.attnpool.*in one model"):
        Fan(start, [CLIP(preset("tiny-resnet"), seed=0)])


def test_the_search_finds_one_alpha_on_the_grid_and_the_smallest_of_equal_ones():
    assert search(lambda alphas: -abs(alphas[0] - 0.35), 1, GRID) == (0.35,)
    assert search(lambda alphas: 1.0, 1, GRID) == (0.0,)


def test_the_search_of_several_is_never_below_a_common_alpha_and_asks_nothing_twice():
    asked = []

    def value(alphas):
        asked.append(alphas)
        return -abs(alphas[0] - 0.2) - 2 * abs(alphas[1] - 0.9) - 0.5 * abs(alphas[0] + alphas[1] - 1.1)

    found = search(value, 2, GRID)
    assert found == (0.2, 0.9) and len(asked) == len(set(asked)) < 21 * 21
