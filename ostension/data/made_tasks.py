"""Tasks that are made: pictures with a word of another class on them, and scenes of a number of objects.

Both are written as a folder with a record beside its pictures, which is a task like any other. Every picture is a function of
the seed and of its own id (or number), whatever else is in the set, and the same command writes the same bytes.
A folder is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, __version__

from ostension.config import require
from ostension.data.sets.base import ids_sha256
from ostension.data.sets.written import FIELD, file_stem
from ostension.data.task import Source, Split, Task
from ostension.data.task_data import TaskData
from ostension.data.task_toml import to_toml
from ostension.errors import ConfigError
from ostension.files import write_text
from ostension.image.decode import open_image
from ostension.image.lettering import WritingConfig, enlarged, write
from ostension.image.scenes import draw_scene
from ostension.runtime import numpy_generator

Progress = Callable[[Iterable[int]], Iterable[int]]
Objects = Literal["shapes", "emoji"]
PICTURES, CLEAN = "pictures", "clean"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
EMOJI_SPLITS = {"train": "train", "val": "train", "test": "seen-style-new-names"}  # what is counted is new in the test
LICENCES: dict[Objects, str] = {"shapes": "CC0-1.0", "emoji": "those of the emoji, which NOTICE lists (CC-BY-SA-4.0 and freer)"}
JPEG = {"quality": 95, "subsampling": 0}  # colours at full resolution, or letters get blurred edges


def write_attacked(
    task: Task, parts: Mapping[str, TaskData], folder: Path, *, seed: int = 0, config: WritingConfig | None = None,
    progress: Progress = iter,
) -> Task:  # fmt: skip
    """Write a task with the name of another class on each of its pictures; the split "clean" has those of "test" without it.

    Args:
        task: that is attacked; one label a sample.
        parts: its samples by the name that their split gets.
        folder: to write; the record gets its name.
        config: how words are written.

    Raises:
        ConfigError: for a folder that has something in it, or a task of another kind.
        DataError: for a picture that cannot be read, or a name that cannot be written.
    """
    if task.kind not in ("classify", "group") or task.takes_several or task.superclass_of is not None:
        raise ConfigError(f"{task.name or task.title!r} cannot be attacked", expected="a task with one label a sample")
    config = config or WritingConfig()
    words = {key: names[0] for key, names in task.display_names().items()}
    ids: dict[str, list[str]] = {}
    with _fresh(folder) as place:
        for split, part in parts.items():
            assert part.targets is not None
            for index in progress(range(len(part))):
                label = part.classes[part.targets[index]]
                pair = part.samples.read(index)
                generator = numpy_generator(seed, "typographic", pair.key)
                text = other_class(tuple(words), label, generator)
                picture = open_image(pair.image, name=pair.key)
                lettered = write(picture, words[text], generator, config).picture
                _save(lettered, place, ids, split, f"{index:06d}_{file_stem(label, text)}")
                if split == "test":
                    _save(enlarged(picture, config.side), place, ids, CLEAN, f"{index:06d}_{file_stem(label, '')}")
        notes = (
            f"Made from {task.name or task.title}: each picture has the name of another class on it (seed {seed}, Pillow "
            f"{__version__}); the split 'clean' has those of 'test' without it.",
            *task.notes,
        )
        record = dataclasses.replace(
            task, title=f"{task.title}, attacked by written words", name=folder.name, version=1, splits=_splits(ids),
            folds=None, kind="classify", metric="accuracy", groups={}, group_by="groups", group_weights={}, cut_px=0,
            written=FIELD, sources=(Source(kind="written", path=PICTURES),), notes=notes, oracles=(),
        )  # fmt: skip
        write_text(place / f"{folder.name}.toml", to_toml(record))
    return record


def other_class(labels: tuple[str, ...], label: str, generator: np.random.Generator) -> str:
    """A label that is not `label`, each of the others as likely."""
    others = [one for one in labels if one != label]
    return others[int(generator.integers(len(others)))]


def write_counting(
    counts: Mapping[str, int], folder: Path, *, largest: int = 10, side: int = 224, objects: Objects = "shapes", seed: int = 0,
    progress: Progress = iter,
) -> Task:  # fmt: skip
    """Write scenes of 1 to `largest` objects, every number as often, as a task whose classes are "one object", ....

    Args:
        counts: pictures by split.
        folder: to write; the record gets its name.
        objects: "shapes", or "emoji" drawings (those of the test are of names that the other splits do not have).

    Raises:
        ConfigError: for a folder that has something in it, or settings out of range.
    """
    require(2 <= largest < len(NUMBERS), "largest", largest, f"2 to {len(NUMBERS) - 1}")
    for split, count in counts.items():
        require(count >= 1, f"pictures of {split}", count, "1 or more")
    drawings = _drawings(tuple(counts)) if objects == "emoji" else {}
    ids: dict[str, list[str]] = {}
    with _fresh(folder) as place:
        for split, count in counts.items():
            for index in progress(range(count)):
                number = 1 + index % largest
                generator = numpy_generator(seed, "counting", split, index)
                scene = draw_scene(number, generator, side=side, drawings=drawings.get(split, ()))
                _save(scene.picture, place, ids, f"{split}/{number}", f"{index:06d}")
        by_split = {split: sorted(name for key, names in ids.items() if key.startswith(f"{split}/") for name in names)
                    for split in counts}  # fmt: skip
        record = Task(
            title=f"Counting {objects} from 1 to {largest}", name=folder.name, version=1,
            classes={str(number): (f"{NUMBERS[number]} object" + "s" * (number > 1),) for number in range(1, largest + 1)},
            templates=("a photo of {}.", "a picture of {}."), splits=_splits(by_split),
            sources=(Source(kind="folder", path=PICTURES, levels=("split", "label")),), licence=LICENCES[objects],
            citation="made by ostension task counting, after Johnson et al. 2017 (CLEVR)",
            notes=(f"Drawn, not photographed (seed {seed}, {side} pixels); figures are not comparable with CLEVR's.",),
        )  # fmt: skip
        write_text(place / f"{folder.name}.toml", to_toml(record))
    return record


def _drawings(splits: tuple[str, ...]) -> dict[str, list[Image.Image]]:
    from ostension.data.embedded import load_emoji

    emoji = load_emoji()
    rows = {split: emoji.rows(EMOJI_SPLITS[split]) for split in splits}
    return {split: [Image.fromarray(emoji.pixels[row]) for row in members] for split, members in rows.items()}


def _save(picture: Image.Image, place: Path, ids: dict[str, list[str]], below: str, stem: str) -> None:
    path = place / PICTURES / below / f"{stem}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **JPEG)
    try:
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot be written: {(error.strerror or '').lower()}", source=path) from None
    ids.setdefault(below, []).append(f"{below}/{path.name}")


def _splits(ids: Mapping[str, list[str]]) -> dict[str, Split]:
    """As a reader of the folder counts them: `select` where a split is not called as usual."""
    return {
        name: Split(count=len(found), ids_sha256=ids_sha256(sorted(found)), select={"split": (name,)} if name == CLEAN else {})
        for name, found in ids.items()
    }


@contextlib.contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place when all is written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is already there", fix="name a new folder, or remove it")
    require(bool(folder.name), "folder", str(folder), "one with a name, which the task gets")
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield place
        place.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.rename(place, folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
