"""Actions: frames to videos, the middle frame, and RareAct's averages against plain sums and scikit-learn."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ostension.cli.main import main
from ostension.errors import DataError
from ostension.evals import action
from ostension.evals.records import load_records
from ostension.runtime import numpy_generator

PAIRS = [("cut", "phone"), ("cut", "bread"), ("peel", "phone"), ("wash", "laptop")]


def clips_of(path, rows):
    """A file of clips (video, class, annotation), read back."""
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation"])
        for number, (video, label, annotation) in enumerate(rows):
            writer.writerow([number, video, 0, 10, label, *PAIRS[label], annotation])
    return action.read_clips(path)


def random_clips(path, *, videos, count=240):
    generator = numpy_generator(0, "clips")
    labels = np.concatenate([np.arange(4), generator.integers(0, 4, count - 4)])
    names = [f"v{number}" for number in generator.integers(0, videos, count)] if videos else [f"v{n}" for n in range(count)]
    rows = [(name, int(label), int(generator.integers(0, 5))) for name, label in zip(names, labels, strict=True)]
    clips = clips_of(path, rows)
    return clips, np.round(generator.normal(size=(len(clips), 4)) + (clips.annotations == 1)[:, None], 1)


def test_the_frames_of_a_video_are_averaged_wherever_they_stand():
    names, means = action.mean_over_frames(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), ["b", "a", "b"])
    assert names == ["b", "a"] and means.tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_probabilities_are_averaged_and_not_predictions():
    # Two frames lean to class 0 a little, one is sure of class 1: the vote and the mean differ.
    _, means = action.mean_over_frames(np.array([[0.55, 0.45], [0.55, 0.45], [0.0, 1.0]]), ["v", "v", "v"])
    assert means.argmax(1).tolist() == [1]


def test_the_middle_frame_is_found_by_order_and_not_by_place():
    videos = ["b", "a", "b", "a", "b", "a", "c"]
    order = np.array([30, 4, 10, 1, 20, 3, 0])
    assert action.middle_frames(videos, order).tolist() == [4, 5, 6]
    assert action.middle_frames(["a"] * 4, np.arange(4)).tolist() == [1]


def test_positives_of_other_classes_are_hard_negatives_where_they_share_a_word(tmp_path):
    rows = [("a", 0, 1), ("b", 0, 0), ("c", 0, 2), ("d", 0, 3), ("e", 0, 4), ("f", 1, 1), ("g", 2, 1), ("h", 3, 1), ("i", 1, 0)]
    positive, hard, negative = action.roles(clips_of(tmp_path / "clips.csv", rows), 0)
    assert np.flatnonzero(positive).tolist() == [0]
    assert np.flatnonzero(hard).tolist() == [2, 3, 4, 5, 6]  # cut bread shares the verb, peel phone the noun
    assert np.flatnonzero(negative).tolist() == [1, 7]  # another class's negative says nothing of this one


def test_average_precision_with_weights_and_ties_is_that_of_scikit_learn():
    generator = numpy_generator(1, "ap")
    for _ in range(20):
        scores = generator.integers(0, 6, 40) / 5  # many ties
        positive = generator.random(40) < 0.3
        positive[0] = True
        weights = generator.random(40) + 0.01
        expected = average_precision_score(positive, scores, sample_weight=weights)
        assert action.weighted_average_precision(scores, positive, weights) == pytest.approx(expected, abs=1e-12)
        assert action.weighted_average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores))


def test_average_precision_by_hand():
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert action.weighted_average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    # The false one between them weighs a half: precision at the second positive is 2 / 2.5.
    weights = np.array([1.0, 0.5, 1.0, 1.0])
    assert action.weighted_average_precision(scores, positive, weights) == pytest.approx((1 + 2 / 2.5) / 2)
    with pytest.raises(DataError, match="no positives"):
        action.weighted_average_precision(scores, np.zeros(4, bool))


def test_weighted_precision_follows_the_published_rule_clip_by_clip(tmp_path):
    clips, scores = random_clips(tmp_path / "clips.csv", videos=30)
    found = action.weighted_ap_by_class(scores, clips)
    for label, (verb, noun) in enumerate(PAIRS):
        chosen: dict[str, list[int]] = {"positive": [], "hard": [], "negative": []}
        for clip in range(len(clips)):
            mark, other = clips.annotations[clip], (clips.verbs[clip], clips.nouns[clip])
            if other == (verb, noun):
                chosen["positive" if mark == 1 else "negative" if mark == 0 else "hard"].append(clip)
            elif mark == 1:
                chosen["hard" if other[0] == verb or other[1] == noun else "negative"].append(clip)
        weights, truth, said = [], [], []
        for role, members in chosen.items():
            for clip in members:
                weights.append(1 / sum(clips.videos[other] == clips.videos[clip] for other in members))
                truth.append(role == "positive")
                said.append(scores[clip, label])
        assert found[f"{verb} {noun}"] == pytest.approx(average_precision_score(truth, said, sample_weight=weights))


def test_with_one_clip_a_video_both_measures_are_plain_average_precision(tmp_path):
    clips, scores = random_clips(tmp_path / "clips.csv", videos=0)
    weighted = action.weighted_ap_by_class(scores, clips)
    assert action.sampled_ap_by_class(scores, clips, seed=0, draws=3) == pytest.approx(weighted)


def test_sampled_precision_is_the_mean_over_every_choice_of_a_clip(tmp_path):
    rows = [("a", 0, 1), ("a", 0, 1), ("b", 0, 0), ("b", 0, 0), ("b", 0, 0), ("c", 0, 2), ("d", 1, 0), ("e", 2, 0), ("f", 3, 0)]
    clips = clips_of(tmp_path / "clips.csv", rows)
    scores = numpy_generator(2, "scores").normal(size=(len(rows), 4))
    choices = itertools.product([0, 1], [2, 3, 4], [5])
    exact = np.mean([average_precision_score([1, 0, 0], scores[list(choice), 0]) for choice in choices])
    found = action.sampled_ap_by_class(scores, clips, seed=0, draws=4000)
    assert found == {"cut phone": pytest.approx(exact, abs=0.01)}
    assert found == action.sampled_ap_by_class(scores, clips, seed=0, draws=4000)


def test_files_that_are_not_rareacts_are_named(tmp_path):
    path = tmp_path / "clips.csv"
    for text, said in [
        ("id,video_id\n", "no column 'class_id'"),
        ("video_id,class_id,verb,noun,annotation\nv,0,cut,phone,7\n", "annotation '7'"),
        ("video_id,class_id,verb,noun,annotation\nv,0,cut,phone,1\nw,0,cut,bread,1\n", "is 'cut phone' and 'cut bread'"),
        ("video_id,class_id,verb,noun,annotation\nv,3,cut,phone,1\n", "numbered up to 3"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            action.read_clips(path)
    clips, scores = random_clips(path, videos=3)
    with pytest.raises(DataError, match="a row a clip, a column a class"):
        action.weighted_ap_by_class(scores[:-1], clips)


def test_the_command_scores_a_file_and_writes_a_record(tmp_path, capsys):
    clips, scores = random_clips(tmp_path / "clips.csv", videos=30)
    np.save(tmp_path / "scores.npy", scores)
    arguments = ["eval", "rareact", str(tmp_path / "scores.npy"), str(tmp_path / "clips.csv"), "--draws", "5"]
    assert main([*arguments, "-o", str(tmp_path / "record.json")]) == 0
    assert "mWAP" in capsys.readouterr().out
    record = load_records(tmp_path / "record.json")["rareact"]
    assert record.metrics["mWAP"].value == pytest.approx(np.mean(list(action.weighted_ap_by_class(scores, clips).values())))
    np.save(tmp_path / "scores.npy", scores[:, :2])
    assert main(arguments) == 1 and "a row a clip, a column a class" in capsys.readouterr().err
