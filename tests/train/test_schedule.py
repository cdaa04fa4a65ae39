"""The learning rate by step."""

from __future__ import annotations

import math

import pytest

from ostension.errors import ConfigError
from ostension.train.schedule import ScheduleConfig, rate_factor


def factors(config, steps):
    config = config.resolved(steps)
    return [rate_factor(config, step, steps) for step in range(steps)]


def test_warm_up_rises_in_equal_parts_and_the_cosine_follows():
    found = factors(ScheduleConfig(warmup_steps=4), 12)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])


def test_the_cosine_ends_above_its_floor():
    found = factors(ScheduleConfig(warmup_steps=0, final_fraction=0.1), 1000)
    assert found[0] == 1.0
    assert 0.1 < found[-1] < 0.1001


def test_constant_holds_after_the_warm_up():
    assert factors(ScheduleConfig(kind="constant", warmup_steps=2), 5) == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_the_cool_down_falls_in_the_last_steps():
    config = ScheduleConfig(kind="constant-cooldown", warmup_steps=0, cooldown_steps=4)
    assert factors(config, 8) == [1, 1, 1, 1, 1.0, 0.75, 0.5, 0.25]
    sooner = factors(ScheduleConfig(kind="constant-cooldown", warmup_steps=0, cooldown_steps=4, cooldown_power=2), 8)
    assert sooner[4:] == [1.0, 0.5625, 0.25, 0.0625]


def test_the_warm_up_is_a_tenth_of_a_short_run_and_the_papers_of_a_long_one():
    assert ScheduleConfig().resolved(500).warmup_steps == 50
    assert ScheduleConfig().resolved(400_000).warmup_steps == 2000


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"final_fraction": 1.5}, "final_fraction"),
        ({"kind": "constant", "final_fraction": 0.1}, "final_fraction"),
        ({"kind": "constant-cooldown"}, "cooldown_steps"),
        ({"cooldown_steps": 5}, "cooldown_steps"),
        ({"cooldown_power": 2.0}, "cooldown_power"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings, key):
    with pytest.raises(ConfigError, match=key):
        ScheduleConfig(**settings)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="warmup_steps is 20"):
        ScheduleConfig(warmup_steps=20).resolved(10)
