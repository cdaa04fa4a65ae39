"""Human comparison: the four columns by hand, attention checks, tables of answers, the published table."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.config import from_tree
from ostension.data.task import Task, read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.human import COLUMNS, Answer, by_class, four_columns, published, read_answers
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.evals.records import Metric, Record
from ostension.evals.summaries import human as summary
from ostension.store import Features

TRUTH = {"1": "cat", "2": "cat", "3": "dog", "4": "dog", "5": "dog"}
# Per picture: right of all, right of the given ones, the vote.
#   1: cat cat dog     2/3, 2/3, cat     -> 1
#   2: -   -   -       0/3, none, no vote
#   3: dog cat -       1/3, 1/2, a tie   -> 1/2
#   4: dog dog dog     3/3, 3/3, dog     -> 1
#   5: cat -   -       0/3, 0/1, cat     -> 0
GIVEN = {"1": ["cat", "cat", "dog"], "2": ["", "", ""], "3": ["dog", "cat", ""], "4": ["dog"] * 3, "5": ["cat", "", ""]}
ANSWERS = [Answer(image=i, person=f"p{n}", answer=a) for i, several in GIVEN.items() for n, a in enumerate(several)]


def test_the_four_columns_are_means_over_classes():
    found = four_columns(ANSWERS, TRUTH)
    assert {name: metric.value for name, metric in found.items()} == {
        "accuracy": pytest.approx((2 / 6 + 4 / 9) / 2),
        "majority": pytest.approx((1 / 2 + 1.5 / 3) / 2),
        "accuracy_on_guesses": pytest.approx((2 / 3 + 4 / 6) / 2),
        "majority_on_guesses": pytest.approx((1 / 1 + 1.5 / 3) / 2),
    }
    assert [metric.count for metric in found.values()] == [15, 5, 9, 4]
    for metric in found.values():
        assert metric.interval.low <= metric.value <= metric.interval.high
    assert by_class(ANSWERS, TRUTH) == {"cat": (pytest.approx(1 / 3), 6), "dog": (pytest.approx(4 / 9), 9)}


def test_a_class_that_nobody_answers_has_no_accuracy_on_guesses():
    silent = [Answer(image="1", person="p", answer=""), Answer(image="3", person="p", answer="dog")]
    found = four_columns(silent, TRUTH)
    assert found["accuracy"].value == 0.5 and found["accuracy_on_guesses"].value == 1.0
    assert set(four_columns(silent[:1], TRUTH)) == {"accuracy", "majority"}
    with pytest.raises(DataError, match="class of '9' is not known"):
        four_columns([Answer(image="9", person="p", answer="")], TRUTH)
    with pytest.raises(DataError, match="no answers"):
        four_columns([], TRUTH)


HEADER = "image,person,answer,condition,check\n"


def test_a_table_of_answers_is_read_by_condition_and_checked_for_attention(tmp_path):
    table = tmp_path / "answers.csv"
    rows = [
        "1,ann,cat,zero-shot,", "1,bob,I don't know,zero-shot,", "1,ann,dog,one-shot,", "2,bob,,zero-shot,",
        "c1,ann,dog,zero-shot,dog", "c2,ann,cat,zero-shot,cat", "c1,bob,cat,zero-shot,dog", "c2,bob,cat,zero-shot,cat",
    ]  # fmt: skip
    table.write_text(HEADER + "\n".join(rows))
    found = read_answers(table)
    assert set(found) == {"zero-shot", "one-shot"}
    assert [one.answer for one in found["zero-shot"].answers] == ["cat", "", ""]
    kept, dropped = found["zero-shot"].attentive(0.9)
    assert dropped == {"bob": 0.5} and [one.person for one in kept.answers] == ["ann"]
    assert found["zero-shot"].attentive(0.5)[1] == {} and found["one-shot"].attentive()[1] == {}


def test_answers_mean_what_the_task_says(tmp_path):
    table = tmp_path / "answers.csv"
    task = read_task("oxford_pets")
    key = next(iter(task.display_names()))
    table.write_text(f"image,person,answer\nx,ann,{key}\n")
    assert read_answers(table, task.key_of)[""].answers[0].answer == key
    table.write_text("image,person,answer\nx,ann,unicorn\n")
    with pytest.raises(DataError, match="the answer 'unicorn' in line 2 is no class"):
        read_answers(table, task.key_of)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,who,answer\n1,a,b\n", "no column 'person'"),
        ("image,person,answer\n1,a,b\n1,a,c\n", "'a' answers '1' again in line 3"),
        ("image,person,answer\n", "no answers"),
    ],
)
def test_a_wrong_table_is_one_clean_line(tmp_path, text, message):
    (tmp_path / "answers.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "answers.csv")
    with pytest.raises(DataError, match="no such file"):
        read_answers(tmp_path / "none.csv")


def test_the_published_table_has_its_evidence():
    table = published()
    assert list(table["conditions"]) == ["zero-shot", "one-shot", "two-shot"] and table["evidence"] == "second-hand"
    assert all(tuple(row) == COLUMNS for row in table["conditions"].values())
    assert table["conditions"]["zero-shot"]["accuracy"] == pytest.approx(0.537)
    # One example lifts people by 22 points, a second one by nothing: the finding of the section.
    lift = [row["accuracy"] for row in table["conditions"].values()]
    assert lift[1] - lift[0] == pytest.approx(0.22) and lift[2] == lift[1]


def pets(wrong=()) -> ArrayInputs:
    task = from_tree(Task, {
        "title": "Pets", "name": "pets", "version": 1, "classes": {key: [key] for key in ("cat", "dog", "owl")},
        "templates": ["{}"], "splits": {"test": {"count": 6}}, "licence": "ours", "citation": "ours",
    })  # fmt: skip
    targets = np.array([0, 0, 1, 1, 2, 2])
    seen = np.where(np.isin(np.arange(6), wrong), (targets + 1) % 3, targets)
    features = Features(
        rows=np.eye(3, dtype=np.float32)[seen], targets=targets, classes=("cat", "dog", "owl"),
        ids=("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "c/5.jpg", "d/5.jpg"),
    )  # fmt: skip
    return ArrayInputs(task, {"test": features}, class_rows=np.eye(3))


def test_people_and_model_are_measured_on_the_same_pictures(tmp_path):
    table = tmp_path / "answers.csv"
    rows = ["1.jpg,ann,cat", "2.jpg,ann,", "3.jpg,ann,dog", "b/4.jpg,ann,cat", "c/5.jpg,ann,cat"]
    table.write_text("image,person,answer\n" + "\n".join(rows) + "\n")
    protocol = load_protocol("human")
    record = protocol.run(pets(wrong=[1, 5]), protocol.Config(answers=str(table)), seed=0).record
    # d/5.jpg, which the model gets wrong, was shown to nobody.
    assert record.headline.value == pytest.approx((0.5 + 1 + 1) / 3) and record.headline.count == 5
    assert record.metrics["people"].value == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert record.details["classes"][0] == ["owl", {"": 0.0}, {"": 1.0}]
    r, p = record.details["correlation"][""]
    assert r == pytest.approx(-0.5) and 0 <= p <= 1 and record.details["people"] == {"": 1}
    assert set(record.details["conditions"][""]) == set(COLUMNS)


def test_pictures_that_are_not_the_tasks_are_named(tmp_path):
    table = tmp_path / "answers.csv"
    protocol = load_protocol("human")
    absent = "1 of 1 pictures are not among the samples, such as '5.jpg'"
    for row, message in (("5.jpg,ann,cat", absent), ("1.jpg,ann,emu", "no class")):
        table.write_text(f"image,person,answer\n{row}\n")
        with pytest.raises(DataError, match=message):
            protocol.run(pets(), protocol.Config(answers=str(table)), seed=0)
    table.write_text("image,person,answer,check\n1.jpg,ann,cat,\n9.jpg,ann,cat,dog\n")
    with pytest.raises(DataError, match="nobody passed"):
        protocol.run(pets(), protocol.Config(answers=str(table)), seed=0)
    with pytest.raises(ConfigError, match="no answers are given"):
        protocol.run(pets(), protocol.Config(), seed=0)
    assert protocol.reason_not(read_task("voc2007")) and protocol.reason_not(read_task("coco"))
    assert protocol.reason_not(read_task("oxford_pets")) is None


def test_a_models_record_is_put_beside_the_published_people():
    metric = Metric(value=0.935, count=3669)
    record = Record(
        protocol="zeroshot", subject="m", metrics={"mean_per_class": metric}, config={}, hashes={}, counts={},
        task="oxford_pets", model="m", split="test",
    )  # fmt: skip
    (found,) = summary.run([record])
    assert found.metrics["above people, zero-shot"].value == pytest.approx(0.398)
    assert found.details["evidence"] == "second-hand" and len(found.details["table"]) == 4
    assert summary.run([]) == []
