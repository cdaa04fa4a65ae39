"""The page about embedding: its commands and its example run, one after the other, from the top."""

from __future__ import annotations

import io
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ostension
from ostension.cli.main import main
from ostension.model.clip import CLIP
from ostension.model.presets import preset

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "embed.md"


def picture(number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def make_sources() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ostension.save(CLIP(preset("tiny-vit"), seed=0), "path/to/model")
    for number in range(6):
        path = Path("pictures", "cat" if number % 2 else "dog", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    Path("pictures/cat/1.txt").write_text("a red ball")
    Path("photo.png").write_bytes(picture(9))
    Path("captions.txt").write_text("a blue ball\nthe sea\n")
    Path("pictures/cat/0.png").write_bytes(picture(8))
    Path("shards").mkdir()
    with tarfile.open("shards/0.tar", "w") as tar:
        for number in range(3):
            for name, data in ((f"{number}.png", picture(number)), (f"{number}.txt", b"a caption")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    rows = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(3)]
    pq.write_table(pa.table({"image": rows, "caption": ["a", "b", "c"]}), "set.parquet")
    Path("list.txt").write_text("pictures/cat/1.png\npictures/dog/2.png\n")
    Path("facts.csv").write_text("id,year\ncat/1.png,1999\n")
    Path("urls.txt").write_text("http://elsewhere.example/a.png\n")


@pytest.mark.slow  # processes import torch
def test_the_commands_and_the_example_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSTENSION_MODEL", "path/to/model")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_sources()
    names: dict = {}
    page = PAGE.read_text(encoding="utf-8")
    for kind, code in re.findall(r"^```(bash|python)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(compile(code, str(PAGE), "exec"), names)
            continue
        for line in code.splitlines():
            words = shlex.split(line)
            if words[0] == "ostension":
                # The host of the example is not in the list of allowed ones, so nothing is asked of the network.
                expected = 1 if "urls.txt" in words else 0
                assert main(words[1:]) == expected, f"{line}\n{capsys.readouterr().err}"
            else:  # torchrun, which test_collection.py tries, and the variable, which is set above
                assert words[0] in ("torchrun", "export"), line
    assert len(names["found"]) == 7 and names["added"].encoded == 7
