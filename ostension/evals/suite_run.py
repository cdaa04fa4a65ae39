"""A run over tasks and protocols with one model: what is recorded is kept, what changed is computed again, what cannot be
computed is said and does not stop the rest.

Every (task, split, protocol) ends as one `Step`:

    done            computed now
    recorded        its identity is that of the result on the disk
    not applicable  the protocol does not measure such a task
    failed          data is missing, or the protocol could not finish; its reason is one line
    planned         of a dry run
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from ostension.config import to_tree
from ostension.data.task import Task
from ostension.errors import DataError, OstensionError
from ostension.evals.folds import mean_of_folds
from ostension.evals.identity import code_sha256, differences, files_sha256, task_sha256
from ostension.evals.protocol import Outcome
from ostension.evals.records import Record
from ostension.evals.results import Result, Results, check_measured, read_result, target_name
from ostension.evals.run_inputs import RunInputs
from ostension.evals.store_inputs import Embedder
from ostension.evals.targets import Asked, OpenedTasks, Target
from ostension.files import folder_lock, write_text

Status = Literal["done", "recorded", "not applicable", "failed", "planned"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """How one (task, split, protocol) went.

    Attributes:
        model, task, split, protocol: what it was.
        status: see the module.
        reason: why it was not done, or was done again.
        result: what is now known.
        seconds: that it took now.
        task_record: the task.
    """

    model: str
    task: str
    split: str
    protocol: str
    status: Status
    reason: str = ""
    result: Result | None = None
    seconds: float = 0.0
    task_record: Task | None = None

    @property
    def target(self) -> str:
        return target_name(self.task, self.split)

    @property
    def record(self) -> Record | None:
        return None if self.result is None else self.result.record


class Runner:
    """What is the same for all steps of a run.

    Args:
        asked: the protocols.
        results: where results lie; None keeps them in memory.
        seed: of all protocols.
        limit: the number of samples of each split that are taken.
        samples: also write what was said of each sample.
        again: compute everything again.
        dry: compute nothing.
        told: told what is computed again, and why.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        *,
        results: Results | None = None,
        seed: int = 0,
        limit: int | None = None,
        samples: bool = False,
        again: bool = False,
        dry: bool = False,
        told: Callable[[str], None] | None = None,
    ):
        self.asked, self.results, self.seed, self.limit = asked, results, seed, limit
        self.samples, self.again, self.dry = samples, again, dry
        self.told = told or (lambda line: None)

    def suite(self, embedder: Embedder, targets: Sequence[Target], opened: OpenedTasks) -> Iterator[Step]:
        """One model over tasks and protocols, one step after the other.

        Raises:
            DataError: if another run writes this model's results.
        """
        with self._held(embedder.name):
            for target in targets:
                inputs: RunInputs | str
                try:
                    inputs = embedder.inputs(opened.splits(target.task, target.split), opened.splits)
                except OstensionError as error:
                    inputs = str(error)
                yield from self._task(inputs, embedder.name, target.read(), target.split)

    def inputs(self, inputs: RunInputs) -> Iterator[Step]:
        """One task with ready features; raises as `suite` does."""
        with self._held(inputs.model_name):
            yield from self._task(inputs, inputs.model_name, inputs.task, inputs.measured)

    @contextlib.contextmanager
    def _held(self, model: str) -> Iterator[None]:
        """The folder of a model's results, held against other runs."""
        if self.results is None or self.dry:
            yield
            return
        folder = self.results.path(model, "-", "-").parents[1]
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(folder))
            except OSError as error:
                what = f"cannot be written: {error.strerror}"
                raise DataError(what, source=folder, fix="give another folder with --output") from None
            yield

    def _task(self, inputs: RunInputs | str, model: str, task: Task, split: str) -> Iterator[Step]:
        for asked in self.asked:
            step = Step(model=model, task=task.name, split=split, protocol=asked.name, status="failed", task_record=task)
            if reason := reason_not(asked, task):
                yield dataclasses.replace(step, status="not applicable", reason=reason)
            elif isinstance(inputs, str):
                yield dataclasses.replace(step, reason=inputs)
            elif inputs.answers_alone is not None and not getattr(asked.protocol, "OF_PREDICTORS", False):
                yield dataclasses.replace(step, status="not applicable", reason=inputs.answers_alone)
            else:
                began = time.monotonic()
                done = self._step(inputs, asked, step)
                yield dataclasses.replace(done, seconds=time.monotonic() - began)

    def _step(self, inputs: RunInputs, asked: Asked, step: Step) -> Step:
        began = time.monotonic()
        try:
            for split in asked.protocol.SPLITS:
                if (missing := inputs.missing(split)) is not None:
                    return dataclasses.replace(step, reason=missing)
            identity = self._identity(inputs, asked)
            known, why = self._recorded(inputs, asked, identity)
            if known is not None and not why:
                return dataclasses.replace(step, status="recorded", result=known)
            if (reason := strangers(inputs, asked)) is not None:
                return dataclasses.replace(step, status="not applicable", reason=reason)
            if self.dry:
                return dataclasses.replace(step, status="planned", reason=why)
            if why:
                self.told(f"{step.model}: {step.target} {asked.name}: computed again: {why}")
            result, samples = self._measured(inputs, asked, identity, began)
            if self.results is not None:
                result = self.results.write(result, samples if self.samples else {})
            return dataclasses.replace(step, status="done", reason=why, result=result)
        except OstensionError as error:
            return dataclasses.replace(step, reason=str(error))
        except Exception as error:  # a defect of one protocol must not cost the others' hours
            said = " ".join(str(error).split())[:200]
            return dataclasses.replace(step, reason=f"a defect: {type(error).__name__}: {said}{self._write_trace(step)}")

    def _identity(self, inputs: RunInputs, asked: Asked) -> dict[str, Any]:
        task = inputs.task
        return {
            "protocol": asked.name, "code": code_sha256(asked.module), "config": to_tree(asked.config), "seed": self.seed,
            "limit": self.limit, "task": {"name": task.name, "version": task.version, "sha256": task_sha256(task)},
            "split": inputs.measured, "folds": list(_folds(inputs, asked)), **inputs.identity(),
            "files": files_sha256(asked.config, getattr(asked.protocol, "FILES", ())),
        }  # fmt: skip

    def _recorded(self, inputs: RunInputs, asked: Asked, identity: dict[str, Any]) -> tuple[Result | None, str]:
        """The result on the disk, if there is one, and why it does not count, if it does not."""
        if self.results is None:
            return None, ""
        path = self.results.path(inputs.model_name, target_name(inputs.task.name, inputs.measured), asked.name)
        if not path.exists():
            return None, ""
        try:
            known = read_result(path)
        except DataError as error:
            return None, str(error)
        if self.again:
            return known, "asked for"
        before = {**known.identity}
        data = before.pop("data", {})
        changed = differences(before, identity) or differences({"data": data}, {"data": _data_now(inputs, data)})
        if not changed and self.samples and known.columns and not (known.samples and (path.parent / known.samples).is_file()):
            changed = ["outputs of samples are wanted"]
        return known, "; ".join(changed)

    def _measured(
        self, inputs: RunInputs, asked: Asked, identity: dict[str, Any], began: float
    ) -> tuple[Result, dict[str, np.ndarray]]:
        outcomes: dict[str, Outcome] = {}
        used: dict[str, str] = {}
        notes: list[str] = []
        for fold in identity["folds"] or [None]:
            own = inputs.fresh(fold)
            outcome = asked.protocol.run(own, asked.config, seed=self.seed)
            outcomes[str(fold)] = outcome
            used |= own.used
            said = [*own.notes, *own.data_notes(), *outcome.record.details.get("notes", [])]
            notes += [note for note in said if note not in notes]
        outcome = mean_of_folds(outcomes) if identity["folds"] else outcomes["None"]
        counts = dict(outcome.record.counts)
        if self.limit is not None:
            counts["limit"] = self.limit
            notes.insert(0, f"limited: {self.limit:,} samples of each split, a try-out and no result")
        record = dataclasses.replace(
            outcome.record, protocol=asked.name, task=inputs.task.name, model=inputs.model_name, counts=counts,
            split=inputs.name_of(outcome.record.split or "test"),
        )  # fmt: skip
        if self.results is None:
            check_measured(record)  # else on writing
        result = Result(
            record=record,
            identity={**identity, "data": dict(sorted(used.items()))},
            notes=tuple(notes),
            limit=self.limit,
            columns=tuple(outcome.samples),
            seconds=round(time.monotonic() - began, 3),
        )
        return result, dict(outcome.samples)

    def _write_trace(self, step: Step) -> str:
        if self.results is None or self.dry:
            return ""
        path = self.results.path(step.model, step.target, step.protocol).with_suffix(".error.txt")
        try:
            write_text(path, traceback.format_exc())
        except OSError:
            return ""
        return f" (the whole of it in {path})"


