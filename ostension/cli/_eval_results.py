"""Sub-commands of `ostension eval` around results: what can be measured, and what was."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.errors import DataError, UsageError

if TYPE_CHECKING:
    from ostension.evals.compare import Comparison
    from ostension.evals.results import Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List the protocols with their settings, the summaries and the suites.

    Examples:
      ostension eval ls
      ostension eval ls --json

    Args:
        json: Print one JSON object a line instead of lines for reading.
    """

    json: bool = False

    def run(self) -> int:
        from ostension.data.suite import read_suite, suite_names
        from ostension.evals.protocol import PROTOCOLS, SUMMARIES, load_protocol

        rows: list[dict[str, Any]] = []
        for name in PROTOCOLS.names():
            protocol = load_protocol(name)
            rows.append({
                "kind": "protocol", "name": name, "summary": PROTOCOLS.summary(name), "splits": list(protocol.SPLITS),
                "settings": settings_of(protocol.Config),
            })  # fmt: skip
        rows += [{"kind": "summary", "name": name, "summary": SUMMARIES.summary(name)} for name in SUMMARIES.names()]
        for name in suite_names():
            suite = read_suite(name)
            rows.append({"kind": "suite", "name": name, "summary": suite.title, "tasks": list(suite.tasks)})
        if self.json:
            for row in rows:
                print(json.dumps(row, ensure_ascii=False))
            return 0
        width = max(len(row["name"]) for row in rows)
        for kind, title in (("protocol", "protocols"), ("summary", "summaries"), ("suite", "suites")):
            print(f"{title}:")
            for row in (row for row in rows if row["kind"] == kind):
                print(f"  {row['name']:<{width}}  {row['summary']}")
                for setting, value in row.get("settings", {}).items():
                    print(f"  {'':<{width}}    --set {row['name']}.{setting}={shown_setting(value)}")
                if kind == "suite":
                    print(f"  {'':<{width}}    {', '.join(row['tasks'])}")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Show a result in full, or the results in a folder as a table.

    Examples:
      ostension eval show results
      ostension eval show results/MODEL/cifar10/zeroshot.json

    Args:
        result: A result's file, a folder of results, or one model's folder in it.
        json: Print JSON: the whole record of a file, one object a result of a folder.
    """

    result: Annotated[Path, tyro.conf.Positional]
    json: bool = False

    def run(self) -> int:
        from ostension.config import to_tree
        from ostension.evals.results import open_results

        results = open_results(self.result)
        if self.json:
            for result in results:
                tree = {**to_tree(result), "path": str(result.path)}
                print(json.dumps(tree, ensure_ascii=False, indent=2 if self.result.is_file() else None))
        elif self.result.is_file():
            print("\n".join(lines_of(results[0])))
        else:
            print(result_table(results))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare two models (or settings) on the same samples: paired tests, corrected for how many there are.

    Each side is a folder of results of one model, that model's folder in a folder of several, or one file. Results must have
    been run with --samples. A share of right answers is tested by McNemar's exact test, other metrics by a paired bootstrap.

    Examples:
      ostension eval compare results/ours results/theirs
      ostension eval compare before after --protocol zeroshot --csv

    Args:
        first: Results of the first one.
        second: Results of the second one.
        protocol: Only these protocols, separated by commas.
        metric: This metric everywhere, instead of each result's headline.
        alpha: A p-value below it, corrected by Holm's rule, decides.
        seed: Of the bootstrap.
        json: Print one JSON object instead of a table.
        csv: Print CSV instead of a table.
    """

    first: Annotated[Path, tyro.conf.Positional]
    second: Annotated[Path, tyro.conf.Positional]
    protocol: str | None = None
    metric: str | None = None
    alpha: float = 0.05
    seed: int = 0
    json: bool = False
    csv: bool = False

    def __post_init__(self):
        if self.json and self.csv:
            raise UsageError("--json and --csv are both given", expected="one of them")
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha is {self.alpha}", expected="above 0, below 1")

    def run(self) -> int:
        from ostension.cli._tables import csv_table
        from ostension.config import to_tree
        from ostension.evals.compare import compare
        from ostension.evals.results import open_results

        sides = [_of_one_model(open_results(path), path) for path in (self.first, self.second)]
        names = [side[0].record.model for side in sides]
        if names[0] == names[1]:
            names = [str(self.first), str(self.second)]
        protocols = [name.strip() for name in (self.protocol or "").split(",") if name.strip()]
        found = compare(sides[0], sides[1], protocols=protocols, metric=self.metric, alpha=self.alpha, seed=self.seed)
        if self.json:
            counts = {"wins": found.count("win"), "ties": found.count("tie"), "losses": found.count("loss")}
            tree = {"first": names[0], "second": names[1], "alpha": self.alpha, "seed": self.seed, **counts, **to_tree(found)}
            print(json.dumps(tree, ensure_ascii=False, indent=2))
            return 0
        if self.csv:
            head = [field.name for field in dataclasses.fields(found.pairs[0]) if field.name != "interval"]
            rows = [
                [
                    *(getattr(pair, name) for name in head),
                    *((pair.interval.low, pair.interval.high) if pair.interval else ("", "")),
                ]
                for pair in found.pairs
            ]
            print(csv_table([*head, "low", "high"], rows))
            return 0
        print("\n".join(comparison_lines(found, names, self.alpha)))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Compare results with the published values in the tasks' records; exit status 1 if one is too far off.

    Published values are known for models with published weights. A model's name must say which ("ViT-B-32-openai"), or
    --preset and --weights do. A value that is known well enough decides (a gate); others are only shown.

    Example:
      ostension eval check results --preset ViT-B-32 --weights openai

    Args:
        results: Folders of results, one model's folder, or files.
        preset: The model's architecture, as `ostension model ls` lists them.
        weights: Whose weights it has: openai, laion2b, imagenet.
        json: Print one JSON object a comparison instead of lines.
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    preset: str | None = None
    weights: str | None = None
    json: bool = False

    def run(self) -> int:
        from ostension.config import to_tree
        from ostension.data.task import read_task, task_names
        from ostension.evals.oracles import check_oracles
        from ostension.evals.results import open_results

        compared = failed = 0
        for result in [one for path in self.results for one in open_results(path)]:
            if result.record.task not in task_names():
                continue  # a task of one's own has no published values
            task = read_task(result.record.task)
            for one in check_oracles(result.record, task, preset=self.preset, weights=self.weights):
                compared += 1
                failed += one.failed
                where = f"{result.record.model}: {result.target} {result.record.protocol}"
                if self.json:
                    tree = {"model": result.record.model, "task": result.target, "protocol": result.record.protocol}
                    print(json.dumps({**tree, **to_tree(one), "near": one.near, "failed": one.failed}, ensure_ascii=False))
                else:
                    print(f"{where}: {one.line}")
        if not compared:
            raise DataError(
                "no result has a published value to be compared with",
                source=", ".join(map(str, self.results)),
                fix="say which model it is with --preset and --weights",
            )
        print(f"{compared} compared, {failed} too far off", file=sys.stderr)
        return 1 if failed else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write results in another form: CLIP_benchmark's JSON files or CSV, plain CSV, Markdown, one JSON file.

    Results of a limited number of samples are refused. What has no place in the form is named on stderr.

    Examples:
      ostension eval export results --form clip-benchmark -o benchmark.csv
      ostension eval export results --form clip-benchmark --pretrained ours -o runs
      ostension eval export results --form markdown

    Args:
        results: Folders of results, one model's folder, or files.
        form: clip-benchmark writes a folder with a file a run, or one CSV if --output ends with .csv; json writes the whole
            records, csv every metric, markdown a table a protocol.
        output: Where to write. Default: stdout, except for a folder.
        model: What the model is called, for clip-benchmark. Default: what its name says.
        pretrained: What its weights are called, for clip-benchmark. Default: what the model's name says.
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    form: Literal["clip-benchmark", "csv", "markdown", "json"]
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    model: str | None = None
    pretrained: str | None = None

    def __post_init__(self):
        if self.form != "clip-benchmark" and (self.model or self.pretrained):
            raise UsageError("--model and --pretrained have no effect on this form", expected="--form clip-benchmark")
        if self.form == "clip-benchmark" and self.output is None:
            raise UsageError("no --output is given", expected="a folder, or a file that ends with .csv")

    def run(self) -> int:
        from ostension.evals import exports, tables
        from ostension.evals.records import records_text
        from ostension.evals.results import open_results
        from ostension.files import write_text

        results = [one for path in self.results for one in open_results(path)]
        exports.refuse_limited(results)
        records = [result.record for result in results]
        if self.form == "clip-benchmark":
            found = exports.clip_benchmark(results, model=self.model, pretrained=self.pretrained)
            for line in found.left_out:
                print(f"left out: {line}", file=sys.stderr)
            assert self.output is not None
            if self.output.suffix != ".csv":
                print(f"wrote {len(exports.write_runs(self.output, found.runs))} files in {self.output}", file=sys.stderr)
                return 0
            text = exports.runs_csv(found.runs)
        elif self.form == "json":
            text = records_text({"/".join(result.place): result.record for result in results})
        else:
            text = tables.as_csv(records) if self.form == "csv" else tables.as_markdown(records)
        if self.output is None:
            print(text, end="")
        else:
            write_text(self.output, text)
            print(f"wrote {self.output}", file=sys.stderr)
        return 0


