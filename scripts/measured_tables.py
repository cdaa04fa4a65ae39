"""Tables of what was measured: cached features, suites, adapting, the class-design audit, the detector of duplicates."""

from __future__ import annotations

import statistics
from typing import Any


def percent(share: float) -> str:
    """A share in percent, with two figures for small ones."""
    return f"{100 * share:.1f} %" if share >= 0.01 else f"{100 * share:.2g} %"


# The rows of what was measured on cached features: the record, its metric, and how the row is headed.
CACHED_ROWS = (
    ("tags", "map_11_point", "tag photos with COCO's names, 11-point mAP"),
    ("things", "accuracy", "name the one thing in a photo, top-1"),
    ("things", "top5", "the same, top-5"),
    ("shop_pairs", "image_to_text_r1", "clothes to their descriptions, R@1"),
    ("shop_pairs", "text_to_image_r1", "descriptions to their clothes, R@1"),
    ("shop_pairs", "text_to_image_r5", "the same, R@5"),
    ("myntra_pairs", "image_to_text_r1", "another shop: clothes to their names, R@1"),
    ("myntra_pairs", "text_to_image_r1", "names to their clothes, R@1"),
)


def cached_table(record: dict[str, Any]) -> str:
    """What was measured on cached features, each with its 95 % interval, beside chance; the tags of most photos one by one."""
    lines = ["| what | result | 95 % interval | chance | of |", "|---|---|---|---|---|"]
    for name, metric, heading in CACHED_ROWS:
        found = record["records"][name]["metrics"][metric]
        interval = found["interval"]
        lines.append(
            f"| {heading} | {percent(found['value'])} | {percent(interval['low'])} to {percent(interval['high'])} | "
            f"{percent(found['chance'])} | {found['count']:,} |"
        )
    details, total = record["records"]["tags"]["details"], record["records"]["tags"]["counts"]["samples"]
    common = sorted(details["class_counts"].items(), key=lambda entry: -entry[1])[:8]
    said = ", ".join(f"{name} {details['per_class'][name]:.2f} ({percent(count / total)})" for name, count in common)
    return "\n".join(
        [*lines, "", f"Average precision of the most frequent tags (and the share of photos that have them): {said}."]
    )


def measuring_table(record: dict[str, Any]) -> str:
    """One row a set: zero-shot beside what labels give, each with its interval."""
    protocols = {"zeroshot": "zero-shot", "fewshot": "16 shots", "probe": "probe on all labels"}
    rows: dict[str, dict[str, Any]] = {}
    worth: dict[str, str] = {}
    for found in record["records"].values():
        task = found["task"] + ("" if found["split"] in ("", "test") else f", {found['split'].replace('_', ' ')}")
        if found["protocol"] in protocols:
            rows.setdefault(task, {})[found["protocol"]] = next(iter(found["metrics"].values()))
        elif found["protocol"] == "data_efficiency" and "needed" in found["metrics"]:
            worth[task] = f"{found['metrics']['needed']['value']:.2g}"
    head = ("set", "chance", *protocols.values(), "labels a class that zero-shot is worth")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for task, cells in rows.items():
        shown = [shown_metric(cells[protocol]) if protocol in cells else "" for protocol in protocols]
        lines.append(f"| {task} | {percent(cells['zeroshot']['chance'])} | " + " | ".join([*shown, worth.get(task, "")]) + " |")
    return "\n".join(lines)


def adapting_tables(record: dict[str, Any]) -> str:
    """Accuracy against shots, base to new, and left-out domains: mean over seeds (and their spread)."""
    groups: dict[tuple[str, str, str, int], list[float]] = {}
    for found in record["records"].values():
        config = found["config"]
        kind = "halves" if config["base_to_new"] else "shift" if found["task"].startswith("pacs_without_") else "shots"
        shots = 0 if config["method"] == "zero-shot" else config["shots"]
        for name, metric in found["metrics"].items():
            key = (kind, f"{found['task']}/{name}", config["method"], shots)
            groups.setdefault(key, []).append(metric["value"])

    def cell(kind: str, what: str, method: str, shots: int) -> str:
        values = groups.get((kind, what, method, 0 if method == "zero-shot" else shots), [])
        if not values:
            return ""
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        return percent(mean) + (f" ({percent(spread).removesuffix(' %')})" if len(values) > 1 else "")

    lines: list[str] = []
    for kind, title in (
        ("shots", "K pictures a class"),
        ("halves", "16 a class, half of the classes"),
        ("shift", "domain left out"),
    ):
        own = [key for key in groups if key[0] == kind]
        methods = list(dict.fromkeys(key[2] for key in own))
        shots = sorted({key[3] for key in own if key[3]})
        rows = [(what, k) for what in dict.fromkeys(key[1] for key in own) for k in shots]
        lines += ["", f"| {title} | " + " | ".join(methods) + " |", "|---" * (1 + len(methods)) + "|"]
        for what, k in rows:
            task, _, name = what.partition("/")
            head = {"shots": f"{task}, K = {k}", "halves": f"{task}, {name.replace('_', ' ')}"}.get(
                kind, task.removeprefix("pacs_without_").replace("_", " ")
            )
            lines.append(f"| {head} | " + " | ".join(cell(kind, what, method, k) for method in methods) + " |")
    return "\n".join(lines).strip()


