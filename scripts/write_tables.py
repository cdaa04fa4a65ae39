"""Write the tables of the pages from the records they name; with --check, only say whether they are up to date.

A page holds a pair of markers; what stands between them is made from the record, never typed:

    <!-- speed: benchmarks/records/encode_image.json -->
    <!-- end -->

Behind `tasks`, `suites`, `traps`, `methods` and `stages` stands the folder of the records instead of a file, behind `testbed`
the table that ships.

`speed` makes one table a group of a benchmark's figures, `demo` the table of the demo's results, `scaling` the points of a
grid and its laws, `plans` the paper's models on paper, `figure2` the curves of the paper's Figure 2 on emoji, `cached` what
was measured on cached features of released models; as long as the record of a long study does not exist (`LONG`), what
stands between its markers stays.

`figures` makes one table a group of a benchmark's figures, with counts in full.
`measuring` is what one small model reaches on a suite, by several protocols.
`text4vis` is what videos reach with different frozen classifiers, mean and spread over seeds.
`tuning` is what tuned weights reach where their pictures are from and elsewhere.
`curation` is what a chain of curation kept, and what models learned from each step of it.
`controlled` is the ImageNet-Captions study, and `controlled-plots` its plot.
`nlip`, `nlip-detector` and `nlip-captions` are NLIP's study: the four runs, the detector of noise, the captions.
`adapting` is what methods make of few labels, mean and spread over seeds; `adapting-plots` draws it, into a folder beside the
page that is called as the page.
`detector` is what a near-duplicate detector finds of planted copies.
`audit-close`, `audit-attractors` and `audit-reach` are what the class-design audit found and missed.

    python scripts/write_tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controlled_tables import controlled_figures, controlled_plot, controlled_table
from curation_tables import curation_tables, stage_list
from measured_tables import (
    adapting_figures,
    adapting_plots,
    adapting_tables,
    audit_attractors,
    audit_close,
    audit_reach,
    cached_table,
    detector_table,
    figures_tables,
    interval_cell,
    measuring_table,
    percent,
    text4vis_table,
)
from nlip_tables import nlip_captions_table, nlip_detector_table, nlip_table
from tuning_tables import tuning_tables

from ostension.data.suite import read_suite
from ostension.data.task import read_task
from ostension.evals.effective_robustness import baseline_of
from ostension.evals.plots import standalone
from ostension.evals.testbed import SEVEN, SHIFTS, read_testbed

ROOT = Path(__file__).parents[1]
KINDS = (
    "figures|text4vis|tuning|stages|curation|nlip-detector|nlip-captions|nlip|"
    "testbed|detector|audit-close|audit-attractors|audit-reach|measuring|adapting-plots|adapting|controlled-plots|controlled|speed|demo|figure2|lit|plans"
    "|scaling|cached|tasks|suites|traps|methods"
)
MARKED = re.compile(rf"(<!-- ({KINDS}): (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# The demo's rows: the record, its metric, and how the row is headed.
DEMO_ROWS = (
    ("zero-shot/seen-names", "top1", "name the picture, seen names, unseen style, top-1"),
    ("zero-shot/seen-names", "top5", "the same, top-5"),
    ("zero-shot/new-names", "top1", "name the picture, names never seen, unseen style, top-1"),
    ("zero-shot/new-names", "top5", "the same, top-5"),
    ("retrieval/new-names", "text_to_image_r5", "find the picture of a name never seen, R@5"),
    ("retrieval/new-names", "image_to_text_r5", "find the name of its picture, R@5"),
)


def speed_tables(record: dict[str, Any]) -> str:
    """One table for each group of figures, headed by the machine that they were measured on."""
    machine = record["machine"]
    features = ", ".join(feature for feature in machine["features"] if "bf16" in feature) or "no bfloat16 units"
    # Figures for several numbers of threads have these in their own headings.
    several = any(group.endswith((" thread", " threads")) for group in record["figures"])
    threads = "" if several else f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, "
    lines = [f"{machine['processor']} ({features}), {threads}torch {record['versions']['torch']}."]
    for group, rows in record["figures"].items():
        if not all(isinstance(row, dict) for row in rows.values()):
            continue
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines += ["", f"| {group} | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
        for name, row in rows.items():
            cells = (format(row[column], ".3g") if column in row else "" for column in columns)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def nested(record: dict[str, Any]) -> dict[str, Any]:
    """Figures as groups of rows of columns; a benchmark with one group is headed by its own name."""
    figures = {name: rows for name, rows in record["figures"].items() if name != "matmul peak"}
    if all(not isinstance(cell, dict) for rows in figures.values() for cell in rows.values()):
        figures = {record["benchmark"]: figures}
    return {**record, "figures": figures}


def demo_table(record: dict[str, Any]) -> str:
    """The demo's results, each with its 95 % interval, beside chance."""
    lines = ["| what | result | 95 % interval | chance | of |", "|---|---|---|---|---|"]
    for name, metric, heading in DEMO_ROWS:
        found = record["records"][name]["metrics"][metric]
        interval = found["interval"]
        lines.append(
            f"| {heading} | {percent(found['value'])} | {percent(interval['low'])} to {percent(interval['high'])} | "
            f"{percent(found['chance'])} | {found['count']:,} |"
        )
    return "\n".join(lines)


