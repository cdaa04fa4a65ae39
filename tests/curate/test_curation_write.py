"""What is written of a curation: shards, lineage and lists, the same bytes whoever writes them and however often."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent))
import curating
from curating import LongestConfig, WordsConfig, lines_of, picture, tar_of

from ostension.cli.main import main
from ostension.config import from_tree
from ostension.curate import write as writing
from ostension.curate.base import STAGES, load_stage
from ostension.curate.candidates import describe
from ostension.curate.lineage import Lineage, followed
from ostension.curate.run import begin, run_stage
from ostension.curate.write import write
from ostension.curate.write_order import Order, WriteConfig
from ostension.data.open import open_pairs
from ostension.data.tar_index import load_index, open_index
from ostension.errors import ConfigError, DataError

CAPTIONS = [f"a photo of thing {number}" if number % 3 else f"thing{number}" for number in range(47)]
KEPT = [text for text in CAPTIONS if " " in text]


@pytest.fixture(autouse=True)
def _stages(monkeypatch):
    load = STAGES.load
    monkeypatch.setattr(STAGES, "load", lambda name: curating if name.startswith("test-") else load(name))


@pytest.fixture
def work(tmp_path):
    """Pairs of which a third is dropped, in parts of ten."""
    found = begin(tmp_path / "work", describe([str(tar_of(tmp_path / "a.tar", CAPTIONS))], part_size=10))
    run_stage(found, "test-words", WordsConfig())
    return found


def listed(tmp_path, rows, part_size=10):
    """A work folder of captions without pictures."""
    path = tmp_path / "list.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return begin(tmp_path / "work", describe([str(path)], part_size=part_size))


def files_of(folder, without=(".idx", "write.json")):
    """All that was written, but for indexes, which hold the times of their shards."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((*without, ".lock"))
    }


def test_kept_pairs_come_back_in_order_with_pictures_captions_and_lineage(work, tmp_path):
    found = write(work, tmp_path / "out", WriteConfig(shard_size=12))
    assert (found.kind, found.shards, found.rows, found.pairs, found.failures) == ("pairs", 3, 31, 31, {})
    pairs = open_pairs(tmp_path / "out")
    assert [pairs.read(index).texts for index in range(len(pairs))] == [(text,) for text in KEPT]
    number = CAPTIONS.index(KEPT[13])
    pair = pairs.read(13)
    assert (pair.key, pair.image) == ("00001/000010001", picture(number))
    assert pair.meta["lineage"] == {"test-words.words": 5} and pair.meta["source_key"] == f"a/{number:06d}"
    assert (pair.meta["status"], pair.meta["width"], pair.meta["height"]) == ("success", 16, 16)
    table = pq.read_table(tmp_path / "out" / "00001.parquet")
    row = table.slice(1, 1).to_pylist()[0]
    assert (row["key"], row["id"], row["place"], row["caption"]) == ("000010001", number, number, KEPT[13])
    assert row["source_texts"] == [KEPT[13]] and row["test-words.words"] == 5 and row["test-words.text_reasons"] == [None]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pairs"] == 31 and [one["pairs"] for one in manifest["files"]] == [12, 12, 7]


