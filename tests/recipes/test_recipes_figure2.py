"""Figure 2 on emoji: four runs on one image tower and the same pictures, their record and their page."""

from __future__ import annotations

import pytest
import torch

from ostension.cli.main import main
from ostension.config import from_tree, to_tree
from ostension.evals.records import load_records
from ostension.model.clip import CLIP
from ostension.recipes import RECIPES, _figure2_evaluation, _figure2_study, figure2
from ostension.recipes._figure2_evaluation import NamesEvaluation, NamesEvaluationConfig
from ostension.recipes._figure2_study import page
from ostension.train.pretraining import Pretraining


def test_the_four_runs_differ_in_what_they_ask_of_the_words_only():
    made = {name: RECIPES.load(name).recipe() for name in figure2.OFFERS}
    first = made["figure2-clip"]
    for one in made.values():
        assert isinstance(one, Pretraining)
        assert one.batches == first.batches and one.train == first.train and one.evaluation == first.evaluation
        assert one.model.vision == first.model.vision and one.model.tokenizer == first.model.tokenizer
        assert from_tree(type(one.objective), to_tree(one.objective)) == one.objective
    towers = [one.objective.build(CLIP(one.model, seed=0)).model.visual.state_dict() for one in made.values()]
    assert all(torch.equal(tower["proj"], towers[0]["proj"]) for tower in towers)


def test_evaluations_lie_at_halvings_of_the_run():
    assert figure2.evaluation_steps(800) == (25, 50, 100, 200, 400, 800)
    assert figure2.evaluation_steps(8) == (1, 2, 4, 8)


def test_planted_scores_are_measured_as_what_they_are(monkeypatch):
    model = CLIP(figure2.smoke("figure2-clip").model)
    evaluation = NamesEvaluation(NamesEvaluationConfig(pictures=12, candidates=6, every=8), model)
    assert len(set(evaluation.names)) == 12 and evaluation.images.shape == (12, 3, 32, 32)
    asked = []

    def planted(model, images, names):
        asked.append(names)
        return torch.eye(6) if len(asked) == 1 else torch.eye(6).roll(1, 0)

    monkeypatch.setattr(_figure2_evaluation, "scores_of", planted)
    found = evaluation(model, 1)
    assert asked == [evaluation.names[:6], evaluation.names[6:]]
    assert found["top1"] == 0.5 and (found["samples"], found["classes"]) == (12, 6)


@pytest.mark.slow
def test_the_smoke_form_trains_all_four_and_writes_the_record_and_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["figure2", "--smoke", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "figure2.html")
    records = load_records(tmp_path / "figure2.json")
    assert list(records) == [*(f"curve/{name}" for name in figure2.OFFERS),
                             *(f"ratio/{name}" for name in list(figure2.OFFERS)[1:])]  # fmt: skip
    for name in figure2.OFFERS:
        curve = records[f"curve/{name}"]
        assert list(curve.metrics) == ["images_32", "images_64", "images_128"]
        assert curve.config["gflop_per_image"] > 0.001 and curve.config["trained_weights"] > 1e5
        assert curve.metrics["images_32"].chance == 1 / 6
    text = (tmp_path / "figure2.html").read_text()
    assert text == page(records) and "transformer language model" in text and "<script" not in text
    # The same again trains nothing.
    (tmp_path / "figure2.html").unlink()
    before = (tmp_path / "figure2-clip" / "log.jsonl").read_text().count('"kind": "step"')
    monkeypatch.setattr(_figure2_study, "cost", lambda *_: {})
    monkeypatch.setattr(_figure2_study, "page", lambda records: "")
    assert main(["figure2", "--smoke", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "figure2-clip" / "log.jsonl").read_text().count('"kind": "step"') == before


def test_smoke_and_steps_exclude_each_other(capsys):
    assert main(["figure2", "--smoke", "--steps", "5"]) == 2
    assert "--smoke" in capsys.readouterr().err