def task_table(folder: Path) -> str:
    """The task records: what is asked, how it is scored, how many samples there are."""
    lines = ["| task | data | classes | templates | metric | chance | samples |", "|---|---|---|---|---|---|---|"]
    for task in map(read_task, sorted(folder.glob("*.toml"))):
        samples = ", ".join(f"{name} {split.count:,}" for name, split in task.splits.items())
        chance = "-" if task.chance is None else percent(task.chance)
        classes, templates = task.num_classes or "-", len(task.prompt_templates())
        lines.append(f"| `{task.name}` | {task.title} | {classes} | {templates} | {task.metric} | {chance} | {samples} |")
    return "\n".join(lines)


def suite_table(folder: Path) -> str:
    """The suites and their tasks."""
    lines = ["| suite | what | score | tasks |", "|---|---|---|---|"]
    for suite in map(read_suite, sorted(folder.glob("*.toml"))):
        tasks = ", ".join(f"`{name}`" for name in suite.tasks)
        notes = "".join(f" {note}" for note in suite.notes)
        lines.append(f"| `{suite.name}` ({len(suite.tasks)}) | {suite.title}.{notes} | {suite.score} | {tasks} |")
    return "\n".join(lines)


def trap_list(folder: Path) -> str:
    """What every record warns of."""
    tasks = [task for task in map(read_task, sorted(folder.glob("*.toml"))) if task.notes]
    return "\n".join(f"- `{task.name}`: {' '.join(task.notes)}" for task in tasks)


def method_list(folder: Path) -> str:
    """What every method says of itself, and its settings."""
    from ostension.adapt.base import METHODS
    from ostension.config import to_tree

    assert folder.name == "adapt"
    lines: list[str] = []
    for name in METHODS.names():
        module = METHODS.load(name)
        spec = module.SPEC
        needs = [("labels", spec.labels), ("several domains", spec.domains), ("videos", spec.takes == "videos"),
                 ("gradients at test time", spec.test_gradients)]  # fmt: skip
        wanted = ", ".join(word for word, wanted in needs if wanted)
        lines += [
            f"## {name}", "", METHODS.summary(name), "", f"{spec.paper}.", "",
            f"- trains: {spec.trains}", f"- needs: {wanted}", f"- W depends on: {spec.depends}",
            f"- settings: `{json.dumps(to_tree(module.Config()))}`",
            *(f"- departs: {departure}" for departure in spec.departures), "",
        ]  # fmt: skip
    return "\n".join(lines).rstrip()


