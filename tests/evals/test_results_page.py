"""The page of results: nothing hidden, nothing loaded, what it says follows from the records."""

from __future__ import annotations

import dataclasses
import math
import re
import xml.etree.ElementTree as ET

import made_results as made
import numpy as np
import pytest
from test_report import Reader

from ostension.cli.main import main
from ostension.data.task import read_task
from ostension.errors import DataError
from ostension.evals.chart_frame import Frame, linear, logits, shots
from ostension.evals.chart_marks import COLOURS, SHAPES, style_of
from ostension.evals.effective_robustness import baseline_of
from ostension.evals.failures import note_failures, read_failures
from ostension.evals.figure import FIGURES, SECTIONS, draw_all
from ostension.evals.figures import (
    confusion,
    data_efficiency,
    few_shot,
    geolocation,
    groups,
    per_set,
    robustness,
    scatter,
)
from ostension.evals.findings import findings, headline_tiles
from ostension.evals.metrics import Interval
from ostension.evals.plots import standalone, write_plots
from ostension.evals.records import Metric
from ostension.evals.results import Result, Results
from ostension.evals.results_page import results_page
from ostension.evals.results_tables import missing, no_better_than_chance
from ostension.evals.selection import published, slug, task_title, words_of
from ostension.evals.suite_run import Step
from ostension.evals.tables import as_csv, as_markdown
from ostension.evals.testbed import SEVEN, read_testbed

HOSTILE = "<script>alert('x')</script> & \"quoted\""


@pytest.fixture(scope="module")
def everything():
    return made.suite_with_everything()


@pytest.fixture(scope="module")
def page(everything):
    return results_page(*everything, source="results")


def records_of(results):
    return [result.record for result in results]


def test_the_page_is_well_formed_loads_nothing_and_names_no_place_twice(page):
    reader = Reader(page)
    tags = {tag for tag, _ in reader.seen}
    assert not tags & {"script", "link", "iframe", "object"}
    addresses = [value for _, attrs in reader.seen for name, value in attrs.items() if name in ("src", "href")]
    assert addresses and all(value.startswith("#") for value in addresses)
    ids = [attrs["id"] for _, attrs in reader.seen if "id" in attrs]
    assert len(ids) == len(set(ids)) and {value[1:] for value in addresses} <= set(ids)
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_every_chart_has_words_for_a_screen_reader(page):
    for tag, attrs in Reader(page).seen:
        if tag == "svg":
            assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])
        if tag == "th":
            assert attrs["scope"] in ("col", "row")


def test_every_kind_of_figure_is_on_the_page(page):
    titles = " ".join(Reader(page).words)
    for said in ("Zero-shot minus linear probe", "Few labels", "Labels that zero-shot is worth",
                 "Does zero-shot follow the probe", "What prompts gain", "Mean of the seven shifts", "texts of a picture",
                 "taken for", "the worst group is water",
                 "after dividing the logits by 1.7"):  # fmt: skip
        assert said in titles, said


def test_names_from_data_are_text_and_never_markup():
    result = made.results_of("kornblith12", ("RN50",), few=False)[0]
    details = {"confusion": [[HOSTILE, HOSTILE + "2", 5]], "per_class": {HOSTILE: 0.5}, "class_counts": {HOSTILE: 10, "b": 3},
               "reliability": made.reliability_of(0.1), "groups": {HOSTILE: [0.5, 10], "b": [0.4, 10]}}  # fmt: skip
    record = dataclasses.replace(result.record, model=HOSTILE, task=HOSTILE, details=details, config={"templates": HOSTILE})
    text = results_page([Result(record=record, identity={}, notes=(HOSTILE,))], [], source=HOSTILE)
    reader = Reader(text)
    assert "script" not in {tag for tag, _ in reader.seen}
    assert any(HOSTILE in words for words in reader.words)
    for figure in (figure for found in draw_all([record]).values() for figure in found):
        assert re.fullmatch(r"[a-z0-9-]+", figure.name)
        if figure.svg:
            ET.fromstring(standalone(figure))


