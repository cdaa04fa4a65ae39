"""A curation that is killed, starved, damaged or run twice ends as it should: with the same bytes, or with one clear line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parents[1] / "curate"))
import curating
from curating import LongestConfig, WordsConfig, lines_of, tar_of
from test_agreement import pictures
from test_filter_stage import tar_of as pair_tar

from ostension import files
from ostension.cli.main import main
from ostension.curate.base import STAGES
from ostension.curate.candidates import describe
from ostension.curate.run import begin, run_stage
from ostension.curate.work import Work
from ostension.curate.write import write
from ostension.curate.write_order import WriteConfig
from ostension.errors import DataError, OstensionError
from ostension.files import folder_lock
from ostension.model.clip import CLIP
from ostension.model.decoder import DecoderConfig
from ostension.model.presets import preset
from ostension.train.captioning import CaptioningConfig
from ostension.train.concepts import Concepts

CAPTIONS = [f"a photo of thing {number}" if number % 3 else f"thing{number}" for number in range(47)]
CHAIN = """
source = "a.tar"
part_size = 60

[[stages]]
name = "filter"
captions = { min_words = 2, max_pairs = 3 }
pictures = { check = "decode" }

[[stages]]
name = "match"
queries = "queries.txt"

[[stages]]
name = "balance"
limit = 50
"""

MODELS = """
source = "a.tar"
part_size = 20

[[stages]]
name = "dedup"
rules = ["bytes", "caption", "hash"]

[[stages]]
name = "agreement"
model = "model"
store = ""
threshold = -1.0

[[stages]]
name = "noise"
model = "model"
batch = 8

[[stages]]
name = "caption"
model = "model"
vocabulary = "concepts.json"
above = 0.3
"""


@pytest.fixture(autouse=True)
def _stages(monkeypatch):
    load = STAGES.load
    monkeypatch.setattr(STAGES, "load", lambda name: curating if name.startswith("test-") else load(name))


def made(folder, source=None):
    """A work folder with two stages, one of which looks at the whole."""
    if source is None:
        source = folder / "a.tar"
        if not source.exists():
            tar_of(source, CAPTIONS)
    work = begin(folder / "work", describe([str(source)], part_size=10))
    run_stage(work, "test-words", WordsConfig())
    run_stage(work, "test-longest", LongestConfig(share=0.5))
    return work


def contents(folder):
    """The bytes of all files but those that hold times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("done.json", ".lock") and path.suffix != ".idx"
    }


def one_line(error) -> str:
    text = str(error)
    assert "\n" not in text and "Traceback" not in text and len(text) < 600, text
    return text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_at_random_moments_in_every_stage_and_in_writing_leave_the_bytes_of_an_undisturbed_run(tmp_path):
    tar_of(tmp_path / "a.tar", [f"{'red' if n % 4 else 'blue'} thing {n} on a {('box', 'table')[n % 2]}" for n in range(600)])
    (tmp_path / "queries.txt").write_text("red\nblue\nbox\nthing 1\n")
    (tmp_path / "chain.toml").write_text(CHAIN)
    killed_and_whole(tmp_path, kills=12)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_in_stages_that_use_models_or_groups_leave_the_bytes_of_an_undisturbed_run(tmp_path):
    drawn = list(pictures(40))
    pair_tar(tmp_path / "a.tar", [(f"a picture of thing {n % 31}", drawn[n % 37]) for n in range(70)])  # some come twice
    made = CaptioningConfig(decoder=DecoderConfig(layers=1, head_width=16)).build(CLIP(preset("tiny-vit"), seed=2))
    made.save(tmp_path / "model")
    Concepts(words=("dog", "hat", "tree"), counts=(3, 2, 1)).save(tmp_path / "concepts.json")
    (tmp_path / "chain.toml").write_text(MODELS)
    killed_and_whole(tmp_path, kills=8)


