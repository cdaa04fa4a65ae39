"""Results beside each other and in other forms: paired tests on planted cases, exports, refusals."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from ostension.cli.main import main
from ostension.errors import DataError
from ostension.evals import exports
from ostension.evals.compare import compare
from ostension.evals.metrics import macro_f1_present, mean_per_class_accuracy
from ostension.evals.records import Metric, Record, load_records
from ostension.evals.results import Result, Results, open_results, read_result, read_samples
from ostension.evals.statistics import holm, mcnemar


def a_result(
    folder, model: str, metrics: dict[str, float], columns: dict[str, np.ndarray] | None = None, *, task: str = "pets",
    protocol: str = "zeroshot", limit: int | None = None, split: str = "test", classes: int = 10,
) -> Result:  # fmt: skip
    count = len(next(iter(columns.values()))) if columns else 100
    record = Record(
        protocol=protocol, subject=f"{model} on {task}", config={"templates": "own"}, hashes={"weights": "w"}, seeds=(0,),
        metrics={name: Metric(value=value, count=count, chance=0.1) for name, value in metrics.items()}, task=task, model=model,
        counts={"samples": count, "classes": classes}, split=split, details={"notes": ["a note"]},
    )  # fmt: skip
    return Results(folder).write(Result(record=record, identity={"split": split}, limit=limit), columns or {})


def planted(only_first: int, only_second: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    parts = [(True, False)] * only_first + [(False, True)] * only_second + [(True, True)] * both + [(False, False)] * neither
    return np.array([one for one, _ in parts]), np.array([two for _, two in parts])


def ids(count: int) -> np.ndarray:
    return np.array([f"s{number}" for number in range(count)])


def two_sides(tmp_path, tasks: dict[str, tuple[int, int, int, int]]):
    for task, counts in tasks.items():
        for model, correct in zip(("a", "b"), planted(*counts), strict=True):
            a_result(tmp_path, model, {"accuracy": correct.mean()}, {"id": ids(len(correct)), "correct": correct}, task=task)
    return open_results(tmp_path / "a"), open_results(tmp_path / "b")


def test_shares_of_right_answers_are_tested_by_mcnemar_and_corrected_by_holm(tmp_path):
    cases = {"one": (12, 2, 50, 36), "three": (5, 5, 80, 10), "two": (4, 20, 30, 46)}
    found = compare(*two_sides(tmp_path, cases))
    for pair, (task, (first, second, *_)) in zip(found.pairs, sorted(cases.items()), strict=True):
        assert (pair.target, pair.test, pair.only_first, pair.only_second) == (task, "mcnemar", first, second)
        assert pair.p == mcnemar(first, second) and pair.difference == pytest.approx((first - second) / 100)
        assert pair.interval.low < pair.difference < pair.interval.high
        assert pair.p_bonferroni == min(1, 3 * pair.p)
    assert [pair.p_holm for pair in found.pairs] == holm([pair.p for pair in found.pairs])
    assert [pair.verdict for pair in found.pairs] == ["win", "tie", "loss"]
    assert (found.count("win"), found.count("tie"), found.count("loss")) == (1, 1, 1)
    assert compare(*two_sides(tmp_path, cases), alpha=0.001).count("tie") == 3


def test_equal_results_are_ties_and_metrics_that_are_better_when_lower_turn_round(tmp_path):
    first, second = two_sides(tmp_path, {"one": (0, 0, 60, 40)})
    (pair,) = compare(first, second).pairs
    assert (pair.p, pair.verdict, pair.difference) == (1.0, "tie", 0.0)
    first, second = two_sides(tmp_path, {"one": (30, 2, 50, 18)})
    lower = [
        [dataclasses.replace(one, record=dataclasses.replace(one.record, metrics={
            "accuracy": dataclasses.replace(one.record.metrics["accuracy"], direction="lower")})) for one in side]
        for side in (first, second)
    ]  # fmt: skip
    assert compare(first, second).pairs[0].verdict == "win" and compare(*lower).pairs[0].verdict == "loss"


def labelled(seed: int, flips: float, count: int = 400):
    """Targets of unequal classes, and predictions of which a share is drawn anew; all but the flips are shared by seeds."""
    target = np.random.default_rng(0).choice(["cat", "dog", "fox"], size=count, p=[0.7, 0.2, 0.1])
    generator = np.random.default_rng(seed)
    predicted = np.where(generator.random(count) < flips, generator.choice(["cat", "dog", "fox"], size=count), target)
    return {"id": ids(count), "target": target, "predicted": predicted, "correct": predicted == target}


def test_other_metrics_are_tested_by_a_paired_bootstrap(tmp_path):
    def numbers(texts):
        return np.unique(np.concatenate([texts, ["cat", "dog", "fox"]]), return_inverse=True)[1][:-3]

    for metric, of in (("mean_per_class", mean_per_class_accuracy), ("macro_f1_present", macro_f1_present)):
        for model, flips in (("a", 0.2), ("b", 0.5)):
            said = labelled(ord(model), flips)
            a_result(tmp_path, model, {metric: of(numbers(said["predicted"]), numbers(said["target"]))}, said, task=metric)
    said = {model: {**labelled(ord(model), 0.3), "group": np.repeat(["x", "y"], 200)} for model in ("a", "b")}
    for model, columns in said.items():
        worst = min(columns["correct"][:200].mean(), columns["correct"][200:].mean())
        a_result(tmp_path, model, {"worst_group": worst}, columns, task="groups")
    found = {pair.target: pair for pair in compare(open_results(tmp_path / "a"), open_results(tmp_path / "b")).pairs}
    assert all(pair.test == "bootstrap" for pair in found.values())
    for metric in ("mean_per_class", "macro_f1_present"):
        assert found[metric].verdict == "win" and found[metric].p < 0.01
        assert 0 < found[metric].interval.low < found[metric].difference < found[metric].interval.high
    assert found["groups"].verdict == "tie"


def test_a_headline_that_samples_cannot_give_back_is_replaced_by_one_that_they_can(tmp_path):
    ranks = np.array([1, 1, 2, 7, 30] * 20)
    for model, shift in (("a", 0), ("b", 5)):
        own = ranks + shift
        metrics = {
            "mean_recall": 0.123,
            "image_to_text_r1": float((own <= 1).mean()),
            "image_to_text_r10": float((own <= 10).mean()),
        }
        a_result(tmp_path, model, metrics, {"id": ids(100), "correct": own <= 1, "rank": own}, protocol="retrieval")
    first, second = open_results(tmp_path / "a"), open_results(tmp_path / "b")
    (pair,) = compare(first, second).pairs
    assert pair.metric == "image_to_text_r1" and pair.test == "mcnemar" and "mean_recall cannot be tested" in pair.note
    (pair,) = compare(first, second, metric="image_to_text_r10").pairs
    assert pair.test == "bootstrap" and pair.difference == pytest.approx(0.2) and pair.verdict == "win"
    (pair,) = compare(first, second, metric="mean_recall").pairs
    assert pair.verdict == "not tested" and pair.p is None
    with pytest.raises(DataError, match="has no metric 'accuracy'"):
        compare(first, second, metric="accuracy")


def test_a_number_of_each_sample_whose_mean_is_the_metric_is_tested(tmp_path):
    shares = np.array([0.0, 0.25, 0.5, 1.0] * 25)
    for model, right in (("a", shares), ("b", shares[::-1])):
        columns = {"id": ids(100), "predicted": np.array(["7"] * 100), "correct": right > 0.5, "right": right}
        a_result(tmp_path, model, {"accuracy": right.mean()}, columns, protocol="fewshot")
    (pair,) = compare(open_results(tmp_path / "a"), open_results(tmp_path / "b")).pairs
    assert (pair.test, pair.verdict, pair.difference) == ("bootstrap", "tie", 0.0)
    assert pair.interval.low < 0 < pair.interval.high


def test_samples_are_put_side_by_side_by_their_ids(tmp_path):
    correct = np.array([True, False, True, True])
    order = np.array([2, 0, 3, 1])
    a_result(tmp_path, "a", {"accuracy": 0.75}, {"id": ids(4), "correct": correct})
    a_result(tmp_path, "b", {"accuracy": 0.75}, {"id": ids(4)[order], "correct": correct[order]})
    (pair,) = compare(open_results(tmp_path / "a"), open_results(tmp_path / "b")).pairs
    assert (pair.only_first, pair.only_second) == (0, 0)


def test_other_samples_are_refused_naming_the_first(tmp_path):
    correct = np.array([True, False, True, True])
    a_result(tmp_path, "a", {"accuracy": 0.75}, {"id": ids(4), "target": np.array(list("xyxy")), "correct": correct})
    first = open_results(tmp_path / "a")

    def second(columns, **options):
        a_result(tmp_path, "b", {"accuracy": 0.75}, {"correct": correct, **columns}, **options)
        return open_results(tmp_path / "b")

    with pytest.raises(DataError, match="the sample 's1' is in a and not in b"):
        compare(first, second({"id": np.array(["s0", "t", "s2", "s3"]), "target": np.array(list("xyxy"))}))
    with pytest.raises(DataError, match="the sample 's2' has the labels 'x' and 'y'"):
        compare(first, second({"id": ids(4), "target": np.array(list("xyyy"))}))
    with pytest.raises(DataError, match="one is limited to None, the other to 4"):
        compare(first, second({"id": ids(4), "target": np.array(list("xyxy"))}, limit=4))
    with pytest.raises(DataError, match="nothing was measured in both"):
        compare(first, second({"id": ids(4), "target": np.array(list("xyxy"))}), protocols=["probe"])


def test_what_was_not_kept_is_not_tested_and_what_one_lacks_is_named(tmp_path):
    for model in ("a", "b"):
        a_result(tmp_path, model, {"accuracy": 0.5 if model == "a" else 0.25})
    a_result(tmp_path, "a", {"accuracy": 0.5}, task="mnist")
    a_result(tmp_path, "b", {"accuracy": 0.5}, protocol="probe")
    found = compare(open_results(tmp_path / "a"), open_results(tmp_path / "b"))
    (pair,) = found.pairs
    assert (pair.verdict, pair.difference) == ("not tested", 0.25) and "--samples" in pair.note
    assert (found.only_first, found.only_second) == (("mnist zeroshot",), ("pets probe",))


def test_a_damaged_csv_of_samples_is_one_line(tmp_path):
    result = a_result(tmp_path, "a", {"accuracy": 1.0}, {"id": ids(3), "correct": np.ones(3, bool)})
    path = result.path.with_name(result.samples)
    assert read_samples(result) == {"id": ["s0", "s1", "s2"], "correct": ["1", "1", "1"]}
    for damage in ("id,correct\ns0\n", "other,columns\n", ""):
        path.write_text(damage)
        with pytest.raises(DataError, match="not the columns that the result names"):
            read_samples(result)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(result)


def test_numbers_that_are_none_are_not_written(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="metrics.accuracy.value is"):
            a_result(tmp_path, "a", {"accuracy": value})
    assert not list(tmp_path.rglob("*.json"))


def test_names_of_models_and_splits_become_names_of_files(tmp_path):
    result = a_result(tmp_path, "hf-hub:org/name v2", {"accuracy": 1.0}, task="pacs", split="art painting")
    assert result.path.relative_to(tmp_path).parts == ("hf-hub_org_name_v2", "pacs@art_painting", "zeroshot.json")
    assert read_result(result.path) == result and result.target == "pacs@art painting"
    assert [one.place for one in Results(tmp_path)] == [("hf-hub:org/name v2", "pacs@art painting", "zeroshot")]


def test_results_are_opened_from_a_folder_a_models_folder_or_a_file(tmp_path):
    one = a_result(tmp_path, "a", {"accuracy": 1.0})
    a_result(tmp_path, "b", {"accuracy": 1.0})
    Results(tmp_path).write_summaries("mean", [one.record])
    assert [len(open_results(path)) for path in (tmp_path, tmp_path / "a", one.path)] == [2, 1, 1]
    assert Results(tmp_path).summaries() == [one.record] and len(Results(tmp_path).records()) == 3
    Results(tmp_path).write_summaries("mean", [])
    assert Results(tmp_path).summaries() == []
    with pytest.raises(DataError, match="holds no results"):
        open_results(tmp_path / "c")
    one.path.write_text('{"format": "other"}')
    with pytest.raises(DataError, match="not a result"):
        open_results(tmp_path)


def clip_benchmark_results(tmp_path):
    classes = {"accuracy": 0.6, "top1": 0.6, "top5": 0.9, "mean_per_class": 0.55}
    a_result(tmp_path, "ViT-B-32-openai", classes, task="oxford_pets", classes=37)
    a_result(
        tmp_path,
        "ViT-B-32-openai",
        {key: classes[key] for key in ("accuracy", "top1", "mean_per_class")},
        task="kitti",
        classes=4,
    )
    a_result(tmp_path, "ViT-B-32-openai", {"mean_recall": 0.5, "image_to_text_r5": 0.8, "text_to_image_r5": 0.7}, task="coco",
             protocol="retrieval")  # fmt: skip
    probed = {"accuracy": 0.7, "top1": 0.7, "top5": 0.95, "mean_per_class": 0.65}
    a_result(tmp_path, "mine", probed, task="pacs", split="sketch", protocol="probe")
    a_result(tmp_path, "mine", {"spread": 0.1}, protocol="audit")
    a_result(tmp_path, "mine", {"map_11_point": 0.8}, task="voc2007")
    return open_results(tmp_path)


def test_clip_benchmarks_form_has_its_names_and_metrics(tmp_path):
    found = exports.clip_benchmark(clip_benchmark_results(tmp_path))
    runs = {(run["dataset"], run["task"]): run for run in found.runs}
    assert runs["vtab/pets", "zeroshot_classification"] == {
        "dataset": "vtab/pets", "model": "ViT-B-32", "pretrained": "openai", "task": "zeroshot_classification",
        "language": "en", "metrics": {"acc1": 0.6, "acc5": 0.9, "mean_per_class_recall": 0.55},
    }  # fmt: skip
    assert runs["vtab/kitti_closest_vehicle_distance", "zeroshot_classification"]["metrics"]["acc5"] is None
    metrics = runs["mscoco_captions", "zeroshot_retrieval"]["metrics"]
    assert metrics == {"text_retrieval_recall@5": 0.8, "image_retrieval_recall@5": 0.7}
    assert (
        runs["pacs@sketch", "linear_probe"]["metrics"]["lp_acc1"] == 0.7
        and runs["pacs@sketch", "linear_probe"]["model"] == "mine"
    )
    assert [line.split(":")[1].strip() for line in found.left_out] == ["pets audit", "voc2007 zeroshot"]
    named = exports.clip_benchmark(clip_benchmark_results(tmp_path), model="M", pretrained="p")
    assert {(run["model"], run["pretrained"]) for run in named.runs} == {("M", "p")}


def test_clip_benchmarks_csv_is_what_its_build_makes_of_the_files(tmp_path, capsys):
    clip_benchmark_results(tmp_path / "results")
    assert main(["eval", "export", str(tmp_path / "results"), "--form", "clip-benchmark", "-o", str(tmp_path / "runs")]) == 0
    assert main(["eval", "export", str(tmp_path / "results"), "--form", "clip-benchmark", "-o", str(tmp_path / "all.csv")]) == 0
    assert "left out: mine: pets audit" in capsys.readouterr().err
    files = sorted((tmp_path / "runs").iterdir())
    assert files[0].name == "mscoco_captions_openai_ViT-B-32_en_zeroshot_retrieval.json" and len(files) == 4
    expected = set()
    for path in files:
        data = json.loads(path.read_text())
        row = {**data["metrics"], **data}
        del row["metrics"]
        row["model_fullname"] = row["model"] + " " + row["pretrained"]
        expected.add(tuple(sorted((name, str(value)) for name, value in row.items() if value)))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text())))
    assert {tuple(sorted((name, value) for name, value in row.items() if value)) for row in rows} == expected
    assert list(rows[0])[:7] == ["acc1", "acc5", "mean_per_class_recall", "dataset", "model", "pretrained", "task"]


def test_limited_results_are_not_exported(tmp_path, capsys):
    result = a_result(tmp_path, "a", {"accuracy": 0.5, "top1": 0.5}, limit=10)
    for form in ("clip-benchmark", "csv", "markdown", "json"):
        assert main(["eval", "export", str(tmp_path), "--form", form, "-o", str(tmp_path / "out.csv")]) == 1
        assert f"{result.path}: was measured on 10 samples only" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_plain_forms_are_printed_or_written(tmp_path, capsys):
    result = a_result(tmp_path / "r", "a", {"accuracy": 0.5})
    assert main(["eval", "export", str(tmp_path / "r"), "--form", "json", "-o", str(tmp_path / "all.json")]) == 0
    assert list(load_records(tmp_path / "all.json").values()) == [result.record]
    capsys.readouterr()
    assert main(["eval", "export", str(tmp_path / "r"), "--form", "csv"]) == 0
    assert next(csv.DictReader(io.StringIO(capsys.readouterr().out)))["value"] == "0.5"
    assert main(["eval", "export", str(tmp_path / "r"), "--form", "markdown"]) == 0
    assert "50.0" in capsys.readouterr().out
    assert main(["eval", "export", str(tmp_path / "r"), "--form", "csv", "--model", "m"]) == 2
    assert main(["eval", "export", str(tmp_path / "r"), "--form", "clip-benchmark"]) == 2


def test_a_result_is_shown_in_full(tmp_path, capsys):
    result = a_result(tmp_path, "a", {"accuracy": 0.5}, {"id": ids(2), "correct": np.array([True, False])})
    assert main(["eval", "show", str(result.path)]) == 0
    out = capsys.readouterr().out
    for text in ("accuracy 50.00 %, chance 10.00 %, 2 samples", "note        a note", "hash        weights w", "id, correct"):
        assert text in out
    assert main(["eval", "show", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["record"]["metrics"]["accuracy"]["value"] == 0.5
    assert main(["eval", "show", str(tmp_path)]) == 0
    assert "50.00 %" in capsys.readouterr().out
    assert main(["eval", "show", str(tmp_path / "none")]) == 1


def test_comparing_on_the_command_line(tmp_path, capsys):
    two_sides(tmp_path, {"one": (12, 2, 50, 36)})
    sides = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["eval", "compare", *sides]) == 0
    out = capsys.readouterr().out
    assert "+10.00 points" in out and "12 / 2" in out and "1 wins, 0 ties, 0 losses of 1 tests" in out
    assert main(["eval", "compare", *sides, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["wins"] == 1 and tree["pairs"][0]["interval"]["confidence"] == 0.95
    assert main(["eval", "compare", *sides, "--csv"]) == 0
    assert next(csv.DictReader(io.StringIO(capsys.readouterr().out)))["verdict"] == "win"
    assert main(["eval", "compare", str(tmp_path), sides[0]]) == 1
    assert (
        f"holds results of 2 models (a, b); expected one model; give its folder, such as {tmp_path / 'a'}"
        in capsys.readouterr().err
    )


def test_published_values_decide_the_exit_status(tmp_path, capsys):
    def stl(value: float):
        a_result(tmp_path, "ViT-B-32-openai", {"accuracy": value}, {"id": ids(8000)}, task="stl10")
        return main(["eval", "check", str(tmp_path)])

    assert stl(0.972) == 0
    assert "near" in capsys.readouterr().out
    assert stl(0.9) == 1
    out, err = capsys.readouterr()
    assert "FAR" in out and "1 too far off" in err
    a_result(tmp_path / "mine", "mine", {"accuracy": 0.9}, {"id": ids(8000)}, task="stl10")
    assert main(["eval", "check", str(tmp_path / "mine")]) == 1
    assert "say which model it is with --preset and --weights" in capsys.readouterr().err
    assert main(["eval", "check", str(tmp_path / "mine"), "--preset", "ViT-B-32", "--weights", "openai", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[0])["failed"]
