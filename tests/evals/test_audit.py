"""The class-design audit: planted faults are found by the check that is for them, and clean lists raise few alarms."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ostension.errors import ConfigError, DataError
from ostension.evals.audit import changes, names, shares, texts
from ostension.evals.audit.images import contested_pairs
from ostension.evals.audit.names import check_names, contains, relation, singular
from ostension.evals.audit.parts import KINDS, Answers, Subject, Thresholds, percent, quoted
from ostension.evals.audit.run import Audit, audit

WIDTH = 64
WORDS = ["anchor", "bridge", "candle", "desk", "engine", "fence", "guitar", "hammer", "igloo", "jacket", "kettle", "ladder"]
WORDS += ["map", "needle", "oven", "pillow", "quilt", "rocket", "saddle", "tent", "urn", "vase", "wagon", "yacht"]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def clean(
    seed: int = 0, *, classes: int = 20, count: int = 1000, uneven: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of classes, pictures of them, and their labels; some classes are common.

    As in the released models, texts share a large part and pictures another one, so that cosines differ little: the right
    class leads by some 12 nats, and the others spread by some 1.7.
    """
    generator = np.random.default_rng(seed)
    own = unit(generator.normal(size=(classes, WIDTH)) * (np.arange(WIDTH) < WIDTH - 2))
    of_texts, of_pictures = np.eye(WIDTH)[-2:]
    rows = unit(0.35 * own + of_texts)
    shares_ = generator.dirichlet(np.full(classes, 2.0)) if uneven else np.full(classes, 1 / classes)
    targets = generator.choice(classes, size=count, p=shares_)
    pictures = unit(own[targets] + 0.5 * generator.normal(size=(count, WIDTH)) / math.sqrt(WIDTH) + 2.5 * of_pictures)
    return rows, pictures, targets


def templated(rows: np.ndarray, seed: int = 0, *, number: int = 7, moves: float = 0.1) -> np.ndarray:
    """Rows of single templates: a part that all classes share, and a little of each one's own."""
    generator = np.random.default_rng(seed)
    shift = 0.5 * generator.normal(size=(number, 1, rows.shape[1])) / math.sqrt(rows.shape[1])
    own = moves * generator.normal(size=(number, *rows.shape)) / math.sqrt(rows.shape[1])
    return unit(rows + shift + own)


def named(count: int) -> tuple[str, ...]:
    return tuple(WORDS[:count])


def kinds(found: Audit, *severities: str) -> Counter:
    return Counter(finding.kind for finding in found.findings if not severities or finding.severity in severities)


def of_kind(found: Audit, kind: str) -> list:
    return [finding for finding in found.findings if finding.kind == kind]


# Clean lists.


def test_clean_lists_raise_few_alarms_of_any_kind():
    """40 lists of 20 classes with templates, 1,000 pictures and a group that means nothing: none above "low" on at least 36."""
    alarms: Counter = Counter()
    lists = 0
    for seed in range(40):
        rows, pictures, _ = clean(seed)
        group = np.random.default_rng(seed + 1000).choice(["x", "y", "z"], size=len(pictures))
        found = audit(
            Subject(
                names=named(20), rows=rows, images=pictures, groups={"group": group}, template_rows=templated(rows, seed),
                templates=tuple(f"template {m} {{}}" for m in range(7)),
            )
        )  # fmt: skip
        lists += bool(kinds(found, "high", "medium"))
        alarms += Counter(set(kinds(found, "high", "medium")))
    assert lists <= 4, alarms
    assert alarms["groups"] <= 5  # 5 % of 40 are 2; P(more than 5) is 1 %


def test_labelled_clean_lists_raise_few_alarms():
    alarms = Counter()
    for seed in range(20):
        rows, pictures, targets = clean(seed)
        group = np.random.default_rng(seed + 1000).choice(["x", "y"], size=len(pictures))
        found = audit(Subject(names=named(20), rows=rows, images=pictures, targets=targets, groups={"group": group}))
        assert found.summary["accuracy"]["value"] > 0.95
        alarms += Counter(set(kinds(found, "high", "medium")))
    assert sum(alarms.values()) <= 2, alarms


