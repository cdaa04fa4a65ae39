"""Other tasks that a method learns from besides, on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import tiny_clip

from ostension.cli.main import main
from ostension.formats.load import save

COLOURS = ("red", "green", "blue")


def a_task(root: Path, name: str, labels: Sequence[str]) -> Path:
    """Two pictures of each label in train and test, as a task."""
    for place, label in enumerate(labels):
        for split in ("train", "test"):
            (root / "data" / split / label).mkdir(parents=True)
            for index in range(2):
                pixels = np.full((32, 32, 3), 60 * place + index, dtype=np.uint8)
                Image.fromarray(pixels).save(root / "data" / split / label / f"{index}.png")
    assert main(["task", "new", str(root / "data"), "-o", str(root / f"{name}.toml")]) == 0
    return root / f"{name}.toml"


def test_other_tasks_to_learn_from_are_given_by_name(tmp_path, capsys):
    """Transfer and joint learning, alone and side by side; a method that takes none is told so."""
    save(tiny_clip(), tmp_path / "model")
    task, other = a_task(tmp_path / "target", "colours", COLOURS), a_task(tmp_path / "other", "more", ("green", "grey"))
    asked = ["--model", str(tmp_path / "model"), "--store", str(tmp_path / "store"), "--dtype", "float32"]
    flags = ["family=text", "length=2", "recipe.epochs=1", "recipe.views=0", "recipe.batch_size=2", "source_seeds=[1]"]
    settings = [part for text in flags for part in ("--set", text)]
    alone = ["adapt", "mvlpt", *asked, "--task", str(task), "--shots", "1", *settings, "--sources", str(other)]
    for extra, classes in (([], 3), (["--set", "joint=true"], 3)):
        out = tmp_path / f"mine{len(extra)}"
        assert main([*alone, *extra, "-o", str(out)]) == 0
        record = json.loads((out / "result.json").read_text())
        assert record["config"]["method"] == "mvlpt from more"
        assert record["counts"]["classes"] == classes and record["counts"]["source_tasks"] == 1
    capsys.readouterr()
    both = ["adapt", "compare", *asked, "--tasks", str(task), "--shots", "1", "--seeds", "1", "-o", str(tmp_path / "results")]
    changed = [part for text in flags for part in ("--set", f"mvlpt.{text}")]
    few = [part for text in flags[1:4] for part in ("--set", f"coop.{text}")]
    assert main([*both, "--methods", "coop,mvlpt", *changed, *few, "--sources", str(other), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["method"] for row in rows} == {"coop", "mvlpt from more"}
    assert main([*both, "--methods", "coop", "--sources", str(other)]) == 2
    assert "no effect on coop" in capsys.readouterr().err
    assert main([*alone[:-2], "--set", "joint=true", "-o", str(tmp_path / "x")]) == 1
    assert "one task alone" in capsys.readouterr().err
