"""What could not be measured, kept beside the results with its reason, so that a report cannot pass it over.

RESULTS/failed.json holds one line a (model, task, protocol). A later run that measures it, or finds that it cannot apply, takes
it out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ostension.errors import DataError
from ostension.files import read_json, write_json

if TYPE_CHECKING:
    from ostension.evals.suite_run import Step

NAME, FORMAT = "failed.json", "ostension failures 1"


def note_failures(folder: Path, steps: Sequence[Step]) -> None:
    """Bring the list of a folder up to date with a run's steps.

    Raises:
        DataError: for a list that is damaged, or a disk that does not take it.
    """
    known = read_failures(folder)
    for step in steps:
        place = (step.model, step.target, step.protocol)
        known.pop(place, None)
        if step.status == "failed":
            known[place] = step.reason
    path = folder / NAME
    try:
        if known:
            rows = [[*place, reason] for place, reason in sorted(known.items())]
            write_json(path, {"format": FORMAT, "failed": rows})
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", source=path) from None


def read_failures(folder: Path) -> dict[tuple[str, str, str], str]:
    """Reasons by model, task and protocol; none where nothing failed.

    Raises:
        DataError: for a list that is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    tree = read_json(path)
    rows = tree.get("failed") if isinstance(tree, dict) and tree.get("format") == FORMAT else None
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise DataError("not a list of failures", source=path, expected=FORMAT, fix="remove it; the next run writes it again")
    return {(str(model), str(task), str(protocol)): str(reason) for model, task, protocol, reason in rows}
