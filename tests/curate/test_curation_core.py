"""The core of curation: candidates of every kind of source, stages part by part, restarts, identities, lineage."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent))
import curating
from curating import LongestConfig, WordsConfig, lines_of, parts_of, picture, tar_of

from ostension.curate import run as running
from ostension.curate.base import STAGES
from ostension.curate.candidates import describe
from ostension.curate.run import begin, run_stage
from ostension.curate.work import Work
from ostension.errors import ConfigError, DataError

CAPTIONS = [f"a photo of thing {number}" if number % 3 else f"thing{number}" for number in range(25)]


@pytest.fixture(autouse=True)
def _stages(monkeypatch):
    load = STAGES.load
    monkeypatch.setattr(STAGES, "load", lambda name: curating if name.startswith("test-") else load(name))


def work_of(tmp_path, source, name="work", part_size=10, **options):
    return begin(tmp_path / name, describe([str(source)], part_size=part_size), **options)


def test_candidates_of_pairs_keep_their_places_and_pictures(tmp_path):
    work = work_of(tmp_path, tar_of(tmp_path / "a.tar", CAPTIONS))
    assert work.num_parts == 3 and work.entries[0].counts()["kept"] == 25
    part = work.part(1)
    assert part.texts[2] == (CAPTIONS[12],) and part.keys[2] == "a/000012" and part.image(2) == picture(12)
    assert part.ids().tolist() == list(range(10, 20)) and part.has_pictures


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "csv", "tsv", "parquet"])
def test_candidates_of_captions_come_from_every_kind_of_file(tmp_path, kind):
    path = tmp_path / f"captions.{kind}"
    rows = [{"url": f"https://host/{n}.jpg", "caption": text, "lang": "en"} for n, text in enumerate(CAPTIONS)]
    if kind == "txt":
        lines_of(path, CAPTIONS)
    elif kind == "txt.gz":
        path.write_bytes(gzip.compress("\n".join(CAPTIONS).encode()))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "\t" if kind == "tsv" else ","
        path.write_text("\n".join([mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]) + "\n")
    work = work_of(tmp_path, path)
    parts = list(work.parts())
    assert [text for part in parts for (text,) in part.texts] == CAPTIONS
    assert not parts[0].has_pictures
    with pytest.raises(DataError, match="no picture"):
        parts[0].image(0)
    if not kind.startswith("txt"):
        assert parts[0].urls[3] == "https://host/3.jpg" and parts[0].meta[3] == {"lang": "en"}


def test_what_cannot_be_used_keeps_its_row_with_a_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [b'{"caption": "one thing"}', b"{", b'{"caption": " "}', b'{"caption": "\xff"}', b'{"caption": "two things"}', b"7"]
    path.write_bytes(b"\n".join(lines))
    work = work_of(tmp_path, path)
    counts = work.entries[0].counts()
    assert counts["reasons"] == {"no text": 1, "not JSON": 2, "not UTF-8": 1} and counts["rows"] == 6
    assert work.part(0).rows.tolist() == [0, 4] and work.part(0).keys == ["a.jsonl:1", "a.jsonl:5"]


def test_stages_see_what_earlier_ones_have_left(tmp_path):
    work = work_of(tmp_path, lines_of(tmp_path / "a.txt", CAPTIONS))
    entry = run_stage(work, "test-words", WordsConfig())
    counts = entry.counts()
    alone = sum(number % 3 == 0 for number in range(25))
    assert counts["reasons"] == {"too few words": alone} == counts["text_reasons"] and counts["texts"] == 25
    last = run_stage(work, "test-longest", LongestConfig(share=0.5))
    assert last.counts()["rows"] == 25 - alone and last.counts()["facts"] == {"bound": len("a photo of thing 10")}
    part = work.part(1)
    assert part.rows.tolist() == [0, 1, 3, 4, 6, 7, 9]
    assert part.column("test-words.words").to_pylist() == [5] * 7
    with pytest.raises(ConfigError, match="unknown column"):
        part.column("test-words.wrods")


def test_processes_and_restarts_give_the_same_bytes(tmp_path):
    source = lines_of(tmp_path / "a.txt", CAPTIONS)
    whole = work_of(tmp_path, source, "one")
    other = work_of(tmp_path, source, "two")
    for name, config in (("test-words", WordsConfig()), ("test-longest", LongestConfig())):
        first, second = run_stage(whole, name, config), run_stage(other, name, config)
        wanted = parts_of(first)
        for gone in ("part-00001.parquet", "done.json"):
            (second.folder / gone).unlink()
        again = run_stage(other, name, config)
        assert parts_of(again) == wanted and again.counts()["reasons"] == first.counts()["reasons"]


def test_pairs_are_read_by_several_processes_to_the_same_bytes(tmp_path):
    source = tar_of(tmp_path / "a.tar", CAPTIONS)
    one, two = work_of(tmp_path, source, "one"), work_of(tmp_path, source, "two", workers=2)
    assert parts_of(one.entries[0]) == parts_of(two.entries[0])


def test_a_stage_that_is_done_is_left_and_other_settings_are_refused_in_its_place(tmp_path, monkeypatch):
    work = work_of(tmp_path, lines_of(tmp_path / "a.txt", CAPTIONS))
    run_stage(work, "test-words", WordsConfig(), place=1)
    monkeypatch.setattr(running, "each", None)  # nothing is computed
    run_stage(work, "test-words", WordsConfig(), place=1)
    run_stage(work, "test-words", WordsConfig())
    with pytest.raises(DataError, match=r"least: 2, now 3.*remove"):
        run_stage(work, "test-words", WordsConfig(least=3), place=1)
    with pytest.raises(DataError, match="has 'test-words' where 'test-longest'"):
        run_stage(work, "test-longest", LongestConfig(), place=1)


def test_a_stage_that_was_stopped_has_to_end_before_another_begins(tmp_path):
    work = work_of(tmp_path, lines_of(tmp_path / "a.txt", CAPTIONS))
    entry = run_stage(work, "test-words", WordsConfig())
    (entry.folder / "done.json").unlink()
    with pytest.raises(DataError, match="has not ended"):
        run_stage(work, "test-longest", LongestConfig())


def test_folders_of_something_else_are_refused(tmp_path):
    source = lines_of(tmp_path / "a.txt", CAPTIONS)
    work_of(tmp_path, source)
    with pytest.raises(DataError, match="another part size"):
        work_of(tmp_path, source, part_size=5)
    with pytest.raises(DataError, match="another source"):
        work_of(tmp_path, lines_of(tmp_path / "b.txt", CAPTIONS))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="not empty"):
        work_of(tmp_path, source, "full")
    with pytest.raises(DataError, match="no work folder"):
        Work(tmp_path / "full")


def test_stages_that_were_moved_do_not_follow(tmp_path):
    work = work_of(tmp_path, lines_of(tmp_path / "a.txt", CAPTIONS))
    entry = run_stage(work, "test-words", WordsConfig())
    entry.folder.rename(work.folder / "02-test-words")
    with pytest.raises(DataError, match="does not follow"):
        work.entries  # noqa: B018


def test_a_damaged_part_is_named(tmp_path):
    work = work_of(tmp_path, lines_of(tmp_path / "a.txt", CAPTIONS))
    entry = run_stage(work, "test-words", WordsConfig())
    entry.part(1).write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="part-00001.parquet: damaged"):
        run_stage(work, "test-longest", LongestConfig())


def test_a_source_that_changed_is_refused(tmp_path):
    source = tar_of(tmp_path / "a.tar", CAPTIONS)
    work_of(tmp_path, source)
    tar_of(source, CAPTIONS[::-1])
    (tmp_path / "a.tar.idx").unlink()
    work = Work(tmp_path / "work")
    with pytest.raises(DataError, match="has changed"):
        work.part(0).image(0)


def test_ids_are_numbers_of_the_source(tmp_path):
    work = work_of(tmp_path, lines_of(tmp_path / "a.txt", CAPTIONS), part_size=7)
    assert np.concatenate([part.ids() for part in work.parts()]).tolist() == list(range(25))


def test_captions_of_a_table_that_names_pictures_are_taken_alone_if_asked(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("file,caption\nnone.jpg,a cat\nno.jpg,a dog\n")
    with pytest.raises(DataError, match=r"none of 2 rows can be used \(2 unreadable\).*--captions-only"):
        work_of(tmp_path, path, "pairs")
    work = begin(tmp_path / "captions", describe([str(path)], captions_only=True))
    assert work.part(0).texts == [("a cat",), ("a dog",)] and work.part(0).meta[1] == {"file": "no.jpg"}
    with pytest.raises(ConfigError, match="no captions alone"):
        describe([str(tar_of(tmp_path / "a.tar", CAPTIONS))], captions_only=True)
