"""`ostension curate`: a command for each stage with its settings as flags, whole chains, and what goes wrong in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "curate"))
import curating
from curating import lines_of

from ostension.cli import curate
from ostension.cli._curate_stages import command_of
from ostension.cli.main import main
from ostension.curate.base import STAGES

CAPTIONS = ["a cat on a mat", "dog", "a red house", "IMG_1", "two birds in a tree"]


@pytest.fixture(autouse=True)
def _stages(monkeypatch, tmp_path):
    load = STAGES.load
    monkeypatch.setattr(STAGES, "load", lambda name: curating if name.startswith("test-") else load(name))
    for name in ("test-words", "test-longest"):
        monkeypatch.setitem(curate.COMMAND, name, command_of(name))
    monkeypatch.chdir(tmp_path)
    lines_of(Path("a.txt"), CAPTIONS)


def said(capsys):
    found = capsys.readouterr()
    assert "Traceback" not in found.err
    return found.out, found.err


def test_stages_are_run_one_after_the_other_in_a_work_folder(capsys):
    assert main(["curate", "test-words", "a.txt", "-o", "work", "--least", "3"]) == 0
    assert "01 test-words: 5 rows, 3 kept (60.0%)" in said(capsys)[0]
    assert main(["curate", "test-longest", "work", "--share", "0.34", "--json"]) == 0
    (found,) = json.loads(said(capsys)[0])
    assert found["stage"] == "test-longest" and found["reasons"] == {"short": 2}
    assert main(["curate", "ls", "work"]) == 0
    out, _ = said(capsys)
    assert out.index("00 candidates: 5 rows") < out.index("01 test-words") < out.index("02 test-longest")


def test_a_stages_help_has_its_settings_and_the_shared_flags(capsys):
    with pytest.raises(SystemExit):
        main(["curate", "test-words", "--help"])
    out, _ = said(capsys)
    assert "--least" in out and "words that a caption has at least" in out and "--workers" in out and "--output" in out


def test_a_whole_chain_is_one_file_and_goes_on_where_it_was(capsys):
    chain = Path("pairs.toml")
    chain.write_text(
        'source = "a.txt"\npart_size = 2\n[[stages]]\nname = "test-words"\nleast = 2\n[[stages]]\nname = "test-longest"\n'
    )
    assert main(["curate", "run", "pairs.toml", "-o", "work"]) == 0
    first, _ = said(capsys)
    assert main(["curate", "run", "pairs.toml", "-o", "work"]) == 0
    assert said(capsys)[0] == first
    chain.write_text(chain.read_text().replace("least = 2", "least = 1"))
    assert main(["curate", "run", "pairs.toml", "-o", "work"]) == 1
    assert "least: 2, now 1" in said(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test-words"], "source is missing"),
        (["test-words", "a.txt"], "add -o WORK"),
        (["test-words", "none.txt", "-o", "work"], "no such file"),
        (["test-words", "a.txt", "-o", "work", "--part-size", "0"], "part size of 0"),
        (["test-words", "a.txt", "-o", "work", "--texts", "title"], "lines have no columns"),
        (["test-words", "a.txt", "-o", "work", "--workers", "-1"], "-1 workers"),
        (["run", "none.toml", "-o", "work"], "none.toml: cannot be read"),
        (["run", "a.txt", "-o", "work"], "no TOML"),
        (["ls", "nowhere"], "no work folder"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, message, capsys):
    assert main(["curate", *arguments]) in (1, 2)
    _, err = said(capsys)
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('source = "a.txt"', "no stages"),
        ('source = "a.txt"\n[[stages]]\nleast = 1', "stage 1 has no name"),
        ('source = "a.txt"\n[[stages]]\nname = "wrods"', "unknown stage 'wrods'"),
        ('source = "a.txt"\n[[stages]]\nname = "test-words"\nlest = 1', "unknown setting 'lest'"),
        ('surce = "a.txt"\n[[stages]]\nname = "test-words"', "unknown setting 'surce'"),
        ('[[stages]]\nname = "test-words"', "'source' is missing"),
    ],
)
def test_chains_that_cannot_be_meant_are_refused(text, message, capsys):
    Path("bad.toml").write_text(text)
    assert main(["curate", "run", "bad.toml", "-o", "work"]) in (1, 2)
    _, err = said(capsys)
    assert message in err and "bad.toml" in err and not Path("work").exists()
