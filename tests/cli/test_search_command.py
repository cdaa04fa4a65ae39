"""`ostension search`, `view` and `index`: what is found, written, linked, and refused."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import ostension
from ostension.cli.main import main
from ostension.model.clip import CLIP
from ostension.model.presets import preset


def picture(number: int, form: str = "PNG", side: tuple[int, int] = (40, 36)) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two models, pictures, and a store of these; two files are the same, one a small copy."""
    folder = tmp_path_factory.mktemp("search")
    for seed in (0, 1):
        ostension.save(CLIP(preset("tiny-vit"), seed=seed), folder / f"model-{seed}")
    for number in range(12):
        path = folder / "pictures" / ("cats" if number % 3 == 0 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    (folder / "pictures" / "dogs" / "same.png").write_bytes(picture(1))
    (folder / "pictures" / "cats" / "small.jpg").write_bytes(picture(3, "JPEG", (60, 54)))
    words = ["embed", "pictures", "-o", "store", "--model", "model-0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words) == 0
    return folder


@pytest.fixture(autouse=True)
def _here(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.delenv("OSTENSION_MODEL", raising=False)


@pytest.fixture
def run(capsys):
    def command(*words, status: int = 0) -> tuple[list[str], str]:
        capsys.readouterr()
        assert main([*map(str, words)]) == status
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        return found.out.strip().splitlines(), found.err

    return command


def test_words_pictures_items_and_sums_find_rows(run):
    lines, _ = run("search", "store", "a dog on the beach", "-k", 3)
    assert len(lines) == 3 and all(re.fullmatch(r"\s*-?\d\.\d{4}  \S+\.(png|jpg).*", line) for line in lines)
    lines, _ = run("search", "store", "--image", "pictures/dogs/2.png", "--format", "jsonl")
    assert len(lines) == 10
    first = json.loads(lines[0])
    assert first["id"] == "dogs/2.png" and first["rank"] == 1 and first["score"] > 0.999
    lines, _ = run("search", "store", "--like", "dogs/2.png", "-k", 1, "--format", "jsonl")
    assert json.loads(lines[0])["id"] == "dogs/2.png"
    lines, _ = run("search", "store", "red - blue + 0.01*@cats/0.png", "--image", "pictures/cats/0.png", "-k", 2)
    assert lines[0] == "# red - blue + 0.01*@cats/0.png + image:pictures/cats/0.png" and len(lines) == 3


def test_filters_choose_and_a_wrong_field_is_told_before_a_model_is_loaded(run):
    lines, _ = run("search", "store", "a cat", "-k", 50, "--where", "id prefix cats/ and width >= 50", "--format", "jsonl")
    assert [json.loads(line)["id"] for line in lines] == ["cats/small.jpg"]
    assert run("search", "store", "a cat", "--where", "id = nobody")[0] == ["  nothing found".strip()]
    _, said = run("search", "store", "a cat", "--where", "widht > 3", "--model", "no-such-model", status=1)
    assert "unknown field 'widht'" in said and "'width'" in said
    _, said = run("search", "store", "a cat", "--where", "width > > 3", status=2)
    assert "expected a value" in said


def test_many_queries_come_from_a_file_and_stdin(run, tmp_path, monkeypatch):
    (tmp_path / "queries.txt").write_text("a cat\n\n  a dog - a cat  \n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"@dogs/2.png\n")))
    lines, _ = run("search", "store", "-", "--file", tmp_path / "queries.txt", "-k", 2, "--format", "jsonl")
    assert [json.loads(line)["query"] for line in lines] == ["@dogs/2.png"] * 2 + ["a cat"] * 2 + ["a dog - a cat"] * 2


def test_a_page_copies_and_links_show_the_pictures(run, tmp_path, made):
    run("search", "store", "--like", "dogs/2.png", "-k", 3, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3 and "dogs/2.png" in page
    run("search", "store", "--like", "dogs/2.png", "-k", 3, "--copy-to", tmp_path / "copies")
    assert (tmp_path / "copies" / "1-2.png").read_bytes() == picture(2)
    run("search", "store", "--like", "dogs/2.png", "-k", 3, "--link-to", tmp_path / "links")
    assert (tmp_path / "links" / "1-2.png").resolve() == (made / "pictures" / "dogs" / "2.png").resolve()
    _, said = run("search", "store", "--like", "dogs/2.png", "--copy-to", tmp_path / "copies", status=1)
    assert "has files already" in said


def test_another_model_is_refused_and_the_remembered_one_is_used(run):
    _, said = run("search", "store", "a cat", "--model", "model-1", status=1)
    assert "embeddings of the model" in said and "and this model is" in said
    run("search", "store", "a cat", "--model", "model-0")


def test_what_cannot_be_meant_is_a_usage_error(run):
    assert "nothing to search for" in run("search", "store", status=2)[1]
    assert "-k is -1" in run("search", "store", "a", "-k", -1, status=2)[1]
    assert "exclude each other" in run("search", "store", "a", "--exact", "--approximate", status=2)[1]
    assert "no row has the id 'nobody'" in run("search", "store", "@nobody", status=1)[1]
    assert "no such folder" in run("search", "nowhere", "a", status=1)[1]
    assert "an empty term" in run("search", "store", "a - ", status=2)[1]


def test_near_duplicates_are_grouped_by_what_joins_them(run, tmp_path):
    lines, said = run("view", "duplicates", "store", "--rules", "bytes,hash", "--bits", 12, "--format", "jsonl")
    groups = {tuple(sorted(entry["ids"])): entry["why"] for entry in map(json.loads, lines)}
    assert groups == {("dogs/1.png", "dogs/same.png"): ["bytes", "hash"], ("cats/3.png", "cats/small.jpg"): ["hash"]}
    assert "2 groups; 2 of 14 items could go" in said
    lines, _ = run("view", "duplicates", "store", "--rules", "bytes", "--ids")
    assert lines in (["dogs/same.png"], ["dogs/1.png"])
    run("view", "duplicates", "store", "--html", tmp_path / "page.html", "--rules", "bytes,hash", "--bits", 12)
    assert "2 alike by bytes, hash" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "expected some of bytes" in run("view", "duplicates", "store", "--rules", "all", status=2)[1]


def test_outliers_and_clusters_are_listed(run, tmp_path):
    lines, _ = run("view", "outliers", "store", "--count", 4, "--neighbours", 3, "--format", "jsonl")
    distances = [json.loads(line)["distance"] for line in lines]
    assert len(lines) == 4 and distances == sorted(distances, reverse=True)
    run("view", "outliers", "store", "--count", 4, "--html", tmp_path / "outliers.html")
    (tmp_path / "words.txt").write_text("sky\nsea\nsand\ngrass\n", encoding="utf-8")
    command = ("view", "clusters", "store", "--count", 3, "--words", tmp_path / "words.txt", "--format", "jsonl", "--members")
    lines, _ = run(*command)
    entries = [json.loads(line) for line in lines]
    assert sum(entry["size"] for entry in entries) == 14 and all(len(entry["words"]) == 3 for entry in entries)
    assert sorted(name for entry in entries for name in entry["members"]).__len__() == 14
    assert run(*command)[0] == lines, "the same seed gives the same clusters"
    run("view", "clusters", "store", "--no-words", "--html", tmp_path / "clusters.html")


def test_indexes_are_made_shown_used_and_removed(run):
    pytest.importorskip("faiss")
    plain, _ = run("search", "store", "a cat")
    assert json.loads(run("index", "build", "store")[0][0]) == {"kind": "codes", "rows": 14}
    assert run("search", "store", "a cat")[0] == plain
    built = json.loads(run("index", "build", "store", "--kind", "ivf")[0][0])
    assert built["recall"] >= 0.95
    lines, said = run("search", "store", "a cat", "--approximate")
    assert "approximate: ivf index, measured recall@10" in said and len(lines) == 10
    status = json.loads("".join(run("index", "status", "store")[0]))
    assert status["codes"] is True and status["approximate"]["kind"] == "ivf"
    assert json.loads(run("index", "remove", "store")[0][0]) == {"codes": True, "approximate": True}
    assert "no approximate index" in run("search", "store", "a cat", "--approximate", status=1)[1]
