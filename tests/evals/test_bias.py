"""Bias probes: closed forms of each count, scipy for the tests, protocols on planted data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ostension.cli.main import main
from ostension.config import to_tree
from ostension.data.task import Task, read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.bias.accuracy import probe
from ostension.evals.bias.groups import compare, compare_many, fisher, group_columns, group_rates, known_groups
from ostension.evals.bias.harms import added_class, category_of, fallen, harm_rates
from ostension.evals.bias.label_sets import label_set_names, read_label_set
from ostension.evals.bias.labels import label_skew, labels_above
from ostension.evals.bias.near_miss import near_miss
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import PROTOCOLS, load_protocol
from ostension.store import Features

scipy_stats = pytest.importorskip("scipy.stats")

FIELDS = {"race": np.array(["a", "a", "b", "c"]), "sex": np.array(["f", "m", "f", "f"])}


def test_samples_are_split_by_fields_pairs_of_fields_and_one_value_against_the_rest():
    columns = group_columns(FIELDS, ("race", "race+sex", "race=a", "race+sex=a, f"))
    assert columns["race"].tolist() == ["a", "a", "b", "c"]
    assert columns["race+sex"].tolist() == ["a, f", "a, m", "b, f", "c, f"]
    assert columns["race=a"].tolist() == ["a", "a", "not a", "not a"]
    assert columns["race+sex=a, f"].tolist() == ["a, f", "not a, f", "not a, f", "not a, f"]
    assert list(group_columns(FIELDS)) == ["race", "sex"]


def test_groups_that_are_the_labels_are_made_of_them():
    task = Task(title="T", version=1, classes={"f": ("woman",), "m": ("man",)}, templates=("{}",), licence="-", citation="-",
                groups={"sex": ("m", "f"), "race": ("a", "b")})  # fmt: skip
    rows = Features(rows=np.eye(3), targets=np.array([0, 1, 1]), classes=("f", "m"), groups={"race": np.array(["a", "b", "a"])})
    found = known_groups(task, rows)
    assert found["sex"].tolist() == ["f", "m", "m"] and found["race"].tolist() == ["a", "b", "a"]
    assert set(known_groups(task, Features(rows=np.eye(3), groups=rows.groups))) == {"race"}


def test_a_field_or_value_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="unknown group field 'rase'"):
        group_columns(FIELDS, ("rase",))
    with pytest.raises(DataError, match="no sample has race = 'x'; expected one of a, b, c"):
        group_columns(FIELDS, ("race=x",))
    with pytest.raises(DataError, match="no groups"):
        group_columns({})


def test_shares_of_groups_are_counted_and_compared():
    happened = np.array([True] * 30 + [False] * 70 + [True] * 10 + [False] * 90)
    found = group_rates(happened, np.array(["men"] * 100 + ["women"] * 100))
    assert [(rate.group, rate.share) for rate in found.rates] == [("men", 0.3), ("women", 0.1)]
    assert found.gap == pytest.approx(0.2) and found.overall.share == 0.2
    # By hand: expected 20 in each, so 4 cells: 100/20 + 100/20 + 100/80 + 100/80.
    assert found.test.chi_square.statistic == pytest.approx(12.5)
    assert found.test.p == pytest.approx(float(scipy_stats.chi2.sf(12.5, 1)))
    assert found.rates[0].interval.low < 0.3 < found.rates[0].interval.high


@pytest.mark.parametrize("table", [(3, 10, 0, 12), (1, 4, 1, 900), (5, 5, 0, 5), (2, 9, 7, 9)])
def test_fishers_test_is_scipys(table):
    a, m, b, n = table
    assert fisher(a, m, b, n) == pytest.approx(scipy_stats.fisher_exact([[a, m - a], [b, n - b]])[1])


def test_small_counts_are_not_judged_by_chi_squared():
    assert compare(np.array([3, 0]), np.array([10, 12])).method == "fisher"
    few = compare(np.array([3, 0, 1]), np.array([6, 6, 6]))
    assert few.method == "random tables" and 0.05 < few.p < 0.5
    assert few == compare(np.array([3, 0, 1]), np.array([6, 6, 6]))
    assert compare(np.array([0, 0]), np.array([10, 12])).p == 1.0
    assert compare(np.array([3, 0]), np.array([10, 0])).p == 1.0  # one group only


def test_random_tables_agree_with_chi_squared_where_that_is_valid():
    hits, totals = np.array([30, 45, 20]), np.array([100, 110, 90])
    from ostension.evals.bias import groups

    exact = groups._random_tables(hits, totals, compare(hits, totals).chi_square.statistic, 0)
    assert exact == pytest.approx(compare(hits, totals).p, abs=0.01)


def test_groups_that_do_not_differ_are_called_different_in_at_most_5_percent_of_all_label_lists():
    generator = np.random.default_rng(0)
    totals = np.array([400, 600])
    alarms = 0
    for _ in range(100):
        rates = generator.uniform(0.0, 0.2, size=40)
        hits = generator.binomial(totals, rates[:, None])
        alarms += min(compare_many(hits, totals)[1]) < 0.05
    assert alarms <= 10  # 5 expected at most; P(more than 10) is 1 %


def test_the_text_with_the_largest_logit_decides_the_category():
    categories = category_of({"non-human": 2, "crime": 1}, 2)
    assert categories == ("", "", "non-human", "non-human", "crime")
    logits = np.array([[5.0, 1, 1, 1, 1], [1, 5, 5, 1, 1], [1, 1, 5, 1, 1], [1, 1, 1, 5, 1], [1, 1, 1, 1, 5]])
    assert fallen(logits, categories).tolist() == ["", "", "non-human", "non-human", "crime"]


def test_datacomps_indices_are_the_categories_of_the_shipped_set():
    labels = read_label_set("fairface_harms")
    categories = category_of({name: len(texts) for name, texts in labels.categories.items()}, len(labels.neutral))
    assert len(labels.neutral) == 14 and len(labels.texts) == 21
    assert {index for index, name in enumerate(categories) if name == "non-human"} == {14, 15, 16, 17}
    assert {index for index, name in enumerate(categories) if name == "crime"} == {18, 19, 20}


def test_harm_rates_count_each_category_and_all_of_them():
    category = np.array(["", "crime", "non-human", "crime", "", ""])
    groups = np.array(["x", "x", "x", "y", "y", "y"])
    found = harm_rates(category, ("crime", "non-human", "any harm"), groups)
    assert [rate.hits for rate in found["crime"].rates] == [1, 1]
    assert [rate.hits for rate in found["non-human"].rates] == [1, 0]
    assert [rate.hits for rate in found["any harm"].rates] == [2, 1]


def test_an_added_class_takes_only_whom_it_fits_better():
    categories = ("", "crime")
    logits = np.array([[1.0, 2], [1, 2], [1, 2], [2, 1]])
    added = np.array([[3.0], [2], [0], [0]])  # the second is a tie, which the older text keeps
    changes, chosen = added_class(logits, added, categories, np.array(["young", "young", "old", "old"]))
    assert chosen.tolist() == [0, -1, -1, -1]
    found = {change.group: (change.before, change.after, change.count) for change in changes}
    assert found == {"old": (1, 1, 2), "young": (2, 1, 2), "all": (3, 2, 4)}
    assert all(change.p == 1.0 for change in changes)  # one change of one sample proves nothing


def test_labels_above_a_threshold_and_the_top_label():
    probabilities = np.array([[0.96, 0.035, 0.005], [0.30, 0.30, 0.40]])
    assert labels_above(probabilities, 0.005).tolist() == [[True, True, True], [True, True, True]]
    assert labels_above(probabilities, 0.04).tolist() == [[True, False, False], [True, True, True]]
    assert labels_above(probabilities, "top").tolist() == [[True, False, False], [False, False, True]]
    with pytest.raises(DataError, match="threshold"):
        labels_above(probabilities, 4.0)
    with pytest.raises(DataError, match="add up to 1"):
        labels_above(probabilities * 2, 0.04)


def planted_labels() -> tuple[np.ndarray, list[str], np.ndarray]:
    """200 samples, half of each group; "judge" has 80 of 100 men and 20 of 100 women, "nurse" the rest, "pet" nobody."""
    men, women = np.repeat([0, 1], [80, 20]), np.repeat([0, 1], [20, 80])
    best = np.concatenate([men, women])
    probabilities = np.full((200, 3), 0.001)
    probabilities[np.arange(200), best] = 0.998
    return probabilities, ["judge", "nurse", "pet"], np.repeat(["men", "women"], 100)


def test_the_most_skewed_labels_come_first_with_their_test():
    found = label_skew(*planted_labels(), "top")
    assert [skew.label for skew in found.skewed] == ["judge", "nurse"]  # a label that nobody has is not listed
    judge = found.skewed[0]
    assert judge.most == "men" and judge.gap == pytest.approx(0.6) and judge.cramers_v == pytest.approx(0.6)
    assert judge.p == pytest.approx(3 * float(scipy_stats.chi2.sf(72, 1)))  # chi-squared is 200 x 0.6^2, Holm's first of three
    assert found.significant == 2 and found.used == 2
    assert found.labels_each == {"men": 1.0, "women": 1.0}


def test_labels_of_one_group_only_are_listed():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.9, 0.0, 0.1]])
    found = label_skew(probabilities, ["both", "men's", "women's"], np.array(["men", "women"]), 0.05)
    assert found.only == {"men": ("men's",), "women": ("women's",)}
    assert found.labels_each == {"men": 2.0, "women": 2.0}


def test_near_misses_can_only_lose():
    logits = np.array([[2.0, 1], [2, 1], [1, 2], [2, 1]])
    near = np.array([[3.0], [2], [3], [3]])  # the second is a tie
    found = near_miss(logits, near, np.array([0, 0, 1, 1]), np.array([0]))
    assert found.before.hits == 3 and found.after.hits == 1
    assert found.to_any.hits == 3 and found.to_own.hits == 1 and found.lost.hits == 2
    assert found.chosen.tolist() == [0, -1, 0, 0]
    assert found.by_class[0][0].hits == 2 and found.by_class[0][1].hits == 1
    assert found.p == pytest.approx(0.5)  # two coins that fall alike


def test_a_probe_learns_what_can_be_learnt_and_is_repeatable():
    generator = np.random.default_rng(0)
    targets = np.arange(300) % 3
    rows = (np.eye(3)[targets] * 4 + generator.normal(size=(300, 3))).astype(np.float32)
    fit = probe(rows[:200], targets[:200], rows[200:], seed=0)
    assert (fit.predicted == targets[200:]).mean() > 0.9
    assert np.array_equal(fit.predicted, probe(rows[:200], targets[:200], rows[200:], seed=0).predicted)
    with_val = probe(rows[:100], targets[:100], rows[200:], val=(rows[100:200], targets[100:200]), seed=0)
    assert (with_val.predicted == targets[200:]).mean() > 0.9
    with pytest.raises(DataError, match="1 classes have training samples"):
        probe(rows[:10], np.zeros(10, dtype=np.int64), rows[200:], seed=0)


def people(count: int = 400) -> ArrayInputs:
    """Pictures along axis 0 (person) or 1 (other); half of group x leans to "thief" on axis 2, whatever its class."""
    task = Task(
        title="People", name="people", version=1, classes={"p": ("person",), "o": ("pet",)}, templates=("a {}.",),
        groups={"group": ("x", "y")}, licence="none", citation="ours",
    )  # fmt: skip
    targets = np.arange(count) % 2
    group = np.where(np.arange(count) % 4 < 2, "x", "y")
    leans = (group == "x") & (np.arange(count) % 8 < 4)
    rows = np.eye(4)[targets] + 2.0 * leans[:, None] * np.eye(4)[2] + 0.01
    split = Features(rows=rows.astype(np.float32), targets=targets, classes=("p", "o"), groups={"group": group})
    prompts = {"a person.": 0, "a pet.": 1, "a photo of a thief.": 2, "a photo of a child.": 3, "a photo of a nurse.": 3}
    rows_of = {prompt: np.eye(4)[axis] for prompt, axis in prompts.items()}
    rows_of["almost a pet"] = np.eye(4)[3]
    rows_of["almost a person"] = np.eye(4)[0] + 0.3 * np.eye(4)[2]
    return ArrayInputs(task, {"test": split, "train": split}, prompt_rows=rows_of)


def a_label_set(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "Mine"\nversion = 1\nsource = "us"\nevidence = "ours"\nadded = ["child"]\n[categories]\ncrime = ["thief"]\n'
        .replace("added", 'neutral = ["nurse"]\nadded')
    )  # fmt: skip
    return path


def test_the_protocol_of_harms_finds_the_planted_group(tmp_path):
    module = load_protocol("bias-harms")
    inputs = people()
    assert module.reason_not(inputs.task) is None
    config = module.Config(label_set=str(a_label_set(tmp_path)), neutral="task")
    outcome = module.run(inputs, config, seed=0)
    by = outcome.record.details["by"]["group"]["crime"]
    assert by["groups"]["x"]["share"] == 0.5 and by["groups"]["y"]["share"] == 0.0
    assert outcome.record.metrics["crime"].value == 0.25
    assert outcome.record.metrics["crime_gap_group"].value == 0.5
    assert outcome.record.details["p_corrected"]["group"]["crime"] < 1e-10
    assert outcome.record.details["added"]["share"] == 0.0
    assert set(outcome.samples) == {"id", "text", "category", "group"}
    assert "published" not in outcome.record.details  # published shares are of other pictures
    json.dumps(to_tree(outcome.record))
    own = module.run(inputs, module.Config(label_set=str(a_label_set(tmp_path))), seed=0)
    assert own.record.details["texts"] == ["nurse", "thief"]


def test_a_label_set_without_harms_is_no_harm_probe(tmp_path):
    module = load_protocol("bias-harms")
    with pytest.raises(ConfigError, match="no harm categories"):
        module.run(people(), module.Config(label_set="occupations_named"), seed=0)
    with pytest.raises(ConfigError, match="unknown label set"):
        module.run(people(), module.Config(label_set="occupation"), seed=0)


def test_the_protocol_of_labels_reports_every_threshold():
    module = load_protocol("bias-labels")
    outcome = module.run(people(), module.Config(thresholds=(0.04,)), seed=0)
    assert [entry["threshold"] for entry in outcome.record.details["by"]["group"]] == [0.04, "top"]
    assert outcome.record.metrics["labels_apart_group_at_top"].value == 0.0
    json.dumps(to_tree(outcome.record))


def test_the_protocol_of_accuracy_puts_zero_shot_beside_the_probe():
    module = load_protocol("bias-accuracy")
    outcome = module.run(people(), module.Config(by=("group", "group=x"), level="post"), seed=0)
    record = outcome.record
    assert record.metrics["accuracy"].value == 1.0 and record.metrics["probe_accuracy"].value == 1.0
    assert set(record.details["zero_shot"]) == {"group", "group=x"}
    assert record.details["zero_shot"]["group"]["p_corrected"] == 1.0
    json.dumps(to_tree(record))
    alone = module.run(people(), module.Config(probe=False), seed=0)
    assert "probe" not in alone.record.details


def test_the_protocol_of_near_misses_reports_the_fall():
    module = load_protocol("near-miss")
    outcome = module.run(people(), module.Config(near={"p": ("almost a person",)}), seed=0)
    metrics = outcome.record.metrics
    assert metrics["accuracy"].value == 1.0 and metrics["accuracy_with_near_misses"].value < 1.0
    assert outcome.record.details["by_class"]["o"]["after"]["share"] == 1.0
    fall = metrics["accuracy"].value - metrics["accuracy_with_near_misses"].value
    assert math.isclose(fall, metrics["right_lost_to_near_miss"].value)
    every = module.run(people(), module.Config(near_templates=("almost a {}",), near={"o": ("a photo of a thief.",)}), seed=0)
    assert every.record.details["near"] == {"p": ["almost a person"], "o": ["a photo of a thief.", "almost a pet"]}
    with pytest.raises(ConfigError, match="unknown class in near 'q'"):
        module.run(people(), module.Config(near={"q": ("x",)}), seed=0)
    with pytest.raises(ConfigError, match="no near misses"):
        module.run(people(), module.Config(), seed=0)


def test_a_task_without_groups_says_why_not():
    plain = Task(title="T", version=1, classes={"a": ("a",), "b": ("b",)}, templates=("{}",), licence="-", citation="-")
    for name in ("bias-harms", "bias-labels", "bias-accuracy"):
        assert name in PROTOCOLS.names()
        assert "no groups" in load_protocol(name).reason_not(plain)
    assert load_protocol("near-miss").reason_not(plain) is None


@pytest.mark.parametrize("name", label_set_names())
def test_every_shipped_label_set_says_where_it_comes_from(name):
    labels = read_label_set(name)
    assert labels.source and labels.notes
    assert all(0 <= published.value <= 1 for published in labels.published)


def test_a_label_set_with_a_text_twice_is_refused(tmp_path):
    path = tmp_path / "twice.toml"
    path.write_text('title = "T"\nversion = 1\nsource = "us"\nevidence = "ours"\nneutral = ["cat", "cat"]\n')
    with pytest.raises(ConfigError, match="cat"):
        read_label_set(path)


def test_the_label_sets_are_listed_and_shown(capsys):
    assert main(["eval", "label-sets"]) == 0
    assert "fairface_harms" in capsys.readouterr().out
    assert main(["eval", "label-sets", "fairface_harms"]) == 0
    shown = capsys.readouterr().out
    assert "crime     suspicious person" in shown and "published crime, gender Male: 16.5 %, read" in shown
    assert main(["eval", "label-sets", "--json"]) == 0
    assert {json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()} == set(label_set_names())
    assert main(["eval", "label-sets", "fairface"]) == 1
    assert "unknown label set 'fairface'" in capsys.readouterr().err


def test_published_shares_stand_beside_those_of_a_fairface_task():
    module = load_protocol("bias-harms")
    task = read_task("fairface_gender")
    texts = [*read_label_set("fairface_harms").texts, "child"]
    rows_of = {f"a photo of a {text}.": np.eye(len(texts))[place] for place, text in enumerate(texts)}
    # A man like each text once; two women called "thief".
    rows = np.concatenate([np.eye(len(texts)), np.eye(len(texts))[[18, 18]]])
    targets = np.array([0] * len(texts) + [1, 1])
    ages = np.array(["0-2"] * len(rows))
    split = Features(rows=rows, targets=targets, classes=("Male", "Female"), groups={"age": ages})
    record = module.run(ArrayInputs(task, {"test": split}, prompt_rows=rows_of), module.Config(), seed=0).record
    found = {(one["category"], one["group"], one["added"]): one for one in record.details["published"]}
    men = found["crime", "Male", False]
    assert men["measured"] == pytest.approx(3 / 22) and men["value"] == 0.165
    assert found["crime", "Female", False]["measured"] == 1.0
    assert found["any harm", "0-2", True]["measured"] == pytest.approx(9 / 24)
    assert found["crime", "Black", False]["measured"] is None  # these samples have no race


def test_the_label_set_on_the_page_can_be_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "howto" / "bias.md").read_text(encoding="utf-8")
    path = tmp_path / "page.toml"
    path.write_text(page.split("```toml\n")[1].split("```")[0])
    assert read_label_set(path).categories == {"crime": ("thief", "intruder")}
