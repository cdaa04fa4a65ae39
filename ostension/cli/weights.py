"""Arithmetic on weight files: interpolate, mix, task vectors, soups, patching; from folders to a folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ostension.cli._group import Group
from ostension.errors import UsageError

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Models = Annotated[tuple[str, ...], tyro.conf.Positional]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolate:
    """Write (1 - alpha) A + alpha B, such as the zero-shot and the fine-tuned model's (WiSE-FT); several alphas in one pass.

    Examples:
      ostension weights interpolate zero-shot tuned -o wise
      ostension weights interpolate zero-shot tuned --alpha 0.25 --alpha 0.5 --alpha 0.75 -o line

    Args:
        start: A model's folder, file or hub name.
        end: Another one with the same architecture.
        output: The folder to write; with several alphas a folder for each in it, such as alpha-0.5.
        alpha: How far from A to B; repeat the flag. Default: 0.5.
        force: Average models that differ in start, preprocessing, tokenizer, class list or templates.
        overwrite: Replace a folder that has something in it.
    """

    start: Annotated[str, tyro.conf.Positional]
    end: Annotated[str, tyro.conf.Positional]
    output: Output
    alpha: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    force: bool = False
    overwrite: bool = False

    def run(self) -> int:
        from ostension.weights.arithmetic import interpolate

        alphas = tuple(dict.fromkeys(self.alpha)) or (0.5,)
        one = len(alphas) == 1
        targets = {alpha: self.output if one else self.output / f"alpha-{alpha:g}" for alpha in alphas}
        return _done(interpolate(self.start, self.end, targets, **_flags(self)), list(targets.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """Write a weighted mean of models.

    Example:
      ostension weights mix one:0.5 two:0.3 three:0.2 -o mixed

    Args:
        models: Models as NAME:COEFFICIENT; the coefficients sum to 1.
        output: The folder to write.
        force: Average models that differ in start, preprocessing, tokenizer, class list or templates, or any coefficients.
        overwrite: Replace a folder that has something in it.
    """

    models: Models
    output: Output
    force: bool = False
    overwrite: bool = False

    def run(self) -> int:
        from ostension.weights.arithmetic import mix

        pairs = [_pair(word) for word in self.models]
        names, coefficients = [name for name, _ in pairs], [value for _, value in pairs]
        return _done(mix(names, coefficients, self.output, **_flags(self)), [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diff:
    """Write the task vector B - A, a safetensors file.

    Example:
      ostension weights diff zero-shot tuned -o cars.safetensors

    Args:
        start: A model's folder, file or hub name.
        end: What it became.
        output: The file to write.
        force: Take the difference of models that have no start in common, or differ otherwise.
    """

    start: Annotated[str, tyro.conf.Positional]
    end: Annotated[str, tyro.conf.Positional]
    output: Output
    force: bool = False

    def run(self) -> int:
        from ostension.weights.arithmetic import diff

        return _done(diff(self.start, self.end, self.output, force=self.force), [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apply:
    """Write BASE + scale x VECTOR, for one task vector or several; a negative scale forgets.

    Examples:
      ostension weights apply zero-shot cars.safetensors --scale 0.4 -o patched
      ostension weights apply zero-shot cars.safetensors digits.safetensors --scale 0.4 --scale 0.3 -o both

    Args:
        base: A model's folder, file or hub name.
        vectors: Files that `ostension weights diff` wrote.
        output: The folder to write.
        scale: One for each vector, or one for all; repeat the flag. Default: 1.
        force: Add vectors of models that the base has nothing to do with.
        overwrite: Replace a folder that has something in it.
    """

    base: Annotated[str, tyro.conf.Positional]
    vectors: Models
    output: Output
    scale: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    force: bool = False
    overwrite: bool = False

    def run(self) -> int:
        from ostension.weights.arithmetic import apply

        scales = self.scale or (1.0,)
        if len(scales) == 1:
            scales *= len(self.vectors)
        if not self.vectors or len(scales) != len(self.vectors):
            raise UsageError(f"{len(self.vectors)} vectors and {len(scales)} scales", expected="one for each, or one for all")
        return _done(apply(self.base, self.vectors, scales, self.output, **_flags(self)), [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """Write the mean of models (a uniform soup); their order does not matter, to the bit.

    Example:
      ostension weights soup uniform run-1 run-2 run-3 -o soup

    Args:
        models: Models' folders, files or hub names.
        output: The folder to write.
        force: Average models that differ in start, preprocessing, tokenizer, class list or templates.
        overwrite: Replace a folder that has something in it.
    """

    models: Models
    output: Output
    force: bool = False
    overwrite: bool = False

    def run(self) -> int:
        from ostension.weights.arithmetic import soup

        _some(self.models)
        return _done(soup(self.models, self.output, **_flags(self)), [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """Write a greedy soup: models join in the order of their scores, each if the mean does not get worse on held-out samples.

    Example:
      ostension weights soup greedy run-1 run-2 run-3 --task my.toml --data pictures -o soup

    Args:
        models: Models' folders, files or hub names.
        task: The task whose held-out samples decide, zero-shot with its own prompts.
        split: The split that decides; never the one that is measured.
        data: The folder of all data. Default: OSTENSION_DATA.
        limit: Look at so many samples, of every class its share.
        output: The folder to write.
        force: Average models that differ in start, preprocessing, tokenizer, class list or templates.
        overwrite: Replace a folder that has something in it.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights while they are judged: auto, float32, bfloat16, float16.
    """

    models: Models
    task: str
    output: Output
    split: str = "val"
    data: Path | None = None
    limit: int | None = None
    force: bool = False
    overwrite: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def run(self) -> int:
        from ostension.weights.soups import greedy_soup

        _some(self.models)
        score = _held_out(self, self.task)

        def told(step: Any) -> None:
            said = "rejected early" if step.together is None else f"{100 * step.together:.2f} % together"
            kept = "joins" if step.kept else "stays out"
            print(f"{step.model}: {100 * step.alone:.2f} % alone, {said}: {kept}", file=sys.stderr)

        found = greedy_soup(self.models, self.output, score, told=told, **_flags(self))
        words = f"{len(found.members)} of {len(self.models)} models, {100 * found.score:.2f} % of {score.count:,} samples"
        print(f"ostension: {words} of {self.split!r}, on which they were chosen", file=sys.stderr)
        return _done(found.notes, [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patch:
    """Patch a model: go from it towards one tuned on new tasks as far as new and old tasks together gain (PAINT).

    Example:
      ostension weights patch zero-shot tuned --learn my.toml --keep local_cifar10 --data pictures -o patched

    Args:
        start: The model to patch.
        end: The model that was tuned from it.
        learn: Tasks that it is to learn; repeat the flag.
        keep: Tasks that it is to keep; repeat the flag.
        split: The split of each task that decides; never the one that is measured.
        data: The folder of all data. Default: OSTENSION_DATA.
        limit: Look at so many samples of each task, of every class its share.
        output: The folder to write.
        force: Go between models that differ in start, preprocessing, tokenizer, class list or templates.
        overwrite: Replace a folder that has something in it.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights while they are judged: auto, float32, bfloat16, float16.
    """

    start: Annotated[str, tyro.conf.Positional]
    end: Annotated[str, tyro.conf.Positional]
    output: Output
    learn: tyro.conf.UseAppendAction[tuple[str, ...]]
    keep: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    split: str = "val"
    data: Path | None = None
    limit: int | None = None
    force: bool = False
    overwrite: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def run(self) -> int:
        import ostension
        from ostension.weights.arithmetic import interpolate
        from ostension.weights.line import GRID, Line, choose, curve

        if not self.learn:
            raise UsageError("no task to learn is given", expected="--learn TASK")
        tasks = {name: _held_out(self, name) for name in dict.fromkeys((*self.learn, *self.keep))}
        ends = (ostension.load(path, device=self.device, dtype=self.dtype) for path in (self.start, self.end))
        points = curve(Line(*ends), GRID, lambda model: {name: held.accuracy(model) for name, held in tasks.items()})
        for point in points:
            scores = ", ".join(f"{name} {100 * value:.2f} %" for name, value in point.scores.items())
            print(f"alpha {point.alpha:g}: {scores}", file=sys.stderr)
        best = choose(points, patch=self.learn, keep=self.keep)
        print(f"ostension: alpha {best.alpha:g}, chosen on {self.split!r}", file=sys.stderr)
        return _done(interpolate(self.start, self.end, {best.alpha: self.output}, **_flags(self)), [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Say whether models can be averaged: tensors, start, preprocessing, class lists; and how far they are apart.

    Example:
      ostension weights check zero-shot tuned

    Args:
        models: Models' folders, files or hub names; each is compared with the first.
        json: Print one JSON object a model instead of lines.
    """

    models: Models
    json: bool = False

    def run(self) -> int:
        from ostension.weights.comparison import compare

        _some(self.models)
        rows = compare(self.models)
        for row in rows:
            print(json.dumps(row) if self.json else _as_line(row))
        return 1 if any(row["differences"] for row in rows) else 0


