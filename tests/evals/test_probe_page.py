"""The page about probes: its example runs."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "probe.md"


def test_the_example_runs_as_it_says(capsys):
    names: dict = {}
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), names)
    out = capsys.readouterr().out
    assert "torch.Size([97, 3, 32]) tensor(True)" in out and "1.1 GB beside the features" in out
    assert names["gradient"].max() < 2e-5 and names["path"].passes > 0
