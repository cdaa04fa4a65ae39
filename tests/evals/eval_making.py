"""A small model, small tasks with pictures, and protocols of the tests' own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ostension.model.clip import CLIP
from ostension.model.presets import preset

COUNTING = '''"""Counts samples, for tests."""
from __future__ import annotations
import dataclasses
from pathlib import Path
import numpy as np
from ostension.errors import DataError
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record

SPLITS = {splits}

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    factor: float = 1.0
    words: tuple[str, ...] = ()
    fail: str = ""
    mark: str = ""

def reason_not(task):
    return "it has captions" if task.kind == "retrieval" else None

def run(inputs, config, *, seed):
    if config.mark:
        with open(config.mark, "a") as handle:
            handle.write(inputs.task.name + "\\n")
    if config.fail == "data":
        raise DataError("cannot be measured")
    if config.fail == "defect":
        raise KeyError("oh")
    features = inputs.features("test", "{level}")
    used = [len(inputs.features(split)) for split in SPLITS]
    value = {{"nan": float("nan")}}.get(config.fail, config.factor * len(features) / 100)
    texts = inputs.texts(list(config.words)) if config.words else np.zeros((0, 1))
    record = Record(protocol="x", subject="counts", metrics={{"share": Metric(value=value, count=len(features))}},
                    config={{}}, hashes=inputs.hashes(), counts={{"samples": len(features), "seen": sum(used)}},
                    task=inputs.task.name, model=inputs.model_name, split="test", seeds=(seed,),
                    details={{"texts": len(texts), "ids": list(features.ids)}})
    return Outcome(record=record, samples={{"id": np.array(features.ids), "correct": np.arange(len(features)) % 2 == 0}})
'''


def a_model(seed: int = 0) -> CLIP:
    return CLIP(preset("tiny-vit"), seed=seed)


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((40, 36)).save(buffer, "PNG")
    return buffer.getvalue()


def a_task(folder: Path, name: str = "pets", *, test: int = 6, train: int = 4, more: str = "") -> Path:
    """A TOML record beside a folder of pictures by split and class."""
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            label = ("cat", "dog")[index % 2]
            place = folder / name / split / label
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index}.png").write_bytes(picture(index + (100 if split == "train" else 0)))
    record = folder / f"{name}.toml"
    splits = "".join(f"[splits.{split}]\ncount = {count}\n" for split, count in (("train", train), ("test", test)) if count)
    record.write_text(
        'title = "Pets"\nversion = 1\ntemplates = ["a {}."]\nmetric = "accuracy"\nlicence = "mine"\ncitation = "me"\n'
        f"{more}\n"
        f'[classes]\ncat = "cat"\ndog = "dog"\n{splits}\n[[sources]]\nkind = "folder"\npath = "{name}"\n'
        'levels = ["split", "label"]\n'
    )
    return record


def add_protocol(folder: Path, monkeypatch, name: str = "counting", splits: tuple[str, ...] = ("test",), level: str = "post"):
    """Make a module of the tests a protocol; gives its file."""
    import importlib
    import sys

    from ostension.evals import protocols

    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(COUNTING.format(splits=splits, level=level))
    if str(folder) not in protocols.__path__:
        monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(folder)])
        monkeypatch.setattr(protocols.__spec__, "submodule_search_locations", protocols.__path__)
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, f"ostension.evals.protocols.{name}", raising=False)
    return path