def test_a_limited_run_and_what_is_missing_stand_before_any_number():
    left_out = (("dtd", "probe"), ("food101", "probe"))
    text = results_page(made.results_of("kornblith12", limit=200, leave_out=left_out), [])
    words = " ".join(Reader(text).words)
    assert words.index("at most 200 samples a split") < words.index("mean of 12 sets")
    assert "linear probe: Food101, Describable Textures" in words or "linear probe: Describable Textures, Food101" in words


def test_missing_is_what_could_have_been_measured_and_was_not():
    whole = made.results_of("kornblith12", ("ViT-B-32", "RN50"), few=False)
    assert missing(whole) == []
    without = [r for r in whole if r.place != ("RN50", "dtd", "probe")]
    assert missing(without) == [f"linear probe of RN50: {task_title('dtd')}"]
    captions = made.record_of("retrieval", read_task("flickr8k_1000"), "RN50", {"mean_recall": Metric(value=0.5, count=9)})
    # Retrieval cannot be measured on sets of classes, nor zero-shot on captions, and ViT-B-32 lacks the one retrieval set.
    found = missing([*whole, Result(record=captions, identity={})])
    assert found == [f"retrieval of ViT-B-32: {task_title('flickr8k_1000')}"]


def test_headline_numbers_are_means_over_the_sets_that_all_models_have():
    results = made.results_of("clip27", ("ViT-B-32", "RN50"), few=False)
    tiles = headline_tiles(results, [])
    assert [number for number, _ in tiles] == ["57.9\u00a0%", "54.7\u00a0%"]  # the published column means
    fewer = [result for result in results if result.place != ("RN50", "food101", "zeroshot")]
    assert "mean of 26 sets" in headline_tiles(fewer, [])[0][1]


def test_a_suite_score_of_too_few_sets_says_that_it_is_none(everything):
    results, _ = everything
    some = [r for r in results if not (r.record.task == "dtd" and r.record.protocol == "zeroshot")]
    number, words = headline_tiles(some, made.summarise(records_of(some)))[0]
    assert "11 of the 12 sets of kornblith12, which is no score of it" in words and number.endswith("%")


def test_findings_say_what_the_numbers_say(everything):
    said = " ".join(findings(*everything))
    assert "ViT-B-32-openai leads with 66.0" in said and "24 of 24 results lie within the tolerance" in said
    assert "RN50-openai: effective robustness +19.5 points" in said
    alone = " ".join(findings(made.results_of("clip27", ("ViT-L-14-336",), few=False), []))
    assert "best on STL-10" in alone and "weakest on KITTI distance" in alone and "No better than guessing: KITTI" in alone


@pytest.mark.parametrize(
    ("name", "metric", "said"),
    [
        ("accuracy", Metric(value=0.4123, count=9, interval=Interval(0.4, 0.43, 0.95, "")), ("41.2 %", "40.0 to 43.0")),
        ("gain", Metric(value=-0.01, count=9, interval=Interval(-0.02, 0.0, 0.95, "")), ("−1.0 points", "−2.0 to +0.0")),
        ("temperature", Metric(value=0.8, count=9), ("0.8", "")),
        ("needed", Metric(value=184.0, count=9), ("184", "")),
        ("anything", Metric(value=1.5, count=9), ("1.5", "")),
    ],
)
def test_numbers_are_told_in_their_own_unit(name, metric, said):
    assert words_of(name, metric) == said


def test_chance_within_the_interval_is_no_better_than_chance():
    metric = Metric(value=0.26, count=99, chance=0.25, interval=Interval(0.2, 0.3, 0.95, ""))
    assert no_better_than_chance(metric)
    assert not no_better_than_chance(dataclasses.replace(metric, chance=0.19))
    assert not no_better_than_chance(dataclasses.replace(metric, chance=None))


def test_published_values_are_those_of_the_record():
    record = made.results_of("kornblith12", ("ViT-B-32-openai",), few=False)[0].record
    assert published(record).published == pytest.approx(0.844) and published(record).near
    for other in ({"model": "ViT-B-32"}, {"task": "my-task"}, {"protocol": "fewshot"}):
        assert published(dataclasses.replace(record, **other)) is None


