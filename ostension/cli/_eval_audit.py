"""The sub-command `ostension eval audit`: which class names need a change, before anything is deployed."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ostension.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from ostension.data.task import Task
    from ostension.evals.audit.parts import Subject
    from ostension.evals.audit.run import Audit
    from ostension.evals.inputs import Inputs
    from ostension.model.clip import CLIP
    from ostension.store import Features

MODEL_VARIABLE = "OSTENSION_MODEL"
TEMPLATE = "a photo of a {}."
TRIED = "openai_imagenet_best7"
ENDINGS = (".html", ".md", ".json")
SHOWN = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditCommand:
    """Audit class names: ambiguous, close, badly written, sensitive to thresholds or to groups, never chosen or too often.

    Names alone are enough to begin with; a model, pictures, labels and groups each let more be checked, and what could not be
    checked is said. Pictures need no labels.

    Examples:
      ostension eval audit names.txt --model FOLDER -o audit.html
      ostension eval audit names.txt --model FOLDER --images pictures --groups people.csv -o audit.html
      ostension eval audit pets.toml --model FOLDER --data pictures --add "rabbit,hamster" --fail-on high
      ostension eval audit names.txt --features pictures.npz --texts rows.npz --json

    Args:
        classes: A text file with one class name a line, a task's name, or a task record (TOML).
        model: A model's folder, file or hub name. Default: OSTENSION_MODEL; without one names are only read.
        images: Pictures without labels: a folder, searched with its sub-folders.
        groups: With --images: a CSV file with a column "file" (names below the folder) and columns of groups.
        data: With a task: its data, with labels and groups. Default: none is used.
        split: With --data: the split.
        store: With --data: the folder of embeddings.
        features: An npz file of ready picture features, instead of a model.
        texts: With --features: an npz file with a row for each class name or prompt (rows, names).
        template: A prompt template with {} for the class name; repeat the flag for an ensemble. Default: the task's.
        templates: A named set of templates, e.g. openai_imagenet.
        add: Class names that might be added, separated by commas.
        output: A report to write: .html, .md or .json.
        fail_on: Exit with status 1 if there is a finding of this severity or a higher one.
        batch_size: Pictures that pass the tower together.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        json: Print the record as JSON instead of lines.
    """

    classes: Annotated[str, tyro.conf.Positional]
    model: str | None = None
    images: Path | None = None
    groups: Path | None = None
    data: Path | None = None
    split: str = "test"
    store: Path = Path("embeddings")
    features: Path | None = None
    texts: Path | None = None
    template: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    templates: str | None = None
    add: str = ""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    fail_on: str | None = None
    batch_size: int = 32
    device: str = "auto"
    json: bool = False

    def __post_init__(self):
        given = [name for name in ("images", "data", "features") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"--{' and --'.join(given)} are all given", expected="pictures in one form")
        if (self.features is None) != (self.texts is None):
            raise UsageError("--features and --texts need each other", expected="both or none")
        if self.features is not None and (self.model or self.template or self.templates):
            raise UsageError("--features are rows without a model", fix="leave --model, --template and --templates out")
        if self.groups is not None and self.images is None:
            raise UsageError("--groups has no effect without --images", fix="a task's data has its own groups")
        if self.template and self.templates:
            raise UsageError("--template and --templates are both given", expected="one of them")
        if self.output is not None and self.output.suffix.lower() not in ENDINGS:
            raise UsageError(f"--output is {self.output}", expected=f"a name that ends in {', '.join(ENDINGS)}")
        if self.fail_on not in (None, "high", "medium", "low"):
            raise UsageError(f"--fail-on is {self.fail_on!r}", expected="high, medium or low")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size is {self.batch_size}", expected="1 or more")

    def run(self) -> int:
        from ostension.config import to_tree
        from ostension.evals.audit.run import audit
        from ostension.evals.protocols.audit import Config, record_of

        subject, inputs = self._subject()
        found = audit(subject)
        record = None if inputs is None else to_tree(record_of(found, inputs, Config(add=self._added())))
        tree = record or {"protocol": "audit", "details": found.tree()}
        if self.output is not None:
            self._write(found, subject, tree)
        if self.json:
            print(json.dumps(tree, ensure_ascii=False))
        else:
            print("\n".join(lines_of(found)))
        return self._status(found)

    def _added(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.add.split(",") if name.strip())

    def _subject(self) -> tuple[Subject, Inputs | None]:
        """What is audited, and the inputs that it was made of (None for names without a model)."""
        from ostension.evals.audit.subject import subject_of, subject_of_names
        from ostension.text.prompts import as_templates

        task, tried = self._task(), as_templates(TRIED)
        if self.features is not None:
            from ostension.evals.feature_files import open_features

            rows = open_features([self.features], texts=self.texts, task=task)
            return subject_of(rows, pictures=rows.features("test"), added=self._added()), rows
        model = self._load()
        if model is None:
            if self.images is not None or self.data is not None or self.add:
                raise UsageError("no model is given", fix=f"give it with --model, or set {MODEL_VARIABLE}")
            _say(f"no model is given (--model or {MODEL_VARIABLE}): names are only read")
            return subject_of_names(task), None
        from ostension.evals.audit.model_inputs import ModelInputs, prompt_lengths

        lengths, room = prompt_lengths(model, task)
        if self.data is not None:
            from ostension.evals.store_inputs import StoreInputs

            stored = StoreInputs.open(model, task, store=self.store, data=self.data, split=self.split)
            return subject_of(stored, pictures=stored.features("test"), templates=tried, added=self._added(),
                              lengths=lengths, context_length=room), stored  # fmt: skip
        plain = ModelInputs(model, task)
        pictures = None if self.images is None else self._pictures(model, self.images)
        return subject_of(plain, pictures=pictures, templates=tried, added=self._added(), lengths=lengths,
                          context_length=room), plain  # fmt: skip

    def _task(self) -> Task:
        from ostension.cli.classify import read_labels_file
        from ostension.data.task import read_task, task_names
        from ostension.evals.audit.model_inputs import task_of_names
        from ostension.text.prompts import as_templates, templates

        chosen = templates(self.templates) if self.templates else as_templates(self.template) if self.template else None
        path = Path(self.classes)
        if path.suffix == ".toml" or self.classes in task_names():
            task = read_task(self.classes)
            if not task.num_classes:
                raise UsageError(f"the task {task.name!r} has no classes", expected="a task with class names")
            if chosen is None:
                return task
            if task.texts is not None:
                raise UsageError(f"the task {task.name!r} has whole texts", fix="leave --template and --templates out")
            return dataclasses.replace(task, templates=chosen, template_set=None)
        if not path.is_file():
            raise UsageError(f"no such file or task: {self.classes}", expected="a text file of names, a task, or a TOML file")
        if self.data is not None:
            raise UsageError("--data needs a task with labels", fix="`ostension task new` makes one; --images needs no labels")
        return task_of_names(read_labels_file(path), chosen or (TEMPLATE,), path.stem)

    def _load(self) -> CLIP | None:
        from ostension import runtime
        from ostension.formats.load import load

        name = self.model or os.environ.get(MODEL_VARIABLE)
        if not name:
            return None
        runtime.set_threads()
        return load(name, device=self.device)

    def _pictures(self, model: CLIP, folder: Path) -> Features:
        """Rows of the pictures below a folder; what cannot be read is named on stderr and left out."""
        import numpy as np
        import torch

        from ostension.cli.classify import find_images
        from ostension.errors import LimitError
        from ostension.store import Features

        paths = find_images([str(folder)]).paths
        rows, kept = [], []
        for start in range(0, len(paths), self.batch_size):
            pixels = []
            for path in paths[start : start + self.batch_size]:
                try:
                    pixels.append(model.transform(path))
                    kept.append(path)
                except (DataError, LimitError) as error:
                    _say(str(error))
            if pixels:
                rows.append(model.embed_images(torch.stack(pixels)).cpu().numpy())
        if not rows:
            raise DataError("no picture can be read", source=folder)
        if len(kept) < len(paths):
            _say(f"{len(paths) - len(kept)} of {len(paths)} pictures were left out")
        names = [str(path.relative_to(folder)) if path != folder else path.name for path in kept]
        groups = {} if self.groups is None else read_groups(self.groups, names)
        return Features(rows=np.concatenate(rows), ids=tuple(names), groups=groups)

    def _write(self, found: Audit, subject: Subject, tree: dict[str, Any]) -> None:
        from ostension import files
        from ostension.evals.audit.page import html_page, markdown

        assert self.output is not None
        title = f"The class names of {Path(self.classes).stem if self.classes.endswith(('.txt', '.toml')) else self.classes}"
        said = described(subject, tree.get("model", ""))
        ending = self.output.suffix.lower()
        if ending == ".json":
            files.write_json(self.output, tree)
        elif ending == ".md":
            files.write_text(self.output, markdown(found, title=title, subject=said))
        else:
            files.write_text(self.output, html_page(found, title=title, subject=said))
        _say(f"wrote {self.output}")

    def _status(self, found: Audit) -> int:
        from ostension.evals.audit.parts import SEVERITIES

        if self.fail_on is None:
            return 0
        worst = SEVERITIES[: [str(severity) for severity in SEVERITIES].index(self.fail_on) + 1]
        return int(any(found.count(severity) for severity in worst))


COMMANDS = {"audit": AuditCommand}


def described(subject: Subject, model: str) -> str:
    """What the audit looked at, in a sentence."""
    parts = [f"{len(subject.names):,} class names"]
    if model:
        parts.append(f"the model {model}")
    if subject.images is not None:
        labels = "" if subject.targets is None else " with labels"
        groups = f" and groups by {', '.join(subject.groups)}" if subject.groups else ""
        parts.append(f"{len(subject.images):,} pictures{labels}{groups}")
    return f"Looked at: {', '.join(parts)}."


def lines_of(found: Audit) -> list[str]:
    """An audit for a terminal: the worst findings in words, how many more there are, what was not checked."""
    from ostension.evals.audit.page import verdict

    lines = [verdict(found)]
    for severity in ("high", "medium", "low"):
        several = [finding for finding in found.findings if finding.severity == severity]
        lines += [line for finding in several[:SHOWN] for line in (f"{severity:<7} {finding.evidence}",
                                                                   f"{'':<7}   do: {finding.suggestion}")]  # fmt: skip
        if len(several) > SHOWN:
            lines.append(f"{'':<7} ... and {len(several) - SHOWN} more (--json or -o has all)")
    return lines + [f"{'skipped':<7} {line}" for line in found.skipped]


def read_groups(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of groups for the pictures `names`, from a CSV file with a column "file".

    Raises:
        DataError: if the file is not of that form, or lacks a picture.
    """
    import numpy as np

    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", source=path, expected="a CSV file") from None
    fields = [column for column in columns if column and column != "file"]
    if "file" not in columns or not fields:
        raise DataError(f"the columns are {', '.join(map(str, columns)) or 'none'}", source=path,
                        expected='a column "file" and one of groups at least')  # fmt: skip
    by_name = {row["file"]: row for row in rows}
    for name in names:
        if name not in by_name and Path(name).name not in by_name:
            raise DataError(f"no line for the picture {name!r}", source=path, expected="one for each picture")
    found = [by_name.get(name) or by_name[Path(name).name] for name in names]
    return {field: np.array([row[field] or "" for row in found]) for field in fields}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
