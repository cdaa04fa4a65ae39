"""What models must have in common before their weights can be averaged, and what of it two models do not.

Weights of unrelated models give nonsense when they are averaged, and so do heads of other class lists: silently. The start
that models share is looked for in their provenance: hashes of weight files and fingerprints that both lineages name. Where a
lineage is not recorded this is said, and nothing refused, for nothing is known to be wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.config import changed_keys, to_tree
from ostension.errors import CheckpointError, ConfigError
from ostension.files import read_json
from ostension.model.fingerprint import NOT_BEHAVIOUR
from ostension.weights.sources import ModelWeights, PredictorWeights, Weights

PREDICTOR = "predictor.json"  # of a classifier that lies in the model's folder
_LISTS = {"class_list_sha256": "class lists", "prompts_sha256": "templates"}
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz")
BATCH_NORM_NOTE = "the running statistics of batch normalisation are averaged, too, and are not those of the averaged weights"


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that two models do not have in common.

    Attributes:
        what: "base", "architecture", "preprocessing", "tokenizer", "class lists", "templates" or, of predictors, "method".
        text: one line.
    """

    what: str
    text: str


def differences(first: Weights, other: Weights) -> list[Difference]:
    """What two models with the same tensors do not have in common, the start first."""
    found: list[Difference] = []
    if not (isinstance(first, ModelWeights) and isinstance(other, ModelWeights)):
        return _of_predictors(first, other)
    if (reason := _bases(first, other)) is not None:
        found.append(Difference("base", reason))
    mine, theirs = _behaviour(first), _behaviour(other)
    for what, keys in (("preprocessing", ("preprocess",)), ("tokenizer", ("tokenizer",)), ("architecture", None)):
        wanted = keys or tuple(key for key in {*mine, *theirs} if key not in ("preprocess", "tokenizer"))
        changed = changed_keys({k: mine.get(k) for k in wanted}, {k: theirs.get(k) for k in wanted})
        if changed:
            found.append(Difference(what, f"{first.name} and {other.name} differ in {what}: {', '.join(sorted(changed)[:6])}"))
    for key, what in _LISTS.items():
        ours, others = heads(first).get(key), heads(other).get(key)
        if ours is not None and others is not None and ours != others:  # a model without a head has none to confuse
            text = f"{first.name} and {other.name} have other {what} ({ours[:12]}, {others[:12]})"
            found.append(Difference(what, text))
    return found


def refuse(found: Sequence[Difference], *, force: bool) -> list[str]:
    """The lines of what differs, for the record of what was forced.

    Raises:
        ConfigError: if there is something and it is not forced.
    """
    if found and not force:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigError(found[0].text + more, fix="--force if that is meant; `ostension weights check` lists everything")
    return [difference.text for difference in found]


def unknown_lineage(opened: Sequence[Weights]) -> list[str]:
    """A note where it cannot be known whether models share a start; predictors name theirs."""
    models = [model for model in opened if isinstance(model, ModelWeights)]
    if len(models) < 2:
        return []
    unrecorded = [model.name for model in models if not recorded(model)]
    related = all(shared(models[0], other) for other in models[1:]) if unrecorded else True
    if related:
        return []
    return [f"whether all share a start is not recorded ({', '.join(unrecorded[:3])}): unrelated models average to nonsense"]


def recorded(model: ModelWeights) -> bool:
    """Whether the model's record says what it was trained from, or that it was trained here from nothing."""
    return any({"start", "run", "weights"} & node.keys() for node in _nodes(model.opened.provenance))


def lineage(model: ModelWeights) -> set[str]:
    """Hashes of the model's weight files and of all that its record says it comes from."""
    found = {digest for name, digest in model.opened.hashes.items() if name.endswith(_WEIGHT_SUFFIXES)}
    return found | ancestors(model.opened.provenance)


def ancestors(provenance: Mapping[str, Any]) -> set[str]:
    """Hashes of weight files, and fingerprints, anywhere in a record."""
    found = set()
    for node in _nodes(provenance):
        if isinstance(node.get("fingerprint"), str):
            found.add(node["fingerprint"])
        if isinstance(node.get("sha256"), Mapping):
            found |= {str(value) for name, value in node["sha256"].items() if str(name).endswith(_WEIGHT_SUFFIXES)}
    return found


def shared(first: ModelWeights, other: ModelWeights) -> set[str]:
    """What both lineages name; fingerprints of the models themselves are taken only where files do not decide."""
    mine, theirs = lineage(first), lineage(other)
    if mine & theirs:
        return mine & theirs
    # A fingerprint costs a pass over the weights, and can only be found in a record that names some.
    if _names_fingerprints(other):
        mine.add(first.fingerprint())
    if _names_fingerprints(first):
        theirs.add(other.fingerprint())
    return mine & theirs


def heads(model: ModelWeights) -> dict[str, str]:
    """Hashes of the class list and prompts that the model was trained for: its record's, or those of a classifier beside it."""
    found: dict[str, str] = {}
    for node in _nodes(model.opened.provenance):
        for key in _LISTS:
            if isinstance(node.get(key), str):
                found.setdefault(key, node[key])
    path = Path(model.opened.source.folder) / PREDICTOR
    if path.is_file():
        tree = read_json(path, CheckpointError)
        found |= {key: tree[key] for key in _LISTS if isinstance(tree, Mapping) and isinstance(tree.get(key), str)}
    return found


def has_batch_norm(model: Weights) -> bool:
    """Whether a tower has running statistics."""
    return any(name.endswith("running_mean") for name in model.shapes)


def _of_predictors(first: Weights, other: Weights) -> list[Difference]:
    """What predictors were made of and for; a model among them was compared when it was opened."""
    if not (isinstance(first, PredictorWeights) and isinstance(other, PredictorWeights)):
        return []
    mine, theirs = first.tree, other.tree
    facts = {
        "base": [tree["encoder"].get("fingerprint") for tree in (mine, theirs)],
        "method": [tree["kind"] for tree in (mine, theirs)],
        **{what: [tree[key] for tree in (mine, theirs)] for key, what in _LISTS.items()},
    }
    return [
        Difference(what, f"{first.name} and {other.name} have other {what} ({str(one)[:12]}, {str(two)[:12]})")
        for what, (one, two) in facts.items()
        if one != two
    ]


def _names_fingerprints(model: ModelWeights) -> bool:
    return any("fingerprint" in node for node in _nodes(model.opened.provenance))


def _bases(first: ModelWeights, other: ModelWeights) -> str | None:
    if not (recorded(first) and recorded(other)) or shared(first, other):
        return None
    return f"{first.name} and {other.name} share no start: nothing that one comes from is in the record of the other"


def _behaviour(model: ModelWeights) -> dict[str, Any]:
    return {key: value for key, value in to_tree(model.config).items() if key not in NOT_BEHAVIOUR}


def _nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a JSON tree, the outermost first."""
    if isinstance(tree, Mapping):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
