"""Tables of what was measured: cached features, suites, adapting, the class-design audit, the detector of duplicates."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

from ostension.config import from_tree
from ostension.evals.figure import Figure
from ostension.evals.figures.adapting import draw
from ostension.evals.records import Record


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


SEEDS = 3
MODELS = {"lite0": "locked EfficientNet-Lite0", "vit": "small vision transformer"}


def adapting_tables(record: dict[str, Any]) -> str:
    """Accuracy against shots, base to new, domains left out, views, attacks: mean over seeds (and their spread) in percent."""
    checks = [one for key, one in record["records"].items() if key.startswith("check/")]
    found = [one for key, one in record["records"].items() if not key.startswith("check/") and one["config"]]
    attacked = [one for one in found if one["protocol"].startswith("attack-")]
    rest = [one for one in found if not one["protocol"].startswith("attack-")]
    halves = [one for one in rest if one["config"]["base_to_new"]]
    whole = [one for one in rest if not one["config"]["base_to_new"] and one["config"]["method"] != "tpt"]
    shift = [one for one in whole if one["task"].startswith("pacs_without_") and one["split"] == "test"]
    plain = [one for one in whole if not one["task"].startswith("pacs_without_")]
    tables = []
    for model, words in MODELS.items():
        kinds = (
            ("all classes", plain, lambda task, name, k: f"{task}, K = {k}"),
            ("base to new, K = 16", halves, lambda task, name, k: f"{task}, {name.replace('_', ' ')}"),
            ("domain left out, K = 16", shift, lambda task, name, k: task.removeprefix("pacs_without_").replace("_", " ")),
        )
        for title, part, row in kinds:
            own = [one for one in part if one["model"] == model]
            if own:
                tables.append(_methods_table(f"{words}: {title}", own, row, average=part is shift))
        tested = [one for one in rest if one["config"]["method"] == "tpt" and one["model"] == model]
        places = {(one["task"], one["split"]) for one in tested}
        words_alone = [one for one in rest if one["config"]["method"] == "zero-shot" and one["model"] == model]
        found_there = [one for one in words_alone if (one["task"], one["split"]) in places and not one["config"]["base_to_new"]]
        same = {one["task"]: one for one in found_there}.values()
        if tested:
            tables.append(_methods_table(f"{words}: no labels", [*same, *tested], lambda task, name, k: task))
    if attacked:
        tables.append(_attack_table(attacked))
    if checks:
        tables.append(_check_table(checks, [one for one in rest if not one["config"]["base_to_new"]]))
    if (costs := record["records"].get("processor-time")) is not None:
        tables.append(_cost_table(costs["metrics"], costs["counts"]))
    return "\n\n".join(tables)


def _cost_table(parts: dict[str, Any], counts: dict[str, int]) -> str:
    """Minutes of processor time of the timed fits of each part, and of all."""
    whole = {"value": sum(part["value"] for part in parts.values()), "count": sum(part["count"] for part in parts.values())}
    lines = ["| part | fits | of them timed | minutes of processor time |", "|---|---|---|---|"]
    for name, part in {**parts, "all": whole}.items():
        fits = sum(counts.values()) if name == "all" else counts[name]
        lines.append(f"| {name} | {fits} | {part['count']} | {part['value'] / 60:.1f} |")
    return "\n".join(lines)


def _methods_table(
    title: str, found: list[dict[str, Any]], row: Callable[[str, str, int], str], *, average: bool = False
) -> str:
    """Methods side by side; a method without labelled pictures has the same cell in every row of a task."""
    cells: dict[tuple[str, str, str, int], list[float]] = {}
    for one in found:
        method = one["config"]["method"]
        labels = 0 if method in ("zero-shot", "tpt") else one["config"]["shots"]
        for name, metric in list(one["metrics"].items())[: 3 if one["config"]["base_to_new"] else 1]:
            cells.setdefault((one["task"], name, method, labels), []).append(metric["value"])
    order = ("zero-shot", "probe")
    methods = sorted({key[2] for key in cells}, key=lambda name: (order.index(name) if name in order else len(order), name))
    ks = sorted({key[3] for key in cells if key[3]}) or [0]
    heads = dict.fromkeys(key[:2] for key in cells)
    lines = [f"| {title} | " + " | ".join(methods) + " |", "|---" * (1 + len(methods)) + "|"]
    columns: dict[str, list[float]] = {method: [] for method in methods}
    for task, name in heads:
        for k in (k for k in ks if not k or any(key[:2] == (task, name) and key[3] == k for key in cells)):
            shown = []
            for method in methods:
                values = cells.get((task, name, method, k)) or cells.get((task, name, method, 0), [])[:1]  # the same each time
                shown.append(_spread(values, 0 if method in ("zero-shot", "tpt") else SEEDS))
                columns[method] += [sum(values) / len(values)] if values else []
            lines.append(f"| {row(task, name, k)} | " + " | ".join(shown) + " |")
    if average and all(len(column) == len(heads) for column in columns.values()):
        means = [f"{100 * sum(column) / len(column):.1f}" for column in columns.values()]
        lines.append("| mean | " + " | ".join(means) + " |")
    return "\n".join(lines)


def _spread(values: list[float], seeds: int = 0) -> str:
    """Mean, the population's spread where there are several seeds, and how many if fewer than `seeds`."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    fewer = f" [{len(values)}]" if len(values) < seeds else ""
    return f"{100 * mean:.1f}" + (f" ({100 * spread:.1f})" if len(values) > 1 else "") + fewer


