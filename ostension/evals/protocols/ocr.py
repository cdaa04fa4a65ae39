"""Reading: each picture's text chosen among candidates by quoted prompts, beside the same prompts without quotes.

Candidates are the task's classes, or each picture's own lexicon in a CSV file (columns id, text, lexicon: words with a space
between them), as IIIT5K gives a thousand words a picture. For whole house numbers the file has no lexicon, and all numbers in
it are candidates. A text is asked for in quotes, as the paper did.

Metrics: "accuracy" with the chance of each picture's own candidates, "unquoted", and "quoting_gain", paired. Details:
"templates", "wrong" [[id, text, read as], ...] (at most 200), and "published" {model: {set: share}}, the paper's, known
second-hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.evals.heads import one_label
from ostension.evals.inputs import Inputs, unit
from ostension.evals.metrics import bootstrap_interval, wilson_interval
from ostension.evals.ocr import PUBLISHED, Words, choose_words, quoted, read_words, words_for
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.files import sha256_file
from ostension.shapes import Float
from ostension.store import Features
from ostension.text.prompts import fill

SPLITS = ("test",)
FILES = ("words",)
LISTED = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is read, and how it is asked for.

    Attributes:
        words: a CSV file of texts and lexicons by id; empty for the task's classes.
        template: with one `{}`; empty for the task's own.
    """

    words: str = ""
    template: str = ""

    def __post_init__(self):
        require(not self.template or self.template.count("{}") == 1, "template", self.template, "exactly one {}")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind == "retrieval" or task.takes_several:
        return "its pictures have no one text each"
    return None if any('"{}"' in one for one in task.prompt_templates()) else "its templates ask for no text in quotes"


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """The share of texts that are read right.

    Raises:
        DataError: for a file of words that lacks a sample, or is damaged.
    """
    task, features = inputs.task, inputs.features("test")
    templates = (config.template,) if config.template else task.prompt_templates()
    asked = words_for(read_words(config.words), features.ids, config.words) if config.words else _classes(task, features)
    images, vocabulary = features.unit(), asked.vocabulary()
    ways = {"quoted": [quoted(one) for one in templates], "unquoted": [quoted(one).replace('"{}"', "{}") for one in templates]}
    read = {way: choose_words(images, vocabulary, _rows(inputs, vocabulary, several), asked) for way, several in ways.items()}
    right = {way: np.array([a == b for a, b in zip(said, asked.texts, strict=True)]) for way, said in read.items()}
    count = len(features)
    chance = float(np.mean([1 / len(few) for few in asked.candidates]))
    measured = {
        name: Metric(value=float(right[way].mean()), count=count, chance=chance,
                     interval=wilson_interval(int(right[way].sum()), count))
        for name, way in (("accuracy", "quoted"), ("unquoted", "unquoted"))
    }  # fmt: skip
    gains = right["quoted"].astype(np.float64) - right["unquoted"]
    measured["quoting_gain"] = Metric(
        value=float(gains.mean()), count=count, chance=0.0, interval=bootstrap_interval(gains, seed=seed)
    )
    wrong = [
        [features.ids[row], asked.texts[row], read["quoted"][row]] for row in np.flatnonzero(~right["quoted"])[:LISTED].tolist()
    ]
    hashes = {**inputs.hashes(), **({"words": sha256_file(config.words)} if config.words else {})}
    record = Record(
        protocol="ocr", subject=f"{inputs.model_name} reading {task.title}", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale}, hashes=hashes,
        counts={"samples": count, "words": len(vocabulary), "templates": len(templates)}, seeds=(seed,), task=task.name,
        model=inputs.model_name, split=inputs.name_of("test"),
        details={"templates": ways["quoted"], "wrong": wrong, "published": PUBLISHED},
    )  # fmt: skip
    samples = {
        "id": np.array(features.ids), "target": np.array(asked.texts), "predicted": np.array(read["quoted"]),
        "correct": right["quoted"], "predicted_unquoted": np.array(read["unquoted"]), "correct_unquoted": right["unquoted"],
    }  # fmt: skip
    return Outcome(record=record, samples=samples)


def _classes(task: Task, features: Features) -> Words:
    """The first name of every class as the candidates of all pictures."""
    names = tuple(several[0] for several in task.display_names().values())
    targets = one_label(features)
    return Words(ids=tuple(features.ids), texts=tuple(names[t] for t in targets), candidates=(names,) * len(targets))


def _rows(inputs: Inputs, vocabulary: Sequence[str], templates: Sequence[str]) -> Float[np.ndarray, "W E"]:
    """Unit rows of words: the mean of the unit rows of their prompts, made unit again."""
    rows = inputs.texts([fill(template, word) for word in vocabulary for template in templates])
    means = rows.reshape(len(vocabulary), len(templates), -1).mean(axis=1, dtype=np.float64)
    return unit(means, vocabulary)
