"""`ostension embed` and `ostension store`: what goes in from folders, tables, lists and addresses; what is said and refused."""

from __future__ import annotations

import http.server
import io
import json
import os
import sys
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from ostension.cli.main import main
from ostension.store.collection import open_collection


def picture(number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, two_models):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSTENSION_MODEL", str(two_models / "0"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = Path("pictures")
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        (folder / ("sub" if number % 2 else ".") / f"{number}.png").write_bytes(picture(number))


@pytest.fixture
def run(capsys):
    def command(*words: str | Path, status: int = 0) -> tuple[dict, str]:
        assert main([*map(str, words)]) == status
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        lines = found.out.strip().splitlines()
        return (json.loads(lines[-1]) if lines else {}), found.err

    return command


def ids(name: str = "default") -> list[str]:
    return sorted(open_collection("store", name).ids)


def test_a_folder_goes_in_and_the_same_command_brings_it_up_to_date(run):
    assert run("embed", "pictures", "-o", "store", "--dry-run")[0]["new"] == 5 and not Path("store").exists()
    told, _ = run("embed", "pictures", "-o", "store")
    assert (told["new"], told["rows"], told["dry_run"]) == (5, 5, False)
    assert ids() == ["0.png", "2.png", "4.png", "sub/1.png", "sub/3.png"]
    Path("pictures/0.png").write_bytes(picture(30))
    Path("pictures/new.png").write_bytes(picture(31))
    Path("pictures/2.png").unlink()
    told, _ = run("embed", "pictures", "-o", "store", "--prune", "--quiet")
    assert (told["new"], told["changed"], told["removed"], told["unchanged"], told["rows"]) == (1, 1, 1, 3, 5)


def test_bad_files_are_told_listed_and_written_down_and_the_status_says_so_once(run):
    Path("pictures/broken.jpg").write_bytes(b"no picture")
    Path("pictures/empty.png").write_bytes(b"")
    told, said = run("embed", "pictures", "-o", "store", status=1)
    assert (told["failed"], told["rows"]) == (2, 5) and "2 of 7 could not be used" in said and "broken.jpg: " in said
    listed = [json.loads(line) for line in Path("store/default-failures.jsonl").read_text().splitlines()]
    assert [row["id"] for row in listed] == ["broken.jpg", "empty.png"] and all(row["reason"] for row in listed)
    told, _ = run("embed", "pictures", "-o", "store")
    assert (told["failed"], told["known_bad"]) == (0, 2)
    for name in ("broken.jpg", "empty.png"):
        Path("pictures", name).unlink()
    run("embed", "pictures", "-o", "store")
    assert not Path("store/default-failures.jsonl").exists()


def test_failures_of_one_source_stay_listed_when_another_one_is_embedded(run):
    Path("pictures/broken.jpg").write_bytes(b"no picture")
    Path("more").mkdir()
    Path("more/new.png").write_bytes(picture(40))
    run("embed", "pictures", "-o", "store", status=1)
    run("embed", "more", "-o", "store")
    listed = [json.loads(line) for line in Path("store/default-failures.jsonl").read_text().splitlines()]
    assert [(row["id"], Path(row["source"]).name) for row in listed] == [("broken.jpg", "pictures")]
    Path("pictures/broken.jpg").unlink()
    run("embed", "pictures", "-o", "store")
    assert not Path("store/default-failures.jsonl").exists()


def test_another_model_is_refused_before_the_source_is_read(run, two_models, monkeypatch):
    run("embed", "pictures", "-o", "store")
    monkeypatch.setattr("ostension.store.growing.scan", lambda *_: pytest.fail("the source was read"))
    assert "embeddings of the model" in run("embed", "pictures", "-o", "store", "--model", two_models / "1", status=1)[1]


def test_a_single_picture_goes_in_and_flags_without_effect_are_refused(run):
    told, _ = run("embed", "pictures/0.png", "-o", "store")
    assert told["new"] == 1 and ids() == ["0.png"]
    for flags in (("--hosts", "a.example"), ("--timeout", "5"), ("--text-columns", "caption"), ("--image-column", "image")):
        _, said = run("embed", "pictures", "-o", "store", *flags, status=2)
        assert flags[0] in said and "leave it out" in said


def test_a_table_without_captions_says_which_flags_name_them(run):
    Path("table.csv").write_text("picture,what\npictures/0.png,a dog\n")
    _, said = run("embed", "table.csv", "-o", "store", status=1)
    assert "--image-column" in said and "--text-columns" in said and "layout" not in said
    assert run("embed", "table.csv", "-o", "store", "--image-column", "picture", "--text-columns", "what")[0]["new"] == 1


def test_folders_without_pictures_and_folders_that_are_not_there_are_one_line(run):
    Path("empty").mkdir()
    assert "empty: no picture" in run("embed", "empty", "-o", "store", status=1)[1]
    assert "nothing" in run("embed", "nothing", "-o", "store", status=1)[1]
    assert not Path("store").exists()


