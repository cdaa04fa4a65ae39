"""Submission files: written, merged, checked; what is wrong is named; hostile archives are one line."""

from __future__ import annotations

import dataclasses
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostension.errors import DataError, LimitError, OstensionError
from ostension.evals.elevater import sets
from ostension.evals.elevater.checking import check_archive, check_file
from ostension.evals.elevater.detection import Annotations, boxes_of_results, read_annotations, wrong_with_box
from ostension.evals.elevater.merging import merge
from ostension.evals.elevater.sets import ImageSet
from ostension.evals.elevater.submission import Header, archive_writer, with_six_decimals, write_prediction_file

HEADER = Header(
    model_name="tiny", dataset_name="one", num_trainable_params=0, num_params=10, num_visual_params=4, num_backbone_params=10,
    n_shot=0, rnd_seeds=(0,),
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_leaderboard(monkeypatch):
    """Three image sets, of which one is optional and one has several labels; the detection sets as they are."""
    known = [
        ImageSet(name="one", task="one", test_images=3, classes=2),
        ImageSet(name="labels", task="labels", test_images=2, classes=3, multilabel=True),
        ImageSet(name=sets.OPTIONAL, task="imagenet", test_images=1, classes=4),
    ]
    for module in ("checking", "sets"):
        monkeypatch.setattr(f"ostension.evals.elevater.{module}.image_sets", lambda: {entry.name: entry for entry in known})


def header(**changes) -> Header:
    return dataclasses.replace(HEADER, **changes)


def some_probabilities(images: int = 3, classes: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), images)


def texts(rows: np.ndarray) -> list[str]:
    return [json.dumps(row) for row in rows.round(6).tolist()]


def written(folder: Path, changes: dict, predictions: list[np.ndarray]) -> Path:
    made = header(**changes)
    path = folder / f"{made.dataset_name}-{made.rnd_seeds[0]}.json"
    write_prediction_file(path, made, predictions)
    return path


@given(st.lists(st.floats(0, 1) | st.integers(0, 9), max_size=5))
def test_numbers_are_cut_to_six_decimals_and_only_if_they_are_longer(row):
    text = with_six_decimals(json.dumps([row, row]))
    assert json.loads(text) == [[round(part, 6) for part in row]] * 2
    assert with_six_decimals(text) == text


def both_sets(folder: Path, seeds=(0,), **changes) -> list[Path]:
    labels = np.array([[0.9, 0.8, 0.0], [0.0, 0.1, 1.0]])
    return [
        written(folder, {"dataset_name": name, "rnd_seeds": (seed,), **changes}, [rows])
        for seed in seeds
        for name, rows in (("one", some_probabilities(seed=seed)), ("labels", labels))
    ]


def test_a_file_holds_the_keys_in_order_and_six_decimals(tmp_path):
    path = written(tmp_path, {}, [np.array([[1 / 3, 2 / 3], [0.0, 1.0], [1e-9, 1.0]])])
    tree = json.loads(path.read_text())
    assert list(tree) == [
        "model_name", "dataset_name", "num_trainable_params", "num_params", "num_visual_params", "num_backbone_params",
        "n_shot", "rnd_seeds", "predictions",
    ]  # fmt: skip
    assert tree["predictions"] == [[[0.333333, 0.666667], [0.0, 1.0], [0.0, 1.0]]]
    assert check_file(path).valid


def test_merged_files_are_a_valid_submission_with_seeds_and_predictions_in_order(tmp_path):
    files = both_sets(tmp_path, seeds=(2, 0, 1), n_shot=5, num_trainable_params=7)
    extra = json.loads(files[0].read_text())
    out = tmp_path / "all_predictions.zip"
    headers = merge(files, out)
    assert [one.rnd_seeds for one in headers] == [(0, 1, 2), (0, 1, 2)] and headers[0].num_trainable_params == 7
    report = check_archive(out)
    assert report.valid and [entry.images for entry in report.entries] == [3, 2]
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["all_predictions.json"]
        tree = json.loads(archive.read("all_predictions.json"))
    assert tree["data"][0]["predictions"][2] == extra["predictions"][0]
    first = out.read_bytes()
    merge(files, out)
    assert out.read_bytes() == first  # the same files give the same bytes


