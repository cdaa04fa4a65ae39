"""Tables of compared methods: columns side by side, intervals over seeds and samples, effective robustness, alphas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ostension.adapt import finetune
from ostension.adapt._tuning import tuning
from ostension.cli.main import main
from ostension.errors import ConfigError, DataError
from ostension.evals.adaptation import Plan, examples_of, points_between, run_plan
from ostension.evals.adaptation_table import OOD, fits_of, rows_of_records
from ostension.evals.effective_robustness import baseline_of, fit_baseline
from ostension.evals.figures.adapting_shifted import draw
from ostension.evals.metrics import Interval
from ostension.evals.records import Metric, Record
from ostension.evals.statistics import seeds_and_samples, student_quantile
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.evals.testbed import read_testbed
from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Store

scipy_stats = pytest.importorskip("scipy.stats")


def metric(value, count=400):
    half = 1.96 * math.sqrt(value * (1 - value) / count)
    return Metric(value=value, count=count, interval=Interval(value - half, value + half, 0.95, "wilson"))


def record(method, own, others, *, seed=1, shots=16, task="here", **more):
    metrics = {"accuracy": metric(own), **{name: metric(value) for name, value in others.items()}, **more}
    return Record(
        protocol=f"adapt-{method}-{shots}shot-seed{seed}", subject=method, metrics=metrics, hashes={}, counts={}, seeds=(seed,),
        config={"method": method, "shots": shots, "base_to_new": False, "score": "accuracy"}, task=task, model="m",
        split="test",
    )  # fmt: skip


def cells(rows, method="a"):
    return {row.metric: row for row in rows if row.method == method}


@pytest.mark.parametrize("freedom", [1, 2, 4, 30])
def test_students_quantile_is_scipys(freedom):
    assert student_quantile(0.95, freedom) == pytest.approx(scipy_stats.t.ppf(0.975, freedom), rel=1e-9)


def test_an_interval_over_seeds_and_samples_covers_what_it_promises():
    generator, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        bias = generator.normal(0, 0.02)  # of the test pictures, which all seeds share
        span = seeds_and_samples(bias + generator.normal(0, 0.02, 3), np.full(3, 0.02))
        inside += span.low <= 0 <= span.high
    assert 0.94 < inside / 1000 < 0.995
    alone = seeds_and_samples(np.array([0.5]), np.array([0.02]))
    assert alone.method == "samples" and alone.high - alone.low == pytest.approx(2 * 1.959964 * 0.02)


def test_in_and_out_of_distribution_stand_side_by_side_with_their_mean():
    records = [record("a", own, {"x@test": x, "y@test": y}, seed=seed)
               for seed, (own, x, y) in enumerate([(0.8, 0.5, 0.3), (0.82, 0.52, 0.4)])]  # fmt: skip
    found = cells(rows_of_records(records))
    assert list(found) == ["accuracy", "x@test", "y@test", OOD]
    assert found[OOD].mean == pytest.approx((0.4 + 0.46) / 2) and found[OOD].spread == pytest.approx(0.03)
    assert found["accuracy"].seeds == 2 and found["accuracy"].interval.method == "seeds and samples"
    # Two tasks have samples of their own: their mean is surer than either.
    fit = fits_of(records[0])[""]
    widths = {name: one.interval.high - one.interval.low for name, one in fit.items()}
    assert widths[OOD] == pytest.approx(math.hypot(widths["x@test"], widths["y@test"]) / 2)


def test_a_worst_group_and_rivals_have_their_places():
    more = {"worst_group": metric(0.4), "x@test/worst_group": metric(0.1)}
    more |= {"mix/accuracy": metric(0.7), "mix/x@test": metric(0.6)}
    fits = fits_of(record("a", 0.8, {"x@test": 0.5}, **more))
    assert list(fits[""]) == ["accuracy", "worst_group", "x@test/worst_group", "x@test", OOD]
    assert fits["mix"][OOD].value == 0.6 and fits[""][OOD].value == 0.5
    assert "a: mix" in {row.method for row in rows_of_records([record("a", 0.8, {"x@test": 0.5}, **more)])}


def test_effective_robustness_is_above_the_line_of_the_named_methods():
    probes = [record("probe", own, {"x@test": shifted}, shots=shots)
              for shots, own, shifted in ((1, 0.5, 0.3), (4, 0.6, 0.38), (16, 0.7, 0.5), (0, 0.8, 0.6))]  # fmt: skip
    rows = rows_of_records([*probes, record("a", 0.7, {"x@test": 0.65})], line=["probe"])
    expected = fit_baseline(np.array([0.5, 0.6, 0.7, 0.8]), np.array([0.3, 0.38, 0.5, 0.6])).effective(0.7, 0.65)
    found = cells(rows)["effective_robustness"]
    assert found.mean == pytest.approx(expected) and found.interval.low < expected < found.interval.high
    assert abs(np.mean([row.mean for row in rows if row.method == "probe" and row.metric == "effective_robustness"])) < 0.01
    assert "effective_robustness" not in cells(rows_of_records(probes[:1]), "probe")
    with pytest.raises(DataError, match="2 models of probe"):
        rows_of_records(probes[:2], line=["probe"])


def test_for_imagenet_the_published_line_is_there_where_x_is_of_all_classes():
    found = cells(rows_of_records([record("a", 0.8, {"imagenet_v2@test": 0.7, "imagenet_r@test": 0.6}, task="imagenet")]))
    expected = baseline_of(read_testbed(), "imagenet_v2").effective(0.8, 0.7)
    assert found["imagenet_v2/effective_robustness"].mean == pytest.approx(expected)
    assert "imagenet_r/effective_robustness" not in found


@pytest.fixture(scope="module")
def model():
    base = preset("tiny-vit")
    text, tokenizer = (dataclasses.replace(part, context_length=48) for part in (base.text, base.tokenizer))
    return CLIP(dataclasses.replace(base, text=text, tokenizer=tokenizer), seed=0).eval()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Two colours by two sizes, the sizes as a group."""
    root = tmp_path_factory.mktemp("colours")
    lines = ["file,label,split,size"]
    for split, each in (("train", 3), ("test", 2)):
        for label, paint in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
            for size in ("small", "large"):
                for index in range(each):
                    noise = np.random.default_rng([index, *paint, len(size)]).integers(-20, 20, (32, 32, 3))
                    name = f"{split}-{label}-{size}-{index}.png"
                    Image.fromarray(np.clip(np.array(paint) + noise, 0, 255).astype(np.uint8)).save(root / name)
                    lines.append(f"{name},{label},{split},{size}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    (root / "colours.toml").write_text(
        'title = "colours"\nversion = 1\ntemplates = ["a photo of a {}."]\nlicence = "none"\ncitation = "none"\n'
        '[classes]\nred = "red"\nblue = "blue"\n[groups]\nsize = ["small", "large"]\n'
        '[splits.train]\ncount = 12\n[splits.test]\ncount = 8\n'
        '[[sources]]\nkind = "csv"\npath = "list.csv"\nimage = "file"\nlabel = "label"\nsplit = "split"\n'
    )
    return root / "colours.toml"


