from __future__ import annotations

import json
import os

import pytest
from shard_making import members, write_tar

from ostension.cli.main import main


def test_inspect_shows_counts_sizes_texts_and_samples(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [*members(6), ("lonely.txt", b"x")])
    assert main(["data", "inspect", str(tmp_path / "a.tar"), "--samples", "1"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "pairs         6 in 0.0 MB",
        "identical     0 images have the bytes of an earlier one",
        "left out      1 x text without image",
        "checked       6 pairs, 0 cannot be used",
        "image width   8 to 8 px, median 8",
        "text length   9 to 9 letters, median 9",
        "text words    2 to 2, median 2",
        "captions      1.00 an image",
        "formats       6 PNG RGB",
        "sample        a/00000: picture 0",
        '              {"number": 0}',
    ):
        assert line in printed.splitlines()


def test_inspect_as_json_counts_what_cannot_be_used_and_exits_1(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [*members(3), ("x.png", b"no image"), ("x.txt", b"x"), ("y.png", b""), ("y.txt", b" ")])
    assert main(["data", "inspect", str(tmp_path / "a.tar"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["num_pairs"], found["num_checked"], found["num_unusable"]) == (5, 5, 2)
    assert found["reasons"]["text is empty"] == 1 and [key for key, _ in found["unusable"]] == ["a/x", "a/y"]


def test_inspect_checks_pairs_spread_over_the_source(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", members(10))
    assert main(["data", "inspect", str(tmp_path), "--check", "2", "--json"]) == 0
    assert [sample["key"] for sample in json.loads(capsys.readouterr().out)["samples"]] == ["a/00000", "a/00005"]
    assert main(["data", "inspect", str(tmp_path), "--check", "0"]) == 0
    assert "checked" not in capsys.readouterr().out


def test_inspect_knows_the_embedded_set(capsys):
    assert main(["data", "inspect", "emoji", "--check", "10", "--samples", "0"]) == 0
    assert "pairs         8,143 in 31.4 MB" in capsys.readouterr().out


def test_inspect_shows_the_parts_of_a_mixture(tmp_path, capsys):
    for name, count, start in (("a", 30, 0), ("b", 10, 100)):
        write_tar(tmp_path / f"{name}.tar", members(count, start))
    assert main(["data", "inspect", str(tmp_path / "a.tar"), str(tmp_path / "b.tar"), "--weights", "3", "1"]) == 0
    printed = capsys.readouterr().out
    assert "pairs         40 in" in printed and "identical     0 images" in printed
    for name, count, share, epochs in (("a", 30, "75.0%", "1.00"), ("b", 10, "25.0%", "1.00")):
        line = f"{name}.tar: {count} pairs, {share} of every batch, passed {epochs} times in as many samples as all have"
        assert line in printed


def test_inspect_takes_the_texts_that_it_is_told(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [*members(3), ("x.png", members(1)[0][1]), ("x.json", b'{"alt": ["one", "two"]}')])
    arguments = ["data", "inspect", str(tmp_path / "a.tar"), "--json", "--texts", "txt", "alt"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_pairs"] == 4 and found["captions"] == 1.25 and found["sources"] == []


def test_index_makes_indexes_and_makes_them_again_when_forced(tmp_path, capsys):
    path = write_tar(tmp_path / "a.tar", members(3))
    assert main(["data", "index", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{path}: 3 pairs\n"
    assert (tmp_path / "a.tar.idx").is_file()
    write_tar(path, members(9))
    assert main(["data", "index", str(path)]) == 1
    assert "changed since it was indexed" in capsys.readouterr().err
    assert main(["data", "index", str(path), "--force"]) == 0
    assert "9 pairs" in capsys.readouterr().out


def test_a_torn_shard_is_shown_and_exits_1(tmp_path, capsys):
    path = write_tar(tmp_path / "a.tar", members(9))
    os.truncate(path, 6000)
    assert main(["data", "index", str(path)]) == 1
    assert "warning" in capsys.readouterr().err
    assert main(["data", "inspect", str(path)]) == 1
    assert "torn          " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["inspect", "nowhere.tar"], 1, "nowhere.tar: no such file"),
        (["inspect", "emoji", "--check", "-1"], 2, "--check is -1"),
        (["inspect", "emoji", "--weights", "1", "2"], 2, "--weights is (1.0, 2.0)"),
        (["inspect", "--json"], 2, "the source is missing"),
        (["inspect", "emoji", "--image", "jpg"], 1, "there is no table among the data"),
        (["index", "."], 1, "no tar shard in this folder"),
        (["idnex", "."], 2, "unknown command 'data idnex'"),
    ],
)
def test_what_cannot_be_done_is_one_clean_line(tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == status
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