def test_trained_parameters_are_averaged_and_all_else_must_agree(tmp_path):
    one = written(tmp_path, {"num_trainable_params": 10, "n_shot": 5}, [some_probabilities()])
    two = written(tmp_path, {"num_trainable_params": 13, "n_shot": 5, "rnd_seeds": (1,)}, [some_probabilities()])
    assert merge([one, two], tmp_path / "out.zip")[0].num_trainable_params == 11.5
    other = written(tmp_path, {"n_shot": 5, "rnd_seeds": (2,), "num_params": 11}, [some_probabilities()])
    with pytest.raises(DataError, match="num_params is 11, but 10 in"):
        merge([one, other], tmp_path / "out.zip")
    again = tmp_path / "again.json"
    again.write_text(one.read_text())
    with pytest.raises(DataError, match=r"have the seeds \[0, 0\]"):
        merge([one, again], tmp_path / "out.zip")
    with pytest.raises(DataError, match="no prediction files"):
        merge([], tmp_path / "out.zip")


@pytest.mark.parametrize(
    ("changes", "rows", "line"),
    [
        ({}, [[0.5, 0.5]] * 2, "2 images, expected 3"),
        ({}, [[0.5, 0.5], [0.5, 0.6], [1.1, -0.1]], "image 1 of seed 0 sums to 1.1, expected 1 within 0.001"),
        ({}, [[0.5, 0.5], [1.1, -0.1], [2.0, 0.0]], r"image 1 of seed 0 has the probability 1.1, .* \(and 1 more\)"),
        ({}, [[0.5, 0.5], [0.2, 0.3, 0.5], [1.0, 0.0]], "image 1 of seed 0 has 3 probabilities, expected 2"),
        ({}, [[0.5, 0.5], [], [1.0, 0.0]], "image 1 of seed 0 has 0 probabilities"),
        ({}, [[0.5, True], [0.5, 0.5], [1.0, 0.0]], "image 0 of seed 0 holds what is no number"),
        ({}, [[[0, 0.5, 0, 0, 1, 1]]] * 3, "has boxes"),
        ({}, [], "has no predictions"),
        ({"dataset_name": "two"}, [[0.5, 0.5]], "is no data set of the leaderboard"),
        ({"n_shot": 20}, [[0.5, 0.5]] * 3, "n_shot is 20, expected 0, 5 or -1"),
        ({"num_trainable_params": 3}, [[0.5, 0.5]] * 3, "num_trainable_params is 3, expected 0 for zero-shot"),
        ({"num_params": 3}, [[0.5, 0.5]] * 3, "expected num_visual_params <= num_backbone_params <= num_params"),
        ({"rnd_seeds": (0, 1)}, [[0.5, 0.5]] * 3, r"1 seeds of predictions for rnd_seeds \[0, 1\]"),
    ],
)
def test_what_is_wrong_with_an_entry_is_named_with_its_place(tmp_path, changes, rows, line):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({**header(**changes).tree(), "predictions": [rows]}))
    report = check_file(path)
    assert not report.valid
    with pytest.raises(DataError, match=line):
        raise DataError("; ".join(report.all_problems))


def test_rows_may_sum_to_anything_where_images_have_several_labels(tmp_path):
    report = check_file(both_sets(tmp_path)[1])
    assert report.valid


