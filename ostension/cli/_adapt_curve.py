"""`ostension adapt curve`: scores along the line from zero-shot to an adapted predictor."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from ostension.cli._adapt_shared import splits_of
from ostension.cli._eval_run import STORE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Measure the line from zero-shot (alpha 0) to an adapted predictor (alpha 1), in distribution and out of it.

    For a head on a frozen tower every alpha comes from one pass over kept embeddings; a tuned tower is interpolated live, with
    pictures decoded once. Alpha is chosen on the task's split val, where it has one, and never on what is measured.

    Examples:
      ostension adapt curve my-probe --task local_cifar10
      ostension adapt curve tuned --task my.toml@photo --test my.toml@sketch --test my.toml@cartoon -o curve.json

    Args:
        predictor: A predictor's folder.
        task: What it was adapted to: a shipped task's name, or a TOML file; TASK@SPLIT measures that split.
        test: Further tasks, out of distribution, as TASK or TASK@SPLIT; repeat the flag.
        alpha: A point of the line, repeat the flag. Default: 0, 0.1, ..., 1.
        same_spread: Bring the logits of a head to the spread of zero-shot's first; a probe's may be of any size.
        model: The encoder's folder, file or hub name, if it has moved.
        data: The folder of all data. Default: OSTENSION_DATA.
        store: The folder of embeddings.
        output: Also write the record to this file.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        json: Print one JSON object a point instead of a table.
    """

    predictor: Annotated[Path, tyro.conf.Positional]
    task: str
    test: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    alpha: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    same_spread: bool = False
    model: str | None = None
    data: Path | None = None
    store: Path = STORE
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    device: str = "auto"
    json: bool = False

    def run(self) -> int:
        from ostension.cli._tables import text_table
        from ostension.config import to_tree
        from ostension.evals.adapt_curve import ALPHAS, adapt_curve
        from ostension.evals.store_inputs import Embedder
        from ostension.files import write_json, writing
        from ostension.formats.load import load
        from ostension.model.predictor import Predictor
        from ostension.store import Store

        encoder = None if self.model is None else load(self.model, device=self.device)
        predictor = Predictor.load(self.predictor, encoder)
        splits, *targets = splits_of([self.task, *self.test], self.data)

        def told(name: str, now: object) -> None:
            print(f"embedding {name}: {now}", file=sys.stderr)

        embedder = Embedder(predictor.encoder, Store(self.store), progress=told)
        record = adapt_curve(
            predictor, splits, embedder, targets=targets, alphas=self.alpha or ALPHAS, same_spread=self.same_spread
        )
        if self.output is not None:
            with writing(self.output):
                write_json(self.output, to_tree(record))
        found = record.details
        columns = {**found["scores"], **({"outside": found["outside"]} if len(targets) > 1 else {})}
        rows = [{"alpha": alpha, **{name: values[at] for name, values in columns.items()}}
                for at, alpha in enumerate(found["alphas"])]  # fmt: skip
        if self.json:
            for row in rows:
                print(json.dumps({**row, "how": found["how"], "chosen": row["alpha"] == found["chosen"]}))
        else:
            head = ("alpha", *columns)
            print(text_table(head, [(f"{row['alpha']:g}", *(f"{100 * row[name]:.1f} %" for name in columns)) for row in rows]))
        if found["chosen"] is None:
            print(f"no alpha is chosen: {splits.task.name} has no split val", file=sys.stderr)
        else:
            print(f"alpha {found['chosen']:g} is the best on the split val", file=sys.stderr)
        if found["how"] == "logits":
            print("answers are mixed, not weights: this predictor is no linear head", file=sys.stderr)
        return 0