def test_settings_are_chosen_by_the_split_that_is_named(task, model, tmp_path):
    from ostension.adapt import probe
    from ostension.data.task import read_task
    from ostension.data.task_parts import Split

    base = read_task(task)
    splits = {**base.splits, "id_val": Split(count=4, select={"size": ("small",), "split": ("test",)})}
    splits["test"] = Split(count=4, select={"size": ("large",), "split": ("test",)})
    here = TaskSplits(dataclasses.replace(base, splits=splits), task.parent)
    embedder = Embedder(model, Store(tmp_path / "store"), name="tiny")
    plan = Plan(method="probe", config=probe.Config(), shots=2, val="id_val")
    record, _ = run_plan(plan, here, embedder)
    assert record.config["selection"] == "id_val" and "by-id_val" in record.protocol
    found = examples_of(here, embedder, plan)
    assert {found.val.source.key(index).split("-")[2] for index in range(len(found.val))} == {"small"}
    with pytest.raises(ConfigError, match="measured"):
        examples_of(here, embedder, dataclasses.replace(plan, val="test"))
    with pytest.raises(DataError, match="ood_val"):
        examples_of(here, embedder, dataclasses.replace(plan, val="ood_val"))


def tuned(**changes):
    return finetune.Config(recipe=tuning(epochs=1, batch_size=4, lr=1e-3, views=0, warmup_steps=0, **changes))