def killed_and_whole(folder, kills):
    """Run chain.toml and write its pairs, once in peace and once killed that often; the bytes are the same."""

    def commands(name):
        options = ["--shuffle", "--shard-size", "40", "--dropped"]
        return [
            ["curate", "run", "chain.toml", "-o", f"{name}"], ["curate", "write", f"{name}", "-o", f"{name}-out", *options]
        ]  # fmt: skip

    (folder / "commands.json").write_text(json.dumps([commands("whole"), commands("killed")]))
    script = Path(__file__).with_name("curation_kills.py")
    done = subprocess.run(
        [sys.executable, str(script), "7", str(kills), "commands.json"], cwd=folder, capture_output=True, text=True,
        timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["status"] for one in said] == [0, 0], done.stderr[-3000:]
    assert sum(one["kills"] for one in said) >= 4
    assert contents(folder / "killed") == contents(folder / "whole")
    assert contents(folder / "killed-out") == contents(folder / "whole-out")
    assert not list(folder.rglob("*.partial"))


def test_what_a_kill_left_before_the_first_file_was_whole_is_no_foreign_folder(tmp_path):
    work = made(tmp_path)
    for folder in (tmp_path / "out", tmp_path / "again"):
        folder.mkdir()
        (folder / ".lock").write_text("123")
        (folder / ".write.json.abc.partial").write_text("{")
    assert write(work, tmp_path / "out", WriteConfig())
    assert begin(tmp_path / "again", describe([str(tmp_path / "a.tar")], part_size=10))
    assert not list((tmp_path / "out").glob("*.partial"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / ".profile").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write(work, tmp_path / "foreign", WriteConfig())


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "full").mkdir()
    tar_of(tmp_path / "a.tar", CAPTIONS)
    wanted = made(tmp_path / "whole", tmp_path / "a.tar")
    write(wanted, tmp_path / "whole" / "out", WriteConfig(shard_size=7, dropped=True))
    refused = 0
    fsync = os.fsync

    def starved(descriptor):
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", starved)
    for _ in range(400):
        room = 11  # a file takes two: its own, and its folder's
        try:
            found = made(tmp_path / "full", tmp_path / "a.tar")
            write(found, tmp_path / "full" / "out", WriteConfig(shard_size=7, dropped=True))
            break
        except OstensionError as error:
            refused += 1
            assert "cannot be written: no space left on device; make room" in one_line(error), error
    assert refused > 5
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_a_folder_that_may_not_be_written_to_is_one_line(tmp_path, capsys):
    lines_of(tmp_path / "a.txt", CAPTIONS)
    (tmp_path / "file").write_text("x")
    assert main(["curate", "match", str(tmp_path / "a.txt"), "-o", str(tmp_path / "file" / "w"), "--queries", "no.txt"]) == 1
    (tmp_path / "q.txt").write_text("thing\n")
    command = ["curate", "match", str(tmp_path / "a.txt"), "-o", str(tmp_path / "file" / "w"), "--queries"]
    capsys.readouterr()
    assert main([*command, str(tmp_path / "q.txt")]) == 1
    assert "Traceback" not in (said := capsys.readouterr().err) and "file" in said
    work = begin(tmp_path / "w", describe([str(tmp_path / "a.txt")]))
    with pytest.raises(DataError, match="cannot be written|not empty"):
        write(work, tmp_path / "file" / "out", WriteConfig())


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("damage", ["torn", "flipped", "gone", "foreign", "other types"])
def test_a_damaged_part_is_named_and_made_again_when_it_is_removed(tmp_path, stage, damage):
    work = made(tmp_path)
    wanted = contents(work.folder)
    path = work.entries[stage].part(2)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[40] ^= 1
        path.write_bytes(data)
    elif damage == "gone":
        path.unlink()
    elif damage == "foreign":
        path.write_text("<html>")
    else:
        table = pq.read_table(path)
        pq.write_table(table.set_column(0, "row", table["row"].cast(pa.string())), path)
    with pytest.raises(DataError) as caught:
        write(work, tmp_path / "out", WriteConfig())
    assert "part-00002.parquet" in one_line(caught.value) and "run the stage again" in str(caught.value)
    path.unlink(missing_ok=True)
    assert contents(made(tmp_path).folder) == wanted
    assert write(Work(work.folder), tmp_path / "out", WriteConfig()).pairs > 0


