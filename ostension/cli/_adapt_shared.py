"""What the commands of `ostension adapt` share: plans from flags, tasks, the embedder, lists between commas."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostension.cli._eval_run import model_names
from ostension.errors import UsageError
from ostension.registry import ModuleRegistry

if TYPE_CHECKING:
    from ostension.evals.adaptation import Plan
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
    """The tasks of TASK or TASK@SPLIT."""
    from ostension.evals.targets import find_targets
    from ostension.evals.task_splits import TaskSplits

    return [TaskSplits(target.task, data, measured=target.split) for word in words for target in find_targets([word])]


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


def words_of(text: str, flag: str) -> list[str]:
    """Names between commas, each once."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise UsageError(f"{flag} is empty", expected="names, separated by commas")
    return list(dict.fromkeys(found))


def numbers_of(text: str, flag: str) -> list[int]:
    """Whole numbers from 0 between commas."""
    try:
        found = [int(word) for word in words_of(text, flag)]
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


def percent(share: float | None) -> str:
    """A share in percent with one place; empty for none."""
    return "" if share is None else f"{100 * share:.1f} %"