def test_all_bad_files_leave_an_empty_collection_and_a_list(run):
    Path("bad").mkdir()
    Path("bad/a.jpg").write_bytes(b"1")
    told, _ = run("embed", "bad", "-o", "store", status=1)
    assert (told["rows"], told["failed"]) == (0, 1)


def test_another_model_is_refused_with_both_hashes_and_the_precision_is_remembered(run, two_models):
    run("embed", "pictures", "-o", "store", "--dtype", "float32")
    said = run("embed", "pictures", "-o", "store", "--model", two_models / "1", status=1)[1]
    assert "embeddings of the model" in said and "and this model is" in said
    assert run("embed", "pictures", "-o", "store")[0]["unchanged"] == 5
    assert "use float32" in run("embed", "pictures", "-o", "store", "--dtype", "bfloat16", status=1)[1]
    told, _ = run("embed", "pictures", "-o", "store", "--name", "other", "--model", two_models / "1")
    assert told["new"] == 5


def test_lists_of_files_on_stdin_and_in_files_go_in(run, monkeypatch):
    text = "pictures/0.png\npictures/sub/1.png\npictures/gone.png\n\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    told, said = run("embed", "-", "-o", "store", status=1)
    assert (told["new"], told["failed"]) == (2, 1) and "no such file" in said
    Path("list.txt").write_text("pictures/0.png\npictures/2.png\n")
    assert run("embed", "list.txt", "-o", "store", "--name", "listed")[0]["new"] == 2
    Path("mixed.txt").write_text("pictures/0.png\nhttp://a.example/b.png\n")
    assert "web addresses and paths in one list (entry 2)" in run("embed", "mixed.txt", "-o", "store", status=1)[1]


def test_fields_of_a_table_are_put_beside_the_pictures_and_new_ones_do_not_encode_again(run):
    Path("facts.csv").write_text("id,year,place\n0.png,1999,Rome\nsub/1.png,2001,\n")
    _, said = run("embed", "pictures", "-o", "store", "--metadata", "facts.csv")
    assert "3 of 5 samples are not in facts.csv" in said
    opened = open_collection("store")
    rows = opened.numbers(["0.png", "sub/1.png", "2.png"])
    assert [json.loads(text) for text in opened.column("fields", rows)] == [
        {"place": "Rome", "year": "1999"}, {"year": "2001"}, {},
    ]  # fmt: skip
    Path("facts.csv").write_text("id,year\n0.png,2000\nsub/1.png,2001\n")
    told, _ = run("embed", "pictures", "-o", "store", "--metadata", "facts.csv")
    assert (told["described"], told["encoded"], told["unchanged"]) == (1, 0, 4)
    Path("facts.csv").write_text("id,year\nother.png,2000\n")
    assert "ids are those of no sample" in run("embed", "pictures", "-o", "store", "--metadata", "facts.csv", status=1)[1]


def test_parquet_and_tables_go_in_with_captions(run):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(4)]
    pq.write_table(pa.table({"image": rows, "caption": ["a", "b", "c", "d"], "size": [1, 2, 3, 4]}), "set.parquet")
    assert run("embed", "set.parquet", "-o", "store")[0]["new"] == 4
    opened = open_collection("store")
    assert opened.column("texts", [1]) == ['["b"]'] and json.loads(opened.column("fields", [1])[0]) == {"size": 2}


