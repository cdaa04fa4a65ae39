"""Tasks: list the shipped data sets, show one, check data against its record, make a folder a task, or make pictures."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ostension.cli._task_made import Counting, Typographic
from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.data.task import Task

WIDTH = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List the shipped tasks, or those of a suite: classes, templates, metric, test samples and chance.

    Examples:
      ostension task ls
      ostension task ls --suite shifts7

    Args:
        suite: Only the tasks of this suite: its name or a TOML file.
        json: Print one JSON object a line instead of a table.
    """

    suite: str | None = None
    json: bool = False

    def run(self) -> int:
        from ostension.data.suite import read_suite, suite_names
        from ostension.data.task import read_task, task_names

        suite = read_suite(self.suite) if self.suite is not None else None
        tasks = suite.read() if suite else [read_task(name) for name in task_names()]
        rows = [row_of(task) for task in tasks]
        if self.json:
            for row in rows:
                print(json.dumps(row, ensure_ascii=False))
            return 0
        print(f"{'name':<21}{'kind':<11}{'classes':>8}{'templates':>10}{'test':>9}  {'metric':<17}{'chance':>8}  title")
        for row in rows:
            chance = "-" if row["chance"] is None else f"{100 * row['chance']:.2f} %"
            test = "-" if row["test"] is None else f"{row['test']:,}"
            numbers = f"{row['classes'] or '-':>8}{row['templates']:>10}{test:>9}"
            print(f"{row['name']:<21}{row['kind']:<11}{numbers}  {row['metric']:<17}{chance:>8}  {row['title']}")
        if suite:
            print(f"\n{suite.title}; score: {suite.score}; from {suite.source}")
            print("\n".join(f"note: {note}" for note in suite.notes))
        else:
            print(f"\nsuites: {', '.join(suite_names())}")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Show everything that a record says: splits, classes, templates, traps, sources and published values.

    Args:
        task: A shipped task's name, or a TOML file.
        json: Print one JSON object instead of lines.
    """

    task: Annotated[str, tyro.conf.Positional]
    json: bool = False

    def run(self) -> int:
        from ostension.data.task import read_task

        task = read_task(self.task)
        print(json.dumps(tree_of(task), ensure_ascii=False, indent=2) if self.json else "\n".join(lines_of(task)))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validate:
    """Check a record and, with data, whether the data is what the record says.

    Finds counts and hashes that differ, labels without a class, classes without samples, pictures that are in two splits or
    twice in one, and pictures that do not open. Exit status 1 if a problem is found.

    Examples:
      ostension task validate cifar10
      ostension task validate my.toml --data pictures

    Args:
        task: A shipped task's name, or a TOML file.
        data: The data, or the folder below which the record's sources lie.
        quick: Look at labels only; read no picture.
        download: Let files be fetched from the addresses in the record.
        json: Print one JSON object instead of lines.
    """

    task: Annotated[str, tyro.conf.Positional]
    data: Path | None = None
    quick: bool = False
    download: bool = False
    json: bool = False

    def __post_init__(self):
        if self.data is None and (self.quick or self.download):
            flag = "--quick" if self.quick else "--download"
            raise UsageError(f"{flag} has no effect without data", expected="--data PATH")

    def run(self) -> int:
        from ostension.data.task import read_task
        from ostension.data.task_check import check_data, check_record
        from ostension.data.task_data import open_data

        task = read_task(self.task)
        odd = check_record(task)
        found = None
        if self.data is not None:
            data = open_data(task, self.data, download=self.download)
            found = check_data(task, data, pictures=not self.quick, progress=_progress)
        problems, warnings = ([*found.problems], [*odd, *found.warnings]) if found else ([], odd)
        if self.json:
            tree = {
                "task": task.name, "version": task.version, "valid": not problems, "problems": problems,
                "warnings": warnings, "notes": list(task.notes), "counts": found.counts if found else None,
                "num_pictures": found.num_pictures if found else 0,
            }  # fmt: skip
            print(json.dumps(tree, ensure_ascii=False, indent=2))
            return 1 if problems else 0
        counts = f"{task.num_classes:,} classes, {len(task.prompt_templates()):,} templates, {len(task.splits)} splits"
        print(f"record    {task.name} version {task.version}: valid, {counts}")
        if found:
            listed = ", ".join(f"{name} {count:,}" for name, count in found.counts.items()) or "none"
            print(f"data      {listed}; {found.num_pictures:,} pictures read")
        for title, lines in (("trap", task.notes), ("warning", warnings), ("problem", problems)):
            for line in lines:
                print(f"{title:<10}{line}")
        return 1 if problems else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class New:
    """Make your own labelled data a task: names from folders, splits, counts and hashes as found.

    Takes a folder with a folder of pictures for each class (perhaps below train, val and test), a table with a column of
    labels, Parquet, tar shards, an npz, or a folder of the Hugging Face library.

    Examples:
      ostension task new pictures -o my.toml

    Args:
        data: The labelled data.
        output: The record to write.
        title: What the data set is called; by default as its folder.
        force: Replace a record that is already there.
        json: Print one JSON object instead of lines.
    """

    data: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    title: str | None = None
    force: bool = False
    json: bool = False

    def run(self) -> int:
        from ostension.data.task_new import new_task
        from ostension.data.task_toml import to_toml
        from ostension.files import write_text

        if self.output.suffix != ".toml":
            raise UsageError(f"--output is {self.output}", expected="a name that ends in .toml")
        if self.output.exists() and not self.force:
            raise UsageError(f"{self.output} is already there", fix="another name, or --force to replace it")
        made = new_task(self.data, self.output, title=self.title)
        write_text(self.output, to_toml(made.task))
        if self.json:
            print(json.dumps({"path": str(self.output), "notes": list(made.notes), **tree_of(made.task)}, ensure_ascii=False))
            return 0
        print(f"wrote {self.output}: {made.task.num_classes:,} classes, version 1")
        for note in made.notes:
            print(note)
        return 0


COMMAND = {
    "ls": List, "show": Show, "validate": Validate, "new": New, "typographic": Typographic, "counting": Counting,
}  # fmt: skip


def row_of(task: Task) -> dict[str, Any]:
    """What the table says of a task."""
    test = task.splits.get("test")
    return {
        "name": task.name, "title": task.title, "version": task.version, "kind": task.kind, "classes": task.num_classes,
        "templates": len(task.prompt_templates()), "metric": task.metric, "chance": task.chance,
        "splits": {name: split.count for name, split in task.splits.items()}, "test": None if test is None else test.count,
    }  # fmt: skip


def tree_of(task: Task) -> dict[str, Any]:
    """Everything about a task as a JSON tree."""
    from ostension.config import to_tree

    return {
        **to_tree(task), "labels": to_tree(task.label_names()), "prompt_templates": list(task.prompt_templates()),
        "chance": task.chance, "chance_rule": task.chance_rule, "class_list_sha256": task.class_list_sha256,
        "unmapped": list(task.unmapped),
    }  # fmt: skip


def lines_of(task: Task) -> list[str]:
    """Everything about a task for a reader."""
    chance = "depends on the labels" if task.chance is None else f"{100 * task.chance:.3g} %"
    lines = [
        f"{task.name}: {task.title} (version {task.version}, {task.kind})",
        f"metric    {task.metric}; chance {chance} ({task.chance_rule})",
        f"licence   {task.licence}",
        f"citation  {task.citation}",
    ]
    for name, split in task.splits.items():
        how = "".join(f"; {field} is {' or '.join(values)}" for field, values in split.select.items())
        remembered = "" if split.evidence == "read" else f" ({split.evidence})"
        lines.append(f"split     {name}: {split.count:,}{remembered}{how}{'; ' + split.note if split.note else ''}")
    if task.folds:
        lines.append(f"folds     {task.folds.count}, results are averaged; {task.folds.split} changes")
    lines += [f"group     {name}: {', '.join(values) or 'any value'}" for name, values in task.groups.items()]
    if task.preprocess:
        lines.append("pictures  " + ", ".join(f"{name} = {value!r}" for name, value in task.preprocess.items()))
    if task.cut_px:
        lines.append(f"pictures  {task.cut_px} pixels are cut off each side")
    if task.superclass_of:
        lines.append(f"pools     the largest logit of {task.superclass_of}'s classes; {len(task.superclass_map)} pools")
        lines += [f"          {key}: no pool, its logit is minus infinity" for key in task.unmapped]
    for source in task.sources:
        what = {key: value for key, value in dataclasses.asdict(source).items() if value and key not in ("kind", "path")}
        lines.append(f"source    {source.kind} {source.path} {json.dumps(what) if what else ''}".rstrip())
    lines += [f"trap      {note}" for note in task.notes]
    for oracle in task.oracles:
        gate = "gate" if oracle.gate else "shown"
        head = f"{oracle.protocol}{' ' + oracle.metric if oracle.metric else ''} ({oracle.weights}), {oracle.source}"
        lines.append(f"values    {head}: {oracle.evidence}, {gate}, +-{oracle.tolerance:g}")
        lines.append("          " + ", ".join(f"{model} {value:g}" for model, value in oracle.values.items()))
    lines += [f"template  {template}" for template in task.prompt_templates()]
    lines += [f"class     {key}: {' | '.join(names)}" for key, names in task.label_names().items()]
    return lines


def _progress(indices):
    from tqdm import tqdm

    return iter(tqdm(indices, desc="pictures", leave=False, disable=None, file=sys.stderr))
