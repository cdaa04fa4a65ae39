"""Many adaptations, one result a file: what is recorded with the same identity is kept, a failure does not stop the rest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ostension.config import to_tree
from ostension.errors import DataError, OstensionError
from ostension.evals.adaptation import Plan, run_plan
from ostension.evals.identity import method_sha256, task_sha256
from ostension.evals.results import Result, Results, read_result, target_name
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.files import sha256_json


def run_all(
    plans: Iterable[Plan],
    splits: TaskSplits,
    embedder: Embedder,
    results: Results,
    *,
    targets: Sequence[TaskSplits] = (),
    sources: Sequence[TaskSplits] = (),
    keep: Sequence[TaskSplits] = (),
) -> Iterator[Result | str]:
    """The result of every plan, or in one line why there is none; plans with `sources` learn from those tasks besides, plans
    with `keep` look at those."""
    for plan in plans:
        target = target_name(splits.task.name, splits.measured)
        path = results.path(embedder.name, target, plan.name)
        try:
            others = sources if plan.sources else ()
            held = keep if plan.keep else ()
            identity = _identity(plan, splits, embedder, targets, others, held)
            known = _known(path)
            if known is not None and known.identity == identity:
                yield known
                continue
            began, worked = time.monotonic(), time.process_time()
            fit = path.with_suffix(".fit") / sha256_json(identity)[:16]
            record, _ = run_plan(plan, splits, embedder, targets=targets, folder=fit, sources=others, keep=held)
            result = Result(
                record=record, identity=identity, seconds=round(time.monotonic() - began, 3),
                processor_seconds=round(time.process_time() - worked, 3),
            )  # fmt: skip
            yield results.write(result, {})
            shutil.rmtree(path.with_suffix(".fit"), ignore_errors=True)
        except OstensionError as error:
            yield f"{embedder.name}: {target} {plan.name}: {error}"


def _known(path: Any) -> Result | None:
    try:
        return read_result(path) if path.exists() else None
    except DataError:
        return None  # damaged: it is made anew


def _identity(
    plan: Plan, splits: TaskSplits, embedder: Embedder, targets: Sequence[TaskSplits], sources: Sequence[TaskSplits],
    keep: Sequence[TaskSplits],
) -> dict[str, Any]:  # fmt: skip
    learned: dict[str, Any] = {"alphas": list(plan.alphas)} if plan.alphas else {}
    if plan.val != "val":
        learned["val"] = {plan.val: splits.fingerprint(plan.val) or ""}
    if sources:
        learned["sources"] = {task_sha256(one.task): one.fingerprint("train") or "" for one in sources}
    if keep:
        learned["keep"] = {task_sha256(one.task): [one.fingerprint(name) or "" for name in ("train", "val")] for one in keep}
    return {
        **learned,
        "method": plan.method, "code": method_sha256(plan.method), "shots": plan.shots, "seed": plan.seed,
        "base_to_new": plan.base_to_new, "config": None if plan.config is None else to_tree(plan.config),
        "task": task_sha256(splits.task), "split": splits.measured, **embedder.hashes(splits.task),
        "data": {name: splits.fingerprint(name) or "" for name in ("train", "val", "test")},
        "targets": {f"{other.task.name}@{other.measured}": other.fingerprint("test") or "" for other in targets},
    }  # fmt: skip
