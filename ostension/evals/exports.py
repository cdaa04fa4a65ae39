"""Results in the forms of other tools: CLIP_benchmark's JSON files and CSV.

CLIP_benchmark writes one JSON file a run: {"dataset", "model", "pretrained", "task", "metrics": {...}, "language"}; its `build`
makes one row of each, metrics and the rest side by side, with "model_fullname" = model and pretrained. Its metrics are `acc1`,
`acc5` (not a number for fewer than five classes; null here), `mean_per_class_recall`; `image_retrieval_recall@k`,
`text_retrieval_recall@k`; `lp_acc1` and the like for linear probes.

Source: LAION-AI/CLIP_benchmark, clip_benchmark/cli.py and clip_benchmark/metrics, commit 48de38c.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.errors import DataError
from ostension.evals.oracles import known_model
from ostension.evals.results import Result, file_name
from ostension.files import write_json

LANGUAGE = "en"
# Our tasks by that tool's names; all others keep theirs.
DATASETS = {
    "stanford_cars": "cars", "imagenet_a": "imagenet-a", "imagenet_r": "imagenet-r", "imagenet": "imagenet1k",
    "imagenet_v2": "imagenetv2", "sst2": "renderedsst2", "caltech101": "vtab/caltech101", "cifar10": "vtab/cifar10",
    "cifar100": "vtab/cifar100", "dtd": "vtab/dtd", "eurosat": "vtab/eurosat", "flowers102": "vtab/flowers",
    "kitti": "vtab/kitti_closest_vehicle_distance", "pcam": "vtab/pcam", "oxford_pets": "vtab/pets",
    "resisc45": "vtab/resisc45", "coco": "mscoco_captions", "clevr_counts": "vtab/clevr_count_all",
}  # fmt: skip
_RETRIEVAL = {
    f"{theirs}_retrieval_recall@{k}": f"{ours}_r{k}"
    for theirs, ours in (("image", "text_to_image"), ("text", "image_to_text")) for k in (1, 5, 10)
}  # fmt: skip
_CLASSES = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
# Their task, and their metrics by ours, of each protocol of ours that is one of theirs.
PROTOCOLS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "zeroshot": ("zeroshot_classification", _CLASSES),
    "retrieval": ("zeroshot_retrieval", _RETRIEVAL),
    "probe": ("linear_probe", {f"lp_{theirs}": ours for theirs, ours in _CLASSES.items()}),
}
FIRST_COLUMNS = (*_CLASSES, "dataset", "model", "pretrained", "task", "mean_average_precision", "image_retrieval_recall@5",
                 "text_retrieval_recall@5", "model_fullname")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What another tool would have written, and what of the results has no place in it, one line each."""

    runs: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...]


def clip_benchmark(results: Sequence[Result], *, model: str | None = None, pretrained: str | None = None) -> Exported:
    """Results as that tool's runs.

    Args:
        model, pretrained: what they are called there; by default what the model's name says ("ViT-B-32-openai"), or the name
            itself and nothing.

    Raises:
        DataError: for results of a limited number of samples, which are none.
    """
    refuse_limited(results)
    runs: list[dict[str, Any]] = []
    left_out: list[str] = []
    for result in results:
        record = result.record
        where = f"{record.model}: {result.target} {record.protocol}"
        if record.protocol not in PROTOCOLS:
            left_out.append(f"{where}: the tool has no such task")
            continue
        task, names = PROTOCOLS[record.protocol]
        found = {theirs: record.metrics[ours].value for theirs, ours in names.items() if ours in record.metrics}
        if not found:
            left_out.append(f"{where}: none of its metrics is one of the tool's ({', '.join(names)})")
            continue
        values: dict[str, float | None] = dict(found)
        if record.protocol == "zeroshot":
            values["acc5"] = found.get("acc5") if record.counts.get("classes", 5) >= 5 else None
        known = known_model(record.model) or (record.model, "")
        dataset = DATASETS.get(record.task, record.task)
        runs.append({
            "dataset": dataset if result.target == record.task else f"{dataset}@{result.target.rpartition('@')[2]}",
            "model": model or known[0], "pretrained": pretrained or known[1], "task": task, "metrics": values,
            "language": LANGUAGE,
        })  # fmt: skip
    if not runs:
        raise DataError("no result has a place in this form", expected="zeroshot, retrieval or probe with its metrics")
    return Exported(runs=tuple(runs), left_out=tuple(left_out))


def write_runs(folder: Path, runs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """One JSON file a run, named as that tool's examples are: DATASET_PRETRAINED_MODEL_LANGUAGE_TASK.json."""
    written = []
    for run in runs:
        name = "_".join(str(run[part]).replace("/", "_") for part in ("dataset", "pretrained", "model", "language", "task"))
        path = folder / f"{file_name(name)}.json"
        try:
            write_json(path, dict(run))
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror}", source=path) from None
        written.append(path)
    return written


def runs_csv(runs: Sequence[Mapping[str, Any]]) -> str:
    """The rows that the tool's `build` makes of such files; what a run does not have is empty."""
    rows = []
    for run in runs:
        rest = {name: value for name, value in run.items() if name != "metrics"}
        rows.append({**run["metrics"], **rest, "model_fullname": f"{run['model']} {run['pretrained']}"})
    columns = [*FIRST_COLUMNS, *sorted({name for row in rows for name in row} - set(FIRST_COLUMNS))]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def refuse_limited(results: Sequence[Result]) -> None:
    """Refuse results of a limited number of samples: outside this folder nobody would know.

    Raises:
        DataError: naming the first of them.
    """
    for result in results:
        if result.limit is not None:
            raise DataError(
                f"was measured on {result.limit:,} samples only",
                source=result.path or result.target,
                fix="run it without --limit, or leave it out",
            )