def testbed_table(path: Path) -> str:
    """The lines of the published test bed, and how far above them two released models lie."""
    bed, models = read_testbed(path), ("resnet50_clip_zeroshot", "vit_b_32_clip_zeroshot")
    lines = ["| shift | models | slope | intercept | r2 | OpenAI's RN50 | OpenAI's B/32 |", "|---|---|---|---|---|---|---|"]
    for name in [*(shift.name for shift in SHIFTS), SEVEN]:
        line, (xs, ys) = baseline_of(bed, name), bed.accuracies(name)
        parts = line.tree()["lines"]
        cells = [", ".join(str(part["n"]) for part in parts)]
        cells += [
            ", ".join(f"{part[key]:.{places}f}" for part in parts)
            for key, places in (("slope", 4), ("intercept", 4), ("r2", 3))
        ]
        cells += [f"{100 * line.effective(float(xs[place]), float(ys[place])):+.1f}" for place in map(bed.place, models)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scaling_tables(record: dict[str, Any]) -> str:
    """The points of a grid, then the law of each measurement and what it said of the dearest run."""
    targets = list(record["fits"])
    machine, minutes = record["machine"], record["minutes"]
    lines = [
        f"{machine['processor']}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, "
        f"{minutes['spent']:.1f} minutes. Errors are 1 - the measurement, with 95 % intervals.",
        "",
        "| run | GMAC a pair | samples seen | GMAC in all | " + " | ".join(f"1 - {name}" for name in targets) + " |",
        "|---" * (4 + len(targets)) + "|",
    ]
    for point in record["points"]:
        cells = []
        for name in targets:
            span = point["intervals"].get(name)
            cells.append(f"{point['errors'][name]:.3f}" + (f" ({span[0]:.3f} to {span[1]:.3f})" if span else ""))
        sizes = f"{point['gmac_per_pair']:.4g} | {point['samples_seen']:,} | {point['compute']:.3g}"
        lines.append(f"| {point['name']} | {sizes} | {' | '.join(cells)} |")
    lines += ["", "| law of | rule | coefficient | slope | predicted for the dearest run | came | inside |", "|---" * 7 + "|"]
    for name, fit in record["fits"].items():
        for rule, law in fit.get("rules", {}).items():
            low, high = law["slope_interval"]
            check = fit.get("check")
            found = check["rules"][rule] if check else None
            span = "" if found is None or found["run"] is None else f" ({found['run'][0]:.3f} to {found['run'][1]:.3f})"
            said = ["", "", ""]
            if check and found:
                verdict = {True: "yes", False: "no", None: "no interval"}[found["inside"]]
                said = [f"{found['error']:.3f}{span}", f"{check['came']:.3f}", verdict]
            slope = f"{law['slope']:.3f} ({low:.3f} to {high:.3f})"
            lines.append(f"| 1 - {name} | {rule} | {law['coefficient']:.4g} | {slope} | {' | '.join(said)} |")
    for what in ("left", "diverged"):
        if record[what]:
            lines += ["", f"{what.capitalize()}: {', '.join(record[what])}."]
    return "\n".join(lines)


def plan_table(record: dict[str, Any]) -> str:
    """The paper's models on paper, and what its own words on two of them come to."""
    asked = record["asked"]
    lines = [
        "| recipe | parameters | GMAC a pair | training, ZFLOP | GB in a process | without the savings | days |",
        "|---" * 7 + "|",
    ]
    said = []
    for name, row in record["recipes"].items():
        gmac = (row["image_macs"] + row["text_macs"]) / 1e9
        sizes = [sum(row[key].values()) / 1e9 for key in ("process", "process_without_savings")]
        lines.append(
            f"| {name} | {row['parameters']['total']:,} | {gmac:.2f} | {row['training_flop'] / 1e21:.3g} | {sizes[0]:.3g} | "
            f"{sizes[1]:.3g} | {row['seconds'] / 86400:.3g} |"
        )
        if "paper" in row:
            paper = row["paper"]
            rate = f"{paper['implied_flops_per_s'] / 1e12:.0f} TFLOP/s"
            said.append(f"{name} took {paper['days']} days on {paper['gpus']} V100s, which is {rate} a GPU for what we count")
    lines += [
        "",
        f"Training is three forward passes over every position. Memory, and days at 40 % of the data sheet's rate, are of "
        f"{asked['world_size']} processes with captions of full length; days include what checkpointing computes again. "
        f"The paper says that {'; '.join(said)}.",
    ]
    return "\n".join(lines)


def figure2_tables(record: dict[str, Any]) -> str:
    """Accuracy after each number of images, what an image cost, and how many images made equal."""
    from ostension.config import from_tree
    from ostension.evals.records import Record
    from ostension.recipes._figure2_study import COST_HEAD, RATIO_HEAD, cost_row, points, ratio_row

    records = {name: from_tree(Record, tree) for name, tree in record["records"].items()}
    curves = [one for name, one in records.items() if name.startswith("curve/")]
    ratios = [one for name, one in records.items() if name.startswith("ratio/")]
    first = curves[0]
    tables = [
        (["images seen", *(f"{images:,.0f}" for images, _ in points(first))],
         [[curve.subject, *(interval_cell(metric) for metric in curve.metrics.values())] for curve in curves]),
        (["images for the same accuracy", *RATIO_HEAD[1:]], [ratio_row(one) for one in ratios]),
        (["cost of training", *COST_HEAD[1:]], [cost_row(curve) for curve in curves]),
    ]  # fmt: skip
    lines = []
    for head, rows in tables:
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    guess = percent(next(iter(first.metrics.values())).chance or 0.0)
    return "\n".join([*lines, f"Top-1 of {first.counts['samples']} pictures, chance {guess}; {first.config['processor']}."])


def lit_table(record: dict[str, Any]) -> str:
    """Both directions of the search, each with its 95 % interval, beside chance."""
    metrics = record["record"]["metrics"]
    lines = ["| | R@1 | R@5 | R@10 |", "|---|---|---|---|"]
    for name, heading in (("image_to_text", "photo to caption"), ("text_to_image", "caption to photo")):
        found = [metrics[f"{name}_r{count}"] for count in (1, 5, 10)]
        cells = [
            f"{percent(one['value'])} ({percent(one['interval']['low'])} to {percent(one['interval']['high'])}), "
            f"chance {percent(one['chance'])}"
            for one in found
        ]
        lines.append(f"| {heading} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Trained in {record['cpu_seconds']:.0f} s of processor time, with features from the cache."])


