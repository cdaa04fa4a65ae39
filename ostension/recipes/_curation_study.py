"""What curation does to a model: one small crawl, raw and after each step of a chain, learned from for as many pairs seen.

    ostension curate study --data DATA -o WORK

The crawl is `_curation_pool`'s. Each variant is the one before it and one step more:

    raw         every pair, as it was found
    clean       English captions that are no names of files, pictures that can be used, one of each group of near-duplicates
    balanced    pairs with one of the queries, which are counted in the captions of `clean`; about t of each at most

The model is `_adapting_models.lite0` with a smaller text tower; its image tower is locked, so that a run is a minute. Steps,
batches and seeds are the same for all variants. Measured are sets of which the crawl has no picture: zero-shot accuracy, and
photos that were held out with their captions.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import from_tree
from ostension.curate.base import load_stage
from ostension.curate.candidates import describe
from ostension.curate.queries.build import build
from ostension.curate.queries.rules import Bigrams, QueryRules, Words
from ostension.curate.run import begin, run_stage
from ostension.curate.work import Work
from ostension.curate.write import MANIFEST, write
from ostension.curate.write_order import WriteConfig
from ostension.evals.evaluate import evaluate
from ostension.evals.records import Metric, Record, load_records, save_records
from ostension.evals.retrieval import measure
from ostension.formats.load import load
from ostension.model.clip import CLIP
from ostension.recipes import _adapting_models as models
from ostension.recipes._curation_pool import write_pool
from ostension.recipes._study_pairs import PHOTOS, read_pack
from ostension.store import Store

RECORD, QUERIES = "curation.json", "queries.parquet"
VARIANTS = ("raw", "clean", "balanced")
SEEDS = (0, 1, 2)
STEPS = 400  # of 256 pairs: some four epochs of the raw set
TASKS = ("local_tiny_imagenet", "local_caltech101", "local_cifar10", "pacs@photo")
LIMIT = 1000  # samples of a split
# The chain: the stages that make each variant of the one before it.
LANGUAGE = {"languages": ["en"], "min_language": 0.5, "unknown_language": "keep", "min_characters": 3}
STAGES: Mapping[str, tuple[tuple[str, Mapping[str, Any]], ...]] = {
    "clean": (
        ("filter", {"preset": "tidy", "captions": LANGUAGE}),
        ("dedup", {"rules": ["bytes", "pixels", "hash"], "bits": 2, "direct": True, "merge_captions": 5}),
    ),
    "balanced": (
        ("match", {"queries": "", "case": "folded", "spaces": "joined"}),
        ("balance", {"limit": 20.0}),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is asked for.

    Attributes:
        data: the folder of packs.
        smoke: a fortieth of the crawl and models of random weights, which only shows that everything runs.
    """

    data: Path
    smoke: bool = False


def run_study(config: StudyConfig, folder: Path) -> Path:
    """Do what is left in `folder`; the record."""
    say("the crawl")
    pool = folder / "pool"
    write_pool(config.data, pool, every=40 if config.smoke else 1)
    sources = {"raw": pool, **curated(pool, folder, config)}
    for seed in SEEDS[: 1 if config.smoke else None]:
        for variant, source in sources.items():
            path = folder / "results" / f"{variant}-{seed}.json"
            if not path.is_file():
                model = trained(variant, source, seed, folder, config)
                save_records(path, measured(model, variant, seed, folder, config))
                say(f"{variant}, seed {seed}: " + ", ".join(line_of(record) for record in load_records(path).values()))
    save_records(folder / RECORD, {**summary(folder), **chain_record(folder)})
    return folder / RECORD


def curated(pool: Path, folder: Path, config: StudyConfig) -> dict[str, Path]:
    """The shards of each variant."""
    work = begin(folder / "work", describe([str(pool)], part_size=2000))
    found, place = {}, 0
    for variant, stages in STAGES.items():
        for name, settings in stages:
            place += 1
            if name == "match":
                queries = folder / QUERIES
                if not queries.is_file():
                    build(rules(work), folder / "counts").save(queries)
                settings = {**settings, "queries": str(queries)}
            run_stage(work, name, from_tree(load_stage(name).config_type, settings), place=place)
        found[variant] = folder / "shards" / variant
        if not (found[variant] / MANIFEST).is_file():
            write(work, found[variant], WriteConfig())
    return found


