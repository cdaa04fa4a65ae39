"""What an audit looks at, from the inputs of a protocol: rows of classes, of single templates, of reference words and senses.

Where there is no text tower (rows of classes from arrays), what needs other prompts is left out, and the audit says so.

Letters: C classes, M templates, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ostension.data.task import Task
from ostension.errors import ConfigError
from ostension.evals.audit.parts import Subject
from ostension.evals.audit.texts import MIN_TEMPLATES
from ostension.evals.audit.words import reference_words, senses_of
from ostension.evals.inputs import Inputs
from ostension.store import Features

UNKNOWN = float("nan")


def subject_of(
    inputs: Inputs,
    *,
    pictures: Features | None = None,
    labels: bool = True,
    groups: Sequence[str] | None = None,
    templates: Sequence[str] = (),
    added: Sequence[str] = (),
    lengths: Sequence[int] = (),
    context_length: int | None = None,
) -> Subject:
    """The subject of an audit.

    Args:
        pictures: rows of pictures, with labels and groups where they are known.
        labels: whether to use the labels.
        groups: the fields of groups to use; all if None.
        templates: more templates to try names in, where the task has fewer than three of its own.
        added: names of classes that might be added.
        lengths: tokens of the longest prompt of each class, `context_length` the room.

    Raises:
        ConfigError: for classes to add where there is no text tower.
    """
    names = inputs.names()
    shown = _shown(inputs.task)
    own = inputs.task.prompt_templates()
    rows = inputs.classifier().astype(np.float64)
    tried = own if len(own) >= MIN_TEMPLATES or own == ("{}",) else tuple(dict.fromkeys((*own, *templates)))
    single = None
    if len(tried) >= MIN_TEMPLATES:
        single = _stacked([_rows(inputs, names, (template,)) for template in tried])
    words = reference_words()
    reference = _rows(inputs, {word: (word,) for word in words}, own)
    if added and reference is None:
        raise ConfigError("classes to add, and no text tower for their rows", fix="leave them out, or give a model")
    targets = None
    if pictures is not None and labels and pictures.targets is not None and pictures.targets.ndim == 1:
        targets = pictures.targets
    fields: Mapping[str, np.ndarray] = {} if pictures is None else pictures.groups
    return Subject(
        names=shown, rows=rows, scale=inputs.scale, templates=tried if single is not None else own, template_rows=single,
        used=len(own),
        reference=None if reference is None else reference.astype(np.float64), senses=_senses(inputs, shown, rows, own),
        images=None if pictures is None else pictures.unit().astype(np.float64),
        ids=() if pictures is None else pictures.ids, targets=targets,
        groups={name: values for name, values in fields.items() if groups is None or name in groups},
        added={name: inputs.classifier({name: (name,)}, own)[0].astype(np.float64) for name in added},
        lengths=tuple(lengths), context_length=context_length,
    )  # fmt: skip


def subject_of_names(task: Task) -> Subject:
    """The subject of an audit without any model: names as they are written, and their known senses."""
    names = _shown(task)
    senses = {name: tuple((sense, UNKNOWN) for sense in senses_of(name)) for name in names if senses_of(name)}
    return Subject(names=names, templates=task.prompt_templates(), senses=senses)


def _shown(task: Task) -> tuple[str, ...]:
    """What each class is called: its first name, or its key where it has whole texts."""
    names = task.display_names()
    return tuple(several[0] if task.texts is None else key for key, several in names.items())


def _rows(inputs: Inputs, names: Mapping[str, tuple[str, ...]], templates: Sequence[str]) -> np.ndarray | None:
    """Rows of names in templates; None where there is no text tower."""
    try:
        return inputs.classifier(names, templates)
    except ConfigError:  # what `Inputs.texts` says where a prompt has no row
        return None


def _stacked(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [part.astype(np.float64) for part in parts if part is not None]
    return np.stack(known) if len(known) == len(parts) else None


def _senses(
    inputs: Inputs, names: Sequence[str], rows: np.ndarray, templates: Sequence[str]
) -> dict[str, tuple[tuple[str, float], ...]]:
    """For each name with several senses, the senses and the cosine of their rows to the name's (NaN without a text tower)."""
    found = {}
    for place, name in enumerate(names):
        senses = senses_of(name)
        if not senses:
            continue
        sense_rows = _rows(inputs, {sense: (sense,) for sense in senses}, templates)
        cosines = [UNKNOWN] * len(senses) if sense_rows is None else (sense_rows @ rows[place]).tolist()
        found[name] = tuple(zip(senses, cosines, strict=True))
    return found
