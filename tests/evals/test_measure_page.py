"""The page about measuring: its example runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "measure-zero-shot.md"


def test_the_example_on_the_page_runs(capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    assert "zeroshot {'accuracy'" in said and "prompts {'gain'" in said and "'temperature'" in said
    assert "'probability_after'" in said