def _attack_table(found: list[dict[str, Any]]) -> str:
    """Clean and robust accuracy of zero-shot and of what was trained on attacks."""
    methods = list(dict.fromkeys(one["config"]["method"] for one in found))
    methods.sort(key=lambda name: name != "zero-shot")
    heads = [f"{method}, {what}" for method in methods for what in ("clean", "attacked")]
    lines = [f"| {MODELS['vit']}: attacks | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for task in dict.fromkeys(one["task"] for one in found):
        own = [one for one in found if one["task"] == task]
        shown = [
            _spread(
                [one["metrics"][what]["value"] for one in own if one["config"]["method"] == method],
                0 if method == "zero-shot" else SEEDS,
            )
            for method in methods
            for what in ("clean", "robust")
        ]
        lines.append(f"| {task} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _check_table(checks: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """A method with other settings beside itself with the study's, K = 16."""
    lines = ["| check, K = 16 | task | seeds | came | with the study's settings | zero-shot |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(one["subject"] for one in checks):
        own = [one for one in checks if one["subject"] == name]
        place = {key: own[0][key] for key in ("task", "model", "split")}
        same = [one for one in found if all(one[key] == value for key, value in place.items())]
        method = own[0]["config"]["method"]
        columns = [
            own,
            [one for one in same if one["config"]["method"] == method and one["config"]["shots"] == 16],
            [one for one in same if one["config"]["method"] == "zero-shot"][:1],
        ]
        shown = " | ".join(_spread([next(iter(one["metrics"].values()))["value"] for one in column]) for column in columns)
        lines.append(f"| {name} | {place['task']} | {len(own)} | {shown} |")
    return "\n".join(lines)


def adapting_figures(record: dict[str, Any]) -> list[Figure]:
    """Accuracy against labelled pictures a class, one figure a (model, set) that has several numbers of them."""
    kept = []
    for key, tree in record["records"].items():
        compared = tree["config"].get("base_to_new") is False and not tree["task"].startswith("pacs_without_")
        if compared and not key.startswith("check/"):
            kept.append(dataclasses.replace(from_tree(Record, tree), split=""))
    shots = {(one.model, one.task): set[int]() for one in kept}
    for one in kept:
        shots[one.model, one.task].add(one.config["shots"])
    return draw([one for one in kept if len(shots[one.model, one.task]) > 1])


def adapting_plots(record: dict[str, Any]) -> str:
    """The figures on the page: links to the files, which `write_tables` writes beside it."""
    return "\n\n".join(f"![{figure.title}. {figure.says}](adapting/{figure.name}.svg)" for figure in adapting_figures(record))


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


def figures_tables(record: dict[str, Any]) -> str:
    """One table for each group of a benchmark's figures: counts in full, everything else with three digits."""
    machine = record["machine"]
    lines = [f"{machine['processor']}, {machine['threads']} thread."]
    for group, rows in record["figures"].items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines += ["", f"| {group} | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
        for name, row in rows.items():
            cells = [row.get(column, "") for column in columns]
            shown = [format(cell, "," if isinstance(cell, int) else ".3g") if cell != "" else "" for cell in cells]
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
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
