"""Arithmetic on weight files: interpolate, mix, task vectors, soups, patching; from folders to a folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ostension.cli._group import Group
from ostension.errors import UsageError

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Models = Annotated[tuple[str, ...], tyro.conf.Positional]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Writes:
    """What every command that writes a folder asks for.

    Args:
        output: The folder to write.
        force: Go on although models differ in start, preprocessing, tokenizer, class list or templates.
        overwrite: Replace a folder that has something in it.
    """

    output: Output
    force: bool = False
    overwrite: bool = False

    def options(self) -> dict[str, Any]:
        return {"force": self.force, "overwrite": self.overwrite}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Averages(_Writes):
    """What every command that averages models asks for, too.

    Args:
        recalibrate: Estimate statistics of batch normalisation anew on pictures: a task, TASK@SPLIT (default: train), or pairs.
        recalibrate_limit: Look at so many pictures of these at most. Default: 1024.
        data: The folder of all data, for tasks. Default: OSTENSION_DATA.
    """

    recalibrate: str | None = None
    recalibrate_limit: int | None = None
    data: Path | None = None

    def options(self) -> dict[str, Any]:
        from ostension.evals.held_out import pictures_of

        if self.recalibrate is None:
            if self.recalibrate_limit is not None:
                raise UsageError("--recalibrate-limit has no effect", expected="--recalibrate with it")
            return super().options()
        return {
            **super().options(),
            "recalibrate": pictures_of(self.recalibrate, self.data, limit=self.recalibrate_limit or 1024),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Decides(_Averages):
    """What every command that decides on held-out samples asks for, too.

    Args:
        split: The split that decides; never the one that is measured.
        limit: Look at so many samples of a task, of every class its share.
        device: Where to compute: auto, cpu, cuda, cuda:N.
    """

    split: str = "val"
    limit: int | None = None
    device: str = "auto"

    def held_out(self, task: str, dtype: str) -> Any:
        """The samples of a task that decide."""
        from ostension.evals.held_out import HeldOut
        from ostension.evals.targets import find_targets
        from ostension.evals.task_splits import TaskSplits

        target = find_targets([task])[0]
        splits = TaskSplits(target.task, self.data, measured=target.split, limit=self.limit)
        return HeldOut(splits, self.split, device=self.device, dtype=dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolate(_Averages):
    """Write (1 - alpha) A + alpha B, such as the zero-shot and the fine-tuned model's (WiSE-FT); several alphas in one pass.

    Examples:
      ostension weights interpolate zero-shot tuned -o wise
      ostension weights interpolate zero-shot tuned --alpha 0.25 --alpha 0.5 --alpha 0.75 -o line

    Args:
        start: A model's folder, file or hub name, or a tuned predictor's folder.
        end: Another one with the same architecture; a predictor tuned from the start goes with its start.
        output: The folder to write; with several alphas a folder for each in it, such as alpha-0.5.
        alpha: How far from A to B; repeat the flag. Default: 0.5.
    """

    start: Annotated[str, tyro.conf.Positional]
    end: Annotated[str, tyro.conf.Positional]
    alpha: tyro.conf.UseAppendAction[tuple[float, ...]] = ()

    def run(self) -> int:
        from ostension.weights.arithmetic import interpolate

        alphas = tuple(dict.fromkeys(self.alpha)) or (0.5,)
        one = len(alphas) == 1
        targets = {alpha: self.output if one else self.output / f"alpha-{alpha:g}" for alpha in alphas}
        return _done(interpolate(self.start, self.end, targets, **self.options()), list(targets.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix(_Averages):
    """Write a weighted mean of models.

    Example:
      ostension weights mix one:0.5 two:0.3 three:0.2 -o mixed

    Args:
        models: Models as NAME:COEFFICIENT; the coefficients sum to 1.
    """

    models: Models

    def run(self) -> int:
        from ostension.weights.arithmetic import mix

        pairs = [_pair(word) for word in self.models]
        names, coefficients = [name for name, _ in pairs], [value for _, value in pairs]
        return _done(mix(names, coefficients, self.output, **self.options()), [self.output])


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
class Apply(_Writes):
    """Write BASE + scale x VECTOR, for one task vector or several; a negative scale forgets.

    Examples:
      ostension weights apply zero-shot cars.safetensors --scale 0.4 -o patched
      ostension weights apply zero-shot cars.safetensors digits.safetensors --scale 0.4 --scale 0.3 -o both

    Args:
        base: A model's folder, file or hub name.
        vectors: Files that `ostension weights diff` wrote.
        scale: One for each vector, or one for all; repeat the flag. Default: 1.
    """

    base: Annotated[str, tyro.conf.Positional]
    vectors: Models
    scale: tyro.conf.UseAppendAction[tuple[float, ...]] = ()

    def run(self) -> int:
        from ostension.weights.arithmetic import apply

        scales = self.scale or (1.0,)
        if len(scales) == 1:
            scales *= len(self.vectors)
        if not self.vectors or len(scales) != len(self.vectors):
            raise UsageError(f"{len(self.vectors)} vectors and {len(scales)} scales", expected="one for each, or one for all")
        return _done(apply(self.base, self.vectors, scales, self.output, **self.options()), [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(_Averages):
    """Write the mean of models (a uniform soup); their order does not matter, to the bit.

    Example:
      ostension weights soup uniform run-1 run-2 run-3 -o soup

    Args:
        models: Models' folders, files or hub names, or folders of tuned predictors.
    """

    models: Models

    def run(self) -> int:
        from ostension.weights.arithmetic import soup

        _some(self.models)
        return _done(soup(self.models, self.output, **self.options()), [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy(_Decides):
    """Write a greedy soup: models join in the order of their scores, each if the mean does not get worse on held-out samples.

    Example:
      ostension weights soup greedy run-1 run-2 run-3 --task my.toml --data pictures -o soup

    Args:
        models: Models' folders, files or hub names, or folders of tuned predictors.
        task: The task whose held-out samples decide, zero-shot with its own prompts.
        dtype: Type of the weights while they are judged: auto, float32, bfloat16, float16.
    """

    models: Models
    task: str
    dtype: str = "auto"

    def run(self) -> int:
        from ostension.weights.soups import greedy_soup

        _some(self.models)
        score = self.held_out(self.task, self.dtype)

        def told(step: Any) -> None:
            said = "rejected early" if step.together is None else f"{100 * step.together:.2f} % together"
            kept = "joins" if step.kept else "stays out"
            print(f"{step.model}: {100 * step.alone:.2f} % alone, {said}: {kept}", file=sys.stderr)

        found = greedy_soup(self.models, self.output, score, told=told, **self.options())
        words = f"{len(found.members)} of {len(self.models)} models, {100 * found.score:.2f} % of {score.count:,} samples"
        print(f"ostension: {words} of {self.split!r}, on which they were chosen", file=sys.stderr)
        return _done(found.notes, [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned(_Decides):
    """Write a learned soup: coefficients of the models for each tensor, by gradients on held-out samples; memory of two models.

    Example:
      ostension weights soup learned run-1 run-2 run-3 --task my.toml --data pictures -o soup

    Args:
        models: Models' folders, files or hub names, or folders of tuned predictors.
        task: The task whose held-out samples are learned from, with its own prompts or the predictors' heads.
        by: "tensor": coefficients for each tensor. "model": the same for all.
        epochs: Passes over the samples.
        lr: Learning rate.
        seed: Of the order of the samples.
    """

    models: Models
    task: str
    by: Literal["tensor", "model"] = "tensor"
    epochs: int = 5
    lr: float = 0.05
    seed: int = 0

    def run(self) -> int:
        from ostension.weights.learned import learned_soup

        _some(self.models)
        samples = self.held_out(self.task, "float32")
        samples.seed = self.seed

        def told(epoch: int, loss: float) -> None:
            print(f"epoch {epoch}: loss {loss:.4f}", file=sys.stderr)

        found = learned_soup(
            self.models, self.output, samples, by=self.by, epochs=self.epochs, lr=self.lr, told=told, **self.options()
        )  # fmt: skip
        if not found.coefficients:
            print("ostension: the models do not differ, so there was nothing to learn but a scale", file=sys.stderr)
        for place, name in enumerate(self.models if found.coefficients else ()):
            shares = [row[place] for row in found.coefficients.values()]
            print(f"{name}: {min(shares):.3f} to {max(shares):.3f} of a tensor", file=sys.stderr)
        print(f"ostension: learned on {samples.count:,} samples of {self.split!r}", file=sys.stderr)
        return _done(found.notes, [self.output])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patch(_Decides):
    """Patch a model: go from it towards one tuned on new tasks as far as new and old tasks together gain (PAINT).

    Example:
      ostension weights patch zero-shot tuned --learn my.toml --keep local_cifar10 --data pictures -o patched

    Args:
        start: The model to patch.
        end: The model that was tuned from it.
        learn: Tasks that it is to learn; repeat the flag.
        keep: Tasks that it is to keep; repeat the flag.
        dtype: Type of the weights while they are judged: auto, float32, bfloat16, float16.
    """

    start: Annotated[str, tyro.conf.Positional]
    end: Annotated[str, tyro.conf.Positional]
    learn: tyro.conf.UseAppendAction[tuple[str, ...]]
    keep: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    dtype: str = "auto"

    def run(self) -> int:
        from ostension.weights.arithmetic import interpolate
        from ostension.weights.line import GRID, Line, choose, curve

        if not self.learn:
            raise UsageError("no task to learn is given", expected="--learn TASK")
        tasks = {name: self.held_out(name, self.dtype) for name in dict.fromkeys((*self.learn, *self.keep))}
        options = self.options()
        given: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "recalibrate": options.get("recalibrate")}
        with Line.of_files(self.start, self.end, **given) as line:
            points = curve(line, GRID, lambda model: {name: held.accuracy(model) for name, held in tasks.items()})
        for point in points:
            scores = ", ".join(f"{name} {100 * value:.2f} %" for name, value in point.scores.items())
            print(f"alpha {point.alpha:g}: {scores}", file=sys.stderr)
        best = choose(points, patch=self.learn, keep=self.keep)
        print(f"ostension: alpha {best.alpha:g}, chosen on {self.split!r}", file=sys.stderr)
        return _done(interpolate(self.start, self.end, {best.alpha: self.output}, **options), [self.output])


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
    "soup": Group(
        "Average models: all of them, those that help, or by learned coefficients.",
        {"uniform": Uniform, "greedy": Greedy, "learned": Learned},
    ),
    "patch": Patch,
    "check": Check,
}


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
