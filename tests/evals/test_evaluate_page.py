"""The page about measuring: its example runs."""

from __future__ import annotations

import re
from pathlib import Path

from eval_making import a_model, a_task

import ostension

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "evaluate.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ostension.save(a_model(), "path/to/model")
    a_task(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.startswith("pets 0.") and (tmp_path / "results/mine/pets/zeroshot.json").is_file()