# Records that take somebody's machine for long, and come when they come.
LONG = ("docs/records/figure2.json", "benchmarks/records/plain_loop.json")
MAKERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "speed": lambda record: speed_tables(nested(record)), "demo": demo_table, "plans": plan_table, "scaling": scaling_tables,
    "detector": detector_table, "figure2": figure2_tables, "lit": lit_table, "audit-close": audit_close,
    "audit-attractors": audit_attractors, "audit-reach": audit_reach, "cached": cached_table,
    "figures": figures_tables, "text4vis": text4vis_table, "tuning": tuning_tables,
    "curation": curation_tables,
    "measuring": measuring_table, "adapting": adapting_tables, "adapting-plots": adapting_plots,
    "nlip": nlip_table, "nlip-detector": nlip_detector_table, "nlip-captions": nlip_captions_table,
    "controlled": controlled_table, "controlled-plots": controlled_plot,
}  # fmt: skip
PLOTS = {"adapting-plots": adapting_figures, "controlled-plots": controlled_figures}
LISTS: dict[str, Callable[[Path], str]] = {
    "tasks": task_table, "suites": suite_table, "traps": trap_list, "methods": method_list, "stages": stage_list,
    "testbed": testbed_table,
}  # fmt: skip


def filled(text: str) -> str:
    """A page's text with every marked table made anew."""

    def fill(match: re.Match) -> str:
        if match[2] in LISTS:
            return f"{match[1]}{LISTS[match[2]](ROOT / match[3])}\n{match[5]}"
        path = ROOT / match[3]
        if (match[2] == "scaling" or match[3] in LONG) and not path.exists():
            return match[0]
        record = json.loads(path.read_text(encoding="utf-8"))
        return f"{match[1]}{MAKERS[match[2]](record)}\n{match[5]}"

    return MARKED.sub(fill, text)


def plots(text: str, page: Path) -> dict[Path, str]:
    """The files that a page's plots lie in, and what belongs into them."""
    found = {}
    for match in MARKED.finditer(text):
        if match[2] in PLOTS:
            record = json.loads((ROOT / match[3]).read_text(encoding="utf-8"))
            for figure in PLOTS[match[2]](record):
                found[page.with_suffix("") / f"{figure.name}.svg"] = standalone(figure)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check = parser.parse_args().check
    stale = []
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        text = path.read_text(encoding="utf-8")
        for file, text_of in {path: filled(text), **plots(text, path)}.items():
            if not file.exists() or file.read_text(encoding="utf-8") != text_of:
                stale.append(file)
                if not check:
                    file.parent.mkdir(exist_ok=True)
                    file.write_text(text_of, encoding="utf-8")
    for path in stale:
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(ROOT)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