def rules(work: Work) -> QueryRules:
    """The list for so small a corpus: what the captions say at least three times."""
    return QueryRules(corpora=(str(work.folder),), case="folded", words=Words(min_count=3), bigrams=Bigrams(min_count=3))


def trained(variant: str, source: Path, seed: int, folder: Path, config: StudyConfig) -> CLIP:
    """The model that learned from a variant."""
    run = models.lite0(source, folder / "features" / variant, smoke=config.smoke)
    steps = {
        "train.steps": STEPS, "train.schedule.warmup_steps": STEPS // 20, "train.checkpoint.every": STEPS // 4,
        "model.text.width": 128, "model.text.layers": 3,
    }  # fmt: skip
    captions = {} if variant == "raw" else {"batches.layout.texts": ["captions"]}
    run = run.changed({"train.seed": seed, "batches.seed": seed, **({} if config.smoke else steps), **captions})
    if run.run(folder / "runs" / f"{variant}-{seed}").status == "stopped":
        raise KeyboardInterrupt  # by a signal; the same command goes on from there
    return load(folder / "runs" / f"{variant}-{seed}" / "model", device="cpu")


def measured(model: CLIP, variant: str, seed: int, folder: Path, config: StudyConfig) -> dict[str, Record]:
    """Zero-shot on other sets, and the photos that were held out."""
    tasks, limit = (TASKS[-1:], 40) if config.smoke else (TASKS, LIMIT)
    store = Store(folder / "store")
    records = evaluate(
        model, tasks, protocols=["zeroshot"], store=store, data=config.data, limit=limit, name=variant, seed=seed
    )
    found = {record.task or record.subject: dataclasses.replace(record, details={}) for record in records}
    photos = read_pack(config.data / "flickr8k_1000/flickr8k_1000.parquet")[PHOTOS:][: 8 if config.smoke else None]
    images = model.embed_images([row["image"] for row in photos]).numpy()
    captions = [caption for row in photos for caption in row["captions"]]
    texts = model.embed_texts(captions, truncate=True).numpy()
    owners = np.repeat(np.arange(len(photos)), [len(row["captions"]) for row in photos])
    result = measure(images, texts, np.arange(len(photos)), owners)
    found["photos"] = Record(
        protocol="retrieval", subject="photos that were held out", model=variant, metrics=result.metrics, config={},
        hashes={}, counts={"images": len(images), "texts": len(texts)}, seeds=(seed,),
    )  # fmt: skip
    return found


def summary(folder: Path) -> dict[str, Record]:
    """Each variant's mean over seeds; what each seed gave is in the details."""
    found: dict[str, Record] = {}
    for variant in VARIANTS:
        runs = [load_records(path) for path in sorted((folder / "results").glob(f"{variant}-*.json"))]
        metrics, values = {}, {}
        for name, first in runs[0].items():
            for key in ("text_to_image_r5", "image_to_text_r5") if name == "photos" else (next(iter(first.metrics)),):
                own = values[f"{name} {key}"] = [run[name].metrics[key].value for run in runs]
                metrics[f"{name} {key}"] = dataclasses.replace(first.metrics[key], value=float(np.mean(own)), interval=None)
        found[f"model/{variant}"] = Record(
            protocol="curation", subject=variant, metrics=metrics, config={}, hashes=next(iter(runs[0].values())).hashes,
            counts={"seeds": len(runs)}, seeds=SEEDS[: len(runs)], details={"values": values},
        )  # fmt: skip
    return found


def chain_record(folder: Path) -> dict[str, Record]:
    """What each stage was given, kept and dropped."""
    found = {}
    for entry in Work(folder / "work").entries:
        counts = entry.counts()
        numbers = {"kept": counts["kept"], **counts["reasons"]}
        settings = {**entry.settings, **({"queries": QUERIES} if "queries" in entry.settings else {})}
        found[f"stage/{entry.number:02d}-{entry.name}"] = Record(
            protocol="curation-stage", subject=entry.name,
            metrics={name: Metric(value=value, count=counts["rows"]) for name, value in numbers.items()},
            config=settings, hashes={"identity": entry.identity}, counts={"rows": counts["rows"]},
        )  # fmt: skip
    return found


def line_of(record: Record) -> str:
    return f"{record.task or record.subject} {100 * record.headline.value:.1f}"


def say(text: str) -> None:
    print(f"study: {text}", file=sys.stderr, flush=True)
