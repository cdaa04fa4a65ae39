"""Sub-commands of `ostension curate` at its end: shards or lists of what is kept, a report, the way of one pair."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ostension.cli._curate_stages import Bar
from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.curate.write import Written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write:
    """Write what is kept: tar shards with pictures, captions and lineage; or lists for img2dataset where there are no pictures.

    Examples:
      ostension curate write work -o out --shuffle
      ostension curate write work -o out --workers 8 --dropped

    Args:
        work: The work folder.
        output: Folder to write to.
        shard_size: Pairs a shard.
        shuffle: Shuffle the pairs, as training from whole shards wants it.
        seed: Of the order.
        window: Parts that are shuffled together.
        dropped: Write the lineage of what was dropped too, to OUTPUT/dropped.
        uids: Write the uids of what is kept as DataComp's subset files have them, to OUTPUT/uids.npy.
        workers: Processes that write shards.
        on: Where: local, or ray for a cluster whose nodes all see both folders and the source.
        ray_address: Of the cluster; without, what RAY_ADDRESS says, else Ray is started on this machine.
        json: Print one JSON object instead of lines.
    """

    work: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    shard_size: int = 10_000
    shuffle: bool = False
    seed: int = 0
    window: int = 16
    dropped: bool = False
    uids: bool = False
    workers: int = 0
    on: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    json: bool = False

    def run(self) -> int:
        from ostension.curate.run import connected
        from ostension.curate.work import Work
        from ostension.curate.write import write
        from ostension.curate.write_order import WriteConfig

        config = WriteConfig(
            shard_size=self.shard_size, shuffle=self.shuffle, seed=self.seed, window=self.window, dropped=self.dropped,
            uids=self.uids,
        )  # fmt: skip
        with connected(self.on, self.workers, self.ray_address):
            found = write(Work(self.work), self.output, config, workers=self.workers, on=self.on, progress=Bar())
        print(json.dumps(dataclasses.asdict(found), indent=2) if self.json else _lines(found, self.output))
        return 0


def _lines(found: Written, folder: Path) -> str:
    what = {"pairs": "pairs", "urls": "addresses", "captions": "captions"}[found.kind]
    lines = [f"{folder}: {found.pairs:,} {what} in {found.shards:,} shards, {found.num_bytes / 1e6:,.1f} MB"]
    lines += [f"{count:>12,}  not written: {reason}" for reason, count in found.failures.items()]
    if found.dropped:
        lines.append(f"{found.dropped:>12,}  dropped, in {folder / 'dropped'}")
    if found.kind == "urls":
        columns = '\'["id","source_key","lineage"]\''
        lines += [
            "get the pictures with:",
            f"  img2dataset --url_list {folder / 'urls'} --input_format parquet --url_col url --caption_col caption "
            f"--save_additional_columns {columns} --compute_hash sha256 --output_format webdataset --output_folder PICTURES",
            "then curate them: ostension curate filter PICTURES -o WORK2",
        ]
    sys.stdout.flush()
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Make a page of a work folder: what each stage kept and dropped and why, with samples to look at.

    Examples:
      ostension curate report work
      ostension curate report work -o page.html --samples 24
      ostension curate report work --json

    Args:
        work: The work folder.
        output: The page; by default report.html in the work folder.
        samples: Candidates shown for each reason, drawn at random; 0 for none.
        seed: Of the draw.
        json: Print the numbers and samples as one JSON object, and make no page.
    """

    work: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    samples: int = 12
    seed: int = 0
    json: bool = False

    def __post_init__(self):
        if self.samples < 0:
            raise UsageError(f"--samples is {self.samples}", expected="0 or more")
        if self.json and self.output is not None:
            raise UsageError("--output beside --json", expected="one of them")

    def run(self) -> int:
        from ostension.curate.report import report_page
        from ostension.curate.report_data import collect
        from ostension.curate.work import Work, writing
        from ostension.files import write_text

        work = Work(self.work)
        found = collect(work, samples=self.samples, seed=self.seed)
        if self.json:
            print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
            return 0
        path = self.output or self.work / "report.html"
        page = report_page(work, found)
        with writing(path):
            write_text(path, page)
        print(path)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Follow:
    """Follow one candidate through a curation: what every stage found of it, and what became of it.

    Examples:
      ostension curate show work 00012/000120007
      ostension curate show out 000120007 --json

    Args:
        folder: The work folder, or what `curate write` wrote.
        key: Of the candidate: in the source, or as it was written.
        json: Print one JSON object a candidate instead of lines.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    key: Annotated[str, tyro.conf.Positional]
    json: bool = False

    def run(self) -> int:
        from ostension.curate.lineage import followed

        for found in followed(self.folder, self.key):
            if self.json:
                print(json.dumps(found, ensure_ascii=False))
                continue
            width = max(map(len, found))
            for name, value in found.items():
                shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                print(f"{name.ljust(width)}  {shown}")
        return 0
