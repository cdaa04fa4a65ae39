"""The statistics of data overlap: closed forms, the identity, edges, files of correctness, the record."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ostension.errors import DataError
from ostension.evals.figures import overlap as figures
from ostension.evals.overlap import PUBLISHED, SetOverlap, in_order, read_correct, record, split
from ostension.evals.plots import standalone
from ostension.evals.records import load_records, save_records
from ostension.runtime import numpy_generator


def set_of(overlap, clean, right_overlap, right_clean, task="a set"):
    return SetOverlap(task=task, num_overlap=overlap, num_clean=clean, right_overlap=right_overlap, right_clean=right_clean)


def test_the_p_value_of_three_right_among_four_at_one_half_is_five_sixteenths():
    found = set_of(4, 10, 3, 5)
    assert found.p == pytest.approx(5 / 16, abs=1e-12)
    assert found.contamination == 4 / 14
    assert found.difference == pytest.approx(0.25)


def test_the_interval_of_all_right_is_the_root_of_its_closed_form():
    low = set_of(20, 5, 20, 2).interval().low
    assert low == pytest.approx(0.0025 ** (1 / 20), abs=1e-9)
    assert set_of(20, 5, 20, 2).interval().high == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_delta_is_the_contamination_times_the_difference_of_accuracies(seed):
    draw = numpy_generator("overlap", seed)
    count = int(draw.integers(2, 300))
    correct, overlap = draw.random(count) < 0.7, draw.random(count) < 0.2
    overlap[0], overlap[1] = True, False
    found = split(correct, overlap, task="drawn")
    assert found.delta == pytest.approx(found.contamination * found.difference, abs=1e-12)
    assert found.accuracy_all == pytest.approx(correct.mean())
    assert found.num_all == count


def test_under_the_null_hypothesis_few_p_values_are_small():
    draw = numpy_generator("overlap null")
    small = 0
    for _ in range(400):
        overlap = np.zeros(4000, dtype=bool)
        overlap[:200] = True
        small += split(draw.random(4000) < 0.6, overlap, task="null").p < 0.05
    assert 5 <= small <= 40  # 20 are expected, a few less because the test is discrete


def test_without_overlap_nothing_is_added_and_nothing_is_tested():
    found = set_of(0, 10, 0, 6)
    assert (found.contamination, found.delta) == (0.0, 0.0)
    assert found.p is found.difference is found.accuracy_overlap is None
    assert found.interval() is None


def test_where_all_overlaps_there_is_nothing_to_compare_with():
    found = set_of(10, 0, 7, 0)
    assert found.contamination == 1.0
    assert found.delta is found.p is found.difference is found.accuracy_clean is None
    assert found.interval().low < 0.7 < found.interval().high


def test_a_clean_part_without_a_right_answer_makes_any_right_one_impossible_by_luck():
    assert set_of(3, 10, 1, 0).p == 0.0
    assert set_of(3, 10, 0, 0).p == 1.0
    assert set_of(3, 10, 3, 10).p == 1.0


def test_the_record_corrects_for_the_number_of_sets_and_counts_what_the_paper_counts(tmp_path):
    sets = [set_of(0, 100, 0, 50, "clean"), set_of(20, 980, 20, 490, "easy"), set_of(10, 990, 5, 495, "same")]
    found = record(sets, model="a model")
    rows = {row["task"]: row for row in found.details["sets"]}
    assert rows["easy"]["p"] == pytest.approx(0.5**20)
    assert rows["easy"]["p_corrected"] == pytest.approx(3 * 0.5**20)
    assert rows["same"]["p_corrected"] == 1.0
    assert rows["clean"]["p"] is None
    assert found.details["significant"] == ["easy"]
    assert found.headline.value == pytest.approx(0.01)
    assert found.metrics["mean_contamination"].value == pytest.approx(0.01)
    assert found.metrics["without_overlap"].value == pytest.approx(1 / 3)
    assert found.metrics["largest_delta"].value == pytest.approx(0.02 * 0.5)
    assert record(sets, tests=35).details["sets"][1]["p_corrected"] == pytest.approx(35 * 0.5**20)
    save_records(tmp_path / "overlap.json", {"overlap": found})
    assert load_records(tmp_path / "overlap.json")["overlap"] == found


def test_what_cannot_be_a_study_is_refused():
    with pytest.raises(DataError, match="none"):
        record([])
    with pytest.raises(DataError, match="each once"):
        record([set_of(1, 1, 1, 1)] * 2)
    with pytest.raises(DataError, match="1 tests"):
        record([set_of(1, 1, 1, 1), set_of(1, 1, 1, 1, "b")], tests=1)
    with pytest.raises(DataError, match="5 of 4"):
        set_of(4, 1, 5, 0)
    with pytest.raises(DataError, match="no samples"):
        set_of(0, 0, 0, 0)
    with pytest.raises(DataError, match="3 samples"):
        split(np.ones(3, bool), np.ones(2, bool), task="a")


def test_correctness_is_read_from_a_csv_by_id(tmp_path):
    (tmp_path / "a.csv").write_text("id,predicted,correct\nb,cat,True\na,dog,0\n")
    assert read_correct(tmp_path / "a.csv") == {"b": True, "a": False}
    assert in_order({"b": True, "a": False}, ["a", "b"]).tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,right\na,1\n", "no column 'correct'"),
        ("id,correct\na,maybe\n", r"a.csv:2: the value 'maybe'"),
        ("id,correct\na,1\na,0\n", "comes twice"),
        ("id,correct\n", "no samples"),
        ("", "no column 'id'"),
    ],
)
def test_files_that_do_not_say_what_is_right_are_refused_with_the_line(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_correct(tmp_path / "a.csv")


def test_samples_of_another_set_are_refused():
    with pytest.raises(DataError, match="1 ids have no value, such as 'b'"):
        in_order({"a": True}, ["a", "b"])
    with pytest.raises(DataError, match="2 ids are none of the set"):
        in_order({"a": True, "x": True, "y": False}, ["a"])


def test_parquet_says_the_same_as_csv(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"id": ["a", "b"], "correct": [True, False]}), tmp_path / "a.parquet")
    assert read_correct(tmp_path / "a.parquet") == {"a": True, "b": False}


def test_the_published_numbers_agree_with_each_other():
    facts = {fact.name: fact.value for fact in PUBLISHED}
    assert facts["median contamination"] < facts["mean contamination"]
    # Equation (1) says how much easier Birdsnap's overlap must have been: 5 points.
    assert facts["Birdsnap delta"] / facts["Birdsnap contamination"] == pytest.approx(0.05, abs=0.005)
    assert not any(math.isnan(value) for value in facts.values())


def test_the_figures_have_a_mark_for_each_set_and_name_what_is_significant():
    sets = [set_of(0, 100, 0, 50, "none"), set_of(20, 980, 20, 490, "easy <b>"), set_of(10, 990, 5, 495, "same"),
            set_of(4, 0, 2, 0, "all")]  # fmt: skip
    differences, shifts = figures.draw([record(sets, model="M")])
    assert differences.svg.count('class="dot') == 2  # those with both parts
    assert differences.svg.count("whisker") == 2
    assert shifts.svg.count('class="dot') == 3
    assert 'class="dot c2"' in shifts.svg
    assert "easy &lt;b&gt;" in shifts.svg and "<b>" not in shifts.svg
    assert "Significant after correction for 4 tests: easy <b>" in shifts.says
    assert "All sets" in shifts.more
    assert len({differences.name, shifts.name}) == 2
    assert standalone(shifts).startswith("<?xml")


def test_without_overlap_there_is_no_difference_to_draw():
    (only,) = figures.draw([record([set_of(0, 10, 0, 5)])])
    assert only.name == "overlap-shifts"
    assert figures.draw([]) == figures.draw([record([set_of(3, 0, 1, 0)])]) == []
