"""Collections of captions: pictures find their words, the same command brings them up to date, and files of clip-retrieval."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ostension
from ostension.cli.main import main
from ostension.data.caption_lists import captions_in_table
from ostension.errors import DataError
from ostension.store import Store, add
from ostension.store.collection import open_collection

LINES = ["a dog on the beach", "a cat in a box", "a dog on the beach", "", "two boats"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, two_models):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSTENSION_MODEL", str(two_models / "0"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("captions.txt").write_text("\n".join(LINES))


@pytest.fixture
def run(capsys):
    def command(*words: str | Path, status: int = 0) -> tuple[dict, str]:
        capsys.readouterr()
        assert main([*map(str, words)]) == status
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        lines = found.out.strip().splitlines()
        return (json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}), found.err

    return command


def embed(run, source: str = "captions.txt", *flags: str, status: int = 0):
    return run(
        "embed", source, "--of", "texts", "-o", "store", "--name", "captions", "--dtype", "float32", *flags, status=status
    )


def picture(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def test_rows_are_the_models_and_what_is_new_alone_is_encoded(run, two_models):
    told, _ = embed(run)
    assert (told["samples"], told["new"], told["encoded"]) == (3, 3, 3), "a caption that comes twice counts once"
    opened = open_collection("store", "captions")
    assert opened.ids == ["a dog on the beach", "a cat in a box", "two boats"] and opened.key.kind == "texts"
    mine = ostension.load(two_models / "0", dtype="float32").embed_texts(opened.ids).detach().numpy()
    np.testing.assert_allclose(opened.rows[:].astype(np.float32), mine, atol=2e-3)
    Path("captions.txt").write_text("\n".join(["one more", *LINES[1:]]))
    told, _ = embed(run, "captions.txt", "--prune")
    assert (told["encoded"], told["unchanged"], told["removed"]) == (1, 3, 0)
    Path("captions.txt").write_text("one more\n")
    assert embed(run, "captions.txt", "--prune")[0]["removed"] == 3


def test_a_picture_finds_captions_and_words_find_them_too(run, two_models):
    embed(run)
    picture("here/p.png")
    told, _ = run("search", "store", "--name", "captions", "--image", "here/p.png", "-k", "3", "--format", "jsonl")
    assert told["rank"] == 3
    model = ostension.load(two_models / "0", dtype="float32")
    scores = model.embed_images(["here/p.png"]) @ model.embed_texts(open_collection("store", "captions").ids).T
    assert told["score"] == pytest.approx(float(scores.min()), abs=2e-3)
    assert run("search", "store", "a cat in a box", "--name", "captions", "-k", "1", "--format", "jsonl")[0]["id"] == LINES[1]
    assert (
        run("search", "store", "x", "--name", "captions", "--where", "text contains BOAT", "--format", "jsonl")[0]["rank"] == 1
    )
    run("view", "duplicates", "store", "--name", "captions")
    assert run("store", "verify", "store")[0]["damaged"] == 0


def test_tables_shards_folders_and_stdin_have_captions(run, monkeypatch):
    Path("table.csv").write_text("id,caption,colour\na,red apple,red\nb,green pear,green\n")
    assert embed(run, "table.csv")[0]["new"] == 2
    told, _ = run("search", "store", "x", "--name", "captions", "--where", "colour = green", "--format", "jsonl")
    assert told["id"] == "b" and told["fields"]["texts"] == ["green pear"]
    picture("pictures/p.png")
    Path("pictures/p.txt").write_text("first\nsecond\n")
    assert embed(run, "pictures")[0]["new"] == 2
    assert {"p.png#0", "p.png#1"} <= set(open_collection("store", "captions").ids)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("fr\u00fch am Morgen\u2028x\n".encode())))
    assert embed(run, "-")[0]["new"] == 1


def test_lists_of_captions_in_parquet_and_columns_by_name(run):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "image": [b"x", b"y"],
        "file": ["1.jpg", "2.jpg"],
        "captions": [["a", "b", "a", None], ["c"]],
        "said": ["z", "z"],
    }
    parquet.write_table(arrow.table(columns), "set.parquet")
    assert [captions_in_table(Path("set.parquet")).key(index) for index in range(3)] == ["1.jpg#0", "1.jpg#1", "2.jpg"]
    assert embed(run, "set.parquet", "--text-columns", "said")[0]["new"] == 2
    _, err = embed(run, "set.parquet", "--text-columns", "nothing", status=1)
    assert "unknown column 'nothing'" in err
    with pytest.raises(DataError, match="two captions have the id"):
        parquet.write_table(arrow.table({"id": ["1.jpg", "1.jpg#0"], "captions": [["a", "b"], ["c"]]}), "clash.parquet")
        captions_in_table(Path("clash.parquet"))


def test_captions_that_are_too_long_are_listed_or_cut(run):
    Path("captions.txt").write_text("short\n" + "word " * 300)
    told, err = embed(run, status=1)
    assert (told["new"], told["failed"]) == (1, 1) and "tokens" in err
    assert embed(run)[0]["known_bad"] == 1
    _, err = embed(run, "captions.txt", "--truncate", status=1)
    assert "texts that are too long were left out here; leave out --truncate" in err
    words = ("embed", "captions.txt", "--of", "texts", "--truncate", "-o", "store", "--name", "cut")
    assert run(*words)[0]["new"] == 2 and run(*words)[0]["unchanged"] == 2


def test_what_does_not_belong_together_is_refused(run, two_models):
    embed(run)
    picture("pictures/p.png")
    _, err = run("embed", "pictures", "-o", "store", "--name", "captions", "--dtype", "float32", status=1)
    assert "a collection of texts, and these are images" in err
    _, err = embed(run, "captions.txt", "--model", str(two_models / "1"), status=1)
    assert "embeddings of the model" in err
    for flags in (("--processes", "2"), ("--workers", "2"), ("--hosts", "a.example")):
        assert flags[0] in embed(run, "captions.txt", *flags, status=2)[1]
    assert "--truncate is given for pictures" in run("embed", "pictures", "-o", "store", "--truncate", status=2)[1]
    Path("empty.txt").write_text("\n\n")
    assert "no caption" in embed(run, "empty.txt", status=1)[1]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(two_models, stop):
    from ostension.data.caption_lists import captions_in_lines

    model = ostension.load(two_models / "0", dtype="float32")
    source = captions_in_lines([f"caption {number} {'long ' * (number % 7)}" for number in range(20)], "list")
    options = {"batch_size": 3, "shard_batches": 2}
    add(Store("whole"), model, source, **options)

    def told(progress):
        if progress.done >= 6 * stop + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(Store("stopped"), model, source, progress=told, **options)
    before = len(open_collection("stopped"))
    assert 0 < before < 20
    add(Store("stopped"), model, source, **options)
    whole, again = open_collection("whole"), open_collection("stopped")
    assert again.ids == whole.ids and [shard.rows_sha256 for shard in again.manifest.shards] == [
        shard.rows_sha256 for shard in whole.manifest.shards
    ]


def test_the_files_of_clip_retrieval_go_out_and_come_back(run, two_models):
    pytest.importorskip("pyarrow")
    embed(run)
    run("store", "export", "store", "--name", "captions", "-o", "out", "--format", "clip-retrieval")
    assert sorted(str(path) for path in Path("out").rglob("*.*")) == [
        "out/metadata/metadata_0.parquet",
        "out/text_emb/text_emb_0.npy",
    ]
    words = ("store", "import", "out", "store", "--name", "back", "--dtype", "float32")
    told, _ = run(*words, "--of", "texts")
    assert (told["rows"], told["checked"]) == (3, 3) and told["least_cosine"] > 0.999
    back, first = open_collection("store", "back"), open_collection("store", "captions")
    np.testing.assert_array_equal(back.rows[:], first.rows[:])
    assert back.ids == first.ids and back.column("texts") == first.column("texts") and back.key.kind == "texts"
    assert "no embeddings of pictures here" in run("store", "import", "out", "store", "--name", "other", status=1)[1]
    _, err = run("store", "import", "out", "store", "--name", "other", "--of", "texts", "--model", two_models / "1", status=1)
    assert "to what this model makes of it" in err
