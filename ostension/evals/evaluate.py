"""`evaluate`: a model on tasks by protocols, from Python, in one call."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ostension.errors import DataError, OstensionError
from ostension.evals.predictor_inputs import PredictorEmbedder
from ostension.evals.protocol import SUMMARIES, Summary
from ostension.evals.records import Record
from ostension.evals.results import Results, check_finite
from ostension.evals.store_inputs import Embedder, Told
from ostension.evals.suite_run import Runner
from ostension.evals.targets import OpenedTasks, default_protocols, find_protocols, find_targets, of_one_task
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.store import Store


def evaluate(
    model: CLIP | Predictor | str | Path,
    tasks: Sequence[str | Path],
    *,
    protocols: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    store: Store | str | Path | None = None,
    data: str | Path | None = None,
    results: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    workers: int = 0,
    processes: int = 1,
    progress: Told | None = None,
) -> list[Record]:
    """The records of a model on tasks, then what summaries make of them.

        model = ostension.load("path/to/model")
        records = ostension.evaluate(model, ["cifar10"], protocols=["zeroshot", "probe"], store="embeddings", data="sets")
        print(records[0].headline.value)

    Args:
        model: or its folder, file or name; or a predictor, which protocols measure that look at answers alone.
        tasks: names of tasks and suites, or TOML files of either; "pacs@sketch" is one split.
        protocols: their names; by default zero-shot and retrieval. One that does not measure a task is left out there.
        settings: of protocols, by "protocol.setting".
        store: where embeddings are kept; by default they are not.
        data: the folder of all data; by default that of OSTENSION_DATA.
        results: a folder in which results are kept, and not computed again.
        name: of the model in the records.
        limit: try it on so many samples of each split.
        workers, processes: as for `store.embed`.
        progress: told what is embedded, and how far it is.

    Raises:
        ConfigError: for unknown names.
        DataError: if something could not be measured; everything else was, and lies in `results`.
    """
    asked = find_protocols(protocols or default_protocols(), settings or {}, "settings")
    targets = find_targets([str(task) for task in tasks])
    if isinstance(model, (str, Path)):
        from ostension.formats.load import load

        path, model = model, load(model)
        name = name or Path(path).name
    with tempfile.TemporaryDirectory(prefix="ostension-store-") as temporary:
        kept = store if isinstance(store, Store) else Store(store if store is not None else temporary)
        options: dict[str, Any] = {"name": name, "workers": workers, "processes": processes, "progress": progress}
        embedder: Embedder
        if isinstance(model, Predictor):
            embedder = PredictorEmbedder(model, kept, **options)
        else:
            embedder = Embedder(model, kept, **options)
        opened = OpenedTasks(data=data, limit=limit, seed=seed, itself=of_one_task(targets))
        where = None if results is None else Results(results)
        steps = list(Runner(asked, results=where, seed=seed, limit=limit).suite(embedder, targets, opened))
    records = [step.record for step in steps if step.record is not None]
    made, problems = summaries_of(records)
    failed = [f"{step.target} {step.protocol}: {step.reason}" for step in steps if step.status == "failed"] + problems
    if failed:
        raise DataError(f"{len(failed)} of {len(steps) + len(problems)} failed: {'; '.join(failed)}")
    return [*records, *(record for found in made.values() for record in found)]


def summaries_of(records: Sequence[Record]) -> tuple[dict[str, list[Record]], list[str]]:
    """What each summary makes of the records, by its name, and why those failed that did."""
    made: dict[str, list[Record]] = {}
    problems: list[str] = []
    for name in SUMMARIES.names():
        try:
            made[name] = cast("Summary", SUMMARIES.load(name)).run(records)
            for record in made[name]:
                check_finite(record)
        except OstensionError as error:
            made.pop(name, None)
            problems.append(f"summary {name}: {error}")
    return made, problems