@pytest.mark.parametrize(
    ("names", "changes", "line"),
    [
        (["one"], {}, "1 of 2 data sets are missing: labels"),
        (["one", "one", "labels"], {}, "one comes 2 times"),
        (["one", "labels"], {"model_name": "other"}, "model_name differs: 'other' and 'tiny'"),
        ([], {}, "there are no entries"),
    ],
)
def test_what_is_wrong_with_the_whole_is_named(tmp_path, names, changes, line):
    rows = {"one": some_probabilities(), "labels": some_probabilities(2, 3)}
    path = tmp_path / "all.zip"
    with archive_writer(path) as add:
        for place, name in enumerate(names):
            add(header(dataset_name=name, **(changes if place == 0 else {})), [texts(rows[name])])
    report = check_archive(path)
    assert any(line in problem for problem in report.problems)


def test_imagenet_may_stand_beside_the_others_and_five_shots_want_three_seeds(tmp_path):
    path = tmp_path / "all.zip"
    with archive_writer(path) as add:
        for name, images, classes in (("one", 3, 2), ("labels", 2, 3), (sets.OPTIONAL, 1, 4)):
            add(header(dataset_name=name, n_shot=5), [texts(some_probabilities(images, classes))])
    assert check_archive(path).problems == ("rnd_seeds are [0], expected [0, 1, 2] for 5 shots",)


def box_file(folder: Path, name: str, images: list) -> Path:
    path = folder / "boxes.json"
    path.write_text(json.dumps({**header(dataset_name=name).tree(), "predictions": [images]}))
    return path


def test_boxes_are_checked_by_form_class_and_edges(tmp_path):
    good = [[[0, 0.9, 1, 2, 3, 4], [2, 0.5, 0, 0, 0, 0]], []]
    assert check_file(box_file(tmp_path, "BCCD", good)).valid
    known = Annotations(images=(1, 2, 3), categories=(1, 2))
    report = check_file(box_file(tmp_path, "bccd", good), {"BCCD": known})
    assert report.entries[0].problems == ("a box has the class 2, expected 0 to 1", "2 images, expected 3")
    assert check_file(box_file(tmp_path, "BCCD", [[[3, 0.9, 1, 2, 3, 4]]])).entries[0].problems[0] == (
        "a box has the class 3, expected 0 to 2"
    )
    assert "expected boxes" in check_file(box_file(tmp_path, "BCCD", [[0.5, 0.5]])).entries[0].problems[0]
    for box, wrong in (
        ([0, 0.5, 1, 2, 3], "is not six numbers"),
        ([0, 0.5, 1, 2, 3, float("inf")], "is not six numbers"),
        ([0.5, 0.5, 1, 2, 3, 4], "has the class 0.5"),
        ([0, 1.5, 1, 2, 3, 4], "has the confidence 1.5"),
        ([0, 0.5, 3, 2, 1, 4], "has the edges [3, 2, 1, 4]"),
        ([0, 0.5, -1, 2, 3, 4], "has the edges"),
    ):
        assert wrong in wrong_with_box(box, None)


def test_a_detection_submission_needs_all_thirty_five(tmp_path):
    path = tmp_path / "all.zip"
    with archive_writer(path) as add:
        for name in sets.detection_sets():
            add(header(dataset_name=name), [["[[0, 0.5, 0, 0, 1, 1]]", "[]"]])
    assert check_archive(path).valid
    with archive_writer(path) as add:
        for name in [*list(sets.detection_sets())[:34], "one"]:
            add(header(dataset_name=name), [["[[0, 0.5, 0, 0, 1, 1]]", "[]"]])
    found = check_archive(path).problems
    assert found[0].startswith("holds image sets and detection sets") and "1 of 35 data sets are missing" in found[1]


