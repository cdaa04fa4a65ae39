"""Look into image-text pairs and index their shards: what is in a source, and what in it cannot be used."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.data.inspection import Inspection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what is in a source of pairs: counts, sizes, text lengths, rejects and samples.

    Exit status 1 if a pair that was tried cannot be used, or a shard is torn.

    Examples:
      ostension data inspect emoji
      ostension data inspect "cc/{00000..00331}.tar" --check 20000
      ostension data inspect "data/train-*.parquet" --texts caption alt --json
      ostension data inspect https://host/a.tar pairs.csv --weights 3 1

    Args:
        source: The name emoji, tar shards (lists in braces, patterns), Parquet, a .csv or .tsv, a folder; here or at URLs.
        weights: How much of each batch would come from each source; without, they are one source.
        image: Column of tables with the images, if it is not one of the usual ones.
        texts: Columns with the texts; of tar shards, txt and keys of the JSON.
        lines: Each line of a text is a caption.
        check: How many pairs to read and decode, spread evenly over the source; 0 for none.
        samples: How many pairs to print.
        json: Print one JSON object instead of lines.
    """

    source: Annotated[tuple[str, ...], tyro.conf.Positional]
    weights: tuple[float, ...] = ()
    image: str | None = None
    texts: tuple[str, ...] = ()
    lines: bool = False
    check: int = 1000
    samples: int = 3
    json: bool = False

    def __post_init__(self):
        for name in ("check", "samples"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} is {getattr(self, name)}", expected="0 or more")
        if not self.source:
            raise UsageError("the source is missing", expected="emoji, files, folders or URLs")
        if self.weights and (len(self.weights) != len(self.source) or min(self.weights) <= 0):
            raise UsageError(f"--weights is {self.weights}", expected="a positive number for each source")

    def run(self) -> int:
        from tqdm import tqdm

        from ostension.data.inspection import inspect_mixture, inspect_pairs
        from ostension.data.layout import Layout
        from ostension.data.open import open_pairs

        layout = Layout(image=self.image, texts=self.texts, lines=self.lines)
        options: dict[str, Any] = {
            "num_checked": self.check,
            "num_samples": self.samples,
            "progress": lambda indices: iter(tqdm(indices, desc="pairs", leave=False, disable=None)),
        }
        if self.weights:
            sources = {name: open_pairs(name, layout=layout) for name in self.source}
            found = inspect_mixture(sources, self.weights, **options)
        else:
            found = inspect_pairs(open_pairs(self.source, layout=layout), **options)
        print(json.dumps(dataclasses.asdict(found), ensure_ascii=False, indent=2) if self.json else _as_lines(found))
        return 1 if found.num_unusable or found.notes else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Index tar shards, so that any pair in them is one read away.

    Every command does this on first use; doing it before spreads the work. The index of a.tar is a.tar.idx, beside it.

    Args:
        source: Tar shards: files, lists in braces, patterns or a folder, several with :: between.
        force: Index again, also shards that have an index or have changed since.
    """

    source: Annotated[str, tyro.conf.Positional]
    force: bool = False

    def run(self) -> int:
        from ostension.data.open import shards_of
        from ostension.data.tar_index import index_places, open_index

        shards = shards_of(self.source)
        torn = False
        for shard in shards:
            if self.force:
                for place in index_places(shard):
                    place.unlink(missing_ok=True)
            index = open_index(shard)
            rejects = "".join(f", {count} x {reason}" for reason, count in index.rejects.items())
            print(f"{shard}: {len(index)} pairs{rejects}")
            if index.torn:
                torn = True
                print(f"ostension: warning: {shard}: {index.torn}", file=sys.stderr)
        return 1 if torn else 0


COMMAND = {"inspect": Inspect, "index": Index}


def _as_lines(found: Inspection) -> str:
    lines = [
        f"pairs         {found.num_pairs:,} in {found.num_bytes / 1e6:,.1f} MB",
        f"fingerprint   {found.fingerprint}",
    ]
    if found.num_identical_images is not None:
        lines.append(f"identical     {found.num_identical_images:,} images have the bytes of an earlier one")
    for part in found.sources:
        epochs = f"passed {part.epochs:.2f} times in as many samples as all have"
        lines.append(f"source        {part.name}: {part.num_pairs:,} pairs, {part.share:.1%} of every batch, {epochs}")
    lines += [f"left out      {count:,} x {reason}" for reason, count in found.rejects.items()]
    lines += [f"torn          {note}" for note in found.notes]
    if found.num_checked:
        lines.append(f"checked       {found.num_checked:,} pairs, {found.num_unusable:,} cannot be used")
    lines += [f"              {count:,} x {reason}" for reason, count in found.reasons.items()]
    lines += [f"              {key}: {why}" for key, why in found.unusable]
    for title, spread, unit in (
        ("image bytes", found.image_bytes, ""),
        ("image width", found.image_width, " px"),
        ("image height", found.image_height, " px"),
        ("text length", found.text_letters, " letters"),
        ("text words", found.text_words, ""),
    ):
        if spread:
            low, middle, high = spread
            lines.append(f"{title:<14}{low:,.0f} to {high:,.0f}{unit}, median {middle:,.0f}")
    if found.captions:
        lines.append(f"captions      {found.captions:.2f} an image")
        lines.append("formats       " + ", ".join(f"{count:,} {form}" for form, count in found.formats.items()))
    if found.traits:
        lines.append("traits        " + ", ".join(f"{count:,} {trait}" for trait, count in found.traits.items()))
    for sample in found.samples:
        lines.append(f"sample        {sample['key']}: " + " | ".join(sample["texts"]))
        if sample["meta"]:
            lines.append(f"              {json.dumps(sample['meta'], ensure_ascii=False)[:200]}")
    return "\n".join(lines)
