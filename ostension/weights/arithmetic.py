"""Models made of models: interpolation, mixes, uniform soups, task vectors; from folders to a folder, in the memory of a block.

    interpolate("base", "tuned", {0.5: "wise"})            # WiSE-FT: (1 - a) base + a tuned
    mix(["a", "b"], [0.7, 0.3], "mixed")
    soup(["a", "b", "c"], "soup")
    diff("base", "tuned", "cars.safetensors"); apply("base", ["cars.safetensors"], [0.5], "patched")

What is written is a complete folder of our layout that `load` reads, or nothing. Its provenance holds the records and hashes of
everything that went in, the coefficients, and what was forced.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ostension.config import require
from ostension.errors import CheckpointError, ConfigError
from ostension.files import atomic_path
from ostension.weights import agreement
from ostension.weights.batch_norm import Pictures, recalibrating
from ostension.weights.kernel import Mixed, Moved
from ostension.weights.sink import Sink, flushing
from ostension.weights.sources import VECTOR_KEY, VECTOR_KIND, ModelWeights, VectorFile, Weights, open_models, verified
from ostension.weights.states import check_same_tensors
from ostension.weights.streaming import combine
from ostension.weights.writing import HEADER, write, written

Name = str | os.PathLike


def interpolate(
    start: Name,
    end: Name,
    targets: Mapping[float, Name],
    *,
    recalibrate: Pictures | None = None,
    force: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write (1 - alpha) start + alpha end for each alpha in one pass over both; gives notes for the user.

    Alpha 0 and 1 copy the model's bytes. Outside of 0 and 1 the line is extended.

    Args:
        targets: folders to write, by alpha.
        recalibrate: pictures on which the statistics of batch normalisation are estimated anew; copied ends keep theirs.
        force: average models that differ in their start, architecture (with equal shapes), preprocessing, tokenizer, class
            lists or templates.
        overwrite: replace folders that have something in them.

    Raises:
        CheckpointError: for files that cannot be read, trusted, averaged or written.
        ConfigError: for models that do not belong together, unless forced.

    Source: WiSE-FT, arXiv 2109.01903, equation 1; PAINT, 2208.05592.
    """
    outputs = [(Mixed((1 - float(alpha), float(alpha))), Path(target)) for alpha, target in targets.items()]
    for alpha in targets:
        require(abs(alpha) < float("inf"), "alpha", alpha, "a finite number")
    return _write_mixed("interpolate", [start, end], outputs, recalibrate, force=force, overwrite=overwrite)


