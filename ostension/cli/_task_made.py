"""Making tasks: typographic attacks on a labelled task, and scenes for counting."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ostension.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Typographic:
    """Attack a task: write the name of another class on each of its pictures; gives a folder with a record.

    Place, size, colours and form are drawn from the seed and the picture's id; every word can be read. The split "clean" has
    the test pictures without a word. Measure it with: ostension eval run FOLDER/NAME.toml --protocol typographic

    Examples:
      ostension task typographic local_cifar10 --data DATA --limit 2000 -o attacked

    Args:
        task: A shipped task's name, or a TOML file; TASK@SPLIT takes that split as the test.
        output: The folder to write; the task gets its name.
        data: The folder of all data. Default: OSTENSION_DATA.
        splits: The splits to write, of train, val and test; by default those that are there.
        limit: Take so many samples of each split, of every class its share.
        seed: Of all that is drawn.
        side: Enlarge pictures whose shorter side has fewer pixels.
        size: Least and greatest height of the letters, as shares of the shorter side.
        font: A font file, for words that are not in Latin letters.
        json: Print one JSON object instead of a line.
    """

    task: Annotated[str, tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    data: Path | None = None
    splits: tuple[Literal["train", "val", "test"], ...] = ()
    limit: int | None = None
    seed: int = 0
    side: int = 224
    size: tuple[float, float] = (0.1, 0.25)
    font: Path | None = None
    json: bool = False

    def run(self) -> int:
        from ostension.data.made_tasks import write_attacked
        from ostension.evals.targets import find_targets
        from ostension.evals.task_splits import TaskSplits
        from ostension.image.lettering import WritingConfig

        config = WritingConfig(side=self.side, size=self.size, font=self.font)
        target = find_targets([self.task])[0]
        splits = TaskSplits(target.task, self.data, measured=target.split, limit=self.limit)
        wanted: tuple[str, ...] = self.splits or ("train", "val", "test")
        parts = {name: splits.split(name) for name in wanted if self.splits or splits.missing(name) is None}
        made = write_attacked(splits.task, parts, self.output, seed=self.seed, config=config, progress=_progress)
        return _told(made, self.output, as_json=self.json)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting:
    """Make a task of counting: scenes of 1 to 10 objects that do not touch, every number as often.

    Examples:
      ostension task counting -o counts
      ostension task counting --objects emoji --train 500 --val 100 --test 500 -o emoji-counts

    Args:
        output: The folder to write; the task gets its name.
        train, val, test: Pictures of each split; 0 leaves it out.
        largest: The largest number of objects, to 10.
        objects: Shapes in CLEVR's colours, or emoji (in the test those of names that are new).
        side: Of the pictures, in pixels.
        seed: Of all that is drawn.
        json: Print one JSON object instead of a line.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    train: int = 2000
    val: int = 500
    test: int = 500
    largest: int = 10
    objects: Literal["shapes", "emoji"] = "shapes"
    side: int = 224
    seed: int = 0
    json: bool = False

    def __post_init__(self):
        for name in ("train", "val", "test"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} is {getattr(self, name)}", expected="a number of pictures, or 0")
        if not self.test:
            raise UsageError("--test is 0", expected="pictures to measure on")

    def run(self) -> int:
        from ostension.data.made_tasks import write_counting

        counts = {name: getattr(self, name) for name in ("train", "val", "test") if getattr(self, name)}
        made = write_counting(
            counts, self.output, largest=self.largest, side=self.side, objects=self.objects, seed=self.seed, progress=_progress
        )
        return _told(made, self.output, as_json=self.json)


def _told(made, output: Path, *, as_json: bool) -> int:
    path = output / f"{output.name}.toml"
    counts = {name: split.count for name, split in made.splits.items()}
    if as_json:
        print(json.dumps({"path": str(path), "classes": made.num_classes, "splits": counts}))
    else:
        listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        print(f"wrote {path}: {made.num_classes:,} classes; {listed}")
    return 0


def _progress(indices: Iterable[int]) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(indices, desc="pictures", leave=False, disable=None, file=sys.stderr)