def test_differences_are_sorted_and_their_intervals_join_both():
    zero_shot = Metric(value=0.5, count=99, interval=Interval(0.47, 0.53, 0.95, ""))
    probe = Metric(value=0.8, count=99, interval=Interval(0.76, 0.84, 0.95, ""))
    assert per_set.difference(zero_shot, probe) == pytest.approx((-0.3, -0.35, -0.25))
    (figure,) = per_set.draw(records_of(made.results_of("kornblith12", few=False)))
    order = re.findall(r'class="label"[^>]*>([^<]*)', figure.svg)
    gains = {}
    for task in map(read_task, ("dtd", "food101", "cifar10", "oxford_pets")):
        values = [made.published_value(task, protocol, "ViT-B-32") for protocol in ("zero-shot", "linear-probe")]
        gains[task.title] = values[0] - values[1]
    assert sorted(gains, key=lambda name: -gains[name]) == [name for name in order if name in gains]
    assert "0 of 12 sets" in figure.says


def test_few_shot_averages_only_what_every_set_has_and_keeps_regimes_apart():
    results = made.results_of("kornblith12")
    records = records_of(results)
    few = [record for record in records if record.protocol == "fewshot"]
    short = dataclasses.replace(few[0], details={"curve": [[1, 0.3, 0.0], [2, 0.5, 0.0]], "regime": "few"})
    assert [k for k, _, _ in few_shot.mean_curve([short, few[1]], 2)] == [1, 2]
    assert few_shot.mean_curve([short], 2) == []
    first = few_shot.draw(records)[0]
    assert first.name == "few-shot-average" and not first.detail and "zero-shot (66.0 %)" in first.says
    paper = [dataclasses.replace(record, model="B", details={**record.details, "regime": "paper"}) for record in few]
    titles = [figure.title for figure in few_shot.draw([*records, *paper]) if not figure.detail]
    assert titles == ["Few labels: Average of 12 sets (few)", "Few labels: Average of 12 sets (paper)"]


def test_sets_where_zero_shot_was_never_reached_are_named_and_spoil_the_mean():
    needed = {"needed": Metric(value=3.0, count=1)}
    reached = made.record_of("data-efficiency", read_task("dtd"), "M", needed, {"needed": 3.0})
    other = made.record_of("data-efficiency", read_task("food101"), "M", needed, {"needed": 9.0})
    (figure,) = data_efficiency.draw([reached, other])
    assert "median 6" in figure.svg and "mean 6" in figure.svg
    (figure,) = data_efficiency.draw([reached, dataclasses.replace(other, details={"needed": None})])
    assert "not even with all labels: Food101" in figure.says and "median" not in figure.svg


def test_the_scatter_has_the_correlation_and_slope_of_the_published_tables():
    (figure,) = scatter.draw(records_of(made.results_of("clip27", ("ViT-L-14-336",), few=False)))
    assert "r = 0.81" in figure.says and "slope 1.32" in figure.says
    x, y = np.array([0.1, 0.4, 0.7, 0.9]), np.array([0.2, 0.3, 0.6, 0.7])
    line, low, high = scatter.line_band(x, y, np.array([0.5]))
    assert low[0] < line(0.5) < high[0]


def test_the_line_of_ordinary_models_is_straight_on_logit_axes(everything):
    line = baseline_of(read_testbed(), SEVEN).tree()
    frame = Frame(x=logits([0.5, 0.9]), y=logits([0.2, 0.8]), x_label="", y_label="")
    (piece,) = robustness.line_points(line, 0.5, 0.9)
    places = np.array([frame.at(x, y) for x, y in piece])
    slopes = np.diff(places[:, 1]) / np.diff(places[:, 0])
    assert slopes == pytest.approx(slopes[0], rel=1e-6)
    figures = robustness.draw([*records_of(everything[0]), *everything[1]])
    assert figures[0].title == "Mean of the seven shifts" and "+19.5 points from the line" in figures[0].says
    assert sum(figure.detail for figure in figures) == 7


