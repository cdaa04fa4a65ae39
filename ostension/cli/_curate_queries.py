"""`ostension curate queries`: a list of queries from any corpus, and what a list holds."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.curate.queries.rules import GROUPS, LIMIT, Bigrams, Group, Titles, Wordnet, Words
from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.curate.queries.listing import Queries

COUNTS_SUFFIX = ".counts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeQueries:
    """Make a list of queries, as the paper made its 500,000: words, bi-grams, titles and WordNet, in order, up to a limit.

    A corpus is text (a text a line), JSON lines, a table or Parquet with captions, a MediaWiki dump, packed or not (.gz, .bz2,
    .xz, .zst); tar shards or other pairs; a work folder of a curation; or a folder of these. Texts are counted exactly, in one
    pass and in flat memory. The same command again goes on where it was stopped.

    Examples:
      ostension curate queries captions.parquet -o queries.parquet --words.top 5000
      ostension curate queries enwiki-latest-pages-articles.xml.bz2 -o queries.parquet --titles.files "pageviews-*.gz" \
--wordnet.folder find --workers 8 --counts counts/enwiki
      ostension curate queries --show queries.parquet

    Args:
        corpora: What words and bi-grams are counted in, all together.
        output: The list: Parquet with the columns query, origin, count, score, rank.
        columns: Columns (keys of JSON lines) with the texts.
        encoding: Of text files.
        wrapped: Lines of text files belong together until an empty one.
        case: Whether capitals count, as they do when captions are matched; or everything is folded.
        words: Single words.
        bigrams: Pairs of neighbouring words.
        titles: Titles by popularity.
        wordnet: Names of WordNet's synsets.
        integers: The integers from 0 up to, without, this one.
        add: Lists that are taken as they are (.parquet, .txt, .json, .csv, .tsv).
        exclude: Lists of what is left out.
        exclude_matching: What one of these regular expressions is found in is left out.
        order: The groups, first to last; one that is not named is left out.
        limit: Most queries in all.
        counts: Folder of the counts, which is kept: other rules on the same corpora are then a matter of seconds. Default:
            beside the output, and removed when the list is written.
        workers: Processes that count.
        show: Say what is in this list, and do nothing else.
        json: Print the facts as one JSON object.
    """

    corpora: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    wrapped: bool = False
    case: Literal["kept", "folded"] = "kept"
    words: Words = dataclasses.field(default_factory=Words)
    bigrams: Bigrams = dataclasses.field(default_factory=Bigrams)
    titles: Titles = dataclasses.field(default_factory=Titles)
    wordnet: Wordnet = dataclasses.field(default_factory=Wordnet)
    integers: int = 100
    add: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_matching: tuple[str, ...] = ()
    order: tuple[Group, ...] = GROUPS
    limit: int = LIMIT
    counts: Path | None = None
    workers: int = 0
    show: Path | None = None
    json: bool = False

    def __post_init__(self):
        if self.show is None and self.output is None:
            raise UsageError("the output is missing", expected="-o queries.parquet, or --show LIST")
        if self.show is not None and (self.corpora or self.output is not None):
            raise UsageError("--show makes no list", fix="leave the corpora and --output out")
        if self.output is not None and self.output.suffix != ".parquet":
            raise UsageError(f"the output is {str(self.output)!r}", expected="a name that ends in .parquet")
        if self.workers < 0:
            raise UsageError(f"--workers is {self.workers}", expected="0 or more")

    def run(self) -> int:
        from ostension.curate.queries.build import build
        from ostension.curate.queries.listing import read_queries
        from ostension.curate.queries.rules import QueryRules

        if self.show is not None:
            queries = read_queries(self.show)
        else:
            assert self.output is not None
            names = [field.name for field in dataclasses.fields(QueryRules)]
            rules = QueryRules(**{name: getattr(self, name) for name in names})
            counts = self.counts or self.output.with_name(self.output.name + COUNTS_SUFFIX)
            with _bars() as progress:
                queries = build(rules, counts, workers=self.workers, scratch=self.counts is None, progress=progress)
            queries.save(self.output)
            if self.counts is None:
                shutil.rmtree(counts, ignore_errors=True)
        if self.json:
            sums = {"queries": len(queries), "fingerprint": queries.fingerprint(), "origins": queries.by_origin()}
            print(json.dumps({**sums, **queries.facts}, ensure_ascii=False))
        print(as_lines(queries), file=sys.stderr if self.show is None or self.json else sys.stdout)
        if self.output is not None:
            print(f"wrote {self.output}: {len(queries):,} queries", file=sys.stderr)
        return 0


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int], None]]:
    """While entered, a bar with a rate for each step that is told of."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def progress(step: str, more: int) -> None:
        if step not in bars:
            unit = "letters" if step.startswith("counted") else "rows"
            bars[step] = tqdm(desc=step, unit=f" {unit}", unit_scale=True, leave=True, disable=None, file=sys.stderr)
        bars[step].update(more)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()


