"""The page about the store: its examples run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from store_making import picture

import ostension
from ostension.model.clip import CLIP
from ostension.model.presets import preset

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "store.md"


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    ostension.save(CLIP(preset("tiny-vit"), seed=0), "path/to/model")
    for number, label in enumerate(["cat", "cat", "cat", "dog", "dog"]):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture(number))
    names: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), names)
    assert "(5, 32) float16 (2, 32) (2, 32)" in capsys.readouterr().out
    assert names["best"].rows.shape == (3, 3) and set(names["best"].rows.ravel()) <= {0, 1, 2}
    assert len(names["store"].open(names["key"])) == 4 and names["table"].is_file()