def test_the_worst_group_is_measured_where_the_record_lists_groups(task, model, tmp_path):
    embedder = Embedder(model, Store(tmp_path / "store"), name="tiny")
    record, _ = run_plan(Plan(method="zero-shot"), TaskSplits(task), embedder, targets=[TaskSplits(task)])
    assert record.metrics["worst_group"].count == 4 and "colours@test/worst_group" in record.metrics
    assert record.metrics["worst_group"].value <= record.metrics["accuracy"].value


def test_points_between_zero_shot_and_tuned_weights_are_measured_and_leave_the_predictor_as_it_was(task, model, tmp_path):
    embedder = Embedder(model, Store(tmp_path / "store"), name="tiny")
    plan = Plan(method="finetune", config=tuned(), shots=2, alphas=(0.0, 0.5, 1.0))
    record, predictor = run_plan(plan, TaskSplits(task), embedder, targets=[TaskSplits(task)])
    fits = fits_of(record)
    assert list(fits) == ["", "alpha 0", "alpha 0.5", "alpha 1"]
    zero_shot, _ = run_plan(Plan(method="zero-shot"), TaskSplits(task), embedder, targets=[TaskSplits(task)])
    assert fits["alpha 0"]["accuracy"].value == zero_shot.metrics["accuracy"].value
    assert fits["alpha 1"]["accuracy"] == record.metrics["accuracy"] and fits["alpha 1"][OOD].value == fits[""][OOD].value
    before = {name: value.clone() for name, value in predictor.module.state_dict().items()}
    for _, between in points_between(predictor, (0.5,)):
        assert not torch.equal(between.module.state_dict()["visual.conv1.weight"], before["visual.conv1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in predictor.module.state_dict().items())
    with pytest.raises(ConfigError, match="alphas"):
        Plan(method="finetune", alphas=(1.5,))


def test_the_scatter_shows_methods_and_the_line_of_alphas():
    alphas = {f"alpha {alpha}/{name}": metric(value) for alpha, own, other in ((0, 0.5, 0.4), (0.5, 0.7, 0.45), (1, 0.8, 0.3))
              for name, value in (("accuracy", own), ("x@test", other))}  # fmt: skip
    records = [record("zero-shot", 0.5, {"x@test": 0.4}), record("finetune", 0.8, {"x@test": 0.3}, **alphas)]
    (figure,) = draw(records)
    assert "finetune" in figure.svg and "alpha 0.5" in figure.svg and figure.svg.count("<polyline") >= 2
    assert draw([record("a", 0.5, {})]) == []


def test_the_command_prints_columns_side_by_side(task, model, tmp_path, capsys):
    save(model, tmp_path / "model")
    asked = ["adapt", "compare", "--model", str(tmp_path / "model"), "--dtype", "float32", "--tasks", str(task),
             "--test", str(task), "--store", str(tmp_path / "store"), "-o", str(tmp_path / "results")]  # fmt: skip
    assert main([*asked, "--methods", "zero-shot"]) == 0
    head = capsys.readouterr().out.splitlines()[1]
    assert head.index("accuracy") < head.index("worst group") < head.index("colours@test") < head.index("out of distribution")
    assert main([*asked, "--methods", "zero-shot", "--line", "probe"]) == 2
    assert main([*asked, "--methods", "zero-shot", "--alphas", "x"]) == 2
