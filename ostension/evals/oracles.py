"""Results beside published ones: what a task's record says of the same model, and whether the result is near enough.

A result is compared only where it was measured as the published one was: the record's own prompts, all samples of the split.
Where that is not so, the comparison is told as one that decides nothing.
"""

from __future__ import annotations

import dataclasses
import re

from ostension.data.task import Oracle, Task
from ostension.evals.records import Record
from ostension.model.presets import preset_names

# Published results have the field's names of protocols and metrics; these are ours.
PROTOCOLS = {"zero-shot": "zeroshot", "linear-probe": "probe"}
RECALLS = {"text_recall@": "image_to_text_r", "image_recall@": "text_to_image_r"}
PREFIX_NOTE = "captions with the prefix"
WEIGHTS = ("openai", "laion2b", "imagenet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A result beside a published one, both as shares.

    Attributes:
        metric: its name in the record.
        found, published: shares, 0 to 1.
        tolerance: how far apart they may be.
        gate: whether being further apart is a failure; only what was measured as the published result was can fail.
        why_not: why it cannot fail though it is a gate, or empty.
        oracle: what was published, where, and how well that is known.
    """

    metric: str
    found: float
    published: float
    tolerance: float
    gate: bool
    why_not: str
    oracle: Oracle

    @property
    def near(self) -> bool:
        return abs(self.found - self.published) <= self.tolerance + 1e-9

    @property
    def failed(self) -> bool:
        """Whether this is a gate that the result does not pass."""
        return self.gate and not self.near

    @property
    def line(self) -> str:
        """One line for a person, in percent."""
        far = f"{100 * (self.found - self.published):+.2f} points, tolerance {100 * self.tolerance:g}"
        verdict = "near" if self.near else "FAR" if self.gate else "far"
        about = f"; {self.why_not}" if self.why_not else ""
        return (
            f"{self.metric} {100 * self.found:.2f}, published {100 * self.published:.2f} ({far}): {verdict} "
            f"[{self.oracle.source}, {self.oracle.evidence}{about}]"
        )


def check_oracles(record: Record, task: Task, *, preset: str | None = None, weights: str | None = None) -> list[Comparison]:
    """The record's metrics beside the values that the task's oracles have for this model.

    Args:
        preset, weights: which model it was; by default as `known_model` reads its name. Nothing is compared for a model that
            is not known: a name like ViT-B-32 alone does not say whose weights it had.
    """
    if preset is None or weights is None:
        known = known_model(record.model)
        if known is None:
            return []
        preset, weights = preset or known[0], weights or known[1]
    why_not = unlike_published(record, task)
    found = []
    for oracle in task.oracles:
        name = metric_of(oracle, task)
        if (
            PROTOCOLS.get(oracle.protocol, oracle.protocol) != record.protocol
            or oracle.weights != weights
            or preset not in oracle.values
            or name not in record.metrics
        ):
            continue
        found.append(
            Comparison(
                metric=name,
                found=record.metrics[name].value,
                published=oracle.values[preset] / 100,
                tolerance=oracle.tolerance / 100,
                gate=oracle.gate and not why_not,
                why_not=why_not,
                oracle=oracle,
            )
        )
    return found


def metric_of(oracle: Oracle, task: Task) -> str:
    """The name that the oracle's metric has in our records."""
    name = oracle.metric or task.metric
    for published, ours in RECALLS.items():
        if name.startswith(published):
            prefix = "prefixed_" if oracle.note.startswith(PREFIX_NOTE) else ""
            return f"{prefix}{ours}{name.removeprefix(published)}"
    return "pm_0" if name == "pm_k" else name


def unlike_published(record: Record, task: Task) -> str:
    """Why a record was not measured as published results are, or an empty text."""
    asked = {"templates": "own", "names": "own"}
    for key, usual in asked.items():
        if record.protocol == "zeroshot" and record.config.get(key, usual) != usual:
            return f"{key} {record.config[key]!r}"
    split = task.splits.get(record.split)
    count = record.counts.get("samples", record.counts.get("images"))
    if split is not None and count is not None and count != split.count:
        return f"{count:,} of {split.count:,} samples"
    return "" if record.split in ("", "test") else f"split {record.split!r}"


def known_model(name: str) -> tuple[str, str] | None:
    """Preset and weights that a model's name says ("ViT-B-32-openai", "openai/ViT-B/32"); None if it does not say both."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
    presets = [known for known in preset_names() if re.search(rf"(^|-){re.escape(known.lower())}(-|$)", plain)]
    weights = [known for known in WEIGHTS if known in plain]
    if not presets or len(weights) != 1:
        return None
    return max(presets, key=len), weights[0]
