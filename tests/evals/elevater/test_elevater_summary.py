"""The suite's curve from records of single tasks."""

from __future__ import annotations

import numpy as np
import pytest
from elevater_suite import planted

from ostension.evals.elevater.parameters import parameter_efficiency
from ostension.evals.elevater.probing import ProbeConfig
from ostension.evals.protocol import summarise
from ostension.evals.protocols import elevater
from ostension.evals.records import Record
from ostension.evals.summaries.elevater import run

SHORT = ProbeConfig(rates=(1e-2,), epochs=2, final_epochs=3, batch_size=8)


def records(mode: str = "honest") -> list[Record]:
    probe = ProbeConfig(rates=SHORT.rates, epochs=2, final_epochs=3, batch_size=8, mode=mode)
    config = elevater.Config(shots=(0, 5, -1), probe=probe)
    return [elevater.run(planted(name), config, seed=0).record for name in ("pets", "plants")]


def test_the_curve_is_the_mean_over_tasks_with_the_spread_over_seeds():
    pets, plants = records()
    (found,) = run([pets, plants])
    five = [[one["score"] for one in record.details["runs"] if one["shots"] == 5] for record in (pets, plants)]
    seeds = np.mean(five, axis=0)
    assert found.details["curve"][1] == [5, pytest.approx(seeds.mean()), pytest.approx(seeds.std())]
    assert found.metrics["zero_shot"].value == pytest.approx(
        np.mean([pets.metrics["zero_shot"].value, plants.metrics["zero_shot"].value])
    )
    assert found.headline.value == found.metrics["full"].value
    assert found.metrics["parameter_efficiency"].value == parameter_efficiency(found.metrics["full"].value, 36.0)
    assert found.task == "" and "mean of 2 tasks" in found.subject and len(found.details["missing"]) == 20
    assert found.details["tasks"]["pets"]["5"] == pytest.approx(np.mean(five[0]))


def test_settings_and_models_are_not_mixed_and_one_task_is_no_suite():
    both, faithful = records(), records("faithful")
    assert run(both[:1]) == []
    assert len(run([*both, *faithful])) == 2
    assert "not for reporting" in run(faithful)[0].subject
    assert any(record.protocol == "elevater-suite" for record in summarise(both))
