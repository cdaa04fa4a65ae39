"""Tables of the study of tuned weights: each method where training pictures are from and on the shift, soups, and groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MODELS = {"lite0": "locked EfficientNet-Lite0", "vit": "small vision transformer"}
TASKS = {
    "pacs_tuned_photo": "PACS, photos left out", "pacs_tuned_sketch": "PACS, sketches left out",
    "emoji_vendors": "emoji, OpenMoji left out",
}  # fmt: skip
ORDER = (
    "zero-shot", "prior", "probe", "clip-adapter", "tip-adapter", "tip-adapter-f", "lit", "finetune", "lp-ft", "flyp", "car-ft",
)  # fmt: skip


def tuning_tables(record: dict[str, Any]) -> str:
    """A table a (model, task), with points on the lines of tuned towers, then soups and the worst group."""
    found = list(record["records"].values())
    tables = []
    for model, words in MODELS.items():
        for task, title in TASKS.items():
            own = [one for one in found if (one["model"], one["task"]) == (model, task) and is_method(one)]
            if own:
                tables.append(_methods(f"{words}: {title}", task, own))
    if soups := [one for one in found if one["config"]["method"].startswith(("ingredient", "soup"))]:
        tables.append(_soups(soups))
    if groups := [one for one in found if one["task"] == "emoji_backgrounds"]:
        tables.append(_groups(groups))
    if patches := [one for one in found if one["config"]["method"].startswith("paint")]:
        start = next(one for one in found if one["task"] == patches[0]["task"] and one["config"]["method"] == "zero-shot")
        tables.append(_patches(patches, start))
    return "\n\n".join(tables)


def _patches(found: list[dict[str, Any]], start: dict[str, Any]) -> str:
    """Every tenth of the line on validation pictures, then what was chosen there, on the tests."""
    patches = [one["details"]["fit"]["patches"][0] for one in found]
    names = list(patches[0]["seen"][0]["scores"])
    lines = [f"| {found[0]['config']['method']} | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    points = sorted(point["alphas"][0] for point in patches[0]["seen"])[::2]
    for alpha in points:
        seen = [point["scores"] for patch in patches for point in patch["seen"] if point["alphas"] == [alpha]]
        cells = [spread([scores[name] for scores in seen]) for name in names]
        lines.append(f"| validation, α {alpha:g} | " + " | ".join(cells) + " |")
    metrics = ["accuracy", *(f"{name}@test" for name in names[1:])]
    lines.append("| test, zero-shot | " + " | ".join(spread(_values([start], name)) for name in metrics) + " |")
    for one, patch in sorted(zip(found, patches, strict=True), key=lambda pair: pair[0]["seeds"]):
        cells = [spread(_values([one], name)) for name in metrics]
        lines.append(f"| test, seed {one['seeds'][0]}: chosen α {patch['alphas'][0]:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def is_method(record: dict[str, Any]) -> bool:
    """Whether it is a method's own result, and no soup's or patch's."""
    return record["config"]["method"] in ORDER


def spread(values: Iterable[float]) -> str:
    """Mean, and the population's spread where there are several seeds, in percent."""
    values = [100 * value for value in values]
    if not values:
        return ""
    mean = sum(values) / len(values)
    deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    return f"{mean:.1f}" + (f" ({deviation:.1f})" if len(values) > 1 else "")


def _values(found: list[dict[str, Any]], metric: str) -> list[float]:
    return [one["metrics"][metric]["value"] for one in found if metric in one["metrics"]]


def _methods(title: str, task: str, found: list[dict[str, Any]]) -> str:
    shift = f"{task}@shift"
    points = sorted({name.split("/")[0] for one in found for name in one["metrics"] if name.startswith("alpha ")})
    heads = [
        "same kind",
        "shift",
        *(f"{point.replace('alpha', 'α')}: {where}" for point in points for where in ("same", "shift")),
    ]
    lines = [f"| {title} | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for method in ORDER:
        own = [one for one in found if one["config"]["method"] == method]
        if own:
            columns = ["accuracy", shift, *(f"{point}/{name}" for point in points for name in ("accuracy", shift))]
            lines.append(f"| {method} | " + " | ".join(spread(_values(own, name)) for name in columns) + " |")
    return "\n".join(lines)


def _soups(found: list[dict[str, Any]]) -> str:
    """Ingredients on average, the one best by validation, and the two soups."""
    task = found[0]["task"]
    rows: dict[str, list[dict[str, Any]]] = {
        "ingredients, mean": [],
        "best by validation": [],
        "uniform soup": [],
        "greedy soup": [],
    }
    for one in found:
        name, chosen = one["config"]["method"], one["config"]["chosen"]
        if name.startswith("ingredient"):
            rows["ingredients, mean"].append(one)
        if name == chosen[0]:
            rows["best by validation"].append(one)
        if name in ("soup-uniform", "soup-greedy"):
            rows[f"{name.removeprefix('soup-')} soup"].append(one)
    lines = [f"| soups of fine-tuned models: {TASKS[task]} | same kind | shift |", "|---|---|---|"]
    for row, own in rows.items():
        lines.append(f"| {row} | {spread(_values(own, 'accuracy'))} | {spread(_values(own, f'{task}@shift'))} |")
    return "\n".join(lines)


def _groups(found: list[dict[str, Any]]) -> str:
    lines = ["| emoji on backgrounds | worst group | average |", "|---|---|---|"]
    for method in dict.fromkeys(one["config"]["method"] for one in found):
        own = [one for one in found if one["config"]["method"] == method]
        averages = [one["metrics"][name]["value"] for one in own for name in one["metrics"] if "average" in name][: len(own)]
        lines.append(f"| {method} | {spread(_values(own, 'worst_group'))} | {spread(averages)} |")
    return "\n".join(lines)