def reason_not(asked: Asked, task: Task) -> str | None:
    """Why a protocol does not measure a task: its own reason, or a split that the record does not have."""
    if (reason := asked.protocol.reason_not(task)) is not None:
        return reason
    lacking = [name for name in asked.protocol.SPLITS if name != "test" and name not in task.splits]
    return f"its record has no split {lacking[0]!r}" if lacking else None


def strangers(inputs: RunInputs, asked: Asked) -> str | None:
    """Why what is learned from a training split says nothing of the measured one: they have no class in common."""
    if "train" not in asked.protocol.SPLITS or inputs.task.takes_several:
        return None
    train, test = inputs.targets("train"), inputs.targets("test")
    if train is None or test is None or np.isin(test, train).any():
        return None
    return f"no class of {inputs.measured!r} is in {inputs.name_of('train')!r}"


def _folds(inputs: RunInputs, asked: Asked) -> tuple[str, ...]:
    """The folds that a protocol goes through: those whose samples it looks at."""
    folds = inputs.task.folds
    changing = {"train"} if folds is None or folds.split == "train" else {"train", "test"}
    return inputs.folds() if folds is not None and changing & set(asked.protocol.SPLITS) else ()


def _data_now(inputs: RunInputs, names: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = inputs.fingerprint(name)
        except OstensionError:
            found[name] = ""
    return found
