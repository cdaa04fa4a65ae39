"""The command `ostension eval`: what it lists."""

from __future__ import annotations

import json

from ostension.cli.main import main
from ostension.data.suite import suite_names
from ostension.evals.protocol import PROTOCOLS, SUMMARIES


def test_every_protocol_summary_and_suite_is_listed_with_its_line(capsys):
    assert main(["eval", "ls", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [("protocol", PROTOCOLS.names()), ("summary", SUMMARIES.names()), ("suite", suite_names())]
    assert [(row["kind"], row["name"]) for row in rows] == [(kind, name) for kind, names in expected for name in names]
    assert all(row["summary"] for row in rows)
    assert main(["eval", "ls"]) == 0
    assert "local" in capsys.readouterr().out


def test_a_runs_model_is_called_as_its_run():
    from ostension.cli._eval_run import model_names

    assert model_names(["runs/first/model", "runs/second/model", "clip.pt"]) == ["first", "second", "clip.pt"]
    assert model_names(["model"]) == ["model"] and model_names(["a/x/model", "b/x/model"]) == ["a/x", "b/x"]