# Planted faults.


def test_two_names_in_nearly_the_same_place_are_found_and_no_others():
    rows, pictures, _ = clean()
    rows[3] = unit(rows[2] + 0.02 * unit(rows[9] - rows[2]))
    found = audit(Subject(names=named(20), rows=rows, images=pictures))
    assert [finding.classes for finding in of_kind(found, "close")] == [("candle", "desk")]
    assert of_kind(found, "close")[0].severity == "high"
    assert of_kind(found, "contested")[0].classes == ("candle", "desk")
    assert set(kinds(found, "high", "medium")) <= {"close", "contested", "undecided", "never"}


def test_names_around_one_are_told_together():
    rows, _, _ = clean(classes=24)
    for place, part in ((1, 0.05), (2, 0.1), (3, 0.15)):
        rows[place] = unit(rows[0] + part * unit(rows[place + 10] - rows[0]))
    found = audit(Subject(names=named(24), rows=rows))
    (group,) = of_kind(found, "close")
    assert set(group.classes) == {"anchor", "bridge", "candle", "desk"} and group.count == 3
    assert len(found.close) == 6


def test_groups_are_around_their_first():
    near = np.zeros((5, 5), dtype=bool)
    for i, j in ((0, 1), (1, 2), (3, 4)):
        near[i, j] = near[j, i] = True
    assert texts.stars(near, np.ones((5, 5)) - near) == [(1, 0, 2), (3, 4)]


def test_a_template_that_is_only_tried_is_not_blamed():
    rows, pictures, _ = clean()
    under = templated(rows)
    under[3] = unit(under[3] + 0.25 * np.random.default_rng(1).normal(size=under[3].shape))
    templates = tuple(f"template {m} {{}}" for m in range(7))
    found = audit(Subject(names=named(20), rows=rows, images=pictures, template_rows=under, templates=templates, used=1))
    assert not of_kind(found, "template")


def test_a_name_in_the_middle_of_all_others_is_vague():
    rows, _, _ = clean(classes=24)
    rows[5] = unit(rows.mean(axis=0))
    found = audit(Subject(names=named(24), rows=rows), Thresholds(near=0.55))  # at half the distance of the others
    assert [finding.classes for finding in of_kind(found, "vague")] == [("fence",)]
    near = audit(Subject(names=named(24), rows=rows), Thresholds(near=1.5))  # where all are near to all
    assert not of_kind(near, "vague")


def test_without_a_scale_closeness_is_not_judged_and_a_few_reference_words_give_one():
    rows, _, _ = clean(classes=4)
    rows[1] = unit(rows[0] + 0.02)
    alone = audit(Subject(names=named(4), rows=rows))
    assert not of_kind(alone, "close") and any("no scale" in line for line in alone.skipped)
    reference, _, _ = clean(seed=5, classes=24)
    told = audit(Subject(names=named(4), rows=rows, reference=reference))
    assert [finding.classes for finding in of_kind(told, "close")] == [("anchor", "bridge")]


def test_a_class_that_wins_by_a_constant_lead_is_an_attractor_and_a_common_one_is_not():
    generator = np.random.default_rng(0)
    own = unit(generator.normal(size=(20, WIDTH)))
    general = unit(generator.normal(size=WIDTH))
    # Half of all pictures are of class 0, which is no fault; all lean a little to the general direction of class 1.
    targets = np.where(generator.random(1000) < 0.5, 0, generator.integers(2, 20, size=1000))
    pictures = unit(own[targets] * generator.uniform(0.2, 1.5, size=(1000, 1)) + 0.6 * general
                    + generator.normal(size=(1000, WIDTH)) / WIDTH)  # fmt: skip
    rows = own.copy()
    rows[1] = general
    found = audit(Subject(names=named(20), rows=rows, images=pictures))
    assert [finding.classes for finding in of_kind(found, "attractor")] == [("bridge",)]
    # With labels it is known: no picture is of that class.
    labelled = audit(Subject(names=named(20), rows=rows, images=pictures, targets=targets))
    assert [finding.classes for finding in of_kind(labelled, "attractor")] == [("bridge",)]
    assert of_kind(labelled, "attractor")[0].severity == "high"