COMMAND: dict[str, Any] = {
    "interpolate": Interpolate,
    "mix": Mix,
    "diff": Diff,
    "apply": Apply,
    "soup": Group("Average models: all of them, or those that help.", {"uniform": Uniform, "greedy": Greedy}),
    "patch": Patch,
    "check": Check,
}


def _held_out(command: Greedy | Patch, task: str) -> Any:
    """The samples of a task that decide."""
    from ostension.evals.held_out import HeldOut
    from ostension.evals.targets import find_targets
    from ostension.evals.task_splits import TaskSplits

    target = find_targets([task])[0]
    splits = TaskSplits(target.task, command.data, measured=target.split, limit=command.limit)
    return HeldOut(splits, command.split, device=command.device, dtype=command.dtype)


def _flags(command: Interpolate | Mix | Apply | Uniform | Greedy | Patch) -> dict[str, bool]:
    return {"force": command.force, "overwrite": command.overwrite}


def _pair(word: str) -> tuple[str, float]:
    name, _, value = word.rpartition(":")
    try:
        if name:
            return name, float(value)
    except ValueError:
        pass  # the folder's own name may have a colon in it
    raise UsageError(f"{word!r} has no coefficient", expected="NAME:COEFFICIENT, such as tuned:0.5")


def _some(models: Sequence[str]) -> None:
    if not models:
        raise UsageError("no model is given", expected="folders, files or hub names")


def _done(notes: Sequence[str], written: Sequence[Path]) -> int:
    for note in notes:
        print(f"ostension: {note}", file=sys.stderr)
    for path in written:
        print(path)
    return 0


def _as_line(row: dict[str, Any]) -> str:
    ends = [f"{row['changed']} of {row['tensors']} tensors differ, relative distance {row['distance']:.3g}"]
    if row["cosine"] is not None:
        ends.append(f"cosine of the matrices {row['cosine']:.3f}")
    return f"{row['model']}: " + "; ".join([*ends, *row["differences"], *row["notes"]])