COMMANDS = {"ls": List, "show": Show, "compare": Compare, "check": Check, "export": Export}


def settings_of(config: type) -> dict[str, Any]:
    """The settings of a protocol with their defaults, as JSON values."""
    from ostension.config import to_tree

    return dict(_leaves(to_tree(config()), ""))


def _leaves(tree: dict[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    """Settings inside settings by their dotted names."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield before + name, value


def shown_setting(value: Any) -> str:
    """A default as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def result_table(results: Sequence[Result]) -> str:
    """Results as a table: the headline of each with its interval, in percent."""
    from ostension.cli._tables import text_table

    rows = []
    for result in results:
        name, metric = next(iter(result.record.metrics.items()))
        span = metric.interval
        interval = f"{shown_value(name, span.low)} to {shown_value(name, span.high)}" if span is not None else ""
        chance = "" if metric.chance is None else shown_value(name, metric.chance)
        limited = "" if result.limit is None else f"limited to {result.limit:,}"
        rows.append([*result.place, name, shown_value(name, metric.value), interval, chance, f"{metric.count:,}", limited])
    head = ["model", "task", "protocol", "metric", "value", "interval", "chance", "samples", ""]
    return text_table(head, rows, left=4)


def shown_value(name: str, value: float) -> str:
    """A metric's value: shares in percent, other numbers as they are."""
    return f"{100 * value:.2f} %" if is_share(name, value) else f"{value:.4g}"


def is_share(name: str, value: float) -> bool:
    """Whether a metric is a share, to be shown in percent."""
    return -1 <= value <= 1 and not name.startswith(("temperature", "slope", "pearson", "r_squared", "correlation", "p_value"))


def lines_of(result: Result) -> list[str]:
    """A result for a reader."""
    record = result.record
    lines = [f"{record.subject}: {record.protocol} on {result.target}", *(f"note        {note}" for note in result.notes)]
    lines += [f"note        {note}" for note in record.details.get("notes", []) if isinstance(note, str)]
    for name, metric in record.metrics.items():
        span = metric.interval
        text = f"metric      {name} {shown_value(name, metric.value)}"
        if span is not None:
            low, high = shown_value(name, span.low), shown_value(name, span.high)
            text += f" ({low} to {high}, {100 * span.confidence:g} % {span.method})"
        if metric.chance is not None:
            text += f", chance {shown_value(name, metric.chance)}"
        lines.append(f"{text}, {metric.count:,} samples{', lower is better' if metric.direction == 'lower' else ''}")
    lines += [f"config      {name} = {shown_setting(value)}" for name, value in record.config.items()]
    lines += [f"count       {name} {value:,}" for name, value in record.counts.items()]
    lines += [f"hash        {name} {value}" for name, value in record.hashes.items()]
    lines.append(f"seeds       {', '.join(map(str, record.seeds)) or 'none'}")
    lines.append(f"samples     {result.samples or 'not kept'}{': ' + ', '.join(result.columns) if result.columns else ''}")
    lines.append(f"details     {', '.join(record.details) or 'none'} (--json shows them)")
    return [*lines, f"took        {result.seconds:.1f} s", f"file        {result.path}"]


def comparison_lines(found: Comparison, names: Sequence[str], alpha: float) -> list[str]:
    """A comparison for a reader."""
    from ostension.cli._tables import text_table

    rows = []
    for pair in found.pairs:
        span, share = pair.interval, is_share(pair.metric, pair.first)
        factor, unit = (100, " points") if share else (1, "")
        interval = "" if span is None else f"{factor * span.low:+.2f} to {factor * span.high:+.2f}"
        counts = "" if pair.only_first is None else f"{pair.only_first} / {pair.only_second}"
        chances = ["" if p is None else f"{p:.2g}" for p in (pair.p, pair.p_holm, pair.p_bonferroni)]
        rows.append([
            pair.target, pair.protocol, pair.metric, pair.verdict, shown_value(pair.metric, pair.first),
            shown_value(pair.metric, pair.second), f"{factor * pair.difference:+.2f}{unit}", interval, counts, pair.test,
            *chances,
        ])  # fmt: skip
    head = ["task", "protocol", "metric", "first is", "first", "second", "difference", "interval", "right alone", "test", "p",
            "Holm", "Bonferroni"]  # fmt: skip
    tested = sum(pair.p is not None for pair in found.pairs)
    score = f"{found.count('win')} wins, {found.count('tie')} ties, {found.count('loss')} losses"
    lines = [f"first: {names[0]}", f"second: {names[1]}", "", text_table(head, rows, left=4), ""]
    lines.append(f"{score} of {tested} tests (p below {alpha:g} by Holm's rule)")
    lines += [f"{pair.target} {pair.protocol}: {pair.note}" for pair in found.pairs if pair.note]
    for name, lonely in zip(names, (found.only_first, found.only_second), strict=True):
        if lonely:
            lines.append(f"only {name} has: {', '.join(lonely)}")
    return lines


def _of_one_model(results: Sequence[Result], path: Path) -> Sequence[Result]:
    models = list(dict.fromkeys(result.record.model for result in results))
    if len(models) > 1:
        what = f"holds results of {len(models)} models ({', '.join(models)})"
        raise DataError(what, source=path, expected="one model", fix=f"give its folder, such as {path / models[0]}")
    return results
