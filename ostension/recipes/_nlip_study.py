"""NLIP's study from start to end, for each seed: a warm model, noise, concepts, a captioner, captions, four runs; the record.

    WORK/features.npz
    WORK/seed-0/warmup/            a run of the plain loss
    WORK/seed-0/noise.json         of each learned pair: its loss, how likely it is noise, its concepts
    WORK/seed-0/captioner/         a run that starts from it, on the pairs that are called clean
    WORK/seed-0/facts.json         the same with a synthetic caption each
    WORK/seed-0/plain/, harmonised/, completed/, both/
    WORK/nlip.json                 the record, of the seeds that are done

What is there is not made again. Details of the record: "arms" {arm: [{"seed", "top1", "top5"}]}; "curves" {arm: [{"seed",
"step", "epoch", "top1", "precision", "recall", "area", "called"}]}, the warm-up's before each arm's; "detectors", the warm
model's with its mixture; "captions" [{"seed", "planted", "clean", "moved"}]: how many synthetic captions are the true name,
where noise was planted and elsewhere, and how many repeat the planted one.

Letters: n learned pictures.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostension.config import require
from ostension.data.sampler import Sampler
from ostension.evals import metrics
from ostension.evals.records import Metric, Record, save_records
from ostension.files import read_json, write_json
from ostension.formats.load import load
from ostension.formats.parts import load_captioner
from ostension.model.clip import CLIP
from ostension.recipes import nlip
from ostension.recipes._nlip_data import nlip_set
from ostension.recipes._nlip_questions import NlipQuestions, NlipQuestionsConfig, detector
from ostension.runlog import Tracker, read_records
from ostension.train.concepts import ConceptRetriever, ConceptsConfig, build_concepts, concept_prompt
from ostension.train.mixture import fit_mixture
from ostension.train.pretraining import Pretraining

RECORD, PROTOCOL = "nlip.json", "nlip"
CURVE = ("precision", "recall", "area", "called")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is asked for.

    Attributes:
        data: "emoji", "shapes", or a source of pairs.
        noise: share of the learned pairs whose captions are planted noise.
        steps: of each of the four runs.
        seeds: 0, 1, ... so many; each plants its own noise.
        strength: lambda of the noise.
        smoke: shapes, random features and few steps.
    """

    data: str = "emoji"
    noise: float = nlip.NOISE
    steps: int = nlip.STEPS
    seeds: int = 3
    strength: float = 1.0
    smoke: bool = False

    def __post_init__(self):
        require(self.steps >= 2, "--steps", self.steps, "2 or more")
        require(self.seeds >= 1, "--seeds", self.seeds, "1 or more")
        require(0 < self.noise < 1, "--noise", self.noise, "between 0 and 1")

    def stage(self, kind: str, folder: Path, seed: int) -> Pretraining:
        """A run in its place: `folder` is the seed's."""
        steps = {"warmup": nlip.WARMUP_STEPS, "captioner": nlip.CAPTIONER_STEPS}.get(kind, self.steps)
        files = {"captioner": "noise.json", "completed": "facts.json", "both": "facts.json"}
        facts = folder / files[kind] if kind in files else None
        return nlip.stage(
            kind, nlip.SMOKE_STEPS if self.smoke else steps, seed=seed, data=self.data, noise=self.noise, facts=facts,
            strength=self.strength, start=None if kind == "warmup" else folder / "warmup" / "model", smoke=self.smoke,
            features=folder.parent / nlip.FEATURES,
        )  # fmt: skip


def run_study(config: StudyConfig, folder: Path, trackers: Sequence[Tracker] = ()) -> Record | None:
    """Do what is left in `folder`; the record, or None if a signal asked for a stop.

    Raises:
        ConfigError: if `folder` holds runs of another configuration.
    """
    for seed in range(config.seeds):
        place = folder / f"seed-{seed}"
        for kind in ("warmup", "captioner", *nlip.ARMS):
            say(f"seed {seed}, {kind}")
            if not (place / kind / "model").is_dir():
                result = config.stage(kind, place, seed).run(place / kind, trackers=trackers)
                if result.status == "stopped":
                    say("stopped; the same command goes on from there")
                    return None
            if kind == "warmup" and not (place / "noise.json").is_file():
                write_json(place / "noise.json", noise_facts(config, place, seed))
            if kind == "captioner" and not (place / "facts.json").is_file():
                write_json(place / "facts.json", caption_facts(config, place, seed))
        record = record_of(dataclasses.replace(config, seeds=seed + 1), folder)
        save_records(folder / RECORD, {PROTOCOL: record})
    return record


def questions(config: StudyConfig, folder: Path, seed: int, model: CLIP) -> NlipQuestions:
    """What models of a seed are asked."""
    made = NlipQuestionsConfig(data=config.data, noise=config.noise, planting=seed, features=folder.parent / nlip.FEATURES)
    return made.build(model)


