"""How results were made: commands to repeat them, settings, hashes, seeds, versions; each thing once, with what it is of."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from ostension.config import to_tree
from ostension.evals import report
from ostension.evals.records import Record
from ostension.evals.results import Result
from ostension.files import read_json, sha256_json


def appendix(results: Sequence[Result], summaries: Sequence[Record], *, source: str) -> list[str]:
    """The parts of the last section."""
    return [
        report.paragraph("The commands that give these results again, and this page:"),
        report.code(*commands(results, source)),
        report.paragraph(
            "Models stand here by their names and tasks by theirs: give the folder of the one and the TOML file of the other "
            "where they are your own, and settings that are not the defaults with --set.", "note",
        ),
        report.details("Settings of each protocol", _settings(results)),
        report.details("Hashes of weights, data, classes and prompts", _hashes(results)),
        report.details("Every result: samples, seeds, time, file", _files(results)),
        report.details("Versions", _versions(results)),
        *([report.details("Results made of several", _summaries(summaries))] if summaries else []),
    ]


def commands(results: Sequence[Result], source: str) -> list[str]:
    """Commands that repeat the results; one for each model, with the tasks and protocols that it has."""
    lines = []
    for model in dict.fromkeys(result.record.model for result in results):
        own = [result for result in results if result.record.model == model]
        targets = list(dict.fromkeys(result.target for result in own))
        protocols = ",".join(dict.fromkeys(result.record.protocol for result in own))
        limits = {result.limit for result in own}
        limit = f" --limit {limits.pop()}" if len(limits) == 1 and None not in limits else ""
        words = " ".join(map(shlex.quote, targets))
        rest = f"--model {shlex.quote(model)}{limit} -o {shlex.quote(source)}"
        lines.append(f"ostension eval run {words} --protocol {protocols} {rest}")
    return [*lines, f"ostension eval report {shlex.quote(source)}"]


def _settings(results: Sequence[Result]) -> str:
    """Each different configuration once, with the results that it belongs to."""
    found: dict[tuple[str, str], tuple[dict[str, Any], list[str]]] = {}
    for result in results:
        record = result.record
        found.setdefault((record.protocol, sha256_json(record.config)), (record.config, []))[1].append(_place(result))
    parts = []
    for (protocol, digest), (config, places) in found.items():
        whole = sum(result.record.protocol == protocol for result in results)
        who = f"all {whole}" if len(places) == whole else ", ".join(places)
        parts.append(report.paragraph(f"{protocol}, {digest[:12]}: {who}"))
        parts.append(report.code(*json.dumps(to_tree(config), indent=2, ensure_ascii=False).splitlines()))
    return "".join(parts)


def _hashes(results: Sequence[Result]) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for name, value in result.record.hashes.items():
            found.setdefault((name, value), []).append(_place(result))
    rows = [[name, value, places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")]
            for (name, value), places in sorted(found.items())]  # fmt: skip
    return report.table(["of", "SHA-256", "in"], rows, caption="Hashes")


def _files(results: Sequence[Result]) -> str:
    rows = [
        [_place(result), ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in result.record.counts.items()),
         " ".join(map(str, result.record.seeds)), f"{result.seconds:.1f}",
         "/".join(result.path.parts[-3:]) if result.path else ""]
        for result in results
    ]  # fmt: skip
    return report.table(["result", "counts", "seeds", "seconds", "file"], rows, caption="Every result")


def _versions(results: Sequence[Result]) -> str:
    """The versions and the state of the code, as the files of the results say them."""
    found: dict[str, list[str]] = {}
    for result in results:
        if result.path is not None:
            tree = read_json(result.path)
            known = {"versions": tree.get("versions", {}), "code": tree.get("git", {})}
            found.setdefault(json.dumps(known, indent=2, sort_keys=True), []).append(_place(result))
    if not found:
        return report.paragraph("These results were not read from files, which would say.")
    parts = []
    for text, places in found.items():
        who = f"all {len(places)} results" if len(places) == len(results) else f"{places[0]} and {len(places) - 1} more"
        parts += [report.paragraph(who), report.code(*text.splitlines())]
    return "".join(parts)


def _summaries(summaries: Sequence[Record]) -> str:
    rows = [
        [record.subject or record.protocol, record.protocol, name, f"{metric.value:.4g}",
         "" if metric.interval is None else f"{metric.interval.low:.4g} to {metric.interval.high:.4g}"]
        for record in summaries for name, metric in record.metrics.items()
    ]  # fmt: skip
    return report.table(["of", "summary", "metric", "value", "interval"], rows, caption="Results made of several")


def _place(result: Result) -> str:
    return f"{result.record.model} / {result.target} / {result.record.protocol}"
