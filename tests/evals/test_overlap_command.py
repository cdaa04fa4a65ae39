"""`ostension eval overlap` from pictures to the table: planted duplicates, a task's ids, mistakes in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ostension.cli.main import main
from ostension.data.task_data import open_task
from ostension.evals.records import load_records
from ostension.formats.duplicate_detector import save_detector
from ostension.formats.load import save
from ostension.image.transforms import PreprocessConfig
from ostension.model.clip import CLIP
from ostension.model.duplicate_detector import DetectorConfig, DuplicateDetector
from ostension.model.presets import preset
from ostension.runtime import numpy_generator


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A detector, ten training pictures, and a test set of eight in two classes, two of which are copies from training."""
    place = tmp_path_factory.mktemp("overlap")
    preprocess = PreprocessConfig(image_size=32, resize="squash")
    config = DetectorConfig(embed_dim=32, layers=(1, 1), width=8, pool="flatten", preprocess=preprocess)
    save_detector(DuplicateDetector(config), place / "detector")
    for name in ("train", "test/cat", "test/dog"):
        (place / name).mkdir(parents=True)

    def drawing(name, index):
        pixels = numpy_generator("overlap command", name, index).integers(0, 255, (6, 6, 3)).astype(np.uint8)
        return Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)

    for index in range(10):
        drawing("train", index).save(place / "train" / f"{index}.png")
    for index in range(8):
        label = "cat" if index < 4 else "dog"
        if index in (0, 5):
            drawing("train", index).save(place / "test" / label / f"{index}.jpg", quality=80)
        else:
            drawing("test", index).save(place / "test" / label / f"{index}.png")
    return place


def neighbours(work, *more):
    found = ["--evaluation", str(work / "test"), "--training", str(work / "train"), "--store", str(work / "store")]
    return ["eval", "overlap", "neighbours", *found, *more]


def printed(capsys, *arguments, status=0):
    assert main([str(argument) for argument in arguments]) == status, capsys.readouterr().err
    shown = capsys.readouterr()
    return shown.err if status else shown.out


def test_from_pictures_to_the_table_in_four_commands(work, tmp_path, capsys):
    folder = tmp_path / "mine"
    made = json.loads(printed(capsys, *neighbours(work, "--detector", work / "detector", "-o", folder, "--json")))
    assert (made["evaluation"], made["training"], made["same_file"]) == (8, 10, 0)
    assert made["hash_at_most_4_bits"] >= 2
    printed(capsys, "eval", "overlap", "review", folder)
    page = (folder / "review.html").read_text(encoding="utf-8")
    assert page.index("cat/0.jpg") < page.index("dog/7.png")
    from ostension.evals.overlap_neighbours import Neighbours

    found = Neighbours.load(folder)
    order = np.argsort(-found.best)
    assert {found.ids[row] for row in order[:2]} == {"cat/0.jpg", "dog/5.jpg"}
    threshold = (found.best[order[1]] + found.best[order[2]]) / 2
    shown = printed(capsys, "eval", "overlap", "decide", folder, "--threshold", threshold, "--by", "ada")
    assert "2 of 8 pictures overlap (25.00 %)" in shown
    lines = ["id,correct", *(f"{name},{int(name in ('cat/0.jpg', 'dog/5.jpg', 'cat/1.png'))}" for name in found.ids)]
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    table = printed(
        capsys, "eval", "overlap", "measure", f"{folder}={tmp_path / 'samples.csv'}", "--model", "M", "--tests", 35,
        "-o", tmp_path / "overlap.json",
    )  # fmt: skip
    assert "25.00 %" in table
    record = load_records(tmp_path / "overlap.json")["overlap"]
    row = record.details["sets"][0]
    assert row["p"] == pytest.approx((1 / 6) ** 2)
    assert row["p_corrected"] == pytest.approx(35 / 36)
    assert row["delta"] == pytest.approx(3 / 8 - 1 / 6)
    assert (record.task, record.model, row["threshold"]) == ("mine", "M", pytest.approx(threshold))


def test_a_second_set_finds_the_training_pictures_in_the_store(work, tmp_path, capsys):
    printed(capsys, *neighbours(work, "--detector", work / "detector", "-o", tmp_path / "a"))
    before = sorted((work / "store").iterdir())
    printed(capsys, *neighbours(work, "--detector", work / "detector", "-o", tmp_path / "b", "--nearest", "1"))
    assert sorted((work / "store").iterdir()) == before
    assert "another k" in printed(
        capsys, *neighbours(work, "--detector", work / "detector", "-o", tmp_path / "b"), status=1
    )  # fmt: skip


def test_without_a_detector_contents_and_hashes_are_compared(work, tmp_path, capsys):
    shown = printed(capsys, *neighbours(work, "-o", tmp_path / "hashes"))
    assert "hash, 0-4 bits   2" in shown
    assert "similarity" not in shown
    printed(capsys, "eval", "overlap", "review", tmp_path / "hashes")
    made = json.loads(printed(capsys, "eval", "overlap", "decide", tmp_path / "hashes", "--bits", 4, "--json"))
    assert (made["overlap"], made["all"]) == (2, 8)
    assert "had no detector" in printed(capsys, "eval", "overlap", "decide", tmp_path / "hashes", "--threshold", 0.9, status=1)


