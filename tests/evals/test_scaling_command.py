"""`ostension scaling fit`: points from files, both rules, intervals, predictions, what is said when nothing can be fitted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ostension.cli.main import main
from ostension.errors import DataError
from ostension.evals.power_chart import log_ticks
from ostension.evals.scaling_law import fit_scaling_law, prediction_band, residuals

PUBLISHED = Path(__file__).parent / "scaling_points.json"
QUICK = ["--resamples", "50"]


def fit(capsys, *words, status=0):
    assert main(["scaling", "fit", *map(str, words), *QUICK]) == status
    return capsys.readouterr()


def tree(capsys, *words):
    return json.loads(fit(capsys, *words, "--json").out)


def made(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def law(tmp_path):
    """Ten runs on E = 3 C^-0.2, as CSV."""
    rows = [f"run{i},{10**i},{100},{3.0 * (10.0 ** (i + 2)) ** -0.2:.12f}" for i in range(1, 11)]
    return made(tmp_path / "law.csv", ["name,gmac,samples,error", *rows])


@pytest.mark.parametrize(
    ("target", "openclip", "openai"),
    [
        ("imagenet1k", (5.858, -0.1114), (23.18, -0.1638)),
        ("imagenet_robustness", (11.61, -0.1255), (211.7, -0.2378)),
        ("mscoco_captions", (2.750, -0.0794), (1.589, -0.0508)),
        ("flickr30k", (15.51, -0.1892), (2.208, -0.1028)),
        ("vtab+", (1.562, -0.0436), (5.557, -0.0908)),
    ],
)
def test_the_command_repeats_the_published_coefficients(capsys, target, openclip, openai):
    common = [PUBLISHED, "--compute", "gmacs_total", "--error", f"errors.{target}", "--where"]
    for condition, rule, (coefficient, slope), count in (
        ("data!=CLIP-WIT", "frontier", openclip, 29), ("data=CLIP-WIT", "least-squares", openai, 3),
    ):  # fmt: skip
        found = tree(capsys, *common, condition, "--rule", rule)
        assert found["num_points"] == count
        assert found["rules"][rule]["slope"] == pytest.approx(slope, abs=6e-5)
        assert found["rules"][rule]["coefficient"] == pytest.approx(coefficient, rel=5e-4)


def test_a_published_prediction_comes_with_intervals_and_says_what_is_extrapolated(capsys):
    words = [PUBLISHED, "--compute", "gmacs_total", "--error", "errors.imagenet1k", "--where", "data!=CLIP-WIT"]
    samples = 407_332_084 * 84
    inside, beyond = tree(capsys, *words, "--at", f"190.97*{samples}", "1e14")["rules"]["frontier"]["predictions"]
    assert 1 - inside["error"] == pytest.approx(0.781, abs=6e-4)  # H/14
    assert inside["extrapolated"] is None
    assert beyond["extrapolated"].startswith("extrapolated: 15.1 times the dearest run")
    for one in (inside, beyond):
        (law_low, law_high), (run_low, run_high) = one["law"], one["run"]
        assert law_low < one["error"] < law_high
        assert run_low < one["error"] < run_high
    text = fit(capsys, *words, "--at", "1e14").out
    assert "29 runs" in text
    assert "1 rows without a value left out" in text
    assert "extrapolated: 15.1 times" in text


def test_the_dearest_run_is_predicted_from_the_others(capsys, law):
    found = tree(capsys, law, "--check")["check"]
    assert (found["name"], found["num_points"]) == ("run10", 9)
    assert found["came"] == pytest.approx(found["rules"]["least-squares"]["error"])
    assert "extrapolated: 10 times the dearest run" in found["rules"]["least-squares"]["extrapolated"]
    text = fit(capsys, law, "--check").out
    assert "the dearest run, run10 at 1e+12, came to 0.01194" in text


def test_of_several_dearest_runs_all_are_left_out_and_the_best_is_compared(capsys, tmp_path):
    rows = ["name,compute,error", "a,10,0.9", "b,100,0.8", "c,1000,0.7", "few,10000,0.69", "many,10000,0.6"]
    found = tree(capsys, made(tmp_path / "x.csv", rows), "--check")["check"]
    assert (found["name"], found["came"], found["num_points"]) == ("many", 0.6, 3)


@pytest.mark.parametrize("ending", ["tsv", "json", "jsonl", "folder"])
def test_points_are_read_in_every_form(capsys, tmp_path, ending):
    rows = [{"name": f"r{i}", "compute": 10.0**i, "error": 3.0 * 10.0 ** (-0.2 * i)} for i in range(3, 9)]
    if ending == "tsv":
        path = made(tmp_path / "x.tsv", ["compute\terror", *(f"{row['compute']}\t{row['error']}" for row in rows)])
    elif ending == "jsonl":
        path = made(tmp_path / "x.jsonl", [json.dumps(row) for row in rows])
    elif ending == "json":
        path = made(tmp_path / "x.json", [json.dumps(rows)])
    else:
        path = tmp_path
        inner = [{"compute": row["compute"], "errors": {"top1": row["error"]}} for row in rows]
        made(path / "scaling.json", [json.dumps({"target": "errors.top1", "points": inner})])
    for rule in tree(capsys, path)["rules"].values():
        assert rule["num_places"] in (5, 6)
    assert tree(capsys, path)["rules"]["least-squares"]["slope"] == pytest.approx(-0.2)


def test_a_product_of_columns_is_a_compute_and_an_accuracy_an_error(capsys, tmp_path, law):
    assert tree(capsys, law)["compute_key"] == "gmac*samples"
    rows = ["c,top1", *(f"{10.0**i},{1 - 3.0 * 10.0 ** (-0.2 * i):.10f}" for i in range(3, 8))]
    found = tree(capsys, made(tmp_path / "a.csv", rows), "--compute", "c", "--accuracy", "top1")
    assert found["error_key"] == "1 - top1"
    assert found["rules"]["least-squares"]["coefficient"] == pytest.approx(3.0)


def test_the_page_holds_runs_laws_and_bands(capsys, tmp_path, law):
    out = tmp_path / "law.html"
    assert f"wrote {out}" in fit(capsys, law, "--at", "1e14", "--check", "--plot", out).err
    page = out.read_text(encoding="utf-8")
    assert page.count("<circle") == 10
    assert page.count("<polygon") == 2
    assert page.count("dashed") - page.count(".dashed") >= 2  # both lines go on beyond the runs
    assert "run10: 1e+12, 0.01194" in page
    assert "<script" not in page
    assert "extrapolated" in page


@pytest.mark.parametrize(
    ("lines", "words", "status", "message"),
    [
        (["compute,error"], [], 1, "no points; expected a row for each run"),
        (["compute,error", "5,0.5"], [], 1, "1 runs give 1 different points; expected 2 or more"),
        (["compute,error", "5,0.5", "5,0.4"], [], 1, "give 1 different points"),
        (["compute,error", "5,0.5", "0,0.4"], [], 1, "row 2: compute is 0; expected a positive compute"),
        (["compute,error", "5,0.5", "9,0"], [], 1, "row 2: error is '0'; expected a share, more than 0"),
        (["compute,error", "5,0.5", "9,42.5"], [], 1, "row 2: error is '42.5'; expected a share, more than 0 and at most 1"),
        (["compute,error", "5,0.5", "x,0.5"], [], 1, "row 2: compute is x"),
        (["flops,error", "5,0.5"], [], 1, "unknown column 'compute'"),
        (["compute,err", "5,0.5"], [], 1, "unknown column 'error'; expected one of the known names; nearest: 'err'"),
        (["compute,error", "5,0.5"], ["--where", "data=x"], 1, "--where: unknown column 'data'"),
        (["compute,error", "5,0.5"], ["--where", "compute"], 1, "is no condition; expected KEY=VALUE"),
        (["compute,error", "5,0.5"], ["--where", "compute=6"], 1, "no point is left by compute=6"),
        (["compute,error", "5,0.5"], ["--at", "-3"], 2, "'-3' is no compute"),
        (["compute,error", "5,0.5", "6,0.4", "7,0.3"], ["--check"], 1, "without the dearest run 2 are left"),
        (["compute,error", "5,0.5"], ["--error", "a", "--accuracy", "b"], 2, "both given"),
        (["compute,error", "5,0.5"], ["--level", "95"], 2, "--level is 95; expected between 0 and 1"),
        (["compute,error", "5,0.5"], ["--plot", "x.pdf"], 2, "ends with .html"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_one_clear_line(capsys, tmp_path, lines, words, status, message):
    told = fit(capsys, made(tmp_path / "x.csv", lines), *words, status=status)
    assert message in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""


def test_files_that_are_no_points_are_one_clear_line(capsys, tmp_path):
    assert "no such file" in fit(capsys, tmp_path / "gone.json", status=1).err
    assert "cannot be read" in fit(capsys, tmp_path / "gone.csv", status=1).err
    assert "is no list of points" in fit(capsys, made(tmp_path / "a.json", ['{"x": 1}']), status=1).err
    assert "line 2 is not JSON" in fit(capsys, made(tmp_path / "a.jsonl", ["{}", "{"]), status=1).err
    assert "is no file of points" in fit(capsys, made(tmp_path / "a.txt", ["1"]), status=2).err
    assert "no file is named" in fit(capsys, status=2).err


def test_a_line_through_two_places_has_no_interval_of_a_run(capsys, tmp_path):
    path = made(tmp_path / "x.csv", ["compute,error", "10,0.5", "1000,0.25"])
    found = tree(capsys, path, "--at", "1e4")["rules"]["least-squares"]
    assert found["predictions"][0]["run"] is None
    assert "nothing tells how far runs fall from it" in fit(capsys, path, "--at", "1e4").out
    with pytest.raises(DataError, match="goes through 2 places"):
        residuals(fit_scaling_law(np.array([10.0, 1000.0]), np.array([0.5, 0.25]), "least-squares"))


def test_the_interval_of_a_run_holds_new_runs_as_often_as_it_says():
    generator = np.random.default_rng(3)
    compute = np.logspace(3, 7, 24)
    at, inside = np.array([1e5, 1e8]), []
    for _ in range(60):
        error = np.minimum(1.0, 3.0 * compute**-0.2 * np.exp(0.1 * generator.standard_normal(24)))
        band = prediction_band(compute, error, at, rule="least-squares", of="run", level=0.9, resamples=150)
        new = 3.0 * at**-0.2 * np.exp(0.1 * generator.standard_normal(2))
        inside.append((band.low <= new) & (new <= band.high))
    share = np.mean(inside, axis=0)
    assert ((share > 0.8) & (share < 0.98)).all(), share


def test_ticks_of_a_logarithmic_axis_are_few_and_round():
    assert log_ticks(1.0, 1000.0) == [1.0, 10.0, 100.0, 1000.0]
    assert log_ticks(0.22, 0.6) == pytest.approx([0.3, 0.4, 0.5, 0.6])
    assert len(log_ticks(1e-3, 1e15)) <= 10
    assert log_ticks(0.33, 0.331)
