"""`ostension adapt auto`: the method that suits the case, found on pictures held out."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ostension.cli._adapt_shared import embedder_of, percent, splits_of
from ostension.cli._eval_run import STORE, models_of

if TYPE_CHECKING:
    from ostension.evals.automatic import Tried


@dataclasses.dataclass(frozen=True, kw_only=True)
class Auto:
    """Find the method that suits a task: fit candidates, judge them by pictures held out, keep one and say why.

    Methods that work on kept features are tried first, in seconds; those that tune a tower only with --towers. What is within a
    standard error of the best and changes the model less is taken. The test split decides nothing.

    Examples:
      ostension adapt auto --model FOLDER --task local_cifar10 --shots 16 -o mine
      ostension adapt auto --model FOLDER --task my.toml --shots 0 --shift --towers -o mine
      ostension adapt auto --model FOLDER --task my.toml --open-vocabulary -o mine

    Args:
        task: A shipped task's name, or a TOML file; TASK@SPLIT measures that split.
        model: A model's folder, file or hub name. Default: OSTENSION_MODEL.
        shots: Labelled pictures a class; 0 takes all.
        seed: Of the draw and of the training.
        open_vocabulary: Other class names will be asked for later.
        shift: Pictures will be of another kind than the labelled ones.
        towers: Also try methods that tune a tower, which takes minutes to hours.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        output: The folder of the predictor, with its result beside it.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
        json: Print the choice as JSON instead of lines.
    """

    task: str
    model: str | None = None
    shots: int = 16
    seed: int = 1
    open_vocabulary: bool = False
    shift: bool = False
    towers: bool = False
    data: Path | None = None
    store: Path = STORE
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("adapted")
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False

    def run(self) -> int:
        from ostension.config import to_tree
        from ostension.evals.automatic import Wishes, choose
        from ostension.evals.automatic_record import record_of
        from ostension.files import write_json, writing

        def told(tried: Tried) -> None:
            said = tried.why if tried.score is None else f"{percent(tried.score)} ({tried.seconds:.1f} s)"
            print(f"{tried.name}: {said}", file=sys.stderr)

        wishes = Wishes(open_vocabulary=self.open_vocabulary, shift=self.shift, towers=self.towers)
        splits = splits_of([self.task], self.data)[0]
        with writing(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
        embedder = embedder_of(self, models_of([self.model] if self.model else [])[0])
        choice = choose(
            splits, embedder, wishes, shots=self.shots, seed=self.seed, folder=self.output / "fits", told=told
        )  # fmt: skip
        record = record_of(choice, wishes, splits, embedder)
        choice.predictor.save(self.output)
        with writing(self.output):
            write_json(self.output / "result.json", to_tree(record))
        if self.json:
            print(json.dumps(to_tree(record)))
        else:
            print(f"{choice.plan.method}: {choice.reason}")
            for name, metric in record.metrics.items():
                print(f"{name}: {percent(metric.value)}")
        print(f"wrote {self.output}; use it with: ostension classify PICTURE --predictor {self.output}", file=sys.stderr)
        return 0