def test_shards_are_plain_archives_whose_headers_tell_nothing_of_the_machine(work, tmp_path):
    write(work, tmp_path / "out", WriteConfig(shard_size=40))
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:3]] == ["000000000.png", "000000000.txt", "000000000.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
        assert tar.extractfile("000000001.txt").read().decode() == KEPT[1]
    assert (tmp_path / "out" / "00000.tar").stat().st_size % tarfile.RECORDSIZE == 0


def test_the_index_that_is_written_is_the_one_that_reading_would_make(work, tmp_path):
    write(work, tmp_path / "out", WriteConfig())
    shard = tmp_path / "out" / "00000.tar"
    written = load_index(shard.with_name("00000.tar.idx"))
    shard.with_name("00000.tar.idx").unlink()
    made = open_index(shard)
    for name in ("key_ends", "keys", "image", "text", "json", "digest"):
        np.testing.assert_array_equal(getattr(written, name), getattr(made, name))
    assert (written.tar_size, written.tar_sha256, written.tar_mtime_ns) == (made.tar_size, made.tar_sha256, made.tar_mtime_ns)


def test_webdataset_users_group_members_by_key(work, tmp_path):
    """As webdataset does it: the name up to the first dot, members of one sample beside each other."""
    write(work, tmp_path / "out", WriteConfig(shard_size=40))
    samples: list[dict[str, bytes]] = []
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            if not samples or samples[-1]["__key__"] != key:
                samples.append({"__key__": key})
            samples[-1][ending] = tar.extractfile(member).read()
    assert [set(sample) for sample in samples] == [{"__key__", "png", "txt", "json"}] * len(KEPT)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_and_restarts_write_the_same_bytes(tmp_path, shuffle):
    # Processes know the stages of the package, and not those of tests.
    source = tar_of(tmp_path / "a.tar", CAPTIONS)
    work = begin(tmp_path / "work", describe([str(source)], part_size=10))
    run_stage(work, "filter", from_tree(load_stage("filter").config_type, {"captions": {"min_words": 2}}))
    config = WriteConfig(shard_size=7, shuffle=shuffle, dropped=True)
    write(work, tmp_path / "one", config)
    write(work, tmp_path / "two", config, workers=2)
    wanted = files_of(tmp_path / "one")
    assert files_of(tmp_path / "two") == wanted and len(wanted) == 5 * 3 + 5 + 1
    for name in ("manifest.json", "00001_stats.json", "00002.tar", "dropped/part-00001.parquet"):
        (tmp_path / "two" / name).unlink()
    (tmp_path / "two" / "00003.parquet").write_bytes(b"torn")
    write(work, tmp_path / "two", config)
    assert files_of(tmp_path / "two") == wanted


def test_shards_that_are_whole_are_not_written_again(work, tmp_path, monkeypatch):
    write(work, tmp_path / "out", WriteConfig(shard_size=7))
    (tmp_path / "out" / "00002_stats.json").unlink()
    asked = []
    each = writing.each
    monkeypatch.setattr(writing, "each", lambda work, missing, *rest: asked.append(missing) or each(work, missing, *rest))
    write(work, tmp_path / "out", WriteConfig(shard_size=7))
    assert asked == [[2]]


@pytest.mark.parametrize("window", [1, 2, 16])
@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_every_pair_is_in_one_place_of_one_shard_whatever_the_sizes(window, size):
    counts = np.array([4, 0, 7, 1, 0, 9])
    order = Order(counts, WriteConfig(shard_size=size, shuffle=True, window=window))
    seen = []
    for shard in range(order.num_shards):
        pieces = list(order.pieces(shard))
        places = np.concatenate([where for _, _, where in pieces])
        assert sorted(places.tolist()) == list(range(order.size(shard)))
        rows = [(part, rank) for part, ranks, _ in pieces for rank in ranks.tolist()]
        seen += [rows[place] for place in np.argsort(places)]
    assert sorted(seen) == [(part, rank) for part, count in enumerate(counts) for rank in range(count)]
    again = Order(counts, WriteConfig(shard_size=size, shuffle=True, window=window, seed=1))
    other = [(part, rank) for shard in range(again.num_shards) for part, ranks, _ in again.pieces(shard) for rank in ranks]
    assert sorted(other) == sorted(seen) and other != seen


def test_a_shuffle_of_all_parts_spreads_each_over_the_shards():
    order = Order(np.full(20, 50), WriteConfig(shard_size=100, shuffle=True, window=20))
    parts = [len(list(order.pieces(shard))) for shard in range(order.num_shards)]
    assert min(parts) > 15  # 100 draws of 20 parts miss fewer than one on average
    near = Order(np.full(20, 50), WriteConfig(shard_size=100, shuffle=True, window=2))
    assert {len(list(near.pieces(shard))) for shard in range(near.num_shards)} == {2}


def test_a_picture_that_cannot_be_read_has_a_row_and_no_members(tmp_path):
    path = tmp_path / "a.tar"
    tar_of(path, CAPTIONS[:6])
    broken = bytearray(path.read_bytes())
    at = bytes(broken).index(picture(4))
    broken[at : at + 8] = b"GARBAGE!"
    at = bytes(broken).index(picture(1))
    broken[at + len(picture(1)) - 12 : at + len(picture(1))] = bytes(12)  # the last chunk of a PNG
    path.write_bytes(broken)
    work = begin(tmp_path / "work", describe([str(path)]))
    found = write(work, tmp_path / "out", WriteConfig())
    assert (found.rows, found.pairs, found.failures) == (6, 4, {"not a picture": 1, "picture cut short": 1})
    rows = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert [row["status"] for row in rows] == [
        "success", "failed_to_resize", "success", "success", "failed_to_resize", "success"
    ]  # fmt: skip
    assert (rows[4]["key"], rows[4]["error_message"], rows[4]["width"]) == ("000000004", "not a picture", None)
    assert len(open_pairs(tmp_path / "out")) == 4
    stats = json.loads((tmp_path / "out" / "00000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_resize"]) == (6, 4, 2)
    assert stats["status_dict"] == {"not a picture": 1, "picture cut short": 1, "success": 4}


def test_the_lineage_of_what_was_dropped_says_who_dropped_it_and_why(work, tmp_path):
    run_stage(work, "test-longest", LongestConfig(share=0.5))
    found = write(work, tmp_path / "out", WriteConfig(dropped=True))
    assert found.rows + found.dropped == len(CAPTIONS)
    rows = pq.read_table(tmp_path / "out" / "dropped").to_pylist()
    by = {row["id"]: row for row in rows}
    assert (by[3]["dropped_by"], by[3]["dropped"], by[3]["test-words.words"]) == ("test-words", "too few words", 1)
    assert by[3]["test-longest.length"] is None  # it never got there
    short = by[CAPTIONS.index("a photo of thing 1")]
    assert (short["dropped_by"], short["dropped"], short["test-longest.length"]) == ("test-longest", "short", 18)


def test_a_stage_that_ran_twice_keeps_both_of_its_columns(work):
    run_stage(work, "test-words", WordsConfig(least=3))
    lineage = Lineage(work)
    names = lineage.kept(0, lineage.alive(0)).column_names
    assert {"01-test-words.words", "test-words.words"} <= set(names)
    assert lineage.schema(0).names == names
    (one,) = followed(work.folder, "a/000013")
    assert (one["id"], one["captions"], one["decision"]) == (13, [CAPTIONS[13]], "kept")
    (gone,) = followed(work.folder, "a/000012")
    assert (gone["dropped_by"], gone["dropped"]) == ("01-test-words", "too few words")
    assert gone["01-test-words.words"] == 1 and "test-words.words" not in gone
    with pytest.raises(DataError, match=r"no candidate has the key 'a/1'"):
        followed(work.folder, "a/1")


def test_a_list_without_pictures_becomes_what_img2dataset_takes(tmp_path, capsys):
    rows = [
        {"url": f"https://h/{n}.jpg" if n % 5 else None, "caption": text, "uid": f"{n:032x}"} for n, text in enumerate(CAPTIONS)
    ]  # fmt: skip
    work = listed(tmp_path, rows)
    run_stage(work, "test-words", WordsConfig())
    assert main(["curate", "write", str(tmp_path / "work"), "-o", str(tmp_path / "out"), "--shard-size", "20", "--uids"]) == 0
    said = capsys.readouterr().out
    assert "25 addresses in 2 shards" in said and "6  not written: no address" in said
    assert f"img2dataset --url_list {tmp_path / 'out' / 'urls'} --input_format parquet" in said
    table = pq.read_table(tmp_path / "out" / "urls" / "00000.parquet")
    assert table.column_names == ["url", "caption", "id", "source_key", "lineage"]
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["url"], first["id"], first["source_key"]) == ("https://h/1.jpg", 1, "list.parquet:1")
    assert json.loads(first["lineage"]) == {"test-words.words": 5}
    uids = np.load(tmp_path / "out" / "uids.npy")
    assert uids.dtype == np.dtype("u8,u8") and uids["f1"].tolist() == [n for n in range(47) if n % 3]