def noise_facts(config: StudyConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Of each learned pair, by the warm model: its loss, how likely it is noise, and the concepts of its picture."""
    model = load(folder / "warmup" / "model", device="cpu", dtype="float32")
    asked = questions(config, folder, seed, model)
    losses = asked.losses(model)
    mixture = fit_mixture(losses)
    concepts = build_concepts((texts[0] for texts in asked.captions), ConceptsConfig(min_count=2))
    with torch.no_grad():
        images = model.project_image(asked.learned, normalize=True)
    names = ConceptRetriever(model, concepts).names(images, min(nlip.CONCEPTS, len(concepts)))
    found = {"noise": mixture.posterior(losses).tolist(), "losses": losses.tolist(), "concepts": names}
    return {**found, "mixture": mixture.tree(), "vocabulary": len(concepts)}


def caption_facts(config: StudyConfig, folder: Path, seed: int) -> dict[str, Any]:
    """The same with a synthetic caption for each learned picture."""
    facts = read_json(folder / "noise.json")
    captioner = load_captioner(folder / "captioner" / "model", device="cpu", dtype="float32")
    learned = questions(config, folder, seed, captioner.model).learned
    prompts = [concept_prompt(captioner.model.tokenizer, words) for words in facts["concepts"]]
    return {**facts, "captions": [said.strip() for said in captioner.caption(learned, batch_size=256, prompts=prompts)]}


def record_of(config: StudyConfig, folder: Path) -> Record:
    """The accuracies of the runs that all seeds have done, mean over seeds, and the detector over time."""
    known = nlip_set(config.data)
    places = [folder / f"seed-{seed}" for seed in range(config.seeds)]
    done = [arm for arm in nlip.ARMS if all((place / arm / "model").is_dir() for place in places)]
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in done}
    curves: dict[str, list[dict[str, Any]]] = {arm: [] for arm in done}
    captions, detectors = [], []
    for seed, place in enumerate(places):
        batch_size = nlip.CAPTIONER_BATCH if config.smoke else nlip.BATCH
        epoch = Sampler(len(known.learned), batch_size).steps_per_epoch
        before = list(read_records(place / "warmup", ["evaluation"]))
        for arm in done:
            rows = [(told, 0) for told in before] + [
                (told, before[-1]["step"]) for told in read_records(place / arm, ["evaluation"])
            ]
            for told, warm in rows:
                step = told["step"] + warm
                judged = {key: told.get(f"detector/{key}") for key in CURVE}
                curves[arm].append({"seed": seed, "step": step, "epoch": step / epoch, "top1": told["top1"], **judged})
            arms[arm].append({"seed": seed, "top1": rows[-1][0]["top1"], "top5": rows[-1][0]["top5"]})
        facts = read_json(place / "facts.json")
        given, planted = known.planted(config.noise, seed)
        mixture = fit_mixture(np.array(facts["losses"]))
        detectors.append({"seed": seed, **detector(np.array(facts["losses"]), planted, mixture), **mixture.tree()})
        shares = caption_shares(facts["captions"], known, given, planted)
        captions.append({"seed": seed, "vocabulary": facts["vocabulary"], **shares})
    measured = {f"{arm}/{key}": _mean(rows, key, len(known.asked), len(known.candidates)) for arm, rows in arms.items()
                for key in ("top1", "top5")}  # fmt: skip
    for key in ("precision", "recall", "area"):
        values = [row[key] for row in detectors if row[key] is not None]
        if values:
            chance = {"precision": config.noise, "recall": None, "area": 0.5}[key]
            measured[f"detector/{key}"] = Metric(value=float(np.mean(values)), count=len(known.learned), chance=chance)
    return Record(
        protocol=PROTOCOL, subject="pairs with planted noise", metrics=measured,
        config={**dataclasses.asdict(config), "warmup_steps": nlip.WARMUP_STEPS, "captioner_steps": nlip.CAPTIONER_STEPS,
                "batch_size": batch_size, "concepts": nlip.CONCEPTS, "steps_per_epoch": epoch},
        hashes={"data": known.fingerprint}, seeds=tuple(range(config.seeds)),
        counts={"learned": len(known.learned), "asked": len(known.asked), "candidates": len(known.candidates),
                "planted": round(config.noise * len(known.learned))},
        details={"arms": arms, "curves": curves, "captions": captions, "detectors": detectors},
    )  # fmt: skip


def caption_shares(
    said: Sequence[str], known: Any, given: Sequence[tuple[str, ...]], planted: np.ndarray
) -> dict[str, float]:
    """How often a synthetic caption is the true one, at planted and at clean pairs; and how often the planted one."""
    plain = [text.lower().replace(" ", "") for text in said]  # tokens are joined by spaces

    def share(texts: Sequence[str], where: np.ndarray) -> float:
        hits = [one == text.lower().replace(" ", "") for one, text in zip(plain, texts, strict=True)]
        return float(np.mean(np.array(hits)[where])) if where.any() else 0.0

    true = [known.truth[row][0] for row in known.learned]
    moved = [texts[0] for texts in given]
    return {"planted": share(true, planted), "clean": share(true, ~planted), "moved": share(moved, planted)}


def _mean(rows: Sequence[dict[str, Any]], key: str, count: int, classes: int) -> Metric:
    """The mean over seeds, with the interval of that many answers to the same questions."""
    value = float(np.mean([row[key] for row in rows]))
    chance = (1 if key == "top1" else 5) / classes
    return Metric(value=value, count=count, chance=chance, interval=metrics.wilson_interval(round(value * count), count))


def say(text: str) -> None:
    print(f"nlip: {text}", file=sys.stderr, flush=True)