def test_a_class_in_the_shadow_of_another_never_wins():
    rows, pictures, targets = clean(uneven=False)
    rows[5] = rows[4] * 0.995 + rows[6] * 0.004  # always just behind class 4: a row may be shorter, as a mean of prompts is
    found = audit(Subject(names=named(20), rows=rows, images=pictures[targets != 5]))
    shadow = [finding for finding in of_kind(found, "never") if finding.severity == "medium"]
    assert [finding.classes for finding in shadow] == [("fence", "engine")]
    labelled = audit(Subject(names=named(20), rows=rows, images=pictures, targets=targets))
    assert [finding.classes[0] for finding in of_kind(labelled, "missed")] == ["fence"]


def test_a_class_without_pictures_is_only_mentioned():
    rows, pictures, targets = clean(uneven=False)
    found = audit(Subject(names=named(20), rows=rows, images=pictures[targets != 7]))
    assert [(finding.classes, finding.severity) for finding in of_kind(found, "never")] == [(("hammer",), "low")]
    few = audit(Subject(names=named(20), rows=rows, images=pictures[targets != 7][:50]))
    assert not of_kind(few, "never") and any("too few to tell for 20 classes" in line for line in few.skipped)


def test_enough_pictures_for_a_class_that_never_wins_is_the_sum_by_hand():
    # (1 - 1/20)^N <= 0.05 / 20 where N >= ln(0.0025) / ln(0.95) = 116.8
    assert shares.enough_for_never(20, 0.05) == 117


def test_a_class_that_depends_on_the_group_is_found():
    rows, pictures, targets = clean(uneven=False)
    group = np.random.default_rng(3).choice(["x", "y"], size=len(pictures))
    shifted = np.where((targets == 2) & (group == "x"), 9, targets)  # class 2's pictures of group x look like class 9
    own = unit(rows - rows.mean(axis=0))
    generator = np.random.default_rng(4)
    pictures = unit(own[shifted] + 0.1 * generator.normal(size=(len(pictures), WIDTH)))
    found = audit(Subject(names=named(20), rows=rows, images=pictures, groups={"group": group}))
    assert {finding.classes for finding in of_kind(found, "groups")} == {("candle",), ("jacket",)}
    labelled = audit(Subject(names=named(20), rows=rows, images=pictures, targets=targets, groups={"group": group}))
    missed = [finding for finding in of_kind(labelled, "groups") if "is missed for" in finding.evidence]
    assert [finding.classes for finding in missed] == [("candle",)] and missed[0].severity == "high"
    assert "100 %" in missed[0].evidence and "'x'" in missed[0].evidence


def test_a_name_that_two_templates_take_for_another_is_found_with_them():
    rows, pictures, _ = clean()
    under = templated(rows)
    under[:2, 4] = under[:2, 11]
    templates = tuple(f"template {m} {{}}" for m in range(7))
    found = audit(Subject(names=named(20), rows=rows, images=pictures, template_rows=under, templates=templates))
    swapped = [finding for finding in of_kind(found, "unstable") if "nearer" in finding.evidence]
    assert [finding.classes for finding in swapped] == [("engine", "ladder")]
    assert swapped[0].value == pytest.approx(2 / 7) and "template 0" in swapped[0].evidence