def as_lines(queries: Queries) -> str:
    """A list for people: what was counted, what each group gave and by which threshold, and a few entries."""
    facts = queries.facts
    lines = [f"queries       {len(queries):,}, fingerprint {queries.fingerprint()[:16]}"]
    counted = facts.get("counted")
    if counted:
        found = f"{counted['num_words']:,} words, {counted['different_words']:,} different"
        size = f"{counted['num_texts']:,} texts ({counted['num_letters'] / 1e6:,.1f} M letters)"
        lines.append(f"counted       {found}, in {size}")
        left_out = {**counted["rejects"], "runs of letters too long for words": counted["num_long"]}
        lines += [f"left out      {number:,} {why}" for why, number in left_out.items() if number]
    if "titles" in facts:
        lines.append(f"titles        {len(facts['titles']['files']):,} files")
        lines += [f"left out      {number:,} {why}" for why, number in facts["titles"]["rejects"].items() if number]
    by_group = {group["group"]: group for group in facts.get("groups", ())}
    places: dict[str, list[int]] = collections.defaultdict(list)
    for place, origin in enumerate(queries.origins):
        places[origin].append(place)
    for origin in dict.fromkeys([*by_group, *places]):
        lines.append(f"{origin:<14}{_group_line(len(places[origin]), by_group.get(origin))}")
        examples = places[origin]
        chosen = examples if len(examples) <= 6 else [*examples[:3], *examples[-3:]]
        shown = [repr(queries.texts[place])[1:-1] + _measure(queries, place) for place in chosen]
        if len(examples) > 6:
            shown.insert(3, "...")
        if shown:
            lines.append(f"              {', '.join(shown)}")
    marks = sum(any(mark in text for mark in ",.;:?!`") for text in queries.texts)
    if marks:
        what = "hold , . ; : ? ! or a back-tick: `curate match` finds them, MetaCLIP's published matching never would"
        lines.append(f"note          {marks:,} {what}")
    return "\n".join(lines)


def _group_line(taken: int, group: dict[str, Any] | None) -> str:
    if group is None:
        return f"{taken:,}"
    said = [f"{taken:,} of {group['candidates']:,}"]
    if "lowest_score" in group:
        ceiling = f" (none above {group['highest_possible']:.2f} is possible)" if "highest_possible" in group else ""
        said.append(f"{group['score']} {group['lowest_score']:.4g} or more{ceiling}")
    if "lowest_count" in group:
        said.append(f"{group['lowest_count']:,} {'views' if group['group'] == 'titles' else 'times'} or more")
    said += [f"{number:,} {why}" for why, number in group["refused"].items()]
    if "beyond_top" in group:
        said.append(f"{group['beyond_top']:,} beyond the first {taken:,}")
    if "beyond_limit" in group:
        said.append(f"{group['beyond_limit']:,} BEYOND THE LIMIT")
    return "; ".join(said)


def _measure(queries: Queries, place: int) -> str:
    score, count = float(queries.scores[place]), int(queries.counts[place])
    parts = ([f"{score:.4g}"] if score == score else []) + ([f"{count:,}"] if count >= 0 else [])
    return f" ({', '.join(parts)})" if parts else ""