def test_what_img2dataset_fetched_comes_back_with_what_it_failed_at(tmp_path):
    folder = tmp_path / "fetched"
    folder.mkdir()
    tar_of(folder / "00000.tar", CAPTIONS[:3])
    tar_of(folder / "00001.tar", CAPTIONS[3:5])
    for shard, failed in (("00000", ["HTTP Error 404: Not Found", "HTTP Error 404: Not Found", "timed out"]), ("00001", [])):
        rows = [{"status": "success", "error_message": None, "url": "https://h/1"}] * 2
        rows += [{"status": "failed_to_download", "error_message": why, "url": "https://h/2"} for why in failed]
        rows += [{"status": "failed_to_resize", "error_message": "image decoding\n error", "url": "https://h/3"}]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")
    (folder / "00000_stats.json").write_text("{}")
    work = begin(tmp_path / "work", describe([str(folder)]))
    assert work.entries[0].counts()["rejects"] == {
        "failed_to_download: HTTP Error 404: Not Found": 2,
        "failed_to_resize: image decoding error": 2,
        "failed_to_download: timed out": 1,
        "shard without _stats.json: it was cut off": 1,
    }
    (folder / "00001.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"00001.parquet: img2dataset's table cannot be read"):
        begin(tmp_path / "again", describe([str(folder)]))


def test_captions_alone_are_written_as_a_table(tmp_path):
    work = begin(tmp_path / "work", describe([str(lines_of(tmp_path / "a.txt", CAPTIONS))], part_size=10))
    found = write(work, tmp_path / "out", WriteConfig(shard_size=20))
    assert (found.kind, found.pairs, found.shards) == ("captions", 47, 3)
    assert not (tmp_path / "out" / "urls").exists()
    assert pq.read_table(tmp_path / "out" / "00002.parquet")["caption"].to_pylist() == CAPTIONS[40:]
    again = begin(tmp_path / "again", describe([str(tmp_path / "out" / "00001.parquet")]))
    assert again.part(0).texts == [(text,) for text in CAPTIONS[20:40]]


def test_several_captions_and_what_the_source_said_are_in_the_json(tmp_path):
    path = tmp_path / "a.tar"
    said = {
        "url": "https://h/1.png", "sha256": "ab" * 32, "original_width": 640, "original_height": 10**12, "exif": "\ud800",
        "score": float("nan"), "title": ["first one", "second one", "x"], "lineage": "old", "captions": ["stale"],
    }  # fmt: skip
    with tarfile.open(path, "w") as tar:
        for ending, data in (("png", picture(1)), ("json", json.dumps(said).encode())):
            member = tarfile.TarInfo(f"one.{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    from ostension.data.layout import Layout

    work = begin(tmp_path / "work", describe([str(path)], layout=Layout(texts=("title",))))
    run_stage(work, "test-words", WordsConfig())
    write(work, tmp_path / "out", WriteConfig())
    meta = open_pairs(tmp_path / "out").read(0).meta
    assert meta["captions"] == ["first one", "second one"] and meta["caption"] == "first one" and meta["exif"] == "\ud800"
    assert meta["sha256"] == "ab" * 32 and meta["content_sha256"] != meta["sha256"] and meta["url"] == "https://h/1.png"
    assert (meta["original_width"], meta["original_height"], meta["width"]) == (640, 16, 16) and meta["score"] is None
    assert meta["lineage"] == {"test-words.words": 2}
    both = open_pairs(tmp_path / "out", layout=Layout(texts=("captions",)))
    assert both.read(0).texts == ("first one", "second one")


def test_folders_that_hold_something_else_are_refused(work, tmp_path):
    write(work, tmp_path / "out", WriteConfig(shard_size=20))
    with pytest.raises(DataError, match=r"written from something else \(settings differ\)"):
        write(work, tmp_path / "out", WriteConfig(shard_size=30))
    run_stage(work, "test-longest", LongestConfig(share=0.5))
    with pytest.raises(DataError, match="written from something else"):
        write(work, tmp_path / "out", WriteConfig(shard_size=20))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="not empty"):
        write(work, tmp_path / "full", WriteConfig())


def test_what_cannot_be_meant_is_refused_in_one_line(work, tmp_path):
    with pytest.raises(ConfigError, match=r"window is 4; expected nothing without shuffle"):
        WriteConfig(window=4)
    with pytest.raises(DataError, match=r"uid is None; expected 32 hexadecimal digits"):
        write(work, tmp_path / "uids", WriteConfig(uids=True))
    (work.entries[-1].folder / "done.json").unlink()
    with pytest.raises(DataError, match="'test-words' has not ended"):
        write(work, tmp_path / "out", WriteConfig())
    assert not (tmp_path / "out").exists()
    run_stage(work, "test-words", WordsConfig())
    run_stage(work, "test-words", WordsConfig(least=99))
    with pytest.raises(DataError, match="nothing is kept"):
        write(work, tmp_path / "out", WriteConfig())


def test_columns_that_are_empty_in_one_part_have_one_type_in_all_shards(tmp_path, monkeypatch):
    import dataclasses

    from ostension.curate.base import Stage

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Settings:
        """None."""

    class Sparse(Stage):
        """Values in one part only."""

        name, config_type = "test-sparse", Settings

        def map(self, part):
            full = part.number == 1
            return {"lists": [["x"] if full else [] for _ in part.rows], "value": [0.5 if full else None for _ in part.rows]}

    work = begin(tmp_path / "work", describe([str(lines_of(tmp_path / "a.txt", CAPTIONS[:30]))], part_size=10))
    run_stage(work, "test-sparse", Settings())
    write(work, tmp_path / "out", WriteConfig(shard_size=10, dropped=True))
    schemas = [pq.read_schema(tmp_path / "out" / f"{number:05d}.parquet") for number in range(3)]
    assert schemas[0] == schemas[1] == schemas[2]
    assert schemas[0].field("test-sparse.value").type == pa.float64()
    assert pq.read_table(tmp_path / "out" / "00001.parquet")["test-sparse.lists"].to_pylist() == [["x"]] * 10