def mix(
    models: Sequence[Name],
    coefficients: Sequence[float],
    target: Name,
    *,
    recalibrate: Pictures | None = None,
    force: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write sum_i c_i model_i; gives notes for the user. See `interpolate`.

    Raises:
        ConfigError: also for coefficients that do not sum to 1, unless forced.
    """
    require(len(models) == len(coefficients) >= 1, "coefficients", list(coefficients), "one for each model")
    for value in coefficients:
        require(abs(value) < float("inf"), "coefficients", value, "a finite number")
    output = Mixed(tuple(float(value) for value in coefficients))
    if not output.affine and not force:
        raise ConfigError(
            f"the coefficients sum to {sum(coefficients):g}", expected="1", fix="--force if a model of another size is meant"
        )
    require(any(coefficients), "coefficients", list(coefficients), "one that is not 0")
    return _write_mixed("mix", models, [(output, Path(target))], recalibrate, force=force, overwrite=overwrite)


def soup(
    models: Sequence[Name],
    target: Name,
    *,
    recalibrate: Pictures | None = None,
    force: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write the mean of models, which does not depend on their order; gives notes for the user. See `interpolate`.

    Source: model soups, arXiv 2203.05482, section 2 (uniform soup).
    """
    require(len(models) >= 1, "models", list(models), "one or more")
    output = Mixed((1.0,) * len(models), divisor=float(len(models)))
    return _write_mixed("soup", models, [(output, Path(target))], recalibrate, force=force, overwrite=overwrite)


def diff(start: Name, end: Name, target: Name, *, force: bool = False) -> list[str]:
    """Write the task vector end - start, a safetensors file in float32 (float64 of float64 models); gives notes.

    Whole numbers are left out. start + vector is end up to the rounding of the vector: one unit in the last place.

    Source: task arithmetic, arXiv 2212.04089, section 2.
    """
    path = Path(target)
    with open_models([start, end], predictors=False) as opened:
        models = [model for model in opened if isinstance(model, ModelWeights)]
        check_same_tensors(models)
        forced, notes = agreed(models, force)
        floats = [name for name, dtype in models[0].dtypes.items() if dtype.is_floating_point]
        wide = (torch.float64,)
        dtypes = {
            name: torch.float64 if models[0].dtypes[name] in wide or models[1].dtypes[name] in wide else torch.float32
            for name in floats
        }
        record = {"kind": VECTOR_KIND, "from": models[0].record(), "to": models[1].record(), "forced": forced}
        record["fingerprint"] = models[0].fingerprint()  # of the start, whatever layout it is in
        metadata = {**HEADER, VECTOR_KEY: json.dumps(record, sort_keys=True)}
        shapes = {name: models[0].shapes[name] for name in floats}
        with (
            written(path),
            atomic_path(path) as partial,
            flushing() as disk,
            contextlib.closing(Sink(partial, dtypes, shapes, metadata, disk)) as sink,
        ):
            combine(models, [Mixed((-1.0, 1.0))], [sink], [dtypes])
            sink.finish()
            verified(models)
    return notes


def apply(
    base: Name,
    vectors: Sequence[Name],
    scales: Sequence[float],
    target: Name,
    *,
    force: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write base + sum_i s_i vector_i; gives notes for the user.

    A negative scale forgets, several vectors make one model of many tasks (PAINT's parallel patching), and a vector of another
    model, forced, is an analogy. Where nothing is added the base's bytes stay.

    Raises:
        ConfigError: for a vector whose start has nothing in common with the base, unless forced.
        CheckpointError: for files that cannot be read, trusted, added or written.
    """
    require(len(vectors) == len(scales) >= 1, "scales", list(scales), "one for each vector")
    for value in scales:
        require(abs(value) < float("inf"), "scales", value, "a finite number")
    with open_models([base], predictors=False) as models, contextlib.ExitStack() as stack:
        model, opened = models[0], []
        assert isinstance(model, ModelWeights)
        for name in vectors:
            opened.append(VectorFile(Path(name)))
            stack.callback(opened[-1].close)
        found = []
        for vector in opened:
            _check_vector(model, vector)
            known = agreement.ancestors(vector.record)
            if not agreement.lineage(model) & known and model.fingerprint() not in known:
                found.append(
                    agreement.Difference("base", f"{vector.name} was made of models that {model.name} does not come from")
                )
        forced, notes = agreement.refuse(found, force=force), _batch_norm(models, any(scales))
        output = Moved(tuple(float(value) for value in scales))
        inputs = [{"coefficient": 1.0, **model.record()}]
        inputs += [
            {"coefficient": scale, "source": vector.name, "sha256": {vector.name: vector.digest}, "vector": vector.record}
            for vector, scale in zip(opened, output.scales, strict=True)
        ]
        write("apply", models, [model, *opened], [(output, Path(target))], [inputs], forced, notes, overwrite)
    return notes


def _write_mixed(
    operation: str,
    names: Sequence[Name],
    outputs: Sequence[tuple[Mixed, Path]],
    recalibrate: Pictures | None,
    *,
    force: bool,
    overwrite: bool,
) -> list[str]:
    with open_models(names) as models:
        check_same_tensors(models)
        forced, notes = agreed(models, force)
        if recalibrate is not None and not agreement.has_batch_norm(models[0]):
            raise ConfigError(f"{models[0].name} has no batch normalisation", fix="leave --recalibrate out")
        notes += _batch_norm(models, recalibrate is None and any(output.only is None for output, _ in outputs))
        inputs = [
            [
                {"coefficient": value / output.divisor, **model.record()}
                for model, value in zip(models, output.coefficients, strict=True)
            ]
            for output, _ in outputs
        ]
        finish = None if recalibrate is None else recalibrating(recalibrate)
        write(operation, models, models, outputs, inputs, forced, notes, overwrite, finish)
    return notes


def agreed(models: Sequence[Weights], force: bool) -> tuple[list[str], list[str]]:
    """What was forced, and notes."""
    found = [difference for other in models[1:] for difference in agreement.differences(models[0], other)]
    forced = agreement.refuse(found, force=force)
    return forced, [*(f"forced: {line}" for line in forced), *agreement.unknown_lineage(models)]


def _batch_norm(models: Sequence[Weights], averaged: bool) -> list[str]:
    return [agreement.BATCH_NORM_NOTE] if averaged and agreement.has_batch_norm(models[0]) else []


def _check_vector(model: ModelWeights, vector: VectorFile) -> None:
    for name, shape in vector.shapes.items():
        if model.shapes.get(name) != shape:
            raise CheckpointError(
                f"the tensor {name!r} has the shape {shape}", source=vector.path,
                expected=f"{model.shapes.get(name, 'none')}, as in {model.name}",
            )  # fmt: skip
        if not model.dtypes[name].is_floating_point:
            raise CheckpointError(f"the tensor {name!r} of {model.name} holds whole numbers", source=vector.path)
