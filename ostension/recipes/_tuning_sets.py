"""The sets of the study of tuned weights: small packs with a place where training pictures are from, and a shift away from it.

pacs_tuned_DOMAIN   seven classes; 60 a class of each of three domains to draw from, 10 of the same to test on ("test"),
                    30 a class of the fourth domain ("shift")
emoji_vendors       twelve kinds of thing; 28 concepts of each in three vendors' drawings to draw from, 6 others in the same
                    vendors' ("test"), and 12 others in a fourth vendor's ("shift")
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ostension.data.task import Task, read_task
from ostension.data.task_parts import Split
from ostension.recipes._adapting_sets import DOMAINS, KINDS, NEW_STYLE, POOL, STYLES, Makers, Row, small_task, write_made
from ostension.recipes._study_pairs import read_pack
from ostension.runtime import numpy_generator

TEST, MORE = "test", "more"


def write_sets(data: Path, folder: Path) -> list[Path]:
    """Write what is not there yet; the paths of all task records."""
    return write_made(data, folder, MAKERS)


def parted(rows: Iterable[Row], key: Callable[[Row], Any], sizes: dict[str, int]) -> list[Row]:
    """Of each cell so many rows for each part, by chance; rows of one cell with the same `unit` stay together."""
    cells: dict[Any, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[key(row)][row["unit"]].append(row)
    parts = [part for part, count in sizes.items() for _ in range(count)]
    found = []
    for value, units in sorted(cells.items(), key=lambda entry: str(entry[0])):
        names = sorted(units)
        order = numpy_generator(0, "tuning-sets", str(value)).permutation(len(names))
        for place, part in zip(order.tolist(), parts, strict=False):
            found += [{**row, "part": part} for row in units[names[place]]]
    return found


def _pacs(data: Path) -> tuple[dict[str, Task], list[Row]]:
    pack = [
        {"image": row["image"], "label": row["label"], "domain": row["domain"], "id": row["path"], "unit": row["path"]}
        for row in read_pack(data / "pacs/pacs.parquet")
    ]
    rows = parted(pack, lambda row: (row["domain"], row["label"]), {POOL: 60, TEST: 10, MORE: 20})
    tasks = {}
    for left in DOMAINS:
        others = tuple(name for name in DOMAINS if name != left)
        tasks[f"pacs_tuned_{left}"] = small_task(
            read_task("pacs"), f"pacs_tuned_{left}", rows, "pacs_tuned", groups={"domain": DOMAINS},
            splits=shifted(rows, others, left),
        )  # fmt: skip
    return tasks, rows


def _emoji(data: Path) -> tuple[dict[str, Task], list[Row]]:
    vendors = (*STYLES, NEW_STYLE)
    pack = [
        {"image": row["image"], "label": row["subcategory"], "domain": row["style"], "id": f"{row['style']}/{row['hexcode']}",
         "unit": row["hexcode"]}
        for row in read_pack(data / "emoji/emoji.parquet")
        if row["subcategory"] in KINDS and row["style"] in vendors
    ]  # fmt: skip
    rows = parted(pack, lambda row: row["label"], {POOL: 28, TEST: 6, MORE: 6})
    task = small_task(
        read_task("emoji"), "emoji_vendors", rows, "emoji_vendors", title="Kinds of emoji, with a vendor left out",
        keys="index", classes={key: (name,) for key, name in KINDS.items()}, templates=("a picture of a {}.",),
        groups={"domain": vendors}, splits=shifted(rows, STYLES, NEW_STYLE),
    )  # fmt: skip
    return {"emoji_vendors": task}, rows


def shifted(rows: Sequence[Row], known: tuple[str, ...], left: str) -> dict[str, Split]:
    """A test where the training pictures are from, and a shift to what was left out."""

    def split(domains: tuple[str, ...], parts: tuple[str, ...]) -> Split:
        count = sum(row["domain"] in domains and row["part"] in parts for row in rows)
        return Split(count=count, select={"part": parts, "domain": domains})

    return {"train": split(known, (POOL,)), "test": split(known, (TEST,)), "shift": split((left,), (TEST, MORE))}


MAKERS: Makers = {"pacs_tuned": _pacs, "emoji_vendors": _emoji}
