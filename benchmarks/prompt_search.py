"""The search for a set of prompts: one product for all steps, against a classifier and a product for every candidate.

Unit rows of 80 templates x 1,000 classes x 512 numbers and of pictures; both take the same templates. "s" is processor time of
the whole search, the least of the rounds; "x plain" is how many times faster than the plain loop; "classifiers" is how many
were scored; "s for the rows' products" is what one product of all pictures with all templates' rows takes at the least.

    python benchmarks/prompt_search.py [--pictures 1000] [--templates 7] [--rounds 2] [--record FILE]
"""

from __future__ import annotations

import time

import _measure
import numpy as np

from ostension.evals.prompt_search import Judge, Search, forward_selection
from ostension.runtime import numpy_generator

TEMPLATES, CLASSES, WIDTH = 80, 1_000, 512


def made(pictures: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of templates around those of classes, rows of pictures around them too, and the classes of the pictures."""
    generator = numpy_generator(0, "prompt search")
    centres = generator.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    rows = centres + 2 * generator.standard_normal((TEMPLATES, CLASSES, WIDTH), dtype=np.float32)
    targets = generator.integers(0, CLASSES, pictures)
    features = centres[targets] + 5 * generator.standard_normal((pictures, WIDTH), dtype=np.float32)
    return *(part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (rows, features)), targets


def plain(rows: np.ndarray, features: np.ndarray, targets: np.ndarray, most: int) -> tuple[int, ...]:
    """The same search by averaging rows, making them unit and multiplying, for every candidate."""
    chosen: list[int] = []
    best = -1.0
    while len(chosen) < most:
        scores = []
        for template in range(len(rows)):
            if template in chosen:
                scores.append(-1.0)
                continue
            weights = rows[[*chosen, template]].mean(axis=0)
            weights /= np.linalg.norm(weights, axis=1, keepdims=True)
            scores.append(float(((features @ weights.T).argmax(axis=1) == targets).mean()))
        if max(scores) <= best:
            break
        best = max(scores)
        chosen.append(int(np.argmax(scores)))
    return tuple(chosen)


def main() -> int:
    asked = _measure.arguments(
        __doc__ or "", pictures=(1000, "pictures that are chosen on"), templates=(7, "where the search ends")
    )
    rows, features, targets = made(asked.pictures)
    judge = Judge(lambda logits: logits.argmax(axis=1), lambda given: float((given == targets).mean()), wide=False)
    found: dict[str, object] = {}

    def ours() -> None:
        found["ours"] = forward_selection(rows, features, judge, max_templates=asked.templates)

    def theirs() -> None:
        found["plain"] = plain(rows, features, targets, asked.templates)

    seconds = _measure.interleaved({"plain loop": theirs, "ostension": ours}, asked.rounds)
    searched = found["ours"]
    assert isinstance(searched, Search) and searched.chosen == found["plain"], (searched, found["plain"])
    start = time.process_time()
    features @ rows.reshape(-1, WIDTH).T
    product = time.process_time() - start
    figures = {
        name: {
            "s": one,
            "x plain": seconds["plain loop"] / one,
            "classifiers": searched.tried,
            "s for the rows' products": product,
        }
        for name, one in seconds.items()
    }
    _measure.table("prompt search", figures)
    settings = {
        "pictures": asked.pictures,
        "templates": TEMPLATES,
        "classes": CLASSES,
        "width": WIDTH,
        "chosen": asked.templates,
    }
    _measure.write_record(asked.record, "prompt_search", settings, {"prompt search": figures})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
