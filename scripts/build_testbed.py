"""Write ostension/evals/data/testbed.csv: what the published ImageNet test bed measured on the seven natural shifts.

    python scripts/build_testbed.py robustness_top1s.csv plotting/model_types.py

Both files are those of modestyachts/imagenet-testbed (MIT), commit 0170eec. Kept are all models, the columns of the seven
shifts with their partners in distribution, and the family of each model.
"""

from __future__ import annotations

import ast
import csv
import re
import sys
from pathlib import Path

from ostension.evals.testbed import PUBLISHED, SHIFTS

FAMILIES = {
    "STANDARD": "standard", "LP_ADV": "lp-adversarial", "ROBUST_INTV": "robustness-intervention", "MORE_DATA": "more-data",
    "LOW_ACCURACY_CNN": "low-accuracy-cnn", "RANDOM_FEATURES": "random-features", "LINEAR_PIXELS": "linear-pixels",
    "RANDOM_FORESTS": "random-forests", "NEAREST_NEIGHBORS": "nearest-neighbours",
}  # fmt: skip
# Families that model_types.py gives in loops over a number.
LOOPS = re.compile(r"resnet18_(50|100)k_\d+_epochs|resnet101_\d_epochs")


def families(source: str) -> dict[str, str]:
    """The family of each model in the literal `model_types_map`, read without running the file."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "model_types_map":
            assert isinstance(node.value, ast.Dict)
            return {
                key.value: FAMILIES[value.attr]
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(value, ast.Attribute)
            }
    raise SystemExit("no model_types_map in the second file")


def decimals(text: str) -> str:
    """A percentage as short as its precision allows: the source prints 32-bit numbers with all their noise.

    Five decimals where three lose something: near 100 % a logit is steep.
    """
    value = float(text)
    short, exact = (f"{value:.{places}f}".rstrip("0").rstrip(".") for places in (3, 5))
    return short if abs(float(short) - value) < 2e-5 else exact


def main() -> None:
    table, types = Path(sys.argv[1]), families(Path(sys.argv[2]).read_text())
    columns = sorted({column for shift in SHIFTS for column in (*shift.y, *shift.x)})
    with open(table, newline="") as handle:
        rows = sorted(csv.DictReader(handle), key=lambda row: (-float(row["val"] or 0), row["model"]))
    PUBLISHED.parent.mkdir(exist_ok=True)
    with open(PUBLISHED, "w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["model", "family", *columns])
        for row in rows:
            family = types.get(row["model"]) or ("low-accuracy-cnn" if LOOPS.fullmatch(row["model"]) else None)
            assert family is not None, row["model"]
            writer.writerow([row["model"], family, *(decimals(row[column]) if row[column] else "" for column in columns)])


if __name__ == "__main__":
    main()
