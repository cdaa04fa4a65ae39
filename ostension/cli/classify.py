"""Classify images with words: labels given here, in a file, in a task, or in a saved predictor."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.errors import ConfigError, DataError, LimitError, UsageError

if TYPE_CHECKING:
    from ostension.model.predictor import Prediction, Predictor

MODEL_VARIABLE = "OSTENSION_MODEL"
DEFAULT_TEMPLATE = "a photo of a {}."  # CLIP, section 3.1.4
# What a folder is searched for; a file that is named itself is tried whatever it is called.
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify:
    """Classify images with words.

    Give the classes in exactly one of four ways. Results go to stdout as they come; images that cannot be read are named
    on stderr with the reason, the rest goes on, and the exit status is 1 if there were any.

    Examples:
      ostension classify photo.jpg --labels "cat,dog,a cup of tea" --model FOLDER
      ostension classify pictures/ "more/*.png" --task imagenet --top-k 3 --format jsonl
      find . -name "*.jpg" | ostension classify - --labels-file names.txt
      ostension classify clip.webm frames/ --predictor FOLDER-OF-A-VIDEO-METHOD

    Args:
        images: Files, folders (searched with their sub-folders), globs, or - for a list of paths on stdin, one a line.
            For a predictor of videos: files of videos, moving pictures, and folders of frames.
        labels: Class names, separated by commas.
        labels_file: A text file with one class name a line.
        task: A shipped task's name (emoji, cifar10, imagenet, ...) or a task record (a .toml file).
        predictor: A folder with a saved predictor.
        model: A model's folder, file or hub name. Default: the environment variable OSTENSION_MODEL.
        template: A prompt template with {} for the class name; repeat the flag for an ensemble.
        templates: A named set of templates, e.g. openai_imagenet.
        top_k: How many classes to print for each image.
        format: An aligned table, or one JSON object a line.
        batch_size: Images encoded at once.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16. With an engine other than torch the precision in which
            it computes: auto, float32, bfloat16, or int8 of an export folder that has it.
        engine: What runs the towers: torch, onnx (onnxruntime), openvino, or auto, the fastest by a short measurement, which
            is kept (see ostension doctor --model). The model may then be a folder that ostension export wrote.
        save_predictor: Also save the classifier to this folder, for --predictor.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    labels: str | None = None
    labels_file: Path | None = None
    task: str | None = None
    predictor: Path | None = None
    model: str | None = None
    template: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    templates: str | None = None
    top_k: int = 5
    format: Literal["table", "jsonl"] = "table"
    batch_size: int = 32
    device: str = "auto"
    dtype: str = "auto"
    engine: Literal["torch", "onnx", "openvino", "auto"] = "torch"
    save_predictor: Path | None = None

    def __post_init__(self):
        given = [name for name in ("labels", "labels_file", "task", "predictor") if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"the classes are given by {' and '.join(map(_flag, given))}" if given else "no classes are given"
            raise UsageError(what, expected="exactly one of --labels, --labels-file, --task, --predictor")
        if self.template and self.templates:
            raise UsageError("--template and --templates are both given", expected="one of them")
        if self.predictor is not None and (self.template or self.templates or self.save_predictor):
            raise UsageError("a saved predictor has its prompts", fix="leave --template, --templates and --save-predictor out")
        for name in ("top_k", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{_flag(name)} is {getattr(self, name)}", expected="1 or more")

    def run(self) -> int:
        # Before the model is loaded: a typing error in a path must not cost the time of loading.
        found = find_images(self.images, videos=self.predictor is not None and _of_videos(self.predictor))
        predictor = self.build()
        if self.save_predictor is not None:
            predictor.save(self.save_predictor)
            _say(f"saved the predictor to {self.save_predictor}")
        writer = _write_jsonl if self.format == "jsonl" else _Table()
        failed = found.problems
        for path, prediction in classify_files(predictor, found.paths, self.batch_size):
            if isinstance(prediction, Exception):
                failed += 1
                _say(str(prediction))
            else:
                writer(shown(path), prediction.top(self.top_k))
        if found.skipped:
            _say(f"{found.skipped} files in the folders are not images by their names and were left out")
        if failed:
            _say(f"{failed} of {len(found.paths) + found.problems} inputs failed")
        return 1 if failed else 0

    def build(self) -> Predictor:
        """The classifier that the flags describe."""
        from ostension import runtime
        from ostension.export.engines import load_encoder
        from ostension.model.predictor import Predictor

        runtime.set_threads()
        if self.predictor is not None:
            return self._saved()
        classes, templates = self._classes()
        model = load_encoder(model_name(self.model), self.engine, device=self.device, dtype=self.dtype)
        predictor = Predictor.zero_shot(model, classes, templates)
        counts = f"{_counted(len(predictor.class_names), 'class', 'es')}, {_counted(len(templates), 'template')}"
        _say(f"{counts}, model {model.config.name}{_computed(model)}")
        return predictor

    def _saved(self) -> Predictor:
        """The saved predictor. It knows its model; the environment's default is for classes given as words."""
        from ostension.export.engines import as_precision, engine_encoder, load_encoder, stays_in_torch
        from ostension.model.predictor import Predictor

        assert self.predictor is not None
        if stays_in_torch(self.engine, self.device):
            return Predictor.load(self.predictor, self.model, device=self.device, dtype=self.dtype)
        encoder = None
        if self.model is not None:
            encoder = load_encoder(self.model, self.engine, device=self.device, dtype=self.dtype)
        predictor = Predictor.load(self.predictor, encoder, device="cpu", dtype="float32")
        if predictor.own_images:
            raise ConfigError(f"a {predictor.kind!r} predictor has an image tower of its own", fix="leave --engine out")
        if encoder is None:
            predictor.encoder = engine_encoder(predictor.encoder, self.engine, precision=as_precision(self.dtype))
        _say(f"model {predictor.encoder.config.name}{_computed(predictor.encoder)}")
        return predictor

    def _classes(self) -> tuple[Any, tuple[str, ...]]:
        """Class names (several for some classes of some tasks) and templates."""
        from ostension.data.task import read_task
        from ostension.text.prompts import as_templates, templates

        chosen = templates(self.templates) if self.templates else as_templates(self.template) if self.template else ()
        if self.task is not None:
            task = read_task(self.task)
            return list(task.label_names().values()), chosen or task.prompt_templates()
        names = read_labels_file(self.labels_file) if self.labels_file is not None else split_labels(self.labels or "")
        return names, chosen or (DEFAULT_TEMPLATE,)


COMMAND = Classify


@dataclasses.dataclass
class Found:
    """Images to classify, and what was not usable: paths reported as problems, files skipped for their names."""

    paths: list[Path]
    problems: int = 0
    skipped: int = 0


def model_name(given: str | None) -> str:
    """The model to use: the given one, or that of the environment.

    Raises:
        UsageError: if neither names one; none is shipped.
    """
    name = given or os.environ.get(MODEL_VARIABLE)
    if not name:
        raise UsageError(
            "no model is named, and none is shipped",
            expected=f"--model FOLDER, or the environment variable {MODEL_VARIABLE}",
            fix="`ostension demo` trains a small one into ostension-demo/model",
        )
    return name


def split_labels(text: str) -> list[str]:
    """Class names between commas, without the spaces around them."""
    return [name.strip() for name in text.split(",")]


def read_labels_file(path: Path) -> list[str]:
    """Class names of a text file, one a line; blank lines are left out.

    Raises:
        DataError: if the file cannot be read as UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", source=path, expected="one class name a line") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", source=path, expected="one class name a line") from None


def find_images(arguments: Sequence[str], *, videos: bool = False) -> Found:
    """The files that the arguments name, in their order; what matches nothing is reported on stderr and counted.

    Args:
        videos: whether files of videos, moving pictures, and folders of frames are what is looked for.

    Raises:
        UsageError: for no arguments.
        DataError: if nothing at all was found.
    """
    if not arguments:
        raise UsageError("no images are given", expected="files, folders, globs, or - for a list on stdin")
    found = Found([])
    for argument in _lines_of_stdin_in_place(arguments):
        before = len(found.paths)
        _add(found, argument, videos)
        if len(found.paths) == before:
            found.problems += 1
            missing = not Path(argument).exists() and not glob.has_magic(argument)
            _say(f"{shown(Path(argument))}: {'no such file or folder' if missing else 'no image here'}")
    if not found.paths:
        raise DataError("none of the arguments leads to an image", expected="files, folders, globs, or - for a list on stdin")
    return found


def classify_files(
    predictor: Predictor, paths: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, Prediction | Exception]]:
    """Each path with its prediction, or with the reason why there is none, in order.

    An image that cannot be read costs its own place in the batch and nothing else.
    """
    import torch

    if predictor.depends == "views" or predictor.takes == "videos":
        batch_size = 1  # the views of a picture, or frames of a video, are many
    for start in range(0, len(paths), batch_size):
        outcomes: list[Any] = [_pixels(predictor, path) for path in paths[start : start + batch_size]]
        readable = [index for index, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
        if readable:
            predictions = predictor(torch.stack([outcomes[index] for index in readable]))
            for index, prediction in zip(readable, predictions, strict=True):
                outcomes[index] = prediction
        yield from zip(paths[start : start + batch_size], outcomes, strict=True)


def shown(path: Path) -> str:
    """A path as printable text: bytes that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", errors="backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _pixels(predictor: Predictor, path: Path) -> Any:
    try:
        return predictor.pixels([path])[0]
    except (DataError, LimitError) as error:
        return error


def _lines_of_stdin_in_place(arguments: Iterable[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            lines = sys.stdin.buffer.read().split(b"\n")
            yield from (os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip())
        else:
            yield argument


def _of_videos(predictor: Path) -> bool:
    from ostension.model.predictor import sample_kind

    return sample_kind(predictor) == "videos"


def _add(found: Found, argument: str, videos: bool) -> None:
    """Add the images that one argument leads to; a name with [ or * in it that exists is that file, not a pattern."""
    if Path(argument).exists():
        _add_existing(found, Path(argument), videos)
    else:
        for match in sorted(glob.glob(argument, recursive=True)):
            _add_existing(found, Path(match), videos)


def _add_existing(found: Found, path: Path, videos: bool) -> None:
    if not path.is_dir():
        found.paths.append(path)
        return
    if videos:
        _add_videos(found, path)
        return
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            found.paths.append(file)
        else:
            found.skipped += 1


def _add_videos(found: Found, folder: Path) -> None:
    """The videos below a folder: it or a folder in it where the pictures are frames, and each file that moves."""
    from ostension.image.signatures import VIDEO_SUFFIXES
    from ostension.image.video import holds_frames

    if holds_frames(folder):
        found.paths.append(folder)
        return
    for entry in sorted(folder.iterdir()):
        suffix = entry.suffix.lower()
        if entry.is_dir():
            _add_videos(found, entry)
        elif suffix in IMAGE_SUFFIXES or suffix[1:] in VIDEO_SUFFIXES:
            found.paths.append(entry)
        else:
            found.skipped += 1


def _write_jsonl(path: str, top: list[tuple[str, float]]) -> None:
    label, probability = top[0]
    listed = [{"label": name, "probability": round(value, 6)} for name, value in top]
    print(json.dumps({"image": path, "label": label, "probability": round(probability, 6), "top": listed}), flush=True)


class _Table:
    """Lines with aligned columns: the image once, then one line for each of its classes."""

    def __call__(self, path: str, top: list[tuple[str, float]]) -> None:
        print(path)
        for name, probability in top:
            print(f"  {100 * probability:6.2f} %  {name}", flush=True)


def _computed(model: Any) -> str:
    """Engine and precision in words, where they are not torch's alone."""
    computed = getattr(model, "computed", None)
    return f", computed by {computed}" if computed else ""


def _counted(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _say(text: str) -> None:
    print(f"ostension: {text}", file=sys.stderr, flush=True)
