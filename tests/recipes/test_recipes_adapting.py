"""The study of methods, on packs of noise made on the spot."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ostension.cli.main import main
from ostension.data.task import read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.records import load_records
from ostension.evals.task_splits import TaskSplits
from ostension.recipes import _adapting_sets as sets
from ostension.recipes._adapting_study import DEFENCES, LAST, PARTS, SETTINGS, StudyConfig, plan_of, run_study

parquet = pytest.importorskip("pyarrow.parquet")
arrow = pytest.importorskip("pyarrow")


def picture(generator):
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table({name: [row[name] for row in rows] for name in rows[0]}), path)


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """The packs that the study reads, a few pictures of each class."""
    root, generator = tmp_path_factory.mktemp("packs"), np.random.default_rng(0)

    def labelled(task, count, column="label"):
        return [
            {"image": picture(generator), column: key, "split": split, "path": f"{split}/{key}/{index}"}
            for key in task.display_names()
            for split in ("train", "test")
            for index in range(count)
        ]

    write(root / "cifar10/cifar10_10ktest_10ktrain.parquet", labelled(read_task("local_cifar10"), 3))
    write(root / "caltech101/caltech101.parquet", labelled(read_task("local_caltech101"), 2))
    tiny = labelled(read_task("local_tiny_imagenet"), 2, "wnid")
    tiny = [{**row, "label": f"name of {row['wnid']}", "split": row["split"].replace("test", "val")} for row in tiny]
    write(root / "tiny_imagenet/tiny_imagenet_val10k_train50pc.parquet", tiny)
    pacs = [
        {"image": picture(generator), "path": f"{domain}/{key}/{index}", "domain": domain, "label": key}
        for domain in sets.DOMAINS for key in read_task("pacs").display_names() for index in range(3)
    ]  # fmt: skip
    write(root / "pacs/pacs.parquet", pacs)
    emoji = [
        {"image": picture(generator), "style": style, "hexcode": f"{kind}{index}", "subcategory": kind}
        for style in (*sets.STYLES, sets.NEW_STYLE) for kind in sets.KINDS for index in range(3)
    ]  # fmt: skip
    write(root / "emoji/emoji.parquet", emoji)
    write(root / "flickr8k_1000/flickr8k_1000.parquet", [{"image": picture(generator), "captions": ["a dog runs"]}] * 8)
    write(root / "openclipart/openclipart.parquet", [{"image": picture(generator), "folders": ["animals", "bugs"]}] * 6)
    (root / "fashion_mnist").mkdir()
    arrays = {f"{split}_images": generator.integers(0, 255, (30, 28, 28), dtype=np.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": np.arange(30) % 10 for split in ("train", "test")}
    np.savez(root / "fashion_mnist/fashion_mnist_10ktest_10ktrain.npz", **arrays, **labels)
    return root


def test_the_sets_are_cut_as_their_records_say(packs, tmp_path):
    paths = {path.stem: path for path in sets.write_sets(packs, tmp_path)}
    assert set(paths) == {task for part in PARTS.values() for task in part.tasks} | {"tiny_imagenet20"}
    for name, path in paths.items():
        splits = TaskSplits(path)
        train, test, few = splits.split("train"), splits.split("test"), splits.of("few").split("test")
        assert 0 < len(few) <= len(test) and len(train) > 0, name
        names = {data.split: [data.samples.read(index).key for index in range(len(data))] for data in (train, test, few)}
        assert not {*names["train"]} & {*names["test"]} and {*names["few"]} < {*names["test"]}
    left = TaskSplits(paths["pacs_without_sketch"])
    assert {*left.split("test").groups["domain"]} == {"sketch"}
    assert {*left.split("train").groups["domain"]} == {"photo", "art_painting", "cartoon"}
    styles = TaskSplits(paths["emoji_styles"])
    assert {*styles.split("test").groups["domain"]} == {"openmoji"}
    assert {*styles.split("train").groups["domain"]} == {"noto", "twemoji", "fluent3d"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    sets.write_sets(packs, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_plan_has_the_published_settings_but_for_what_the_study_says():
    assert plan_of("vpt", shots=1, seed=1).config.recipe.epochs == 5
    assert plan_of("dpl", shots=16, seed=1).config.recipe.epochs == SETTINGS["dpl"]["recipe.epochs"]
    assert plan_of("dpl", shots=16, seed=1).config.length == 16
    assert plan_of("zero-shot", shots=1, seed=1).config is None


def test_what_is_missing_or_unknown_is_said(tmp_path):
    with pytest.raises(DataError, match="there is no such pack"):
        run_study(StudyConfig(data=tmp_path), tmp_path / "work")
    with pytest.raises(ConfigError, match="--part"):
        run_study(StudyConfig(data=tmp_path, parts=("everything",)), tmp_path / "work")


@pytest.mark.slow
def test_the_smoke_form_does_every_part_and_goes_on_where_it_was(packs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["adapt", "study", "--data", str(packs), "-o", str(tmp_path / "work"), "--smoke"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "work/adapting.json")
    records = load_records(tmp_path / "work/adapting.json")
    costs = records.pop("processor-time").metrics
    assert set(costs) == {"lite0", "vit", *PARTS, *LAST} and min(cost.value for cost in costs.values()) > 0
    compared = {record.config["method"] for record in records.values()}
    from_others = "mvlpt from " + "+".join(PARTS["sources"].sources)
    assert compared == {method for part in PARTS.values() for method in part.methods} | {*DEFENCES, from_others}
    assert {record.model for record in records.values()} == {"lite0", "vit"}
    result = next((tmp_path / "work/results").glob("vit/*/adapt-maple-*.json"))
    before = result.stat().st_mtime_ns
    assert main(command) == 0 and result.stat().st_mtime_ns == before