def test_two_lines_that_meet_are_both_drawn():
    one = {"slope": 1.0, "intercept": 0.0}
    pieces = robustness.line_points({"lines": [one, {**one, "slope": 2.0}], "pivot": 0.8}, 0.5, 0.9)
    assert max(x for x, _ in pieces[0]) < 0.8 <= min(x for x, _ in pieces[1])


def test_scales_put_equal_steps_at_equal_distances():
    scale = shots([0, 1, 2, 4, 8, 16])
    assert np.diff([scale.at(k) for k in (0, 1, 2, 4, 8, 16)]) == pytest.approx([0.2] * 5)
    scale = logits([0.1, 0.9])
    assert scale.at(0.5) == pytest.approx(0.5) and 0 < scale.at(0.1) < scale.at(0.9) < 1
    assert scale.at(1.0) < math.inf and logits([0.0, 1.0]).at(1.0) <= 1
    assert linear([0.31, 0.69]).low <= 0.31 and linear([-0.2, 0.1], zero=True).low <= -0.2


def test_confusions_without_a_habit_are_not_shown_and_matrices_only_where_they_can_be_read():
    task = read_task("cifar10")
    record = made.record_of("zeroshot", task, "M", {"accuracy": Metric(value=0.5, count=9)})
    assert confusion.draw([record]) == []
    once = dataclasses.replace(record, details={"confusion": [["cat", "dog", 1]], "per_class": {}, "class_counts": {}})
    assert confusion.draw([once]) == []
    (small,) = confusion.draw([dataclasses.replace(record, details=made.zero_shot_details(task, 0.6))])
    large = read_task("food101")
    (many,) = confusion.draw([dataclasses.replace(record, task="food101", details=made.zero_shot_details(large, 0.6))])
    assert small.svg and "taken for" in small.more and not many.svg and "taken for" in many.more


