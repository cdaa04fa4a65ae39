"""A model's prediction files: one for each data set and seed, kept, so that a run that was stopped goes on.

The leaderboard wants the images in the order of its own index files (`test.txt` of a set: a path and a label a line). Given
those, rows are brought into that order by file name; without them they stay in the order of the task's data.

Letters: M images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ostension.config import to_tree
from ostension.errors import ConfigError, DataError
from ostension.evals.elevater.probing import FULL, probabilities
from ostension.evals.elevater.runs import Run, Settings
from ostension.evals.elevater.sets import in_order, set_of_task
from ostension.evals.elevater.submission import Header, write_prediction_file
from ostension.evals.inputs import Inputs
from ostension.files import sha256_json
from ostension.shapes import Int

FEW_SHOT_SEEDS = (0, 1, 2)


def seeds_of_shots(shots: int) -> tuple[int, ...]:
    """The seeds that the leaderboard wants: three for few shots, one where nothing is drawn."""
    return (0,) if shots in (0, FULL) else FEW_SHOT_SEEDS


def write_predictions(
    inputs: Inputs, settings: Settings, *, shots: int, model_name: str, folder: Path, index: Path | None = None
) -> list[Path]:
    """Write a task's prediction files below `folder`, as far as they are not there; their paths, by seed.

    Args:
        index: the set's index file.

    Raises:
        ConfigError: for a task that is no set of the leaderboard, or a model whose numbers of parameters are not known.
        DataError: for an index of other images.
    """
    task, run = inputs.task, Run(inputs, settings)
    published = set_of_task(task)
    counted = run.parameters(zero_shot=shots == 0)
    if counted is None:
        raise ConfigError(f"the numbers of parameters of {inputs.model_name} are not known", expected="a model, not only rows")
    test = inputs.features("test")
    if shots != 0:
        inputs.features("train")  # so that its hash is known
    order = np.arange(len(test)) if index is None else index_order(index, test.ids)
    asked = sha256_json([to_tree(settings), shots, model_name, inputs.hashes(), run.hashes, order.tolist()])[:12]
    paths = []
    for seed in seeds_of_shots(shots):
        path = folder / f"seed{seed}_{published.name}.{asked}.json"
        paths.append(path)
        if path.is_file():
            continue
        logits = run.zero_shot() if shots == 0 else run.probed(shots, seed).logits
        # Without training there is one classifier for all labels, whose softmax is submitted, as in the toolkit.
        found = probabilities(task, logits, "faithful" if shots == 0 else settings.probe.mode)
        header = Header(
            model_name=model_name, dataset_name=published.name, num_trainable_params=counted.trainable,
            num_params=counted.total, num_visual_params=counted.visual, num_backbone_params=counted.backbone, n_shot=shots,
            rnd_seeds=(seed,),
        )  # fmt: skip
        write_prediction_file(path, header, [in_order(published, task, found)[order]])
    return paths


def index_order(path: Path, ids: Sequence[str]) -> Int[np.ndarray, " M"]:
    """The positions of the images in the order of an index file, found by their file names without suffix.

    A line is `archive.zip@folder/name.jpg label`, or the path alone.

    Raises:
        DataError: for an index that names other images, or names that more than one image has.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"cannot be read: {reason}", source=path, expected="a path and a label a line") from None
    place: dict[str, int] = {}
    for number, name in enumerate(ids):
        if place.setdefault(_stem(name), number) != number:
            raise DataError(f"two images are called {_stem(name)!r}", source=path, expected="names that tell images apart")
    wanted = [_stem(words[0].rpartition("@")[2]) for words in lines]
    missing = [name for name in wanted if name not in place]
    if missing or len(set(wanted)) != len(wanted):
        what = f"names {missing[0]!r}, which is no image of the task" if missing else "names an image twice"
        raise DataError(f"{what} ({len(missing):,} of {len(wanted):,} unknown)", source=path, expected="the task's images")
    return np.array([place[name] for name in wanted], np.int64)


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem
