"""NLIP's study: planting, what the detector is measured by, and the whole thing in seconds."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.cli.main import main
from ostension.config import from_tree, to_tree
from ostension.errors import ConfigError, DataError
from ostension.evals.records import load_records
from ostension.recipes import RECIPES, nlip
from ostension.recipes._nlip_batches import NlipBatchesConfig, clean_places
from ostension.recipes._nlip_data import nlip_set, plant
from ostension.recipes._nlip_questions import detector
from ostension.recipes._nlip_study import StudyConfig, caption_shares
from ostension.train.mixture import fit_mixture
from ostension.train.nlip import NlipConfig


def test_captions_change_places_between_things_and_none_is_lost():
    known = nlip_set("shapes")
    captions, planted = known.planted(0.35, seed=1)
    truth, thing = [known.truth[row] for row in known.learned], known.thing[known.learned]
    assert planted.sum() == round(0.35 * len(truth))
    assert sorted(captions) == sorted(truth)
    names = {known.truth[row][0]: known.thing[row] for row in known.learned}
    for row, (now, own) in enumerate(zip(captions, truth, strict=True)):
        assert (now == own) != planted[row]
        assert (names[now[0]] == thing[row]) != planted[row]
    assert not known.planted(0.0, seed=1)[1].any()
    with pytest.raises(DataError, match="more things"):
        plant([("a",)] * 10, np.zeros(10), 0.5, 0)


def test_what_is_asked_is_not_learned_and_each_thing_has_one():
    known = nlip_set("shapes")
    assert not set(known.asked) & set(known.learned)
    assert [known.candidates[number] for number in known.target] == [known.truth[row][0] for row in known.asked]


def test_the_detector_is_measured_by_precision_recall_and_area():
    generator = np.random.default_rng(0)
    planted = np.arange(1000) < 300
    losses = np.where(planted, generator.normal(4, 0.5, 1000), generator.normal(1, 0.5, 1000))
    found = detector(losses, planted, fit_mixture(losses))
    assert found["precision"] > 0.99 and found["recall"] > 0.99 and found["area"] > 0.999
    blind = detector(generator.normal(size=1000), planted, fit_mixture(np.zeros(1000)))
    assert blind["precision"] is None and blind["recall"] == 0 and abs(blind["area"] - 0.5) < 0.06


def test_area_is_the_share_of_pairs_of_pairs_in_the_right_order():
    losses, planted = np.array([1.0, 3.0, 2.0, 5.0]), np.array([False, True, False, True])
    assert detector(losses, planted, fit_mixture(losses))["area"] == 1.0
    assert detector(-losses, planted, fit_mixture(losses))["area"] == 0.0
    assert detector(np.array([1.0, 2.0, 3.0, 5.0]), planted, fit_mixture(losses))["area"] == 0.75


def test_a_captioner_learns_from_what_is_called_clean_or_from_the_half_of_least_loss():
    losses = np.array([5.0, 1.0, 4.0, 2.0])
    assert clean_places(np.array([0.9, 0.1, 0.2, 0.3]), losses).tolist() == [1, 2, 3]
    assert clean_places(np.array([0.9, 0.1, 0.9, 0.9]), losses).tolist() == [1, 3]


def test_synthetic_captions_are_counted_by_what_they_name():
    known = nlip_set("shapes")
    given, planted = known.planted(0.35, seed=0)
    true = [known.truth[row][0].replace(" ", "  ") for row in known.learned]
    assert caption_shares(true, known, given, planted) == {"planted": 1.0, "clean": 1.0, "moved": 0.0}
    moved = caption_shares([texts[0] for texts in given], known, given, planted)
    assert moved == {"planted": 0.0, "clean": 1.0, "moved": 1.0}


def test_the_four_differ_in_targets_and_captions_only(tmp_path):
    facts = tmp_path / "facts.json"
    runs = {arm: nlip.stage(arm, 10, data="shapes", start=tmp_path, facts=facts, smoke=True) for arm in nlip.ARMS}
    assert len({str(run.train) for run in runs.values()}) == 1
    for arm, run in runs.items():
        assert isinstance(run.objective, NlipConfig) == (arm in ("harmonised", "both"))
        assert (run.batches.use == "completion") == (arm in ("completed", "both"))
        assert from_tree(NlipBatchesConfig, to_tree(run.batches)) == run.batches
    with pytest.raises(ConfigError, match="nothing"):
        NlipBatchesConfig(use="concepts", features=tmp_path)
    with pytest.raises(ConfigError, match="--noise"):
        StudyConfig(noise=0.0)


def test_the_recipes_start_from_nothing():
    for name in nlip.OFFERS:
        made = RECIPES.load(name).smoke()
        assert made.start is None and made.train.steps == nlip.SMOKE_STEPS


@pytest.mark.slow
def test_all_stages_run_make_a_record_and_are_not_done_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(nlip, "SMOKE_STEPS", 12)
    assert main(["nlip", "--smoke", "--seeds", "1", "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "nlip.json")
    (record,) = load_records(tmp_path / "nlip.json").values()
    assert set(record.details["arms"]) == set(nlip.ARMS)
    assert record.metrics["detector/area"].chance == 0.5 and record.counts["planted"] == 132
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert main(["nlip", "--smoke", "--seeds", "1", "-o", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_smoke_has_its_own_steps_and_data(capsys):
    assert main(["nlip", "--smoke", "--steps", "5"]) == 2
    assert "--smoke" in capsys.readouterr().err
