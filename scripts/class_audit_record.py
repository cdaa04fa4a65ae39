"""Audit class lists with the released ViT-B/32's own features, and measure the audit's false alarms and its reach.

    python scripts/class_audit_record.py FOLDER docs/records/class-audit.json

FOLDER holds openai_vitb32_text_classnames.npz (rows of "a <name>" with the names of COCO and LVIS, from Detic) and
openai_vitb32_image_flickr8k_1000.npz (rows and one caption of 1,000 photos) and openai_vitb32_image_phone_views.npz (275
photos of phones). A photo is said to be named by its caption if the caption has one of the words below for the class.

Simulated lists are as in the tests: 20 classes, 7 templates, 1,000 pictures, three groups that mean nothing.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ostension import runtime
from ostension.evals.audit.parts import Answers, Subject
from ostension.evals.audit.run import Audit, audit
from ostension.evals.audit.shares import even_labels
from ostension.evals.audit.texts import relative_distances, unrelated
from ostension.evals.audit.words import senses_of
from ostension.files import write_json

# What captions call a class, where that is not its name.
PEOPLE = ["man", "woman", "boy", "girl", "person", "people", "men", "child", "kid", "lady", "guy"]
SAID = {
    "person": PEOPLE, "dog": ["dog", "puppy", "collie"], "bicycle": ["bike", "bicycl", "cycl"], "sports ball": ["ball"],
    "motorcycle": ["motor", "bike"], "surfboard": ["surf", "wave"], "skis": ["ski"], "boat": ["boat", "canoe", "kayak", "raft"],
    "frisbee": ["frisbee", "disc"],
}  # fmt: skip
# Pairs that people confuse, whether the audit reports them or not.
CONFUSED = (
    ("cup", "mug"), ("lamppost", "streetlight"), ("pickup_truck", "truck"), ("octopus_(food)", "octopus_(animal)"),
    ("blouse", "shirt"), ("sandal_(type_of_shoe)", "shoe"), ("dinghy", "boat"), ("cap_(headwear)", "hat"),
    ("bow_(weapon)", "bow_(decorative_ribbons)"), ("handbag", "tote_bag"), ("wineglass", "glass_(drink_container)"),
    ("jean", "trousers"), ("pan_(for_cooking)", "pot"),
)  # fmt: skip
LISTS = 200
WIDTH = 64


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def of_kind(found: Audit, kind: str) -> list:
    return [finding for finding in found.findings if finding.kind == kind]


def lvis(texts: Any) -> dict[str, Any]:
    names, rows = tuple(map(str, texts["lvis_names"])), unit(texts["lvis"].astype(np.float64))
    subject = Subject(names=names, rows=rows, templates=("a {}",), senses={})
    found = audit(subject)
    yardstick = unrelated(subject)
    assert yardstick is not None
    distances = relative_distances(rows, yardstick)
    place = {name: index for index, name in enumerate(names)}
    return {
        "classes": len(names), "pairs": len(names) * (len(names) - 1) // 2, "unrelated_cosine": 1 - yardstick,
        "close": len(found.close), "groups": len(of_kind(found, "close")), "closest": [list(pair) for pair in found.close[:20]],
        "confused": [[a, b, float(distances[place[a], place[b]])] for a, b in CONFUSED],
        "vague": [[finding.classes[0], int(finding.value)] for finding in of_kind(found, "vague")],
        "names": [[finding.severity, finding.evidence] for finding in of_kind(found, "names")],
        "several_senses": [name for name in names if senses_of(name)], "skipped": list(found.skipped),
    }  # fmt: skip


def coco(texts: Any, photos: Any) -> dict[str, Any]:
    names, rows = tuple(map(str, texts["coco_names"])), unit(texts["coco"].astype(np.float64))
    images = unit(photos["feats"].astype(np.float64))
    captions = [str(caption).lower() for caption in photos["caption"]]
    found = audit(Subject(names=names, rows=rows, images=images, templates=("a {}",)))
    answers = Answers.of(100.0 * images @ rows.T)
    stays = even_labels(answers.logits) == answers.best
    flagged = {finding.classes[0] for finding in of_kind(found, "attractor")}
    table = []
    for place, name in enumerate(names):
        mine = np.flatnonzero(answers.best == place)
        if len(mine) < found.settings.min_images:
            continue
        named = sum(any(word in captions[index] for word in SAID.get(name, [name])) for index in mine)
        table.append({
            "class": name, "pictures": len(mine), "kept": float(stays[mine].mean()), "named": named / len(mine),
            "reported": name in flagged,
        })  # fmt: skip
    table.sort(key=lambda row: row["kept"])
    nearest = [[name, *others[0]] for name, others in found.neighbours.items()]
    return {
        "classes": len(names), "images": len(images), "table": table, "thresholds": list(found.thresholds),
        "never": [list(finding.classes) for finding in of_kind(found, "never")], "summary": found.summary,
        "closest": sorted(nearest, key=lambda row: row[2])[:6],
        "several_senses": [name for name in names if senses_of(name)],
        "findings": dict(Counter(finding.kind for finding in found.findings)),
    }  # fmt: skip


def phones(texts: Any, folder: Path) -> dict[str, Any]:
    """Photos that all show one class: what the check of attractors cannot tell."""
    views = unit(np.load(folder / "openai_vitb32_image_phone_views.npz")["feats"].astype(np.float64))
    names, rows = tuple(map(str, texts["coco_names"])), unit(texts["coco"].astype(np.float64))
    answers = Answers.of(100.0 * views @ rows.T)
    mine = answers.best == names.index("cell phone")
    stays = even_labels(answers.logits) == answers.best
    found = audit(Subject(names=names, rows=rows, images=views, templates=("a {}",)))
    reported = any(finding.classes == ("cell phone",) for finding in of_kind(found, "attractor"))
    return {"images": len(views), "pictures": int(mine.sum()), "kept": float(stays[mine].mean()), "reported": reported}


def simulated(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of classes, of templates, pictures and labels of a list with nothing wrong."""
    generator = np.random.default_rng(seed)
    own = unit(generator.normal(size=(20, WIDTH)) * (np.arange(WIDTH) < WIDTH - 2))
    of_texts, of_pictures = np.eye(WIDTH)[-2:]
    rows = unit(0.35 * own + of_texts)
    targets = generator.choice(20, size=1000, p=generator.dirichlet(np.full(20, 2.0)))
    pictures = unit(own[targets] + 0.5 * generator.normal(size=(1000, WIDTH)) / math.sqrt(WIDTH) + 2.5 * of_pictures)
    shift = 0.5 * generator.normal(size=(7, 1, WIDTH)) / math.sqrt(WIDTH)
    templates = unit(rows + shift + 0.1 * generator.normal(size=(7, *rows.shape)) / math.sqrt(WIDTH))
    return rows, templates, pictures, targets