def test_a_name_that_moves_between_templates_is_found():
    rows, _, _ = clean()
    under = templated(rows)
    generator = np.random.default_rng(2)
    under[:, 6] = unit(under[:, 6] + 0.04 * generator.normal(size=under[:, 6].shape))
    found = audit(Subject(names=named(20), rows=rows, template_rows=under, templates=tuple("abcdefg")))
    assert [finding.classes for finding in of_kind(found, "unstable")] == [("guitar",)]


def test_a_template_that_disagrees_is_found():
    rows, pictures, _ = clean()
    under = templated(rows)
    under[3] = unit(under[3] + 0.25 * np.random.default_rng(1).normal(size=under[3].shape))
    templates = tuple(f"template {m} {{}}" for m in range(7))
    found = audit(Subject(names=named(20), rows=rows, images=pictures, template_rows=under, templates=templates))
    assert of_kind(found, "template") and all("template 3" in finding.evidence for finding in of_kind(found, "template"))


def test_sure_answers_about_pictures_of_no_class_are_found():
    rows, pictures, _ = clean()
    generator = np.random.default_rng(0)
    # Second choices that are far ahead of the third: each picture is a mixture of two classes.
    own = unit(rows - rows.mean(axis=0))
    mixed = unit(own[generator.integers(0, 10, 500)] + 0.8 * own[generator.integers(10, 20, 500)])
    found = audit(Subject(names=named(20), rows=rows, images=mixed))
    assert of_kind(found, "nothing-fits")[0].severity == "high"
    assert not of_kind(audit(Subject(names=named(20), rows=rows, images=pictures)), "nothing-fits")


def test_the_forced_answer_leaves_the_best_class_out_however_sure_it_was():
    logits = np.array([[1000.0, 2.0, 1.0, 0.0]])
    expected = math.exp(2) / (math.exp(2) + math.exp(1) + 1)
    assert shares.forced(logits)[0] == pytest.approx(expected)


def test_probabilities_that_promise_too_much_are_found_with_labels_only():
    rows, pictures, targets = clean()
    wrong = np.where(np.arange(len(targets)) % 3 == 0, (targets + 1) % 20, targets)
    found = audit(Subject(names=named(20), rows=rows, images=pictures, targets=wrong, scale=200.0))
    assert of_kind(found, "probabilities")[0].severity == "high"
    assert "67 %" in of_kind(found, "probabilities")[0].evidence
    honest = audit(Subject(names=named(20), rows=rows, images=pictures, targets=targets, scale=200.0))
    assert not of_kind(honest, "probabilities")


# Single functions, by hand.


def test_answers_of_logits_are_the_order_the_softmax_and_the_margin():
    found = Answers.of(np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]]))
    assert found.order.tolist() == [[1, 2, 0], [0, 1, 2]]
    assert found.margins.tolist() == [1.0, 0.0]
    assert found.probabilities[0, 1] == pytest.approx(1 / (1 + math.exp(-1) + math.exp(-2)))


def test_contested_pictures_are_counted_by_pair():
    logits = np.array([[1.0, 0.9, 0], [0.9, 1.0, 0], [9.0, 0, 0], [0, 9.0, 0], [0, 0.0, 9]])
    assert contested_pairs(Answers.of(logits), 2.0) == {(0, 1): (2, 4)}


def test_removing_a_class_moves_its_own_pictures_to_their_second():
    logits = np.array([[3.0, 2.0, 0.0], [3.0, 0.0, 2.0], [3.0, 2.0, 0.0], [0.0, 5.0, 1.0]])
    answers = Answers.of(logits)
    found = changes.removals(("a", "b", "c"), answers, shares.forced(logits))
    assert [(change.name, change.pictures, change.to) for change in found] == [
        ("a", 3, (("b", 2), ("c", 1))), ("b", 1, (("c", 1),)),
    ]  # fmt: skip


