"""The sets of the study of methods: small packs cut from those of `OSTENSION_DATA`, each with its task record.

    cifar10_small, fashion_small   ten classes; 200 a class to draw from, 100 to test on
    caltech26                      every fourth class of its 101; all of its training pictures, 30 a class to test on
    emoji_styles                   twelve kinds of thing; three vendors' drawings to draw from, a fourth vendor's to test on
    pacs_without_DOMAIN            seven classes; 60 a class of three domains to draw from, 50 of the fourth to test on
    tiny_imagenet20                twenty classes; 20 a class to train on, 10 to test on (for attacks)

A second split, "few", is half of each test split, for methods that take seconds a picture. EuroSAT is not among the packs.
"""

from __future__ import annotations

import dataclasses
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ostension import files
from ostension.data.task import Task, read_task
from ostension.data.task_parts import Source, Split
from ostension.data.task_toml import to_toml
from ostension.errors import require_extra
from ostension.recipes._study_pairs import read_pack
from ostension.runtime import numpy_generator

DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
STYLES, NEW_STYLE = ("noto", "twemoji", "fluent3d"), "openmoji"
KINDS = {
    "animal-mammal": "mammal", "animal-bird": "bird", "animal-marine": "sea animal", "animal-bug": "insect",
    "transport-ground": "vehicle", "clothing": "piece of clothing", "food-fruit": "fruit", "food-prepared": "meal",
    "place-building": "building", "tool": "tool", "time": "clock", "country-flag": "flag",
}  # fmt: skip
CONCEPTS = 40  # of each kind of emoji
POOL, FEW, REST = "pool", "few", "rest"
# Columns of a pack: image, label, part (pool, few or rest), domain (or empty), id.
Row = dict[str, Any]
Makers = dict[str, Callable[[Path], tuple[dict[str, Task], list[Row]]]]


def write_sets(data: Path, folder: Path) -> list[Path]:
    """Write what is not there yet; the paths of all task records."""
    return write_made(data, folder, MAKERS)


def write_made(data: Path, folder: Path, makers: Makers) -> list[Path]:
    """The packs and records of `makers` that are not there yet; the paths of all records."""
    paths = []
    for name, make in makers.items():
        marker = folder / f"{name}.parquet"
        tasks, rows = make(data) if not marker.is_file() else ({}, [])
        if tasks:
            for task in tasks.values():
                files.write_text(folder / f"{task.name}.toml", to_toml(task))
            write_pack(marker, rows)  # last: it says that the records are there
        paths += sorted(folder.glob(f"{name}*.toml"))
    return paths


def write_pack(path: Path, rows: Sequence[Row]) -> None:
    arrow, parquet = require_extra("pyarrow", "curate"), require_extra("pyarrow.parquet", "curate")
    table = arrow.table({column: [row[column] for row in rows] for column in ("image", "label", "part", "domain", "id")})
    with files.atomic_path(path) as temporary:
        parquet.write_table(table, temporary)


def draw(rows: Iterable[Row], name: str, counts: dict[str, int], key: Callable[[Row], Any]) -> list[Row]:
    """At most so many rows of each (source split, key), in their order, with their part."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["split"], key(row)].append(row)
    found = []
    for (split, value), members in sorted(groups.items(), key=lambda entry: str(entry[0])):
        generator = numpy_generator(0, "adapting-sets", name, split, str(value))
        chosen = np.sort(generator.permutation(len(members))[: counts[split]]).tolist()
        for place, index in enumerate(chosen):
            part = POOL if split == "train" else (FEW, REST)[place % 2]
            found.append({"domain": "", **members[index], "part": part})
    return found


def small_task(base: Task, name: str, rows: Sequence[Row], pack: str, **changes: Any) -> Task:
    """The record of a pack: what is in its columns, with the splits of `parts_of` unless others are given."""
    source = Source(kind="parquet", path=f"{pack}.parquet", label="label", id="id")
    given = {"name": name, "sources": (source,), "notes": (), "groups": {}, "oracles": (), **changes}
    return dataclasses.replace(base, **{**given, "splits": changes.get("splits") or parts_of(rows)})


def parts_of(rows: Sequence[Row]) -> dict[str, Split]:
    """Where the splits are in a pack's columns, and how many samples they have."""
    test = [row for row in rows if row["part"] != POOL]
    return {
        "train": Split(count=len(rows) - len(test), select={"part": (POOL,)}),
        "test": Split(count=len(test), select={"part": (FEW, REST)}),
        "few": Split(count=sum(row["part"] == FEW for row in test), select={"part": (FEW,)}),
    }


def _cifar10(data: Path) -> tuple[dict[str, Task], list[Row]]:
    pack = read_pack(data / "cifar10/cifar10_10ktest_10ktrain.parquet")
    rows = draw(_rows(pack), "cifar10_small", {"train": 200, "test": 100}, lambda row: row["label"])
    changes = {"template_set": None, "templates": ("a photo of a {}.",)}
    return {"cifar10_small": small_task(read_task("local_cifar10"), "cifar10_small", rows, "cifar10_small", **changes)}, rows


