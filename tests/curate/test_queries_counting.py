"""Counts of corpora in every form, in pieces, by processes and after kills, against a plain count of the texts."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queries_making import counted_pairs, counted_words, made_texts, plain_counts

from ostension.curate.queries import runs, texts
from ostension.curate.queries.corpora import Reading, open_corpora
from ostension.curate.queries.counting import count
from ostension.errors import ConfigError, DataError, LimitError

TEXTS = made_texts(400)


def counted(folder, *names, reading=None, **options):
    return count(open_corpora([str(name) for name in names], reading or Reading()), folder, **options)


def written(folder, form, lines=TEXTS):
    """The texts as a corpus of some form."""
    data = ("\n".join(lines) + "\n").encode()
    if form in ("txt", "txt.gz", "txt.bz2", "txt.xz", "txt.zst"):
        if form.endswith("zst"):
            data = pa.compress(data, "zstd", asbytes=True)
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(form.rpartition(".")[2], bytes)
        path = folder / f"a.{form}"
        path.write_bytes(pack(data))
    elif form in ("jsonl", "jsonl.gz"):
        data = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in lines).encode()
        path = folder / f"a.{form}"
        path.write_bytes(gzip.compress(data) if form.endswith("gz") else data)
    elif form in ("csv", "tsv"):
        path = folder / f"a.{form}"
        with open(path, "w", newline="", encoding="utf-8") as handle:
            options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if form == "tsv" else {}
            writer = csv.writer(handle, **options)
            writer.writerow(["url", "caption"])
            writer.writerows(["http://x", text.replace("\t", " ")] for text in lines)
    else:
        path = folder / "a.parquet"
        values = [lines[start : start + 5] for start in range(0, len(lines), 5)]
        parquet.write_table(pa.table({"id": range(len(values)), "captions": values}), path, row_group_size=17)
    return path


FORMS = ("txt", "txt.gz", "txt.bz2", "txt.xz", "txt.zst", "jsonl", "jsonl.gz", "csv", "tsv", "parquet")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_counts_of_a_plain_loop(tmp_path, form):
    words, pairs = plain_counts(TEXTS)
    found = counted(tmp_path / "counts", written(tmp_path, form), chunk_bytes=4000)
    assert len(list((tmp_path / "counts" / "chunks").glob("*-words.parquet"))) > 1
    assert counted_words(found) == words
    assert counted_pairs(found, 1) == pairs
    assert found.num_words == sum(words.values())
    assert counted_pairs(found, 3) == {pair: number for pair, number in pairs.items() if number >= 3}
    assert not (tmp_path / "counts" / "spool").exists()


@pytest.mark.parametrize("case", ["kept", "folded"])
def test_several_corpora_of_different_forms_are_counted_together(tmp_path, case):
    parts = {"txt": TEXTS[:150], "jsonl.gz": TEXTS[150:160], "csv": TEXTS[160:]}
    paths = [written(tmp_path, form, part) for form, part in parts.items()]
    words, pairs = plain_counts(TEXTS, case)
    found = counted(tmp_path / "counts", *paths, case=case, chunk_bytes=3000)
    assert counted_words(found) == words
    assert counted_pairs(found, 2) == {pair: number for pair, number in pairs.items() if number >= 2}


@settings(deadline=None, max_examples=8)
@given(st.integers(400, 5000), st.integers(2, 4), st.integers(1, 50), st.integers(20, 3000))
def test_counts_on_the_disk_are_those_in_memory_however_they_are_cut(tmp_path_factory, chunk_bytes, fan_in, rows, piece):
    folder = tmp_path_factory.mktemp("counts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "FAN_IN", fan_in)
        patch.setattr(runs, "ROWS", rows)
        patch.setattr(texts, "PIECE_LETTERS", piece)
        patch.setattr(texts, "_BLOCK_BYTES", 3 * piece)
        found = counted(folder / "counts", written(folder, "txt", TEXTS[:60]), chunk_bytes=chunk_bytes)
        words, pairs = plain_counts(TEXTS[:60])
        assert counted_words(found) == words
        assert counted_pairs(found, 2) == {pair: number for pair, number in pairs.items() if number >= 2}


def test_two_processes_write_the_bytes_of_one(tmp_path):
    paths = [written(tmp_path, form) for form in ("txt", "jsonl.gz", "parquet")]
    for workers in (0, 2):
        counted(tmp_path / f"counts{workers}", *paths, workers=workers, chunk_bytes=9000).pairs(2, lambda *_: None)
    files = sorted(one.relative_to(tmp_path / "counts0") for one in (tmp_path / "counts0").rglob("*.parquet"))
    assert len(files) > 6
    for file in files:
        assert (tmp_path / "counts0" / file).read_bytes() == (tmp_path / "counts2" / file).read_bytes(), file


def test_a_killed_count_goes_on_and_gives_the_same(tmp_path):
    path = written(tmp_path, "txt.gz", made_texts(6_000))
    code = (
        "import sys; from pathlib import Path; from ostension.curate.queries.corpora import *; "
        "from ostension.curate.queries.counting import count; "
        "count(open_corpora([sys.argv[1]], Reading()), Path(sys.argv[2]), chunk_bytes=20000)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path), str(tmp_path / "counts")])
    chunks = tmp_path / "counts" / "chunks"
    for _ in range(600):
        if len(list(chunks.glob("*.json"))) >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {one.name: one.stat().st_mtime_ns for one in chunks.glob("*.json")}
    assert done and not (tmp_path / "counts" / "words.parquet").exists()
    said = []
    found = counted(tmp_path / "counts", path, chunk_bytes=20_000, progress=lambda step, more: said.append(step))
    assert said.count("counted before") == len(done)
    assert {name: (chunks / name).stat().st_mtime_ns for name in done} == done
    whole = counted(tmp_path / "whole", path, chunk_bytes=20_000)
    assert (whole.num_words, whole.by_count) == (found.num_words, found.by_count)
    assert (tmp_path / "whole/words.parquet").read_bytes() == (tmp_path / "counts/words.parquet").read_bytes()


def test_counts_of_another_corpus_are_not_taken(tmp_path):
    path = written(tmp_path, "txt")
    counted(tmp_path / "counts", path)
    path.write_text("something else\n")
    with pytest.raises(DataError, match="counts of other files"):
        counted(tmp_path / "counts", path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").touch()
    with pytest.raises(DataError, match="a folder with other things in it"):
        counted(tmp_path / "mine", path)
    scratch = counted(tmp_path / "counts", path, scratch=True)
    assert counted_words(scratch) == {"something": 1, "else": 1}


def test_a_folder_is_its_text_files_and_a_work_folder_its_candidates(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    written(tmp_path / "folder", "txt", TEXTS[:50])
    written(tmp_path / "folder" / "deep", "jsonl", TEXTS[50:90])
    (tmp_path / "folder" / "photo.jpg").write_bytes(b"\xff\xd8\0")
    assert counted_words(counted(tmp_path / "a", tmp_path / "folder")) == plain_counts(TEXTS[:90])[0]
    work = tmp_path / "work" / "00-candidates"
    work.mkdir(parents=True)
    (tmp_path / "work" / "curation.json").write_text("{}")
    for number in (0, 1):
        lists = [[text] for text in TEXTS[40 * number : 40 * number + 40]]
        parquet.write_table(pa.table({"row": range(40), "texts": lists}), work / f"part-{number:05d}.parquet")
    assert counted_words(counted(tmp_path / "b", tmp_path / "work")) == plain_counts(TEXTS[:80])[0]


def test_a_pattern_is_the_files_that_it_stands_for(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n".join(TEXTS[number * 20 : number * 20 + 20]))
    assert counted_words(counted(tmp_path / "counts", tmp_path / "*.txt")) == plain_counts(TEXTS[:60])[0]
    some = counted(tmp_path / "some", str(tmp_path / "{0..1}.txt"))
    assert counted_words(some) == plain_counts(TEXTS[:40])[0]


def test_captions_of_pairs_are_a_corpus(tmp_path):
    from ostension.data.open import open_pairs

    source = open_pairs("emoji:new-style-new-names")
    captions = [text for index in range(len(source)) for text in source.read(index).texts]
    found = counted(tmp_path / "counts", "emoji:new-style-new-names", chunk_bytes=20_000)
    assert (found.num_texts, counted_words(found)) == (len(captions), plain_counts(captions)[0])


def test_lines_belong_together_until_an_empty_one_if_asked(tmp_path):
    (tmp_path / "a.txt").write_text("in New\nYork\n\nCity \n \n hall\n")
    apart = counted(tmp_path / "apart", tmp_path / "a.txt")
    assert ("New", "York") not in counted_pairs(apart, 1)
    together = counted(tmp_path / "together", tmp_path / "a.txt", reading=Reading(wrapped=True))
    assert set(counted_pairs(together, 1)) == {("in", "New"), ("New", "York")}


def test_a_huge_line_is_cut_where_no_pair_is_lost(tmp_path, monkeypatch):
    line = ". ".join(TEXTS)
    (tmp_path / "a.txt").write_text(line)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(line.encode()))
    words, pairs = plain_counts([line])
    for name in ("a.txt", "b.txt.gz"):
        found = counted(tmp_path / f"counts-{name}", tmp_path / name, chunk_bytes=1000)
        assert counted_words(found) == words
        assert counted_pairs(found, 1) == pairs
    from ostension.curate.queries import corpora

    monkeypatch.setattr(corpora, "MAX_LINE", 100_000)
    (tmp_path / "c.txt").write_text("x" * 300_000)
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"x" * 300_000))
    for name in ("c.txt", "d.txt.gz"):
        with pytest.raises(LimitError, match="no end of a text in 100,000 bytes"):
            counted(tmp_path / f"counts-{name}", tmp_path / name, chunk_bytes=1000)


def test_broken_bytes_are_counted_and_another_encoding_is_asked_for(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 noir\n" + b"plain words\n" * 1000)
    found = counted(tmp_path / "counts", tmp_path / "a.txt")
    assert found.rejects == {"bytes in another encoding": 1}
    assert counted_words(found)["caf"] == 1
    assert ("caf", "noir") not in counted_pairs(found, 1)
    (tmp_path / "b.txt").write_bytes("né café ".encode("latin-1") * 500)
    with pytest.raises(DataError, match="--encoding latin-1"):
        counted(tmp_path / "b", tmp_path / "b.txt")
    latin = counted(tmp_path / "c", tmp_path / "b.txt", reading=Reading(encoding="latin-1"))
    assert counted_words(latin) == {"né": 500, "café": 500}


def test_rows_that_hold_no_text_are_counted(tmp_path):
    lines = ['{"text": "a dog"}', "no json", "[1]", "", '{"other": 1}', '{"text": ["x", "", "y"]}', '{"text": null}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = counted(tmp_path / "counts", tmp_path / "a.jsonl")
    assert found.rejects == {"lines that are no JSON object": 2, "rows without a text": 2}
    assert (found.num_texts, set(counted_words(found))) == (3, {"a", "dog", "x", "y"})


def test_a_corpus_without_words_has_none(tmp_path):
    (tmp_path / "a.txt").write_text("!!!\n\n")
    found = counted(tmp_path / "counts", tmp_path / "a.txt")
    assert (found.num_words, counted_words(found), counted_pairs(found, 1)) == (0, {}, {})
    (tmp_path / "b.txt").touch()
    assert counted(tmp_path / "empty", tmp_path / "b.txt").num_words == 0


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt.gz", gzip.compress(b"some words\n" * 5000, mtime=0)[:60], "torn or damaged"),
        ("a.bz2", bz2.compress(b"some words\n" * 5000)[:-9], "torn or damaged"),
        ("a.xz", b"\xfd7zXZ\x00\x00", "torn or damaged"),
        ("a.txt.zst", pa.compress(bytes(range(256)) * 900, "zstd", asbytes=True)[:100], "torn or damaged"),
        ("a.txt", "words".encode("utf-16"), "no text that can be read"),
        ("a.txt", b"\x7fELF\0\0", "no text that can be read"),
        ("a.parquet", b"PAR1", "no Parquet file"),
        ("a.parquet", gzip.compress(b"PAR1", mtime=0), "packed Parquet"),
        ("a.csv", b"", "an empty table"),
        ("a.csv", b"text,b\n1\n", "line 2 has 1 fields"),
        ("a.csv", b"x,y\n1,2\n", "no column of texts among 'x', 'y'"),
        ("a.xml", b"<html></html>", "XML that is no MediaWiki dump"),
    ],
)
def test_a_file_that_cannot_be_counted_is_one_clear_line(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises((DataError, ConfigError)) as caught:
        counted(tmp_path / "counts", tmp_path / name)
    assert said in str(caught.value)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_corpora_that_cannot_be_meant_are_one_clear_line(tmp_path):
    path = written(tmp_path, "csv")
    with pytest.raises(ConfigError, match=r"unknown column 'captoin'.*nearest: 'caption'"):
        open_corpora([str(path)], Reading(columns=("captoin",)))
    with pytest.raises(DataError, match="listed twice"):
        open_corpora([str(path), os.path.relpath(path)], Reading())
    with pytest.raises(DataError, match="no such file"):
        open_corpora([str(tmp_path / "none.txt")], Reading())
    with pytest.raises(ConfigError, match="encoding is 'utf-99'"):
        Reading(encoding="utf-99")
    with pytest.raises(ConfigError, match="single-byte line ends"):
        Reading(encoding="utf-16")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file with text in this folder"):
        open_corpora([str(tmp_path / "empty")], Reading())


def test_sums_of_runs_are_exact_beyond_the_integers_of_floats():
    large = 2**53
    words, counts = runs.sum_words([(pa.array([b"a", b"b"]), np.array([large, 1])), (pa.array([b"a"]), np.array([1]))])
    assert (words.to_pylist(), counts.tolist()) == ([b"a", b"b"], [large + 1, 1])
    keys, counts = runs.sum_numbers([(np.array([7], np.uint64), np.array([large])), (np.array([7], np.uint64), np.array([1]))])
    assert (keys.tolist(), counts.tolist()) == ([7], [large + 1])