def test_a_task_s_pictures_have_the_ids_that_its_results_have(work, tmp_path, capsys):
    printed(capsys, "task", "new", work / "test", "-o", tmp_path / "mine.toml")
    arguments = ("--task", tmp_path / "mine.toml", "--data", work / "test", "--training", work / "train")
    printed(capsys, "eval", "overlap", "neighbours", *arguments, "-o", tmp_path / "found")
    printed(capsys, "eval", "overlap", "review", tmp_path / "found")
    printed(capsys, "eval", "overlap", "decide", tmp_path / "found", "--bits", 4)
    ids = open_task(tmp_path / "mine.toml", work / "test").ids
    (tmp_path / "a.csv").write_text("\n".join(["id,correct", *(f"{name},1" for name in ids)]))
    shown = printed(capsys, "eval", "overlap", "measure", f"{tmp_path / 'found'}={tmp_path / 'a.csv'}", "--json")
    assert json.loads(shown)["details"]["sets"][0]["counts"] == {"all": 8, "overlap": 2, "clean": 6}
    (tmp_path / "a.csv").write_text(f"id,correct\n{ids[0]},1\n")
    error = printed(capsys, "eval", "overlap", "measure", f"{tmp_path / 'found'}={tmp_path / 'a.csv'}", status=1)
    assert "7 ids have no value" in error


def test_the_example_on_the_page_runs(work, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, place in (("test", "test"), ("train", "train"), ("runs/detector/model", "detector")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(work / place)
    for name in ("a", "b"):
        Image.open(work / "train" / "0.png").convert("RGB").save(tmp_path / f"{name}.jpg")
    page = Path(__file__).parents[2] / "docs" / "howto" / "data-overlap.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, str(page), "exec"), {})
    cosine, best = capsys.readouterr().out.splitlines()
    assert float(cosine) == pytest.approx(1.0, abs=1e-5)
    assert best.startswith("cat/0.jpg 0.png")


def test_check_says_how_well_copies_of_one_s_own_pictures_are_found(work, tmp_path, capsys):
    save(CLIP(preset("tiny-vit"), seed=1), work / "clip")
    shown = printed(
        capsys, "eval", "overlap", "check", work / "train", "--detector", work / "detector", "--model", work / "clip",
        "-o", tmp_path / "check.json",
    )  # fmt: skip
    assert "10 pictures, a copy of each" in shown
    records = load_records(tmp_path / "check.json")
    assert list(records) == ["detector", "model", "pixels", "perceptual hash"]
    assert records["detector"].hashes["weights"] != records["model"].hashes["weights"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["neighbours", "--training", "x", "-o", "y"], 2, "one of --evaluation and --task"),
        (["neighbours", "--evaluation", "x", "--training", "y", "--data", "z", "-o", "o"], 2, "--data says where"),
        (["review", "nowhere"], 1, "holds no neighbours"),
        (["decide", "nowhere"], 2, "nothing is decided"),
        (["measure", "nowhere"], 2, "FOLDER=SAMPLES"),
        (["measure", "nowhere=x.csv"], 1, "holds no neighbours"),
        (["reviews"], 2, "eval overlap reviews"),
    ],
)
def test_mistakes_are_one_line(arguments, status, message, capsys):
    error = printed(capsys, "eval", "overlap", *arguments, status=status)
    assert message in error
    assert error.count("\n") == 1


def test_an_evaluation_picture_that_cannot_be_read_ends_the_search_with_its_name(work, tmp_path, capsys):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "good.png").write_bytes((work / "train" / "0.png").read_bytes())
    (tmp_path / "test" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    arguments = ["--evaluation", tmp_path / "test", "--training", work / "train", "--store", tmp_path / "store"]
    error = printed(
        capsys, "eval", "overlap", "neighbours", *arguments, "--detector", work / "detector", "-o", tmp_path / "o", status=1
    )  # fmt: skip
    assert "1 evaluation pictures cannot be used, the first torn.png" in error


def test_moved_pictures_are_found_where_they_are_said_to_be(work, tmp_path, capsys):
    printed(capsys, *neighbours(work, "-o", tmp_path / "a"))
    other = work.rename(work.with_name("elsewhere"))
    try:
        assert "no" in printed(capsys, "eval", "overlap", "review", tmp_path / "a", status=1)
        places = ("--evaluation", other / "test", "--training", other / "train")
        printed(capsys, "eval", "overlap", "review", tmp_path / "a", *places)
    finally:
        other.rename(work)


def test_the_help_has_the_group_and_its_steps(capsys):
    assert "Data overlap: which evaluation pictures" in printed(capsys, "eval", "--help")
    shown = printed(capsys, "eval", "overlap", "--help")
    assert all(step in shown for step in ("neighbours", "review", "decide", "measure", "check"))