def test_models_differ_in_colour_and_shape_and_repeat_neither_together():
    looks = [(style_of(n).colour, style_of(n).shape, style_of(n).dashed) for n in range(COLOURS * SHAPES // 2)]
    assert len(set(looks)) == len(looks)


def test_figure_modules_say_what_they_draw_and_where_and_draw_nothing_of_nothing():
    for name in FIGURES.names():
        module = FIGURES.load(name)
        assert module.SECTION in SECTIONS and FIGURES.summary(name).endswith(".") and module.draw([]) == []


def test_charts_as_files_are_whole_svg_documents_with_colours_of_their_own(everything, tmp_path):
    figures = [figure for found in draw_all([*records_of(everything[0]), *everything[1]]).values() for figure in found]
    assert len({figure.name for figure in figures}) == len(figures)
    paths = write_plots(tmp_path, figures)
    assert len(paths) > 20
    for path in paths:
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.attrib["aria-label"]
        assert "var(" not in text and "@media" not in text


def test_csv_has_a_row_a_metric_and_markdown_a_table_a_protocol():
    records = records_of(made.results_of("kornblith12", ("ViT-B-32-openai", "RN50-openai"), few=False))
    lines = as_csv(records).splitlines()
    assert len(lines) == 1 + sum(len(record.metrics) for record in records)
    food = next(line for line in lines if line.startswith("ViT-B-32-openai,food101,test,zeroshot,accuracy,1,0.844,"))
    assert ",higher,25250,0.844,0" in food
    text = as_markdown(records)
    assert text.count("## ") == 2 and "| Food101 | accuracy | 84.4 % (83.9 to 84.8) | 81.1 % (80.6 to 81.6) | 0.99 % |" in text


def test_the_command_writes_the_page_tables_and_charts(tmp_path, capsys):
    results = Results(tmp_path / "results")
    for result in made.results_of("kornblith12", few=False)[:6]:
        results.write(result, {})
    out = {name: tmp_path / name for name in ("page.html", "t.csv", "t.md", "charts")}
    arguments = ["eval", "report", str(tmp_path / "results"), "-o", str(out["page.html"])]
    assert main([*arguments, "--csv", str(out["t.csv"]), "--markdown", str(out["t.md"]), "--plots", str(out["charts"])]) == 0
    assert "wrote" in capsys.readouterr().err
    text = out["page.html"].read_text()
    assert "ViT-B-32 on 3 data sets" in text and "ostension eval run cifar10 cifar100 food101" in text and "torch" in text
    assert out["t.csv"].read_text().startswith("model,task") and list(out["charts"].glob("*.svg"))
    twice = [*arguments[:2], str(tmp_path / "results"), *arguments[2:]]
    assert main(twice) == 1 and "two results of" in capsys.readouterr().err


def test_a_folder_without_results_is_said_in_one_line(tmp_path, capsys):
    assert main(["eval", "report", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "holds no results" in said and said.count("\n") == 1
    assert main(["eval", "report"]) == 2


def test_slugs_are_plain():
    assert slug("Zero Shot", "a/b@c", "é") == "zero-shot-a-b-c"


def test_what_failed_is_kept_with_its_reason_until_it_is_measured(tmp_path):
    def step(status, protocol="probe", reason=""):
        return Step(model="M", task="dtd", split="test", protocol=protocol, status=status, reason=reason)

    note_failures(tmp_path, [step("failed", reason="no data"), step("failed", "fewshot", "no data"), step("done", "zeroshot")])
    failed = read_failures(tmp_path)
    assert failed == {("M", "dtd", "probe"): "no data", ("M", "dtd", "fewshot"): "no data"}
    zero_shot = [r for r in made.results_of("kornblith12", few=False) if r.record.protocol == "zeroshot"]
    words = " ".join(Reader(results_page(zero_shot, [], failed=failed)).words)
    assert "few-shot on Describable Textures (M), linear probe on Describable Textures (M): no data" in words
    note_failures(tmp_path, [step("done"), step("not applicable", "fewshot")])
    assert read_failures(tmp_path) == {} and not list(tmp_path.iterdir())
    (tmp_path / "failed.json").write_text("[]")
    with pytest.raises(DataError, match="not a list of failures"):
        read_failures(tmp_path)


def test_places_stand_beside_chance_and_the_papers_figures():
    details = {"published": {"ViT-L-14-336": {"1": 0.139, "25": 0.329}}, "distances": []}
    metrics = {
        "within_1_km": Metric(value=0.2, count=50, chance=0.01),
        "within_25_km": Metric(value=0.4, count=50, chance=0.02),
        "median_distance_km": Metric(value=812.3, count=50, direction="lower"),
    }
    record = made.record_of("geolocation", read_task("country211"), "M", metrics, details)
    (figure,) = geolocation.draw([dataclasses.replace(record, counts={"references": 1000})])
    assert "within 25 km" in figure.svg and "paper 32.9 %" in figure.svg and 'class="chance"' in figure.svg
    assert "M 812 km" in figure.says


def test_groups_of_a_task_that_is_scored_by_them_are_shown_worst_first_unless_their_protocol_was_run():
    cells = {"land": [0.9, 400], "water": [0.4, 60]}
    worst = {"worst_group": Metric(value=0.4, count=460)}
    record = made.record_of("zeroshot", read_task("waterbirds"), "M", worst, {"groups": cells})
    (figure,) = groups.draw([record])
    assert figure.says.startswith("Worst is water: 40.0 %, 43.5 points below")
    assert figure.svg.index(">water<") < figure.svg.index(">land<")
    assert groups.draw([record, dataclasses.replace(record, protocol="groups")]) == []


def test_a_record_of_another_form_costs_its_own_figure_and_says_so(everything):
    results, summaries = everything
    broken = made.record_of("prompts", read_task("food101"), "RN50-openai", {"accuracy": Metric(value=0.5, count=9)})
    text = results_page([*results, Result(record=broken, identity={})], summaries)
    assert "The figure prompts could not be drawn" in text and "Mean of the seven shifts" in text
    assert "could not be drawn" not in results_page(results, summaries)
