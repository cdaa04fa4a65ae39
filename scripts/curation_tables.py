"""Tables of the study of curation: what each stage kept, and what models learned from each variant."""

from __future__ import annotations

from typing import Any

from tuning_tables import spread

COLUMNS = {
    "local_tiny_imagenet": "Tiny ImageNet", "local_caltech101": "Caltech-101", "local_cifar10": "CIFAR-10",
    "photo": "PACS photos", "cartoon": "PACS cartoons", "photos text_to_image_r5": "find the photo, R@5",
    "photos image_to_text_r5": "find the caption, R@5",
}  # fmt: skip


def curation_tables(record: dict[str, Any]) -> str:
    """The chain, then the models."""
    found = list(record["records"].values())
    stages = [one for one in found if one["protocol"] == "curation-stage"]
    lines = ["| stage | given | kept | dropped |", "|---|---|---|---|"]
    for one in stages:
        kept = one["metrics"]["kept"]
        reasons = sorted(
            ((name, metric["value"]) for name, metric in one["metrics"].items() if name != "kept"), key=lambda pair: -pair[1]
        )
        dropped = ", ".join(f"{value:,.0f} {name}" for name, value in reasons)
        lines.append(f"| {one['subject']} | {kept['count']:,} | {kept['value']:,.0f} | {dropped} |")
    models = [one for one in found if one["protocol"] == "curation"]
    names = list(models[0]["details"]["values"])
    heads = [next((words for key, words in COLUMNS.items() if key in name), name) for name in names]
    table = ["| learned from | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for one in models:
        cells = [spread(one["details"]["values"][name]) for name in names]
        table.append(f"| {one['subject']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + "\n".join(table)
