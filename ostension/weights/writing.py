"""Folders of models that are made of models: complete, or not there at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ostension.config import require
from ostension.errors import CheckpointError, ConfigError
from ostension.files import write_json
from ostension.formats import ours
from ostension.formats.manifest import Sums, recorded, whole_folder, write_manifest
from ostension.formats.ours import WEIGHTS
from ostension.runtime import versions
from ostension.weights.kernel import Output, result_dtypes
from ostension.weights.sink import Sink, flushing
from ostension.weights.sources import Weights, verified
from ostension.weights.streaming import combine

HEADER = {"format": "pt"}  # what transformers asks for
# Changes the weights of a written folder, and gives what to record of it; nothing where it changes nothing.
Finish = Callable[[Output, Path], dict[str, Any]]


def write(
    operation: str,
    models: Sequence[Weights],
    sources: Sequence[Any],
    outputs: Sequence[tuple[Output, Path]],
    inputs: Sequence[list[dict[str, Any]]],
    forced: list[str],
    notes: list[str],
    overwrite: bool,
    finish: Finish | None = None,
) -> None:
    """Write the folders of all outputs; each gets its name when all are complete and the inputs were found sound.

    Args:
        models: the first gives everything but the weights.
        sources: what outputs are made of.
        inputs: of each output, for its provenance.
    """
    targets = [target.absolute() for _, target in outputs]
    require(len(set(targets)) == len(targets), "targets", [str(target) for target in targets], "all different")
    model = models[0]
    for target in targets:
        if any(target == source.folder.absolute() for source in models):
            raise ConfigError(f"{target.name} is to be written and read", fix="choose another folder")
    with contextlib.ExitStack() as folders, contextlib.ExitStack() as stack:
        stack.enter_context(written(targets[0]))
        partials = [folders.enter_context(_folder(target, overwrite)) for target in targets]
        disk = stack.enter_context(flushing())
        sinks, streamed, dtypes, sums = [], [], [], {}
        for index, (output, _) in enumerate(outputs):
            path = partials[index] / model.file
            only = None if output.only is None else getattr(sources[output.only], "plain", None)
            if only is not None:
                shutil.copyfile(only.path, path)
                known = recorded(only.path.parent).get(only.path.name) if model.file == WEIGHTS else None
                sums[index] = known if known is not None and known.quick else Sums.of(path)  # `verified` compares the source
                continue
            dtypes.append(result_dtypes(sources, output))
            sinks.append(Sink(path, dtypes[-1], model.shapes, HEADER, disk))
            stack.callback(sinks[-1].close)
            streamed.append(index)
        combine(sources, [outputs[index][0] for index in streamed], sinks, dtypes)
        sums |= {index: sink.finish() for index, sink in zip(streamed, sinks, strict=True)}
        for index, partial in enumerate(partials):
            record: dict[str, Any] = {"operation": operation, "inputs": inputs[index], "forced": forced}
            record["notes"] = notes + model.write_rest(partial, sums[index])
            if finish is not None and (more := finish(outputs[index][0], partial)):
                record |= more
                sums[index] = Sums.of(partial / model.file)
                model.write_rest(partial, sums[index])
            tree = {"weights": record, "written_by": versions() | {"torch": torch.__version__}}
            write_json(partial / ours.PROVENANCE, tree)
            write_manifest(partial, {model.file: sums[index]})
        verified(models)


@contextlib.contextmanager
def _folder(target: Path, overwrite: bool) -> Iterator[Path]:
    with written(target), whole_folder(target, overwrite=overwrite) as partial:
        yield partial


@contextlib.contextmanager
def written(target: Path) -> Iterator[None]:
    """Problems of the disk as one line."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot be written: {error.strerror or error}", source=target, fix="nothing was left behind"
        ) from None
