"""How often the filter's rules are right, and how fast they are, on real captions and pictures.

Languages: emoji names in eight languages and Flickr8k's captions. Titles: captions that people wrote (each that goes is a false
alarm), and file names of clip art. Agreement: photos that a model was not trained on, a share of which has captions of other
photos planted; how many of those a threshold drops, and how many of what it drops are planted.

    python benchmarks/curate_filter.py --data DATA --model MODEL --record benchmarks/records/curate_filter.json

DATA is a folder with the packs `emoji`, `flickr8k_1000` and `openclipart`; MODEL must not have seen Flickr8k's last 200 photos.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _measure import arguments, table, write_record

from ostension.curate.candidates import describe
from ostension.curate.captions_language import Identifier
from ostension.curate.captions_rules import Captions, Judge
from ostension.curate.captions_titles import KINDS, kind_of_title
from ostension.curate.images_header import looked_through, read_header
from ostension.curate.run import begin, run_stage
from ostension.curate.stages.agreement import Config
from ostension.curate.work import read_part
from ostension.data.layout import Layout
from ostension.image.decode import MAX_PIXELS
from ostension.runtime import numpy_generator

HELD_OUT, PLANTED = 200, 0.3
LENGTHS = ((1, 1, "1 word"), (2, 2, "2 words"), (3, 4, "3 or 4 words"), (5, 99, "5 words or more"))


def main() -> None:
    parsed = arguments(__doc__ or "", data=("", "the folder of packs"), model=("", "a model, for agreement"))
    data = Path(parsed.data)
    emoji = pq.read_table(data / "emoji/emoji.parquet", columns=["label", "labels_i18n", "image"]).to_pylist()
    photos = pq.read_table(data / "flickr8k_1000/flickr8k_1000.parquet", columns=["image", "captions"]).to_pylist()
    every = pq.read_table(data / "flickr8k_1000/captions_all_8091.parquet", columns=["captions"])["captions"].to_pylist()
    stems = sorted(set(pq.read_table(data / "openclipart/openclipart.parquet", columns=["stem"])["stem"].to_pylist()))
    captions = [text for texts in every for text in texts]
    figures: dict[str, Any] = {
        **languages(emoji, captions),
        **titles(emoji, captions, stems),
        "speed, one thread": speed(captions, [row["image"] for row in photos], parsed.rounds),
    }
    if parsed.model:
        figures.update(agreement(parsed.model, photos[-HELD_OUT:]))
    for name, rows in figures.items():
        table(name, rows)
    write_record(parsed.record, "curate_filter", {"held_out": HELD_OUT, "planted": PLANTED}, figures)


def languages(emoji: Sequence[dict[str, Any]], captions: Sequence[str]) -> dict[str, Any]:
    """English against German, French and Spanish by length; and every language's accuracy."""
    names = {("en", row["label"]) for row in emoji}
    names |= {one for row in emoji for one in json.loads(row["labels_i18n"] or "{}").items()}
    english = {text for language, text in names if language == "en"}
    cases = sorted((language, text) for language, text in names if language == "en" or text not in english)
    found, likely = Identifier()([text for _, text in cases])
    truth, said = np.array([language for language, _ in cases]), np.array(found)
    words = np.array([len(text.split()) for _, text in cases])
    latin = np.isin(truth, ("en", "de", "fr", "es"))
    rows: dict[str, dict[str, float]] = {}
    for low, high, name in LENGTHS:
        here = latin & (words >= low) & (words <= high)
        for least in (0.0, 0.5):
            kept = here & (said == "en") & (likely >= least)
            right = (kept & (truth == "en")).sum()
            rows[f"{name}, probability {least}"] = {
                "names": int(here.sum()), "precision": float(right / max(1, kept.sum())),
                "recall": float(right / (here & (truth == "en")).sum()), "unknown": float((likely[here] < least).mean()),
            }  # fmt: skip
    accuracy = {
        language: {"names": int((truth == language).sum()), "right": float((said == truth)[truth == language].mean())}
        for language in sorted(set(truth.tolist()))
    }
    sentences, _ = Identifier()(captions)
    photos = {"Flickr8k's captions": {"names": len(captions), "right": float(np.mean([name == "en" for name in sentences]))}}
    return {"English among names in en, de, fr, es": rows, "language of emoji names": {**accuracy, **photos}}


