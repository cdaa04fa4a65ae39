"""The protocols of places, actions and reading, on planted rows: the right answer is known, and so is the wrong one."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.config import from_tree
from ostension.data.task import Task, read_task
from ostension.errors import DataError
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.runtime import numpy_generator
from ostension.store import Features

GEO, ACTION, OCR = (load_protocol(name) for name in ("geolocation", "action", "ocr"))


def task_of(**more) -> Task:
    made = {
        "title": "Made", "name": "made", "version": 1, "classes": {"a": ("cat",), "b": ("dog",)}, "templates": ("a {}.",),
        "licence": "none", "citation": "ours",
    }  # fmt: skip
    return Task(**{**made, **more})


def run(module, inputs, **settings):
    return module.run(inputs, from_tree(module.Config, settings), seed=0)


def geotagged(rows, latitudes, ids):
    groups = {"latitude": np.array(latitudes).astype(str), "longitude": np.zeros(len(ids)).astype(str)}
    return Features(rows=np.array(rows, np.float32), groups=groups, ids=tuple(ids))


def test_places_are_copied_from_the_nearest_reference():
    task = task_of(groups={"latitude": (), "longitude": ()})
    references = geotagged(np.eye(3), [10.0, 20.0, -80.0], ["r1", "r2", "r3"])
    # The first two are near what their neighbour shows (one of them 111 km off), the third is taken for the other end.
    queries = geotagged([[0.9, 0.1, 0], [0, 1, 0], [0, 0.2, 0.9]], [11.0, 20.0, 20.0], ["q1", "q2", "q3"])
    outcome = run(GEO, ArrayInputs(task, {"train": references, "test": queries}))
    metrics = outcome.record.metrics
    shares = {name: metrics[name].value for name in metrics if name.startswith("within")}
    assert shares == {
        "within_1_km": pytest.approx(1 / 3), "within_25_km": pytest.approx(1 / 3), "within_200_km": pytest.approx(2 / 3),
        "within_750_km": pytest.approx(2 / 3), "within_2500_km": pytest.approx(2 / 3),
    }  # fmt: skip
    assert outcome.samples["reference"].tolist() == ["r1", "r2", "r3"]
    assert metrics["median_distance_km"].value == pytest.approx(111.19, abs=0.1)
    assert metrics["within_1_km"].chance == pytest.approx(2 / 9)  # the second and third query beside r2
    assert outcome.record.details["published"]["ViT-L-14-336"]["2500"] == 0.793


def test_samples_without_places_are_no_geolocation_task():
    assert "no group 'latitude'" in GEO.reason_not(read_task("country211"))
    rows = Features(rows=np.eye(2, dtype=np.float32))
    with pytest.raises(DataError, match="do not say their latitude"):
        run(GEO, ArrayInputs(task_of(groups={"latitude": (), "longitude": ()}), {"train": rows, "test": rows}))


def frames_of(videos):
    """Frames (video, number, cosine with class a, target) as features in the plane."""
    rows = [[cosine, (1 - cosine**2) ** 0.5] for _, _, cosine, _ in videos]
    ids = tuple(f"{video}/{number}.jpg" for video, number, _, _ in videos)
    return Features(rows=np.array(rows, np.float32), targets=np.array([v[3] for v in videos]), classes=("a", "b"), ids=ids)


def test_the_frames_of_a_video_are_averaged_and_ordered_by_number():
    task = task_of(kind="video")
    videos = [
        ("x", 10, 0.2, 0), ("x", 9, 0.2, 0), ("x", 2, 1.0, 0),  # the middle frame is 9, which says b; the mean says a
        ("y", 1, 0.0, 1), ("y", 2, 0.1, 1),
    ]  # fmt: skip
    inputs = ArrayInputs(task, {"test": frames_of(videos)}, class_rows=np.eye(2), scale=1.0)
    metrics = run(ACTION, inputs).record.metrics
    rows = frames_of(videos).rows
    p = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    assert p[:3, 0].mean() < 0.5  # so at this scale the mean says b too
    assert metrics["accuracy"].value == metrics["middle_frame"].value == 0.5
    sharp = ArrayInputs(task, {"test": frames_of([*videos[:2], ("x", 2, 1.0, 0), ("x", 3, 1.0, 0), *videos[3:]])},
                        class_rows=np.eye(2), scale=100.0)  # fmt: skip
    outcome = run(ACTION, sharp)
    assert outcome.record.metrics["accuracy"].value == outcome.record.metrics["middle_frame"].value == 1.0
    assert outcome.samples["id"].tolist() == ["x", "y"] and outcome.record.counts["videos"] == 2
    assert outcome.record.details["frames"] == {"fewest": 2, "most": 4}


def test_a_probe_learns_and_is_measured_on_middle_frames():
    generator = numpy_generator(0, "frames")
    videos = [(f"v{n}", k, float(np.clip(0.9 - 0.7 * (n % 2) + 0.02 * generator.normal(), -1, 1)), n % 2)
              for n in range(40) for k in range(3)]  # fmt: skip
    features = frames_of(videos)
    inputs = ArrayInputs(task_of(kind="video"), {"train": features, "test": features}, class_rows=np.eye(2))
    record = run(ACTION, inputs).record
    assert record.metrics["probe"].value == 1.0 and record.metrics["probe"].count == 40 and record.details["strength"] > 0


def test_frames_that_cannot_be_put_into_videos_are_named():
    plain = Features(rows=np.eye(2, dtype=np.float32), targets=np.array([0, 1]), classes=("a", "b"), ids=("1", "2"))
    with pytest.raises(DataError, match="names no video"):
        run(ACTION, ArrayInputs(task_of(kind="video"), {"test": plain}, class_rows=np.eye(2)))
    mixed = frames_of([("x", 1, 1.0, 0), ("x", 2, 0.0, 1)])
    with pytest.raises(DataError, match="different labels"):
        run(ACTION, ArrayInputs(task_of(kind="video"), {"test": mixed}, class_rows=np.eye(2)))
    assert "no frames" in ACTION.reason_not(read_task("cifar10")) and ACTION.reason_not(read_task("kinetics700")) is None
    assert "pm-k" in ACTION.reason_not(read_task("ytbb_robust"))


def readers():
    """Pictures of "cat" and "dog" whose quoted prompts are right and whose bare prompts are swapped."""
    prompts = {'the "cat"': [1, 0, 0], 'the "dog"': [0, 1, 0], 'the "cow"': [0, 0, 1],
               "the cat": [0, 1, 0], "the dog": [1, 0, 0], "the cow": [0, 0, 1]}  # fmt: skip
    rows = np.array([[0.9, 0.1, 0.2], [0.1, 0.7, 0.8]], np.float32)
    features = Features(rows=rows, targets=np.array([0, 1]), classes=("a", "b"), ids=("1.png", "2.png"))
    return ArrayInputs(task_of(templates=('the "{}"',)), {"test": features},
                       prompt_rows={key: np.array(row, float) for key, row in prompts.items()})  # fmt: skip


def test_texts_are_read_among_the_classes_with_and_without_quotes():
    outcome = run(OCR, readers())
    metrics = outcome.record.metrics
    assert (metrics["accuracy"].value, metrics["unquoted"].value, metrics["quoting_gain"].value) == (1.0, 0.0, 1.0)
    assert metrics["accuracy"].chance == 0.5 and outcome.samples["predicted"].tolist() == ["cat", "dog"]


def test_texts_are_read_among_each_pictures_lexicon(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("id,text,lexicon\n2.png,dog,dog cow\n1.png,cat,cat dog cow\n")
    record = run(OCR, readers(), words=str(path)).record
    assert record.metrics["accuracy"].value == 0.5 and record.metrics["accuracy"].chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert record.details["wrong"] == [["2.png", "dog", "cow"]]
    path.write_text("id,text\n1.png,cat\n")
    with pytest.raises(DataError, match=r"no text for '2.png'"):
        run(OCR, readers(), words=str(path))


def test_only_tasks_that_ask_for_quoted_texts_are_read():
    assert OCR.reason_not(read_task("mnist")) is None
    assert "no text in quotes" in OCR.reason_not(read_task("cifar10"))
    assert "no one text" in OCR.reason_not(read_task("flickr8k"))
