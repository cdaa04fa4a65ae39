"""The protocol end to end on planted tasks: the curve, heads, modes, knowledge, failures, several labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from elevater_suite import TEMPLATES, planted

from ostension.config import to_tree
from ostension.data.task import read_task
from ostension.errors import ConfigError, DivergenceError
from ostension.evals.elevater.heads import HeadConfig
from ostension.evals.elevater.knowledge import KnowledgeConfig, prompts_of
from ostension.evals.elevater.probing import ProbeConfig, probabilities
from ostension.evals.elevater.runs import Run, Settings
from ostension.evals.protocol import load_protocol
from ostension.evals.protocols import elevater, knowledge
from ostension.evals.protocols.zeroshot import Config as ZeroshotConfig
from ostension.evals.protocols.zeroshot import run as run_zeroshot

SHORT = ProbeConfig(rates=(1e-3, 1e-2, 1e-1), epochs=5, final_epochs=10, batch_size=8)


def a_config(**changes) -> elevater.Config:
    return elevater.Config(**{"shots": (0, 5), "probe": SHORT, **changes})


def test_the_curve_starts_at_zero_shot_and_the_probe_learns():
    inputs = planted("pets")
    outcome = elevater.run(inputs, a_config(shots=(0, 1, 5, -1)), seed=0)
    record = outcome.record
    plain = run_zeroshot(inputs, ZeroshotConfig(), seed=0).record
    assert record.metrics["zero_shot"].value == plain.headline.value
    assert [row[0] for row in record.details["curve"]] == [0.0, 1.0, 5.0, 16.0]
    assert record.headline.value == record.metrics["full"].value > record.metrics["zero_shot"].value + 0.05
    shots = [(one["shots"], one["seed"]) for one in record.details["runs"]]
    assert shots == [(1, 0), (1, 1), (1, 2), (5, 0), (5, 1), (5, 2), (-1, 0)]
    assert [one["drawn"] for one in record.details["runs"]] == [8, 8, 8, 20, 20, 20, 64]  # one shot takes two images
    assert [one["held_out"] for one in record.details["runs"]] == [4, 4, 4, 4, 4, 4, 16]
    five = [one["score"] for one in record.details["runs"] if one["shots"] == 5]
    assert record.metrics["5_shot"].value == pytest.approx(np.mean(five))
    assert record.metrics["5_shot_std"].value == pytest.approx(np.std(five))
    assert record.details["parameters"] == {"trainable": 36, "total": 9_037, "visual": 5_000, "backbone": 9_000}
    assert len(outcome.samples["id"]) == 48 and outcome.samples["correct"].mean() == record.headline.value
    json.dumps(to_tree(record), allow_nan=False)


def test_the_same_run_twice_gives_the_same_bits():
    one, two = (elevater.run(planted("pets"), a_config(), seed=0).record for _ in range(2))
    assert to_tree(one) == to_tree(two)


def test_text_and_merged_heads_need_fewer_images_than_a_random_one():
    found = {}
    for init in ("random", "text", "merged"):
        probe = ProbeConfig(learning_rate=1e-3, weight_decay=1e-6, epochs=3, final_epochs=3, batch_size=8)
        head = HeadConfig(init=init, batch_norm=False, scale_init="clip")
        record = elevater.run(planted("pets", away=1.0), a_config(head=head, probe=probe), seed=0).record
        found[init] = record.headline.value
        assert record.details["rows"] == ("before the projection" if init == "merged" else "raw")
        assert record.details["parameters"]["trainable"] == (4 * 17 if init == "merged" else 4 * 9)
        assert record.details["parameters"]["backbone"] == (9_000 - 16 * 8 if init == "merged" else 9_000)
    assert min(found["text"], found["merged"]) > found["random"] + 0.1


def test_faithful_mode_takes_the_best_epoch_on_test_and_says_so():
    faithful = ProbeConfig(**{**to_tree(SHORT), "rates": SHORT.rates, "mode": "faithful", "final_epochs": 12})
    record = elevater.run(planted("pets"), a_config(probe=faithful), seed=0).record
    assert "not for reporting" in record.details["not_for_reporting"] and "not for reporting" in record.subject
    # The best epoch cannot be worse than the last one of the same training.
    run = Run(planted("pets"), Settings(probe=faithful))
    probed = run.probed(5, 0)
    assert probed.epoch <= 12
    assert "not_for_reporting" not in elevater.run(planted("pets"), a_config(shots=(0,)), seed=0).record.details


def test_several_labels_are_trained_with_the_binary_loss_and_scored_by_map():
    inputs = planted("scenes", several=True, per_class=20)
    record = elevater.run(inputs, a_config(shots=(0, 5, -1), seeds=(0,)), seed=0).record
    assert next(iter(record.metrics)) == "map_11_point"
    assert record.metrics["full"].value > record.metrics["zero_shot"].value
    logits = np.array([[0.0, 800.0, -3.0, 1.0]])
    assert probabilities(inputs.task, logits, "honest")[0, :2].tolist() == [0.5, 1.0]
    assert probabilities(inputs.task, logits, "faithful").sum() == pytest.approx(1)


def test_trials_that_overflow_are_listed_and_logged(caplog):
    probe = ProbeConfig(rates=(1e-2, 1e-1), epochs=8, final_epochs=8, batch_size=8)
    with caplog.at_level("WARNING"):
        record = elevater.run(planted("pets", per_class=40), a_config(shots=(20,), seeds=(0,), probe=probe), seed=0).record
    trials = record.details["runs"][0]["trials"]
    failed = [trial for trial in trials if trial[2] is None]
    assert failed and all(trial[3].startswith("overflowed in epoch") for trial in failed)
    assert any("failed, the first: rate" in message for message in caplog.messages)


def test_a_final_training_that_overflows_is_an_error_when_nothing_else_is_left():
    probe = ProbeConfig(learning_rate=1e3, weight_decay=1e6, epochs=1, final_epochs=8, batch_size=8)
    with pytest.raises(DivergenceError, match="no final training of 1 settings stayed finite"):
        elevater.run(planted("pets"), a_config(shots=(5,), probe=probe), seed=0)


def test_the_search_sees_at_most_its_cap_and_the_final_training_everything():
    probe = ProbeConfig(rates=(1e-2,), epochs=1, final_epochs=1, search_cap=3)
    run = elevater.run(planted("pets"), a_config(shots=(-1,), probe=probe), seed=0).record.details["runs"][0]
    assert (run["drawn"], run["held_out"]) == (64, 4)
    assert "the search saw 12 of 64 images" in run["notes"]


def test_unit_rows_need_no_projection_and_raw_rows_do():
    inputs = planted("pets")
    inputs._projection = None
    with pytest.raises(ConfigError, match="the projection of planted is not known"):
        elevater.run(inputs, a_config(), seed=0)
    assert elevater.run(inputs, a_config(rows="unit"), seed=0).record.details["rows"] == "unit"


def knowledge_files(folder) -> KnowledgeConfig:
    said = [{"classname": f"thing c{index}", "gpt3": [f" Number {index}.", " Small."]} for index in range(4)]
    (folder / "GPT3_pets.tsv").write_text(json.dumps(said))
    return KnowledgeConfig(folder=str(folder), num_gpt3=2)


def with_knowledge(config: KnowledgeConfig):
    prompts = {
        f"thing c{index}": prompts_of(f"thing c{index}", TEMPLATES, (f" Number {index}.", " Small.")) for index in range(4)
    }
    return planted("pets", knowledge=prompts, noise=2.0)


def test_knowledge_that_is_nearer_the_truth_gains(tmp_path):
    config = knowledge_files(tmp_path)
    inputs = with_knowledge(config)
    outcome = knowledge.run(inputs, knowledge.Config(**to_tree(config)), seed=0)
    measured = outcome.record.metrics
    assert measured["gain"].value == pytest.approx(measured["accuracy"].value - measured["without"].value)
    assert measured["gain"].value > 0.02
    assert outcome.record.details["items"]["c1"] == [" Number 1.", " Small."]
    with_it = elevater.run(inputs, a_config(shots=(0,), knowledge=config), seed=0).record
    assert with_it.headline.value == measured["accuracy"].value
    assert with_it.hashes["knowledge"] == outcome.record.hashes["knowledge"]


def test_knowledge_must_be_asked_for():
    with pytest.raises(ConfigError, match="no knowledge is asked for"):
        knowledge.run(planted("pets"), knowledge.Config(), seed=0)


def test_what_cannot_be_measured_says_why():
    assert load_protocol("elevater").reason_not(read_task("flickr30k")) == "a retrieval task has no classes"
    assert "pools" in (load_protocol("elevater").reason_not(read_task("imagenet_vid_robust")) or "pools")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"shots": (5, 0)}, "shots is"),
        ({"shots": (-1, 5)}, "shots is"),
        ({"seeds": ()}, "seeds is"),
        ({"rows": "unit", "head": HeadConfig(init="merged")}, "rows is 'unit'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, line):
    with pytest.raises(ConfigError, match=line):
        elevater.Config(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "weight_decay": 0.0, "rates": (0.1,)},
        {"rates": (0.1, 0.01)},
        {"epochs": 0},
    ],
)
def test_settings_of_training_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ConfigError):
        ProbeConfig(**settings)