def test_results_in_cocos_form_become_boxes(tmp_path):
    annotations, results = tmp_path / "test.json", tmp_path / "results.json"
    annotations.write_text(json.dumps({"images": [{"id": 7}, {"id": 3}], "categories": [{"id": 10}, {"id": 20}]}))
    known = read_annotations(annotations)
    results.write_text(json.dumps([{"image_id": 3, "category_id": 20, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    assert boxes_of_results(results, known) == [[], [[1, 0.5, 1, 2, 4, 6]]]
    for bad in ({"image_id": 9}, {"image_id": [3], "category_id": 20, "bbox": [1, 2, 3, 4], "score": 0.5}, 3):
        results.write_text(json.dumps([bad]))
        with pytest.raises(DataError, match="result 0 is"):
            boxes_of_results(results, known)
    results.write_text(json.dumps([{"image_id": 3, "category_id": 20, "bbox": [1, 2, 3, 4], "score": 5}]))
    with pytest.raises(DataError, match="result 0 has the confidence 5"):
        boxes_of_results(results, known)
    annotations.write_text('{"images": [{"id": 1}, {"id": 1}], "categories": []}')
    with pytest.raises(DataError, match="images have no ids of their own"):
        read_annotations(annotations)


def zip_of(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_json", ".json"), data)
    return path


def test_hostile_archives_are_one_line(tmp_path):
    path = tmp_path / "all.zip"
    for data, line in (
        (b"PK\x03\x04 no archive", "cannot be opened"),
        (b"", "cannot be opened"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=line):
            check_archive(path)
    with pytest.raises(DataError, match="holds nothing"):
        check_archive(zip_of(path))
    with pytest.raises(DataError, match=r"holds 'a.json', 'b.json' \(2\); expected one JSON file"):
        check_archive(zip_of(path, a_json=b"{}", b_json=b"{}"))
    with pytest.raises(DataError, match="the field 'date'"):
        check_archive(zip_of(path, a_json=b'{"date": []}'))
    with pytest.raises(DataError, match="an entry lacks model_name"):
        check_archive(zip_of(path, a_json=b'{"data": [{}]}'))
    with pytest.raises(DataError, match="no such file"):
        check_archive(tmp_path / "none.zip")
    spoilt = bytearray(zip_of(path, a_json=b'{"data": ' + b" " * 5_000 + b"[]}").read_bytes())
    spoilt[50] ^= 0xFF
    path.write_bytes(spoilt)
    with pytest.raises(DataError):
        check_archive(path)


def test_an_archive_that_swells_is_stopped_at_the_limit(tmp_path):
    bomb = zip_of(tmp_path / "bomb.zip", a_json=b'{"data": [' + b" " * 20_000_000)
    assert bomb.stat().st_size < 50_000
    with pytest.raises(LimitError, match="holds more than 1,000,000 bytes"):
        check_archive(bomb, max_bytes=1_000_000)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_name", ""), ("dataset_name", 3), ("num_params", "many"), ("num_params", None), ("num_params", -1),
     ("num_params", True), ("n_shot", 5.0), ("n_shot", None), ("rnd_seeds", []), ("rnd_seeds", ["0"]), ("rnd_seeds", 0)],
)  # fmt: skip
def test_a_key_that_holds_something_else_is_named(tmp_path, key, value):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({**header().tree(), key: value, "predictions": []}))
    with pytest.raises(DataError, match=f"{key} is"):
        check_file(path)


def test_keys_may_come_in_any_order(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"predictions": [some_probabilities().round(6).tolist()], **header().tree()}))
    assert check_file(path).valid


def test_spoilt_files_end_in_a_report_or_one_short_line(tmp_path):
    generator = random.Random(0)
    good = {".json": both_sets(tmp_path)[0].read_bytes()}
    merge(both_sets(tmp_path), tmp_path / "good.zip")
    good[".zip"] = (tmp_path / "good.zip").read_bytes()
    for turn in range(300):
        suffix = (".json", ".zip")[turn % 2]
        data = bytearray(good[suffix])
        for _ in range(generator.randint(1, 3)):
            place = generator.randrange(len(data))
            change = generator.choice([b"\xff", b"[", b'"', b"1e999", b"NaN", b"{}", b""])
            data[place : place + generator.randint(0, 9)] = change
        path = tmp_path / f"spoilt{suffix}"
        path.write_bytes(bytes(data))
        try:
            lines = (check_file if suffix == ".json" else check_archive)(path).all_problems
        except OstensionError as error:
            lines = (str(error),)
        assert all("\n" not in line and len(line) < 1_000 for line in lines)
