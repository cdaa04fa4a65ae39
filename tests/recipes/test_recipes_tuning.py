"""The study of tuned weights: sets with a shift, plans, and its smoke form, on packs of a few random pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ostension.cli.main import main
from ostension.data.task import read_task
from ostension.errors import ConfigError
from ostension.evals.records import load_records
from ostension.evals.task_splits import TaskSplits
from ostension.recipes import _adapting_sets as shared
from ostension.recipes import _tuning_sets as sets
from ostension.recipes._adapting_study import StudyConfig, plan_of
from ostension.recipes._tuning_study import ALPHAS, KEEP, SETTINGS, TOWERS, run_study

parquet = pytest.importorskip("pyarrow.parquet")
arrow = pytest.importorskip("pyarrow")


def pictures(count=7):
    generator, made = np.random.default_rng(0), []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
        made.append(buffer.getvalue())
    return made


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    root, some = tmp_path_factory.mktemp("packs"), pictures()

    def write(name, rows):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        rows = [{"image": some[number % len(some)], **row} for number, row in enumerate(rows)]
        parquet.write_table(arrow.table({key: [row[key] for row in rows] for key in rows[0]}), root / name)

    def labelled(task, count, column="label"):
        return [
            {column: key, "split": split, "path": f"{split}/{key}/{index}"}
            for key in task.display_names() for split in ("train", "test") for index in range(count)
        ]  # fmt: skip

    write("pacs/pacs.parquet", [
        {"path": f"{domain}/{key}/{index}", "domain": domain, "label": key}
        for domain in shared.DOMAINS for key in read_task("pacs").display_names() for index in range(95)
    ])  # fmt: skip
    write("emoji/emoji.parquet", [
        {"style": style, "hexcode": f"{kind}{index}", "subcategory": kind}
        for style in (*shared.STYLES, shared.NEW_STYLE) for kind in shared.KINDS for index in range(42)
    ])  # fmt: skip
    write("cifar10/cifar10_10ktest_10ktrain.parquet", labelled(read_task("local_cifar10"), 3))
    write("caltech101/caltech101.parquet", labelled(read_task("local_caltech101"), 3))
    tiny = labelled(read_task("local_tiny_imagenet"), 2, "wnid")
    tiny = [{**row, "label": f"name of {row['wnid']}", "split": row["split"].replace("test", "val")} for row in tiny]
    write("tiny_imagenet/tiny_imagenet_val10k_train50pc.parquet", tiny)
    write("flickr8k_1000/flickr8k_1000.parquet", [{"captions": ["a dog runs"]}] * 8)
    write("openclipart/openclipart.parquet", [{"folders": ["animals", "bugs"]}] * 6)
    (root / "fashion_mnist").mkdir()
    arrays = {f"{split}_images": np.zeros((30, 28, 28), np.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": np.arange(30) % 10 for split in ("train", "test")}
    np.savez(root / "fashion_mnist/fashion_mnist_10ktest_10ktrain.npz", **arrays, **labels)
    return root


def test_a_test_is_of_the_kind_that_was_learned_and_a_shift_is_not(packs, tmp_path):
    paths = {path.stem: path for path in sets.write_sets(packs, tmp_path)}
    photos = TaskSplits(paths["pacs_tuned_photo"])
    parts = {
        name: photos.of(name).split("test") if name != "train" else photos.split("train") for name in ("train", "test", "shift")
    }
    assert [len(part) for part in parts.values()] == [3 * 7 * 60, 3 * 7 * 10, 7 * 30]
    assert {*parts["shift"].groups["domain"]} == {"photo"} and "photo" not in {
        *parts["train"].groups["domain"],
        *parts["test"].groups["domain"],
    }
    assert len({one for part in parts.values() for one in part.ids}) == sum(map(len, parts.values()))
    emoji = TaskSplits(paths["emoji_vendors"])
    learned = {name.split("/")[1] for name in emoji.split("train").ids}
    for name in ("test", "shift"):
        assert not learned & {one.split("/")[1] for one in emoji.of(name).split("test").ids}


def test_settings_are_the_studys_and_unknown_parts_are_refused(tmp_path):
    assert plan_of("finetune", shots=16, seed=1, study=SETTINGS).config.recipe.lr == 1e-4
    assert plan_of("paint", shots=16, seed=1, study=SETTINGS).config.within == 0.01
    with pytest.raises(ConfigError, match="--part"):
        run_study(StudyConfig(data=tmp_path, parts=("everything",)), tmp_path)


@pytest.mark.slow
def test_the_smoke_form_tunes_averages_and_patches(packs, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["adapt", "tuning-study", "--data", str(packs), "-o", str(tmp_path), "--smoke"]
    assert main([*command, *(word for part in ("towers", "soups", "patches") for word in ("--part", part))]) == 0
    records = load_records(tmp_path / "tuning.json")
    methods = {record.config["method"] for record in records.values()}
    assert {*TOWERS, "soup-uniform", "soup-greedy"} < methods
    tuned = next(record for record in records.values() if record.config["method"] == "finetune")
    assert {f"alpha {alpha:g}/accuracy" for alpha in ALPHAS} < {*tuned.metrics} and "pacs_tuned_photo@shift" in tuned.metrics
    patch = next(record for record in records.values() if record.config["method"].startswith("paint"))
    assert {f"{name}@test" for name in KEEP} < {*patch.metrics}