def _fashion(data: Path) -> tuple[dict[str, Task], list[Row]]:
    base = read_task("local_fashion_mnist")
    names = list(base.display_names())
    pack = np.load(data / "fashion_mnist/fashion_mnist_10ktest_10ktrain.npz")
    found = [
        {"image": pixels, "label": names[label], "split": split, "id": f"{split}/{index}"}
        for split in ("train", "test")
        for index, (pixels, label) in enumerate(zip(pack[f"{split}_images"], pack[f"{split}_labels"], strict=True))
    ]
    rows = [
        {**row, "image": _png(row["image"])}
        for row in draw(found, "fashion_small", {"train": 200, "test": 100}, lambda row: row["label"])
    ]
    return {"fashion_small": small_task(base, "fashion_small", rows, "fashion_small", numbers_from=None)}, rows


def _caltech(data: Path) -> tuple[dict[str, Task], list[Row]]:
    base = read_task("local_caltech101")
    classes = dict(list(base.display_names().items())[::4])
    pack = (row for row in read_pack(data / "caltech101/caltech101.parquet") if row["label"] in classes)
    rows = draw(_rows(pack), "caltech26", {"train": 10**6, "test": 30}, lambda row: row["label"])
    changes = {"classes": classes, "template_set": None, "templates": ("a photo of a {}.",)}
    return {"caltech26": small_task(base, "caltech26", rows, "caltech26", **changes)}, rows


def _emoji(data: Path) -> tuple[dict[str, Task], list[Row]]:
    pack = [row for row in read_pack(data / "emoji/emoji.parquet") if row["subcategory"] in KINDS]
    kept: dict[str, set[str]] = {}
    for kind in KINDS:
        codes = sorted({row["hexcode"] for row in pack if row["subcategory"] == kind})
        order = numpy_generator(0, "adapting-sets", "emoji", kind).permutation(len(codes))[:CONCEPTS]
        kept[kind] = {codes[index] for index in order}
    found = [
        {"image": row["image"], "label": row["subcategory"], "domain": row["style"], "id": f"{row['style']}/{row['hexcode']}",
         "split": "test" if row["style"] == NEW_STYLE else "train"}
        for row in pack
        if row["hexcode"] in kept[row["subcategory"]] and row["style"] in (*STYLES, NEW_STYLE)
    ]  # fmt: skip
    rows = draw(found, "emoji_styles", {"train": 10**6, "test": 10**6}, lambda row: row["label"])
    task = small_task(
        read_task("emoji"), "emoji_styles", rows, "emoji_styles", title="Kinds of emoji, a vendor left out", keys="index",
        classes={key: (name,) for key, name in KINDS.items()}, templates=("a picture of a {}.",),
        groups={"domain": (*STYLES, NEW_STYLE)},
    )  # fmt: skip
    return {"emoji_styles": task}, rows


def _pacs(data: Path) -> tuple[dict[str, Task], list[Row]]:
    pack = [
        {"image": row["image"], "label": row["label"], "domain": row["domain"], "id": f"{use}/{row['path']}", "split": use}
        for use in ("train", "test")
        for row in read_pack(data / "pacs/pacs.parquet")
    ]
    rows = draw(pack, "pacs", {"train": 60, "test": 50}, lambda row: (row["domain"], row["label"]))
    tasks = {}
    for left in DOMAINS:
        own = [row for row in rows if (row["domain"] == left) == (row["part"] != POOL)]
        task = small_task(read_task("pacs"), f"pacs_without_{left}", own, "pacs", groups={"domain": DOMAINS})
        domains = {"train": tuple(name for name in DOMAINS if name != left), "test": (left,), "few": (left,)}
        splits = {
            name: dataclasses.replace(split, select={**split.select, "domain": domains[name]})
            for name, split in task.splits.items()
        }
        tasks[task.name] = dataclasses.replace(task, splits=splits)
    return tasks, rows


def _tiny_imagenet(data: Path) -> tuple[dict[str, Task], list[Row]]:
    pack = read_pack(data / "tiny_imagenet/tiny_imagenet_val10k_train50pc.parquet")
    base = read_task("local_tiny_imagenet")
    classes = dict(list(base.display_names().items())[::10])
    named = ({**row, "split": row["split"].replace("val", "test")} for row in pack)
    column = "wnid" if next(iter(classes)) in {row["wnid"] for row in pack} else "label"
    kept = [{**row, "label": row[column]} for row in named if row[column] in classes]
    rows = draw(_rows(kept), "tiny_imagenet20", {"train": 20, "test": 10}, lambda row: row["label"])
    changes = {"classes": classes, "classes_of": None, "subset": None, "template_set": None, "templates": ("a photo of a {}.",)}
    return {"tiny_imagenet20": small_task(base, "tiny_imagenet20", rows, "tiny_imagenet20", **changes, keys="index")}, rows


def _rows(pack: Iterable[Row]) -> list[Row]:
    return [{"image": row["image"], "label": row["label"], "split": row["split"], "id": row["path"]} for row in pack]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


MAKERS: Makers = {
    "cifar10_small": _cifar10, "fashion_small": _fashion, "caltech26": _caltech, "emoji_styles": _emoji, "pacs": _pacs,
    "tiny_imagenet20": _tiny_imagenet,
}  # fmt: skip
