"""pm-k: scores by hand, both published forms of lists, and lists that are wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ostension.data.task import read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.pm_k import pm_k, read_frames, right_in_set, score_frames

VID = read_task("imagenet_vid_robust").display_names()
YTBB = read_task("ytbb_robust").display_names()


def test_an_anchor_counts_only_with_all_of_its_frames():
    right = np.array([True, True, False, True, True, False, True])
    # Anchor 0 with frames 1 and 4: right. 3 with 2, which is wrong. 6 alone: right. 5 is wrong itself.
    alone, together = pm_k(right, [0, 3, 6, 5], [[1, 4], [2, 4], [], [0]])
    assert alone.tolist() == [True, True, True, False] and together.tolist() == [True, False, True, False]


def test_a_prediction_is_right_if_it_is_in_the_set_of_labels():
    labels = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert right_in_set(np.array([1, 0, 2]), labels).tolist() == [True, False, False]


def write(folder, **files):
    for name, tree in files.items():
        text = tree if isinstance(tree, str) else json.dumps(tree)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def vid_lists(folder):
    anchor, far = "val/v0/000012.JPEG", "val/v1/000100.JPEG"
    near = ["val/v0/000010.JPEG", "val/v0/000011.JPEG", "val/v0/000022.JPEG"]
    labels = {key: [2] for key in [anchor, *near]} | {far: [4, 8]} | {near[0]: [2, 5]}
    return write(folder, pmsets__json={anchor: near, far: []}, labels__json=labels)


def test_lists_of_imagenet_vid_robust_are_scored_up_to_k(tmp_path):
    sets = read_frames(vid_lists(tmp_path), VID)
    assert len(sets) == 2 and dict(sets.frames["val/v0/000012.JPEG"]) == {
        -2: "val/v0/000010.JPEG", -1: "val/v0/000011.JPEG", 10: "val/v0/000022.JPEG",
    }  # fmt: skip
    ids = ["data/v0/000010.png", "data/v0/000011.png", "data/v0/000012.png", "data/v0/000022.png", "data/v1/000100.png"]
    # The first frame may be called 5 too; the one at distance 10 is wrong; the second anchor has two labels and no frames.
    alone, together = score_frames(["5", "2", "2", "3", "8"], ids, sets)
    assert alone.tolist() == [True, True] and together.tolist() == [False, True]
    assert score_frames(["5", "2", "2", "3", "8"], ids, sets, k=9)[1].tolist() == [True, True]
    assert score_frames(["5", "2", "2", "2", "1"], ids, sets)[1].tolist() == [True, False]
    with pytest.raises(DataError, match="1 of 5 frames are not among the samples, such as 'val/v1/000100.JPEG'"):
        score_frames(["2"] * 4, ids[:4], sets)
    with pytest.raises(DataError, match="two samples are the frame 'v0/000010'"):
        score_frames(["2"] * 2, ["a/v0/000010.png", "b/v0/000010.jpg"], sets)


def ytbb_lists(folder):
    names = ["good", "unsure", "bad", "person", "car", "none"]
    anchors = [
        {"key": "x/one_1000/frame-30.jpg", "labels": [0, 3]},
        {"key": "two_2000/frame-60.jpg", "labels": [0]},
        {"key": "three_3000/frame-90.jpg", "labels": [0, 1]},
        {"key": "four_4000/frame-120.jpg", "labels": [0]},
    ]
    kinds = ["similar", "blur-increase", "bad-anchor"]
    pairs = [
        {"key": "one_1000/frame-30.jpg,one_1000/frame-31.jpg", "labels": [0]},
        {"key": "one_1000/frame-30.jpg,one_1000/frame-32.jpg", "labels": [0, 1]},
        {"key": "one_1000/frame-30.jpg,one_1000/frame-28.jpg", "labels": [1]},
        # The last mark of a pair counts.
        {"key": "one_1000/frame-30.jpg,one_1000/frame-28.jpg", "labels": [0]},
        {"key": "four_4000/frame-120.jpg,four_4000/frame-121.jpg", "labels": [0, 2]},
    ]
    table = "ytid,time_ms,label\none,1000,4\ntwo,2000,22\nthree,3000,1\nfour,4000,1\n"
    write(folder, anchor_labels__json={"annotations": anchors, "labels": names})
    write(folder, pmk_labels__json={"annotations": pairs, "labels": kinds})
    (folder / "ytbb_robustness_test_anchors_full.csv").write_text(table)
    return folder


def test_lists_of_ytbb_robust_keep_reviewed_frames_and_good_anchors(tmp_path):
    sets = read_frames(ytbb_lists(tmp_path), YTBB)
    assert {anchor: dict(near) for anchor, near in sets.frames.items()} == {
        "one_1000/frame-30.jpg": {-2: "one_1000/frame-28.jpg", 1: "one_1000/frame-31.jpg"}, "two_2000/frame-60.jpg": {},
    }  # fmt: skip
    # The table's first label joins those that were added; 22 in the table is `car`, 23 in the class index.
    assert sets.labels["one_1000/frame-30.jpg"] == {"0", "4"} == sets.labels["one_1000/frame-28.jpg"]
    assert sets.labels["two_2000/frame-60.jpg"] == {"23"} and YTBB["23"] == ("car",)
    ids = ["one_1000/frame-28.jpg", "one_1000/frame-30.jpg", "one_1000/frame-31.jpg", "two_2000/frame-60.jpg"]
    alone, together = score_frames(["4", "0", "4", "22"], ids, sets)
    assert alone.tolist() == [True, False] and together.tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pmsets.json", [1], "holds a list"),
        ("pmsets.json", {"val/v0/000012.JPEG": 3}, "expected a list of frames"),
        ("pmsets.json", {"val/v0/anchor.JPEG": ["val/v0/000011.JPEG"]}, "has no number"),
        ("pmsets.json", {"val/v0/000012.JPEG": ["val/v0/000012.JPEG"]}, "come twice"),
        ("pmsets.json", {"val/v0/000099.JPEG": []}, "no labels of 'val/v0/000099.JPEG'"),
        ("labels.json", {"val/v0/000012.JPEG": []}, "no labels of"),
        ("labels.json", "{", "not JSON"),
        ("labels.json", {"val/v0/000012.JPEG": [30]}, "unknown class '30'"),
    ],
)
def test_wrong_lists_of_vid_are_one_clean_line(tmp_path, name, content, message):
    vid_lists(tmp_path)
    write(tmp_path, **{name.replace(".", "__"): content})
    with pytest.raises(DataError, match=message):
        read_frames(tmp_path, VID)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("anchor_labels.json", {"annotations": []}, "'labels' and 'annotations'"),
        ("anchor_labels.json", {"annotations": [{"key": "a/frame-1.jpg"}], "labels": ["good"]}, "annotation 0"),
        ("anchor_labels.json", {"annotations": [{"key": "a/frame-1.jpg", "labels": [7]}], "labels": ["good"]}, "annotation 0"),
        ("anchor_labels.json", {"annotations": [{"key": "a_1/frame-1.jpg", "labels": [0]}], "labels": ["good"]}, "'a_1'"),
        ("anchor_labels.json", {"annotations": [], "labels": ["good"]}, "no anchor is marked good"),
        ("ytbb_robustness_test_anchors_full.csv", "ytid,time,label\none,1000,4\n", "cannot be read"),
        ("ytbb_robustness_test_anchors_full.csv", "ytid,time_ms,label\none,1000,24\n", "unknown class '24'"),
    ],
)
def test_wrong_lists_of_ytbb_are_one_clean_line(tmp_path, name, content, message):
    ytbb_lists(tmp_path)
    write(tmp_path, **{name.replace(".", "__"): content})
    with pytest.raises(DataError, match=message):
        read_frames(tmp_path, YTBB)


def test_a_folder_without_lists_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no published list of frames"):
        read_frames(tmp_path, VID)
    with pytest.raises(ConfigError, match="is no folder"):
        read_frames(tmp_path / "none", VID)
    (ytbb_lists(tmp_path) / "pmk_labels.json").unlink()
    with pytest.raises(DataError, match="pmk_labels.json: no such file"):
        read_frames(tmp_path, YTBB)
