"""The page about searching: its commands and its example run, one after the other, from the top."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ostension
from ostension.cli.main import main
from ostension.model.clip import CLIP
from ostension.model.presets import preset

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "search.md"


def make_store(model: CLIP) -> None:
    ostension.save(model, "model")
    for number in range(40):
        path = Path("pictures", "dogs" if number % 2 == 0 else "cats", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(path)
        label = "dog" if number % 2 == 0 else "cat"
        path.with_suffix(".json").write_text(f'{{"label": "{label}", "camera": "c{number % 3}"}}')
    Path("photo.png").write_bytes(Path("pictures/dogs/4.png").read_bytes())
    Path("queries.txt").write_text("a dog\nsnow - dogs\n")
    Path("nouns.txt").write_text("dog\ncat\nsnow\nbeach\n")
    ostension.load("model").classifier(["tabby", "poodle"]).save("my-classifier")
    assert main(["embed", "pictures", "-o", "store", "--model", "model", "--quiet"]) == 0


@pytest.mark.slow
def test_the_commands_and_the_example_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OSTENSION_MODEL", raising=False)
    model = CLIP(preset("tiny-vit"), seed=0).eval()
    make_store(model)
    names: dict = {"model": model}
    page = PAGE.read_text(encoding="utf-8")
    for kind, code in re.findall(r"^```(bash|python)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(compile(code, str(PAGE), "exec"), names)
            continue
        for line in code.splitlines():
            piped, _, command = line.rpartition(" | ")
            if piped:
                assert piped == "cat queries.txt"
                monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path("queries.txt").read_bytes())))
            words = shlex.split(command)
            assert words[0] == "ostension" and main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    assert len(names["hits"]) == 5 and all(hit.fields["labels"] == ["dog"] for hit in names["hits"])
    assert "data:image/jpeg" in Path("found.html").read_text() and len(list(Path("links").iterdir())) == 6