def titles(emoji: Sequence[dict[str, Any]], captions: Sequence[str], stems: Sequence[str]) -> dict[str, Any]:
    """How many captions each kind of titles takes away."""
    names = sorted({row["label"] for row in emoji})
    sets = {
        "Flickr8k's captions": captions, "emoji names": names, "clip art's file names": stems,
        "clip art's file names with .png": [f"{stem}.png" for stem in stems],
    }  # fmt: skip
    rows = {}
    for name, texts in sets.items():
        kinds = [kind_of_title(text, KINDS) for text in texts]
        rows[name] = {"captions": len(texts), **{kind: kinds.count(kind) for kind in KINDS}}
    return {"titles that go": rows}


def speed(captions: Sequence[str], pictures: Sequence[bytes], rounds: int) -> dict[str, Any]:
    """Thousands a second of processor time, the best of some rounds."""
    some = captions[:10_000]
    judge = Judge(Captions(min_words=3, titles=("file-name", "camera-settings", "address", "boilerplate"), max_repeated=0.6))
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        "captions: language": (len(some), lambda: Identifier()(some)),
        "captions: titles": (len(some), lambda: [kind_of_title(text) for text in some]),
        "captions: length, titles, repetition": (len(some), lambda: judge(some, some)),
        "photos: header": (len(pictures), lambda: [read_header(data, MAX_PIXELS) for data in pictures]),
        "photos: decoded in full": (200, lambda: [looked_through(data, MAX_PIXELS) for data in pictures[:200]]),
    }
    rows = {}
    for name, (count, case) in cases.items():
        best = float("inf")
        for _ in range(rounds):
            start = time.process_time()
            case()
            best = min(best, time.process_time() - start)
        rows[name] = {"thousand a second": count / best / 1000}
    return rows


def agreement(model: str, photos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Planted mismatches among pairs of one caption, and what thresholds and shares make of them."""
    generator = numpy_generator(0, "planted-mismatches")
    count = len(photos)
    images, texts, wrong = [], [], []
    for number in range(5):
        shift = generator.integers(1, count, count)
        planted = generator.random(count) < PLANTED
        for place, row in enumerate(photos):
            source = (place + int(shift[place])) % count if planted[place] else place
            images.append(row["image"])
            texts.append(photos[source]["captions"][number])
            wrong.append(bool(planted[place]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.parquet"
        pq.write_table(pa.table({"image": images, "caption": texts}), path)
        work = begin(Path(folder) / "work", describe([str(path)], layout=Layout(texts=("caption",))))
        entry = run_stage(work, "agreement", Config(model=model))
        scores = read_part(entry.part(0), ["score"])["score"].to_numpy().astype(float)
    bad = np.array(wrong)
    order = scores.argsort().argsort()
    area = 1 - (order[bad].sum() - bad.sum() * (bad.sum() - 1) / 2) / (bad.sum() * (~bad).sum())
    rows = {}
    for name, least in [
        *((f"threshold {value:.2f}", value) for value in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
        *((f"top {share:.0%}", float(np.sort(scores)[::-1][int(len(scores) * share) - 1])) for share in (0.9, 0.7, 0.5, 0.3)),
    ]:
        dropped = scores < least
        rows[name] = {
            "score": least, "dropped": float(dropped.mean()),
            "mismatches among dropped": float((dropped & bad).sum() / max(1, dropped.sum())),
            "mismatches dropped": float(dropped[bad].mean()), "good pairs kept": float((~dropped)[~bad].mean()),
            "mismatches among kept": float(bad[~dropped].mean()),
        }  # fmt: skip
    pairs = {"pairs": {"count": len(bad), "planted": int(bad.sum()), "area under the curve": float(area)}}
    return {"agreement: pairs": pairs, "agreement: what goes": rows}


if __name__ == "__main__":
    main()
