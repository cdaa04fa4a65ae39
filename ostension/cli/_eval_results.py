"""Sub-commands of `ostension eval` around results: what can be measured, and what was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def settings_of(config: type) -> dict[str, Any]:
    """The settings of a protocol with their defaults, as JSON values."""
    from ostension.config import to_tree

    return to_tree(config())


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


COMMANDS = {"ls": List}