def shown_metric(metric: dict[str, Any]) -> str:
    """A share with its interval."""
    span = metric["interval"]
    return f"{percent(metric['value'])} ({percent(span['low'])} to {percent(span['high'])})"


def interval_cell(metric: Any) -> str:
    """A share with its 95 % interval."""
    return f"{percent(metric.value)} ({percent(metric.interval.low)} to {percent(metric.interval.high)})"


def audit_close(record: dict[str, Any]) -> str:
    """The closest names of LVIS, and pairs that people confuse with where they lie."""
    found = record["lvis"]
    lines = ["| closest names of LVIS | distance | pairs that people confuse | distance | reported |", "|---|---|---|---|---|"]
    for (a, b, near), (c, d, far) in zip(found["closest"], found["confused"], strict=False):
        lines.append(f"| {a}, {b} | {near:.2f} | {c}, {d} | {far:.2f} | {'yes' if far < 0.3 else 'no'} |")
    return "\n".join(lines)


def audit_attractors(record: dict[str, Any]) -> str:
    """Classes with 20 photos or more: how many they keep on even logits, and how many captions name them."""
    lines = ["| class of COCO | photos | kept on even logits | named by the caption | reported |", "|---|---|---|---|---|"]
    for row in record["coco"]["table"]:
        said = "yes" if row["reported"] else ""
        kept, named = percent(row["kept"]), percent(row["named"])
        lines.append(f"| {row['class']} | {row['pictures']} | {kept} | {named} | {said} |")
    phones = record["phones"]
    said = "yes" if phones["reported"] else ""
    lines.append(
        f"| cell phone, of {phones['images']} photos of phones | {phones['pictures']} | {percent(phones['kept'])} | | {said} |"
    )
    return "\n".join(lines)


def audit_reach(record: dict[str, Any]) -> str:
    """How often planted faults are reported, and how often nothing at all is."""
    alarms = record["alarms"]
    lines = ["| planted in a simulated list | size | reported |", "|---|---|---|"]
    lines += [f"| {what} | {size:g} | {percent(share)} |" for what, size, share in record["reach"]]
    kinds = ", ".join(f"{kind} {count}" for kind, count in alarms["by_kind"].items())
    return "\n".join([*lines, f"| nothing | | {alarms['any']} of {alarms['lists']} lists ({kinds}) |"])


def text4vis_table(record: dict[str, Any]) -> str:
    """A row for each part of the study, a column for each classifier: mean over seeds and their spread."""
    groups: dict[str, dict[str, list[float]]] = {}
    for name, found in record["records"].items():
        part, classifier, _ = name.split("/")
        groups.setdefault(part, {}).setdefault(classifier, []).append(found["metrics"]["accuracy"]["value"])
    heads = ("zero-shot", "text", "lda", "orthonormal", "random")
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for part, columns in groups.items():
        cells = []
        for head in heads:
            values = columns.get(head, [])
            spread = f" ({100 * statistics.pstdev(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{percent(statistics.fmean(values))}{spread}" if values else "")
        lines.append(f"| {part.replace('-', ', ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def detector_table(record: dict[str, Any]) -> str:
    """What each way to compare pictures finds of planted copies, set by set; then each kind of change alone."""
    lines = [
        "| pictures | compared by | original found | average precision | recall at 99 % precision | its threshold |",
        "|---|---|---|---|---|---|",
    ]
    kinds: dict[str, dict[str, dict[str, float]]] = {}
    for name, one in record["records"].items():
        title, way = name.split("/", 1)
        metrics = one["metrics"]
        threshold = metrics.get("threshold_at_99")
        shown = [percent(metrics[key]["value"]) for key in ("accuracy", "average_precision", "recall_at_99")]
        cut = "" if threshold is None else f"{threshold['value']:.3f}"
        lines.append(f"| {title} ({one['counts']['pictures']:,}) | {way} | " + " | ".join([*shown, cut]) + " |")
        if "kinds" in one["details"]:
            kinds[f"{title}, {way.removeprefix('detector, ')}"] = one["details"]["kinds"]
    changes = list(next(iter(kinds.values())))
    lines += ["", "| one change alone: original found, recall at that threshold | " + " | ".join(changes) + " |"]
    lines += ["|---" * (1 + len(changes)) + "|"]
    for name, table in kinds.items():
        cells = (f"{percent(table[kind]['accuracy'])}, {percent(table[kind]['recall'])}" for kind in changes)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
