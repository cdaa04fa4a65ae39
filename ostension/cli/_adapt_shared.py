"""What the commands of `ostension adapt` share: plans from flags, tasks, the embedder, lists between commas."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostension.cli._eval_run import model_names
from ostension.errors import ConfigError, UsageError
from ostension.registry import ModuleRegistry

if TYPE_CHECKING:
    from ostension.evals.adaptation import Plan
    from ostension.evals.records import Record
    from ostension.evals.store_inputs import Embedder
    from ostension.evals.task_splits import TaskSplits

METHODS = ModuleRegistry("ostension.adapt", "method", without=("base",))
ZERO_SHOT = "zero-shot"


def plan_from(method: str, settings: Sequence[str], **fields: Any) -> Plan:
    """A plan of a method with settings from --set."""
    from ostension.evals.adaptation import plan_with
    from ostension.train.pretraining import parse_settings

    return plan_with(method, {} if method == ZERO_SHOT else parse_settings(settings), **fields)


def own_settings(settings: Sequence[str], method: str, methods: Sequence[str]) -> list[str]:
    """The settings of one method, from METHOD.KEY=VALUE."""
    for text in settings:
        if text.partition(".")[0] not in methods:
            raise UsageError(f"--set {text} is for none of {', '.join(methods)}", expected="METHOD.SETTING=VALUE")
    return [text.partition(".")[2] for text in settings if text.partition(".")[0] == method]


def embedder_of(command: Any, path: str) -> Embedder:
    import ostension
    from ostension.evals.store_inputs import Embedder
    from ostension.store import Store

    model = ostension.load(path, device=command.device, dtype=command.dtype)

    def told(name: str, now: Any) -> None:
        print(f"embedding {name}: {now}", file=sys.stderr)

    return Embedder(model, Store(command.store), name=model_names([path])[0], progress=told)


def splits_of(words: Sequence[str], data: Path | None) -> list[TaskSplits]:
    """The tasks of TASK or TASK@SPLIT.

    Raises:
        ConfigError: for an unknown one, or one without a split to measure.
    """
    from ostension.evals.targets import find_targets
    from ostension.evals.task_splits import TaskSplits

    found = []
    for word in words:
        if not (targets := find_targets([word])):
            raise ConfigError(f"{word} has no split to measure", expected="a split called test, or TASK@SPLIT")
        found += [TaskSplits(target.task, data, measured=target.split) for target in targets]
    return found


def others_of(flag: str, text: str | None, data: Path | None, methods: Sequence[str]) -> list[TaskSplits]:
    """The other tasks that a flag ("sources", "keep") names, each once."""
    from ostension.evals.adaptation import takes

    if text is None:
        return []
    if not any(takes(method, flag) for method in methods):
        able = [name for name in METHODS.names() if takes(name, flag)]
        raise UsageError(f"--{flag} has no effect on {', '.join(methods)}", expected=f"a method such as {', '.join(able)}")
    return list({one.task.name: one for one in splits_of(words_of(text, f"--{flag}"), data)}.values())


def task_names(sources: Sequence[TaskSplits]) -> tuple[str, ...]:
    """What tasks are called."""
    return tuple(source.task.name for source in sources)


def words_of(text: str, flag: str, what: str = "names") -> list[str]:
    """Names or numbers between commas, each once."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise UsageError(f"{flag} is empty", expected=f"{what}, separated by commas")
    return list(dict.fromkeys(found))


def numbers_of(text: str, flag: str) -> list[int]:
    """Whole numbers from 0 between commas."""
    try:
        found = list(dict.fromkeys(int(word) for word in words_of(text, flag, "whole numbers")))
    except ValueError:
        raise UsageError(f"{flag} is {text!r}", expected="whole numbers, separated by commas") from None
    if min(found) < 0:
        raise UsageError(f"{flag} is {text!r}", expected="numbers from 0")
    return found


def alphas_of(text: str) -> tuple[float, ...]:
    """Points of a line between commas; none of an empty text."""
    try:
        return tuple(float(word) for word in words_of(text, "--alphas")) if text else ()
    except ValueError:
        raise UsageError(f"--alphas is {text!r}", expected="numbers from 0 to 1, separated by commas") from None


def say_short(record: Record, shots: int, said: set[str]) -> None:
    """Say once of a task which classes have fewer pictures than were asked for."""
    short = record.details.get("short", {})
    if not short or f"{record.task} {shots}" in said:
        return
    said.add(f"{record.task} {shots}")
    named = ", ".join(f"{name!r} {count}" for name, count in list(short.items())[:3]) + (", ..." if len(short) > 3 else "")
    wanted = f"fewer than {shots} training pictures" if shots else "no training picture"
    taken = "; all that they have are taken, as in the published draw" if shots else ""
    print(f"note: {len(short)} of {record.counts['classes']} classes have {wanted} ({named}){taken}", file=sys.stderr)


def percent(share: float | None) -> str:
    """A share in percent with one place; empty for none."""
    return "" if share is None else f"{100 * share:.1f} %"