def names_of(count: int) -> tuple[str, ...]:
    """Names without a meaning, which no check of spelling minds."""
    return tuple(f"{'bcdfghklmn'[index % 10]}o{'bdgklmnprt'[index // 10]}o" for index in range(count))


def alarms() -> dict[str, Any]:
    kinds: Counter = Counter()
    lists = 0
    for seed in range(LISTS):
        rows, templates, pictures, _ = simulated(seed)
        group = np.random.default_rng(seed + 10_000).choice(["x", "y", "z"], size=len(pictures))
        found = audit(
            Subject(names=names_of(20), rows=rows, images=pictures, groups={"group": group}, template_rows=templates,
                    templates=tuple(f"template {m} {{}}" for m in range(7)))
        )  # fmt: skip
        met = {finding.kind for finding in found.findings if finding.severity != "low"}
        kinds.update(met)
        lists += bool(met)
    return {"lists": LISTS, "any": lists, "by_kind": dict(kinds)}


def reach(lists: int = 40) -> list[list[Any]]:
    """How often a planted fault of a given size is reported."""
    table: list[list[Any]] = []
    for distance in (0.1, 0.2, 0.28, 0.32, 0.4):
        hits = 0
        for seed in range(lists):
            rows, *_ = simulated(seed)
            # A row at the wanted relative distance of the first: cos = 1 - distance x (1 - cos of unrelated rows).
            cosine = 1 - distance * float(np.median(1 - (rows @ rows.T)[np.triu_indices(20, 1)]))
            other = unit(rows[1] - (rows[1] @ rows[0]) * rows[0])
            rows[1] = cosine * rows[0] + math.sqrt(1 - cosine**2) * other
            hits += any(pair[:2] == ("bobo", "cobo") for pair in audit(Subject(names=names_of(20), rows=rows)).close)
        table.append(["two names at a relative distance of", distance, hits / lists])
    for nats in (2, 4, 6, 8, 10, 12):
        hits = 0
        for seed in range(lists):
            rows, _, pictures, _ = simulated(seed)
            pictures = pictures + np.eye(WIDTH)[-2] * nats / 100  # all pictures lean to the first class alone
            rows[:, -2] = 0.0
            rows[0, -2] = 1.0
            found = audit(Subject(names=names_of(20), rows=rows, images=pictures))
            hits += any(finding.classes == ("bobo",) for finding in of_kind(found, "attractor"))
        table.append(["a class ahead on all pictures by (nats)", nats, hits / lists])
    for share in (0.1, 0.2, 0.3, 0.5):
        hits = 0
        for seed in range(lists):
            rows, _, pictures, targets = simulated(seed)
            generator = np.random.default_rng(seed + 20_000)
            group = generator.choice(["x", "y"], size=len(pictures))
            common = int(np.bincount(targets).argmax())
            moved = (targets == common) & (group == "x") & (generator.random(len(pictures)) < share)
            pictures[moved] = pictures[np.flatnonzero(targets != common)[generator.integers(0, 100, int(moved.sum()))]]
            found = audit(Subject(names=names_of(20), rows=rows, images=pictures, targets=targets, groups={"group": group}))
            hits += any(finding.classes == (names_of(20)[common],) for finding in of_kind(found, "groups"))
        table.append(["one group's pictures of a common class missed, share", share, hits / lists])
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    for name in ("folder", "record"):
        parser.add_argument(name, type=Path)
    asked = parser.parse_args()
    texts = np.load(asked.folder / "openai_vitb32_text_classnames.npz")
    photos = np.load(asked.folder / "openai_vitb32_image_flickr8k_1000.npz")
    record = {
        "study": "class-audit", "lvis": lvis(texts), "coco": coco(texts, photos), "phones": phones(texts, asked.folder),
        "alarms": alarms(), "reach": reach(), "versions": runtime.versions(), "git": runtime.git_state(),
    }  # fmt: skip
    write_json(asked.record, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
