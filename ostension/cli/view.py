"""Look at a store: near-duplicates, outliers, clusters with words."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ostension.cli._collection import OfCollection, json_line, load_for, printable, say
from ostension.errors import DataError, UsageError

if TYPE_CHECKING:
    from ostension.store.searcher import Searcher

STORE = tyro.conf.Positional
SHOWN = 12  # pictures of a group or cluster on a page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates(OfCollection):
    """Groups of near-duplicates: the same file, the same look, or near embeddings.

    Every pair is compared, so that nothing is missed; with embeddings that takes a minute for 100,000 items and grows with
    the square. --cosine 0 is not what switches it off, --rules bytes,hash is.

    Examples:
      ostension view duplicates store --html duplicates.html
      ostension view duplicates store --cosine 0.99 --ids | ostension store rm store -

    Args:
        cosine: Least cosine of near embeddings. What is right depends on the model: look at the page.
        bits: How many of 64 bits of a perceptual hash may differ.
        rules: Which are looked at: bytes, hash, embedding.
        format: A table, or one JSON object for each group.
        html: Write a page with the pictures to this file instead.
        ids: Print only the ids that could go: all but the first of each group, one a line.
    """

    cosine: float = 0.97
    bits: int = 4
    rules: str = "bytes,hash,embedding"
    format: Literal["table", "jsonl"] = "table"
    html: Path | None = None
    ids: bool = False

    def run(self) -> int:
        from ostension.curate.views import duplicates

        rules = {rule.strip() for rule in self.rules.split(",")}
        if not rules <= {"bytes", "hash", "embedding"}:
            raise UsageError(f"--rules is {self.rules!r}", expected="some of bytes, hash, embedding with commas between them")
        searcher = self.searcher()
        cosine = self.cosine if "embedding" in rules else None
        groups = duplicates(searcher.opened, cosine=cosine, bits=self.bits if "hash" in rules else None)
        groups = [group for group in groups if set(group.why) & rules]
        extra = sum(len(group.rows) - 1 for group in groups)
        names = _ids(searcher, [row for group in groups for row in group.rows])
        if self.ids:
            _check_lines(names.values())
            for group in groups:
                for row in group.rows[1:]:
                    sys.stdout.buffer.write(os.fsencode(names[row]) + b"\n")  # a file's name may be any bytes
            sys.stdout.buffer.flush()
        elif self.html is not None:
            heads = [f"{len(one.rows)} alike by {', '.join(one.why)}, least cosine {one.least:.3f}" for one in groups]
            _page(self.html, searcher, [(head, one.rows) for head, one in zip(heads, groups, strict=True)], "Near-duplicates")
        else:
            for group in groups:
                listed = [names[row] for row in group.rows]
                if self.format == "jsonl":
                    print(json_line({"ids": listed, "why": group.why, "least_cosine": round(group.least, 6)}))
                else:
                    print(f"{len(listed)} alike by {', '.join(group.why)}, least cosine {group.least:.3f}")
                    print("".join(f"  {printable(name)}\n" for name in listed), end="")
        say(f"{len(groups):,} groups; {extra:,} of {len(searcher):,} items could go")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outliers(OfCollection):
    """Items that are farthest from everything else, the farthest first, with what is nearest to each.

    Examples:
      ostension view outliers store --count 100 --html outliers.html

    Args:
        count: How many.
        neighbours: How many nearest others the mean distance is taken to.
        format: A table, or one JSON object for each item.
        html: Write a page with the pictures to this file instead.
    """

    count: int = 50
    neighbours: int = 10
    format: Literal["table", "jsonl"] = "table"
    html: Path | None = None

    def run(self) -> int:
        from ostension.curate.views import outliers

        searcher = self.searcher()
        found = outliers(searcher.opened, self.count, neighbours=self.neighbours)
        names = _ids(searcher, [*found.rows.tolist(), *found.nearest.tolist()])
        if self.html is not None:
            heading = f"Farthest from their {found.neighbours} nearest (median of all {found.median:.3f})"
            _page(self.html, searcher, [(heading, found.rows.tolist())], "Outliers", found.distances.tolist())
            return 0
        if self.format == "table":
            print(f"mean distance to the {found.neighbours} nearest; the median of all is {found.median:.4f}")
        for place, row in enumerate(found.rows.tolist()):
            distance, nearest = float(found.distances[place]), names[int(found.nearest[place])]
            gap = float(found.nearest_distance[place])
            if self.format == "jsonl":
                entry = {"id": names[row], "distance": round(distance, 6), "median": round(found.median, 6)}
                print(json_line({**entry, "nearest": nearest, "nearest_distance": round(gap, 6)}))
            else:
                print(f"  {distance:.4f}  {printable(names[row])}  nearest: {printable(nearest)} at {gap:.4f}")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clusters(OfCollection):
    """Clusters of items, the largest first, with the words that tell each from the others.

    Examples:
      ostension view clusters store --html clusters.html
      ostension view clusters store --count 20 --words nouns.txt --format jsonl

    Args:
        count: How many clusters. Default: as many as separate best.
        words: A text file with one word or name a line. Default: class names that come with the package.
        template: A prompt template with {} for the word.
        no_words: Make clusters only; needs no model.
        model: The model that made the store. Default: the one that the store remembers.
        seed: Of the beginnings; the same seed gives the same clusters.
        format: A table, or one JSON object for each cluster.
        members: With jsonl, also list every member's id.
        html: Write a page with the pictures to this file instead.
    """

    count: int | None = None
    words: Path | None = None
    template: str = "a photo of a {}."
    no_words: bool = False
    model: str | None = None
    seed: int = 0
    format: Literal["table", "jsonl"] = "table"
    members: bool = False
    html: Path | None = None

    def __post_init__(self):
        if self.no_words and self.words is not None:
            raise UsageError("--no-words and --words are both given", expected="one of them")
        if self.members and self.format != "jsonl":
            raise UsageError("--members is for --format jsonl")

    def run(self) -> int:
        import numpy as np

        from ostension.cli.classify import read_labels_file
        from ostension.curate.views import clusters, default_words, embed_words, words_for

        vocabulary = read_labels_file(self.words) if self.words is not None else []
        searcher = self.searcher()
        found = clusters(searcher.opened, self.count, seed=self.seed)
        sizes = np.bincount(found.of, minlength=len(found.centres))
        words: list[list[tuple[str, float]]] = [[] for _ in sizes]
        if not self.no_words:
            model: Any = load_for(searcher.opened, self.model)
            vocabulary = vocabulary or default_words()
            rows = embed_words(model, vocabulary, self.template)
            words = words_for(found.centres, vocabulary, rows, float(model.scale().detach()), sizes=sizes)
        named = [", ".join(word for word, _ in some) or f"cluster {number}" for number, some in enumerate(words)]
        examples = [found.members(number)[:SHOWN].tolist() for number in range(len(sizes))]
        if self.html is not None:
            groups = list(zip((f"{name} ({size:,})" for name, size in zip(named, sizes, strict=True)), examples, strict=True))
            _page(self.html, searcher, groups, "Clusters")
            return 0
        names = _ids(searcher, [row for rows in examples for row in rows])
        for number, size in enumerate(sizes.tolist()):
            if self.format == "jsonl":
                entry: dict[str, Any] = {"cluster": number, "size": size, "words": [word for word, _ in words[number]]}
                entry["examples"] = [names[row] for row in examples[number][:5]]
                if self.members:
                    every = found.members(number).tolist()
                    entry["members"] = list(_ids(searcher, every).values())
                print(json_line(entry))
            else:
                print(f"{size:8,}  {printable(named[number])}  as {printable(names[examples[number][0]])}")
        say(f"{len(sizes)} clusters of {len(searcher):,} items, silhouette {found.silhouette:.3f}")
        return 0


COMMAND = {"duplicates": Duplicates, "outliers": Outliers, "clusters": Clusters}


def _ids(searcher: Searcher, rows: Sequence[int]) -> dict[int, str]:
    """The ids of rows, in their order."""
    wanted = list(dict.fromkeys(rows))
    return dict(zip(wanted, searcher.opened.column("id", wanted) if wanted else [], strict=True))


def _check_lines(names: Iterable[str]) -> None:
    """Refuse ids that a list with one a line cannot hold: whoever reads it would take one for several.

    Raises:
        DataError: naming the first of them.
    """
    bad = next((name for name in names if "\n" in name or name.endswith("\r") or not name.strip()), None)
    if bad is not None:
        raise DataError(f"the id {bad!r} cannot stand in a list of lines", fix="use --format jsonl instead of --ids")


def _page(
    path: Path, searcher: Searcher, groups: Sequence[tuple[str, Sequence[int]]], title: str, scores: Sequence[float] = ()
) -> None:
    """A page of groups of rows; scores are cosines with the first of a group if none are given."""
    import numpy as np

    from ostension.cli._search_hits import page

    made = []
    for heading, rows in groups:
        shown = np.array(rows if scores else list(rows)[:SHOWN], np.int64)
        wide = searcher.opened.rows[shown].astype(np.float64)
        values = np.array(scores) if scores else wide @ wide[0] if len(shown) else np.zeros(0)
        made.append((heading, searcher.hits(shown[None], values[None])[0]))
    page(path, searcher.opened, made, title=title)
    say(f"wrote {path}")
