"""The record of an automatic choice: what was taken, from what, why, and what the test split then says."""

from __future__ import annotations

from ostension.config import to_tree
from ostension.evals.adaptation import ZERO_SHOT
from ostension.evals.answers import logits_of, names_of
from ostension.evals.automatic import Choice, Wishes
from ostension.evals.records import Record
from ostension.evals.scores import score_name, scores
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits


def record_of(choice: Choice, wishes: Wishes, splits: TaskSplits, embedder: Embedder) -> Record:
    """The test scores of what was taken, with zero-shot's beside them."""
    task, test, plan = splits.task, splits.split("test"), choice.plan
    assert test.targets is not None
    measured = scores(task, logits_of(choice.predictor, test, embedder), test.targets, test.groups, seed=plan.seed)
    if plan.method != ZERO_SHOT:
        words = embedder.model.classifier(list(names_of(task)), task.prompt_templates())
        found = scores(task, logits_of(words, test, embedder), test.targets, test.groups, seed=plan.seed)
        measured[f"{ZERO_SHOT}/{score_name(task)}"] = found[score_name(task)]
    settings = None if plan.config is None else to_tree(plan.config)
    return Record(
        protocol=f"adapt-auto-{plan.shots or 'all'}shot-seed{plan.seed}", subject=plan.method, metrics=measured,
        config={"method": plan.method, "settings": settings, "shots": plan.shots, "wishes": to_tree(wishes)},
        hashes=embedder.hashes(task), counts={"test_samples": len(test), "judging_pictures": choice.pictures},
        seeds=(plan.seed,), task=task.name, model=embedder.name, split=test.split,
        details={"reason": choice.reason, "tried": [to_tree(one) for one in choice.tried]},
    )  # fmt: skip