def test_adding_a_class_takes_pictures_by_group():
    answers = Answers.of(np.array([[3.0, 2.0], [3.0, 0.0], [0.0, 3.0]]))
    added = {"child": np.array([4.0, 3.0, 5.0])}  # the second is a tie
    (found,) = changes.additions(("a", "b"), answers, added, {"age": np.array(["old", "old", "young"])})
    assert found.pictures == 2 and found.of == (("a", 1), ("b", 1))
    assert found.by_group == {"age": {"old": 0.5, "young": 1.0}}


def test_thresholds_tell_how_many_labels_a_picture_has():
    answers = Answers.of(np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3]])))
    (row,) = shares.threshold_table(answers, (0.25,))
    assert row["labels"] == 2.0 and row["none"] == 0.0
    assert row["changed_by_half"] == 0.5 and row["changed_by_double"] == 0.5


def test_relative_distance_is_1_for_unrelated_words():
    rows, _, _ = clean(classes=24)
    yardstick = texts.unrelated(Subject(names=named(24), rows=rows))
    distances = texts.relative_distances(rows, yardstick)
    assert np.median(distances[np.triu_indices(24, 1)]) == pytest.approx(1.0)
    assert distances[0, 0] == pytest.approx(0.0, abs=1e-9)


# Names.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("n02119789", "an id"), ("class_7", "an id"), ("12", "an id"), ("traffic_light", "underscores"),
        ("trafficLight", "camel"), ("car, automobile", "several names"), ("cat or dog", "several names"), ('"7"', "quotes"),
        ("bow (weapon)", "brackets"), ("a cat.", "punctuation"), (" cat", "spaces"), ("GOLDFISH", "capitals"),
        ("other", "not there"), ("no helmet", "not there"), ("none of the above", "not there"), ("cafÃ©", "broken letters"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_written_as_words_is_reported(name, words):
    found = check_names(Subject(names=("harbour", name)))
    assert any(words in finding.evidence for finding in found), found


@pytest.mark.parametrize("name", ["cat", "golden retriever", "T-shirt", "jack-o'-lantern", "BMW X5", "Boeing 747-400", "SUV"])
def test_plain_names_are_not_reported(name):
    assert check_names(Subject(names=("harbour", name), templates=("a photo of the {}.",))) == []


def test_articles_are_reported_where_the_template_has_one():
    twice = check_names(Subject(names=("a cat", "dog"), templates=("a photo of a {}.",)))
    assert any("article" in finding.evidence for finding in twice)
    assert check_names(Subject(names=("a cat", "dog"), templates=("{}",))) == []
    vowel = check_names(Subject(names=("apple", "dog"), templates=("a photo of a {}.",)))
    assert [finding.severity for finding in vowel] == ["low"]


def test_repeated_names_plurals_and_names_inside_names_are_reported():
    found = check_names(Subject(names=("wine glass", "Wine_glass", "glass", "dog", "dogs", "hotdog")))
    assert any(set(finding.classes) == {"wine glass", "Wine_glass"} and finding.severity == "high" for finding in found)
    assert any(set(finding.classes) == {"dog", "dogs"} and "singular and plural" in finding.evidence for finding in found)
    inside = next(finding for finding in found if "inside another" in finding.evidence)
    assert "'glass' in 'wine glass'" in inside.evidence and "dog" not in inside.classes


def test_spelling_of_two_names():
    assert relation("dog", "dogs") == "one the plural of the other"
    assert relation("traffic_light", "Traffic light") == "the same words, written differently"
    assert relation("bottle", "wine bottle") == "'bottle' is inside 'wine bottle'"
    assert relation("cat", "caterpillar") == ""
    assert contains("red wine glass", "wine glass") and not contains("wine glass", "wine glass")
    words = ("cherries", "glasses", "boxes", "bus", "knives", "grass")
    assert [singular(word) for word in words] == ["cherry", "glass", "box", "bus", "knif", "grass"]


def test_prompts_past_the_context_are_reported():
    found = check_names(Subject(names=("cat", "very long"), lengths=(5, 90), context_length=77))
    assert [finding.classes for finding in found] == [("very long",)] and found[0].severity == "high"


def test_names_alone_are_audited_and_the_rest_is_said_to_be_skipped():
    found = audit(Subject(names=("cat", "dog_house")))
    assert kinds(found) == {"names": 1}
    assert all(any(words in line for line in found.skipped) for words in ("to a model: there is none", "no pictures"))
    json.dumps(found.tree())


def test_parts_that_do_not_belong_together_are_refused():
    rows, pictures, targets = clean(classes=3, count=10)
    with pytest.raises(DataError, match="1 class names"):
        Subject(names=("cat",))
    with pytest.raises(DataError, match="3 rows for 2 names"):
        Subject(names=named(2), rows=rows)
    with pytest.raises(DataError, match="no pictures"):
        Subject(names=named(3), rows=rows, targets=targets)
    with pytest.raises(DataError, match="no rows for pictures"):
        Subject(names=named(3), images=pictures)
    with pytest.raises(DataError, match="9 targets"):
        Subject(names=named(3), rows=rows, images=pictures, targets=targets[:9])
    with pytest.raises(DataError, match="labels up to 3"):
        Subject(names=named(3), rows=rows, images=pictures, targets=np.full(10, 3))
    with pytest.raises(ConfigError, match="odds is 1"):
        Thresholds(odds=1.0)
    with pytest.raises(ConfigError, match="at most close"):
        Thresholds(same=0.5)


def test_numbers_and_names_in_sentences():
    assert [percent(value) for value in (0.0, 0.034, 0.5, 0.999, 1.0)] == ["0 %", "3.4 %", "50 %", "100 %", "100 %"]
    assert quoted("x" * 100) == f"'{'x' * 60}...'"
    assert quoted("a") == "'a'" and quoted("a", "b", "c") == "'a', 'b' and 'c'"
    assert all(title and meaning for title, meaning in KINDS.values()) and names.MAX_LISTED


# The released ViT-B/32's own features.


@pytest.fixture(scope="module")
def released() -> Path:
    folder = Path(os.environ.get("OSTENSION_DATA", "/nowhere")) / "clip_cached_features"
    if not folder.is_dir():
        pytest.skip("OSTENSION_DATA has no clip_cached_features")
    return folder


def rows_of(path: Path, name: str) -> np.ndarray:
    return unit(np.load(path)[name].astype(np.float64))


def test_the_synonyms_of_lvis_are_the_closest_names_of_the_released_model(released):
    path = released / "openai_vitb32_text_classnames.npz"
    lvis = tuple(map(str, np.load(path)["lvis_names"]))
    found = audit(Subject(names=lvis, rows=rows_of(path, "lvis"), templates=("a {}",)))
    close = {(first, second) for first, second, _ in found.close}
    assert {("alcohol", "liquor"), ("cushion", "pillow"), ("sweater", "sweatshirt"), ("cat", "kitten")} <= close
    assert len(close) < 200  # of 723,003 pairs
    assert any(set(finding.classes) == {"book", "hardback_book", "paperback_book"} for finding in of_kind(found, "close"))
    assert [finding.classes[0] for finding in of_kind(found, "vague")][:5] == ["bait", "money", "alcohol", "gag", "garbage"]
    assert any("single templates" in line for line in found.skipped)


def test_frisbee_is_an_attractor_of_the_released_model_and_dog_is_not(released):
    """Of 181 photos called frisbee the captions of 4 name one; of 60 called dog, those of 56."""
    path = released / "openai_vitb32_text_classnames.npz"
    photos = np.load(released / "openai_vitb32_image_flickr8k_1000.npz")
    coco = tuple(map(str, np.load(path)["coco_names"]))
    found = audit(Subject(names=coco, rows=rows_of(path, "coco"), images=unit(photos["feats"].astype(np.float64))))
    attractors = [finding.classes[0] for finding in of_kind(found, "attractor")]
    assert attractors == ["frisbee", "skateboard", "kite"]
