"""What a source may say and how its files may be called, without a traceback, a wrong row or a wrong line anywhere."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ostension
from ostension.cli.main import main
from ostension.data.pairs import Pair
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store.collection import open_collection
from ostension.store.facts import Facts
from ostension.store.fill import known_of

FACTS = '{"n": NaN, "big": 1e999, "deep": {"k": [1, {"z": "\\ud800"}]}, "labels": "cat", "huge": 12345678901234567890123456789}'
MARKS = '{"ostension bad": "gotcha", "ostension tolerant": 1, "label": 3, "id": "evil"}'
NAMES = (b"a.png", b"b.png", b"new\nline.png", "a\u2028b.png".encode(), b"\xff\xfe.png", b"-.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, and a store of pictures with such names and facts."""
    folder = tmp_path_factory.mktemp("hostile")
    ostension.save(CLIP(preset("tiny-vit"), seed=0), folder / "model")
    (folder / "pictures").mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        try:
            Path(folder / "pictures" / os.fsdecode(name)).write_bytes(buffer.getvalue())
        except OSError:
            pytest.skip("this file system takes no such names")
    (folder / "pictures" / "a.json").write_text(FACTS)
    (folder / "pictures" / "b.json").write_text(MARKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["embed", "pictures", "-o", "store", "--model", "model"]) == 0
    return folder


@pytest.fixture
def run(made, monkeypatch, capsysbinary):
    monkeypatch.chdir(made)

    def command(*words: str, status: int = 0) -> tuple[bytes, str]:
        capsysbinary.readouterr()
        assert main([*words]) == status
        out, err = capsysbinary.readouterr()
        return out, err.decode("utf-8", "surrogateescape")

    return command


def test_numbers_that_json_lacks_and_halves_of_signs_do_not_stop_a_folder(made):
    opened = open_collection(made / "store")
    assert len(opened) == len(NAMES) and set(opened.ids) == {os.fsdecode(name) for name in NAMES}
    (facts,) = Facts(opened).of(opened.numbers(["a.png"]))
    assert (facts["n"], facts["big"], facts["labels"]) == (None, None, ["cat"])
    assert facts["deep"] == {"k": [1, {"z": "\ufffd"}]} and facts["huge"] == 12345678901234567890123456789


def test_a_source_cannot_say_that_its_picture_is_bad(made):
    opened = open_collection(made / "store")
    (facts,) = Facts(opened).of(opened.numbers(["b.png"]))
    assert facts["ostension bad"] == "gotcha" and facts["labels"] == ["3"] and not opened.rejects()


@pytest.mark.parametrize(
    ("value", "expected"), [("cat", ["cat"]), (7, ["7"]), (["a", 1], ["a", "1"]), ({"a": 1}, ["{'a': 1}"])]
)
def test_a_label_that_is_no_list_is_one_label(value, expected):
    assert json.loads(known_of(Pair(key="k", image=b"", texts=(), meta={"labels": value}))["labels"]) == expected


def test_every_line_of_json_is_one_line_of_utf_8(run):
    out, _ = run("search", "store", "--like", "a.png", "--format", "jsonl")
    lines = out.decode("utf-8").splitlines()
    assert len(lines) == len(NAMES) and {json.loads(line)["id"] for line in lines} == {os.fsdecode(name) for name in NAMES}


def test_ids_that_would_be_read_as_several_are_not_listed_by_lines(run):
    _, err = run("view", "duplicates", "store", "--cosine", "-1", "--rules", "embedding", "--ids", status=1)
    assert r"the id 'new\nline.png' cannot stand in a list of lines; use --format jsonl" in err


def test_ids_of_any_bytes_are_removed_by_a_list_on_stdin(run, made, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a\u2028b.png\n".encode() + b"\xff\xfe.png\n")))
    run("embed", "pictures", "-o", str(tmp_path / "other"), "--model", "model", "--quiet")
    out, _ = run("store", "rm", str(tmp_path / "other"), "-")
    assert json.loads(out)["removed"] == 2


@pytest.mark.parametrize("form", ["npy", "clip-retrieval"])
def test_what_other_programs_read_has_such_names_with_backslashes_and_comes_back(run, form, tmp_path):
    pytest.importorskip("pyarrow")
    run("store", "export", "store", "-o", str(tmp_path / "out"), "--format", form)
    run("store", "import", str(tmp_path / "out"), str(tmp_path / "again"), "--model", "model")
    opened = open_collection(tmp_path / "again")
    assert len(opened) == len(NAMES) and "\\udcff\\udcfe.png" in opened.ids
    np.testing.assert_array_equal(opened.rows[:], open_collection("store").rows[:])


def test_columns_of_any_type_are_imported(made, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "from"
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    np.save(folder / "img_emb" / "img_emb_0.npy", np.eye(2, CLIP(preset("tiny-vit")).config.embed_dim, dtype=np.float32))
    columns = {"caption": [5, 7], "labels": ["cat", None], "width": [2**64 - 1, 3], "score": [float("nan"), 1.0]}
    parquet.write_table(arrow.table({**columns, "width": arrow.array(columns["width"], arrow.uint64())}),
                        folder / "metadata" / "metadata_0.parquet")  # fmt: skip
    assert main(["store", "import", str(folder), str(tmp_path / "store"), "--model", str(made / "model")]) == 0
    opened = open_collection(tmp_path / "store")
    first, second = Facts(opened).of([0, 1])
    assert first["texts"] == ["5"] and first["labels"] == ["cat"] and second["labels"] == [] and first["score"] is None


def test_a_page_of_hits_is_written_whatever_they_are_called(run, tmp_path):
    run("search", "store", "--like", "a.png", "--html", str(tmp_path / "page.html"))
    assert "new\nline.png" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_weight_without_end_is_refused_as_what_it_is(run):
    _, err = run("search", "store", "9" * 400 + "*x", "--model", "model", status=2)
    assert "a weight of 9999" in err and "1,000,000 at most" in err