class _Server(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        body = picture(int(self.path.strip("/").split(".")[0]))
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    _Server.asked.clear()
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def test_addresses_are_fetched_once_guarded_and_their_failures_are_listed(run, server):
    Path("urls.txt").write_text(f"{server}/1.png\ta caption\n{server}/2.png\n{server}/gone.png\n{server}/1.png\n")
    said = run("embed", "urls.txt", "-o", "guarded", status=1)[1]
    assert "3 of 3 could not be used" in said and _Server.asked == []  # an address of this machine
    told, _ = run("embed", "urls.txt", "-o", "store", "--allow-private", status=1)
    assert (told["new"], told["failed"]) == (2, 1) and sorted(_Server.asked) == ["/1.png", "/2.png", "/gone.png"]
    opened = open_collection("store")
    assert opened.column("texts", opened.numbers([f"{server}/1.png"])) == ['["a caption"]']
    _Server.asked.clear()
    with open("urls.txt", "a") as file:
        file.write(f"{server}/3.png\n")
    assert run("embed", "urls.txt", "-o", "store", "--allow-private")[0]["new"] == 1 and _Server.asked == ["/3.png"]
    Path("table.csv").write_text(f"url,caption,year\n{server}/4.png,four,1999\n{server}/1.png,,2000\n")
    assert run("embed", "table.csv", "-o", "store", "--allow-private", "--name", "table")[0]["new"] == 2
    assert json.loads(open_collection("store", "table").column("fields", [0])[0]) == {"year": "1999"}


def test_flags_that_cannot_be_meant_are_refused(run):
    for words in (["--batch-size", "0"], ["--workers", "-1"], ["--processes", "2", "--workers", "2"], ["--name", "a/b"]):
        run("embed", "pictures", "-o", "store", *words, status=1 if "--name" in words else 2)
    assert "threads of its own" in run("embed", "pictures", "-o", "store", "--engine", "onnx", "--processes", "2", status=2)[1]


def test_a_store_is_looked_at_checked_and_cleaned(run, capsys):
    Path("pictures/bad.jpg").write_bytes(b"-")
    run("embed", "pictures", "-o", "store", "--quiet", status=1)
    assert main(["store", "info", "store"]) == 0
    facts = json.loads(capsys.readouterr().out)["collections"]["default"]
    assert (facts["rows"], facts["failures"], facts["sources"][0]["root"]) == (5, 1, os.path.abspath("pictures"))
    assert run("store", "ls", "store")[0] == {"name": "default", "rows": 5, "width": 32, "complete": True}
    assert run("store", "ls", "store", "--name", "default", "--limit", "1")[0]["id"] == "0.png"
    assert run("store", "ls", "store", "--name", "default", "--failures")[0]["id"] == "bad.jpg"
    assert run("store", "rm", "store", "2.png")[0] == {"removed": 1, "rows": 4}
    assert "no row has the id '2.png'" in run("store", "rm", "store", "2.png", status=1)[1]
    Path("pictures/4.png").unlink()
    assert run("store", "prune", "store", "--dry-run")[0] == {"id": "4.png"}
    assert run("store", "prune", "store")[0] == {"removed": 1, "rows": 3}
    told, _ = run("store", "compact", "store")
    assert told["rows"] == 3 and told["bytes_after"] < told["bytes_before"]
    assert run("store", "verify", "store")[0] == {"store": "store", "sets": 1, "rows": 3, "damaged": 0}
    matrix = next(Path("store").rglob("rows-*.npy"))
    content = bytearray(matrix.read_bytes())
    content[-1] ^= 1
    matrix.write_bytes(bytes(content))
    told, said = run("store", "verify", "store", status=1)
    assert told["damaged"] == 1 and matrix.name in said
    assert "add --yes" in run("store", "delete", "store", "default", status=2)[1]
    assert run("store", "delete", "store", "default", "--yes")[0] == {"deleted": "default", "removed": 3}
    assert "no such folder" in run("store", "info", "nowhere", status=1)[1]


def test_prune_does_not_empty_a_collection_whose_disk_is_away(run):
    run("embed", "pictures", "-o", "store")
    Path("pictures").rename("elsewhere")
    run("store", "prune", "store", status=1)
    assert len(ids()) == 5


def test_clip_retrievals_files_go_out_and_come_in_and_another_model_is_noticed(run, two_models):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    Path("pictures/0.txt").write_text("zero\n")
    run("embed", "pictures", "-o", "store")
    told, _ = run("store", "export", "store", "-o", "out", "--format", "clip-retrieval")
    assert told["files"] == ["out/img_emb/img_emb_0.npy", "out/metadata/metadata_0.parquet"]
    rows = np.load("out/img_emb/img_emb_0.npy")
    assert rows.shape == (5, 32) and rows.dtype == np.float16
    table = pq.read_table("out/metadata/metadata_0.parquet").to_pylist()
    assert table[0]["image_path"] == "0.png" and table[0]["caption"] == "zero"
    os.chdir("pictures")
    told, _ = run("store", "import", "../out", "../store", "--name", "back")
    assert (told["rows"], told["checked"]) == (5, 5) and told["least_cosine"] > 0.98
    said = run("store", "import", "../out", "../store", "--name", "wrong", "--model", two_models / "1", status=1)[1]
    assert "what this model makes of it" in said
    os.chdir("..")
    assert "no picture lies at its path" in run("store", "import", "out", "store", "--name", "blind")[1]
    assert "already" in run("store", "import", "out", "store", "--name", "back", status=1)[1]
    one, other = open_collection("store"), open_collection("store", "back")
    assert one.ids == other.ids and np.array_equal(np.asarray(one.rows), np.asarray(other.rows))
    assert other.column("texts")[0] == '["zero"]'
    rows[3] = np.nan
    np.save("out/img_emb/img_emb_0.npy", rows)
    assert "not finite" in run("store", "import", "out", "store", "--name", "nan", status=1)[1]
    assert run("store", "ls", "store")[0]["name"] == "default"  # nothing is left of it: the last line is the last collection
    np.save("out/img_emb/img_emb_0.npy", rows[:3])
    assert "has 5 rows" in run("store", "import", "out", "store", "--name", "short", status=1)[1]


def test_the_plain_export_comes_back_too(run):
    pytest.importorskip("pyarrow")
    run("embed", "pictures", "-o", "store")
    run("store", "export", "store", "-o", "plain", "--vectors")
    assert run("store", "import", "plain", "store", "--name", "back")[0]["rows"] == 5
    assert open_collection("store", "back").column("width").tolist() == [40] * 5
