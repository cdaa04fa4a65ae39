"""What the sub-commands of `ostension eval overlap` share: the sources of a search, its table, the bar on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ostension.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ostension.data.pairs import PairSource
    from ostension.evals.overlap_neighbours import Neighbours


def evaluation_source(where: dict[str, Any]) -> PairSource:
    """The evaluation pictures of a search: of a source, or of a task's split."""
    from ostension.data.pictures import open_pictures
    from ostension.data.task_data import open_task

    if where["task"] is None:
        return open_pictures(where["evaluation"])
    opened = open_task(where["task"], where["data"], split=where["split"])
    if opened.samples.embeddings is not None:
        raise DataError("holds ready embeddings and no pictures", source=where["task"], expected="a task with pictures")
    return opened.samples


def training_source(where: dict[str, Any]) -> PairSource:
    """The training pictures of a search."""
    from ostension.data.pictures import open_pictures

    return open_pictures(where["training"])


def moved(found: Neighbours, evaluation: str | None, training: tuple[str, ...]) -> dict[str, Any]:
    """Where a search's pictures are: as it was given them, or as they are said to be now.

    Raises:
        ConfigError: for a search of arrays, which has no pictures.
    """
    where = found.facts.get("sources")
    if where is None:
        what, expected = "the search was of arrays and knows no pictures", "one of `ostension eval overlap neighbours`"
        raise ConfigError(what, expected=expected)
    if evaluation is not None:
        where = {**where, **({"evaluation": evaluation} if where["task"] is None else {"data": evaluation})}
    return {**where, "training": list(training)} if training else where


def lines_of(rows: list[dict[str, Any]], tests: int) -> str:
    """The table of a study."""
    from ostension.cli._tables import text_table

    def percent(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{100 * value:.{digits}f} %"

    head = [
        "set", "samples", "overlap", "share", "acc all", "acc clean", "acc overlap", "99.5 % interval", "delta", "p",
        f"p x {tests}",
    ]  # fmt: skip
    table = []
    for row in rows:
        accuracy, interval = row["accuracy"], row["interval"]
        span = "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
        delta = "" if row["delta"] is None else f"{100 * row['delta']:+.2f}"
        table.append([
            row["task"], f"{row['counts']['all']:,}", f"{row['counts']['overlap']:,}", percent(row["contamination"]),
            *(percent(accuracy[part]) for part in ("all", "clean", "overlap")), span, delta,
            *("" if row[name] is None else f"{row[name]:.3g}" for name in ("p", "p_corrected")),
        ])  # fmt: skip
    notes = [f"{row['task']}: {note}" for row in rows for note in row["notes"]]
    return "\n".join([text_table(head, table), *notes])


@contextlib.contextmanager
def bar(words: str, total: int) -> Iterator[Callable[[int], None]]:
    """While entered, a progress bar on the terminal, and a function to tell it how many are done."""
    from tqdm import tqdm

    with tqdm(total=total, desc=words, leave=False, disable=None, file=sys.stderr) as shown:
        yield lambda done: shown.update(done - shown.n)
