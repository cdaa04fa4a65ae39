"""Sub-commands of `ostension curate` about duplicates that were found: the page to look at, and what is decided."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ostension.cli._curate_stages import show
from ostension.errors import UsageError

PAGE = "review.html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Review:
    """Write the page on which a person sees near pictures and sets the thresholds of `dedup`.

    Examples:
      ostension curate dedup-review work
      ostension curate dedup-review work --pairs 24 -o page.html

    Args:
        work: The work folder.
        output: The page. Default: review.html in the stage's folder.
        pairs: Most pairs of a band.
    """

    work: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    pairs: int = 12

    def run(self) -> int:
        from ostension.curate.duplicates_page import review_page
        from ostension.curate.work import Work
        from ostension.files import write_text

        page, entry = review_page(Work(self.work), pairs=self.pairs)
        path = self.output or entry.folder / PAGE
        write_text(path, page)
        print(f"wrote {path}")
        print(f"next: look at it, then: ostension curate dedup-decide {self.work} --bits NUMBER")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decide:
    """Set the thresholds of `dedup` anew, and keep samples that are no copies; pictures are not looked at again.

    Examples:
      ostension curate dedup-decide work --bits 3
      ostension curate dedup-decide work --bits 3 --threshold 0.96 --not a/000017 --by ada

    Args:
        work: The work folder.
        bits: Most differing bits of near hashes. Default: as they are.
        threshold: Least cosine of a detector's rows. Default: as it is.
        exclude: Key of a sample that stays in any case; repeat the flag for several.
        by: Who decided.
        workers: Processes that work on parts.
        json: Print one JSON object instead of lines.
    """

    work: Annotated[Path, tyro.conf.Positional]
    bits: int | None = None
    threshold: float | None = None
    exclude: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="not")] = ()
    by: str = ""
    workers: int = 0
    json: bool = False

    def __post_init__(self):
        if self.bits is None and self.threshold is None and not self.exclude:
            raise UsageError("nothing is decided", expected="--bits, --threshold or --not")

    def run(self) -> int:
        from ostension.curate.duplicates_review import decide
        from ostension.curate.work import Work

        entry = decide(
            Work(self.work), bits=self.bits, threshold=self.threshold, exclude=self.exclude, by=self.by, workers=self.workers
        )
        show([entry], as_json=self.json)
        return 0