@pytest.mark.parametrize("kind", ["tar", "txt"])
def test_a_source_that_changed_between_runs_is_refused(tmp_path, kind):
    source = tmp_path / f"a.{kind}"
    (tar_of if kind == "tar" else lines_of)(source, CAPTIONS)
    work = begin(tmp_path / "work", describe([str(source)], part_size=10))
    work.entries[0].part(1).unlink()
    (work.entries[0].folder / "done.json").unlink()
    (tar_of if kind == "tar" else lines_of)(source, [*CAPTIONS, "one more"])
    for path in tmp_path.glob("*.idx"):
        path.unlink()
    with pytest.raises(DataError, match="has changed since"):
        begin(tmp_path / "work", Work(tmp_path / "work").facts)
    with pytest.raises(DataError, match="made of another source"):
        begin(tmp_path / "work", describe([str(source)], part_size=10))


def test_a_source_that_is_gone_is_named(tmp_path):
    work = made(tmp_path)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DataError, match=r"a\.tar"):
        write(Work(work.folder), tmp_path / "out", WriteConfig())
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    for path in tmp_path.glob("*.idx"):
        path.unlink()
    with pytest.raises(DataError, match=r"a\.tar"):
        write(Work(work.folder), tmp_path / "out", WriteConfig())


def test_two_runs_in_one_folder_are_refused(tmp_path):
    work = made(tmp_path)
    with folder_lock(work.folder), pytest.raises(DataError, match=rf"in use by another run \(process {os.getpid()}\)"):
        run_stage(work, "test-words", WordsConfig(least=3))
    write(work, tmp_path / "out", WriteConfig())
    with folder_lock(tmp_path / "out"), pytest.raises(DataError, match="in use by another run"):
        write(work, tmp_path / "out", WriteConfig())


def test_a_folder_of_a_later_version_is_refused(tmp_path):
    work = made(tmp_path)
    tree = json.loads((work.folder / "curation.json").read_text())
    (work.folder / "curation.json").write_text(json.dumps({**tree, "format": 2}))
    with pytest.raises(DataError, match="format 2; expected 1, which this version writes"):
        Work(work.folder)


HOSTILE = ["", "[]", "null", "7", '"x"', "{", "{}", "[" * 100_000, "1" * 10_000, '{"format": 1}', "\ud800", '{"rows": 1e999}']


@pytest.mark.parametrize("name", ["curation.json", "00-candidates/stage.json", "01-test-words/stage.json",
                                  "01-test-words/done.json", "02-test-longest/facts.json"])  # fmt: skip
def test_hostile_json_in_a_work_folder_is_one_line(tmp_path, name):
    work = made(tmp_path)
    (work.folder / "02-test-longest" / "done.json").unlink()
    for text in HOSTILE:
        if ("facts" in name and text.startswith('{"format')) or (name.endswith("facts.json") and text == "{}"):
            continue  # facts are the stage's own, and all its parts are there
        (work.folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(OstensionError) as caught:
            again = Work(work.folder)
            run_stage(again, "test-longest", LongestConfig(share=0.5))
            write(again, tmp_path / "out", WriteConfig())
        assert re.search(r"curation\.json|stage|test-|00-candidates|facts|done|work", one_line(caught.value)), text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_json_in_an_output_is_written_anew_or_one_line(tmp_path, text):
    work = made(tmp_path)
    write(work, tmp_path / "out", WriteConfig())
    wanted = contents(tmp_path / "out")
    (tmp_path / "out" / "00000_stats.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    write(work, tmp_path / "out", WriteConfig())
    assert contents(tmp_path / "out") == wanted
    (tmp_path / "out" / "write.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError) as caught:
        write(work, tmp_path / "out", WriteConfig())
    assert "out" in one_line(caught.value)
