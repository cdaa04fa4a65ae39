"""Recall of the approximate indexes on real rows, for queries in words and for pictures, and what it saves.

The rows are those of a collection whose pictures have labels, as `ostension embed emoji -o STORE` makes of the set that comes
with the package. Every kind is built as `ostension index build` builds it, which chooses the effort by its own measurement of
recall@10 without words. Here recall@10 against exact search is measured on queries that took no part in that: the labels,
embedded by the text tower, and other rows. The least of any query is shown beside the mean. Ratios are of processor time,
above 1 where the index is faster than exact search with codes.

    python benchmarks/search_recall.py --store STORE [--queries 500] [--recall 0.95] [--record FILE]
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
from _measure import arguments, interleaved, table, write_record

from ostension.formats.load import load
from ostension.store.codes import Codes
from ostension.store.collection import collection_folder, model_of
from ostension.store.exact import search
from ostension.store.facts import Facts
from ostension.store.index import Index, K, Kind
from ostension.store.sets import EmbeddingSet

TEMPLATE = "a picture of {}"


def labels_of(opened: EmbeddingSet) -> list[str]:
    """The different labels of a collection, or its first captions where it has none."""
    facts = Facts(opened).of(np.arange(len(opened)))
    said = (str(one) for fact in facts for one in (fact.get("labels") or fact.get("texts", ())[:1]))
    return list(dict.fromkeys(said))


def recalls(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """(Q,) the share of each query's exact answers that were found."""
    return np.array([len(np.intersect1d(mine, right)) / len(right) for mine, right in zip(found, exact, strict=True)])


def main() -> None:
    options = {
        "store": ("", "the store"), "name": ("default", "the collection"), "queries": (500, "queries of each sort, at most"),
        "recall": (0.95, "recall@10 that is asked for"),
    }  # fmt: skip
    args = arguments(__doc__, **options)
    with tempfile.TemporaryDirectory(prefix="recall-") as folder:  # so that the store is left as it is
        copy = Path(folder) / "collection"
        shutil.copytree(collection_folder(args.store, args.name), copy, ignore=shutil.ignore_patterns("index", "codes"))
        opened = EmbeddingSet(copy)
        model = load(model_of(opened), device="cpu")
        generator = np.random.default_rng(1)
        labels = labels_of(opened)
        chosen = [labels[place] for place in sorted(generator.permutation(len(labels))[: args.queries].tolist())]
        words = model.embed_texts([TEMPLATE.format(label) for label in chosen]).float().cpu().numpy()
        pictures = opened.rows[np.sort(generator.permutation(len(opened))[: args.queries])].astype(np.float32)
        codes = Codes.of(opened.rows)
        right = {sort: search(opened.rows, asked, K).rows for sort, asked in (("words", words), ("pictures", pictures))}
        figures: dict[str, dict[str, float]] = {}
        for kind in get_args(Kind):
            index = Index.build(opened, kind, recall=args.recall)
            row: dict[str, float] = {"effort": index.built.effort, "when built": index.built.recall}
            for sort, asked in (("words", words), ("pictures", pictures)):
                each = recalls(index.search(asked, K)[0], right[sort])
                row |= {sort: float(each.mean()), f"least of {sort}": float(each.min())}
            took = interleaved(
                {
                    "index": lambda index=index: [index.search(one[None], K) for one in words[:100]],
                    "exact": lambda: [search(opened.rows, one[None], K, codes=codes) for one in words[:100]],
                },
                args.rounds,
            )
            row["x exact, one query"] = took["exact"] / took["index"]
            figures[kind] = row
            print(kind, row, flush=True)
    title = f"recall@{K} in {len(opened):,} x {opened.width}, {len(words)} queries in words, {len(pictures)} pictures"
    table(title, figures)
    settings = {"rows": len(opened), "width": opened.width, "k": K, "asked for": args.recall, "words": len(words)}
    settings |= {"pictures": len(pictures), "computed": opened.key.computed, "model": model.config.name}
    write_record(args.record, "search_recall", settings, {title: figures})


if __name__ == "__main__":
    main()
