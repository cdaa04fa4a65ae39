"""What a curation ends in: tar shards with the kept pairs and the lineage of each, or lists for whoever fetches the pictures.

    OUT/write.json            what is written, and how: first
    OUT/00000.tar             KEY.jpg (or .png, ...: the bytes as they are), KEY.txt (the first caption), KEY.json
    OUT/00000.tar.idx         the index of the shard
    OUT/00000.parquet         the lineage, a row a pair
    OUT/00000_stats.json      counts and hashes: last of a shard, so that a shard without it is not whole
    OUT/manifest.json         all shards: last of all

This is img2dataset's layout: keys are the shard's number and the pair's, a picture that cannot be read has a row and no
members. Of captions without pictures, OUT/urls/00000.parquet is the list that img2dataset takes.

The order is the source's; or shuffled, which is: the parts in random order, and the pairs of each `window` of them in random
order. A process holds the lineage of one part and of one shard, and one picture.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ostension.config import to_tree
from ostension.curate.base import DROPPED
from ostension.curate.images_header import read_header
from ostension.curate.lineage import CAPTIONS, Lineage
from ostension.curate.run import On, Progress, each
from ostension.curate.work import EXTRA, PARQUET, Work, is_vacant, sweep, writing
from ostension.curate.write_order import Order, WriteConfig
from ostension.curate.write_rows import STATUSES, described, sample_json, summary, with_facts
from ostension.data.rejects import without_values
from ostension.data.tar_write import SUFFIXES, TarWriter
from ostension.data.workers import Note
from ostension.errors import DataError, LimitError, require_extra
from ostension.files import atomic_path, folder_lock, read_json, sha256_file, write_json
from ostension.image.decode import MAX_PIXELS

FORMAT = 1
BEGUN, MANIFEST, URLS, UIDS = "write.json", "manifest.json", "urls", "uids.npy"
Kind = Literal["pairs", "urls", "captions"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        kind: "pairs" in tar shards, "urls" to fetch, or "captions" alone.
        shards: how many.
        rows: kept candidates.
        pairs: those whose picture was written; of "urls" those with an address.
        failures: the others by reason.
        num_bytes: of all shards.
        dropped: candidates in OUT/dropped.
    """

    kind: Kind
    shards: int
    rows: int
    pairs: int
    failures: dict[str, int]
    num_bytes: int
    dropped: int


def write(
    work: Work, folder: Path, config: WriteConfig, *, workers: int = 0, on: On = "local", progress: Progress | None = None
) -> Written:  # fmt: skip
    """Write what a curation has kept, or go on with it; shards that are whole are left as they are.

    Raises:
        DataError: if nothing is kept, a stage has not ended, or the folder holds something else.
    """
    lineage = Lineage(work)
    counts, schema, addresses = _surveyed(lineage)
    order = Order(counts, config)
    if not order.total:
        raise DataError("nothing is kept", source=work.folder, fix="see: ostension curate report")
    kind: Kind = "pairs" if work.facts.pictures else "urls" if addresses else "captions"
    folder = folder.resolve()
    begun = {
        "format": FORMAT, "kind": kind, "identity": lineage.entries[-1].identity, "settings": to_tree(config),
        "rows": order.total, "shards": order.num_shards,
    }  # fmt: skip
    _claim(folder, begun)
    with writing(folder), folder_lock(folder):
        sweep(folder, folder / URLS, folder / DROPPED)
        write_json(folder / BEGUN, begun)
        shard = ShardWork(work.folder.resolve(), len(lineage.entries), folder, kind, order, schema)
        shards = range(order.num_shards)
        each(shard, [one for one in shards if not shard.is_whole(one)], order.num_shards, "write", workers, on, progress)
        dropped = 0
        if config.dropped:
            parts = DroppedWork(work.folder.resolve(), len(lineage.entries), folder, schema)
            missing = [part for part in range(len(counts)) if not parts.path(part).is_file()]
            each(parts, missing, len(counts), "dropped", workers, on, progress)
            dropped = sum(parts.rows(part) for part in range(len(counts)))
        if config.uids:
            write_uids(lineage, folder / UIDS)
        return _ended(folder, begun, order.num_shards, dropped)


class ShardWork:
    """Writes one shard: the same wherever it is called.

    Args:
        work: the work folder.
        entries: of its stages that the lineage has.
        folder: to write to.
        kind: of what is written.
        order: which rows a shard has.
        schema: of the lineage, the same for all shards.
    """

    def __init__(self, work: Path, entries: int, folder: Path, kind: Kind, order: Order, schema: Any):
        self.work, self.entries, self.folder, self.kind, self.order, self.schema = work, entries, folder, kind, order, schema
        self._lineage: Lineage | None = None

    def __call__(self, task: int, note: Note) -> int:
        note(f"shard {task}")
        if self._lineage is None:
            self._lineage = Lineage(Work(self.work), self.entries)
        table = self._rows(task)
        found = self._pairs(task, table, note) if self.kind == "pairs" else self._listed(task, table)
        with writing(self.folder):
            write_json(self._path(task, "_stats.json"), found)
        return int(found["successes"])

    def is_whole(self, shard: int) -> bool:
        """Whether a shard was written to the end, and its files are as long as they were then."""
        path = self._path(shard, "_stats.json")
        if not path.is_file():
            return False
        try:
            stats = read_json(path)
            sound = stats["count"] == self.order.size(shard) and 0 <= stats["successes"] <= stats["count"]
            sound = sound and sum(stats["status_dict"].values()) == stats["count"]
            return sound and all(
                (self.folder / name).stat().st_size == facts["bytes"] for name, facts in stats["files"].items()
            )
        except (DataError, KeyError, TypeError, AttributeError, OSError):
            return False

    def _rows(self, shard: int) -> Any:
        arrow = require_extra("pyarrow", EXTRA)
        assert self._lineage is not None
        tables, places = [], []
        for part, ranks, where in self.order.pieces(shard):
            rows = self._lineage.alive(part)
            if len(rows) != self.order.counts[part]:
                raise DataError("changed while it was written", source=self._lineage.entries[-1].part(part))
            tables.append(self._lineage.kept(part, rows[ranks]).cast(self.schema))
            places.append(where)
        return arrow.concat_tables(tables).take(np.argsort(np.concatenate(places)))

    def _pairs(self, shard: int, table: Any, note: Note) -> dict[str, Any]:
        assert self._lineage is not None
        source = self._lineage.work.source
        columns = _columns(table)
        facts = []
        path = self._path(shard, ".tar")
        with contextlib.ExitStack() as stack:
            stack.enter_context(writing(path))
            writer = TarWriter(stack.enter_context(open(stack.enter_context(atomic_path(path)), "wb")))
            for at in range(len(table)):
                row = {name: column[at].as_py() for name, column in columns.items()}
                key = self.key(shard, at)
                note(f"{row['source_key']} of shard {shard}")
                one = described(key, row)
                try:
                    image = source.read(row["place"]).image
                except (DataError, LimitError) as error:  # a network that fails is neither, and ends the run
                    facts.append({**one, "status": STATUSES[1], "error_message": without_values(error.what)})
                    continue
                header = read_header(image, MAX_PIXELS)
                one["width"], one["height"] = header.width or None, header.height or None
                if header.problem is not None:
                    one.update(status=STATUSES[2], error_message=header.problem)
                else:
                    one["content_sha256"] = hashlib.sha256(image).hexdigest()
                    for name, value in (
                        ("sha256", one["content_sha256"]), ("original_width", one["width"]), ("original_height", one["height"])
                    ):  # fmt: skip
                        one[name] = value if one[name] is None else one[name]
                    writer.add(key, image, SUFFIXES[header.format], one["caption"], sample_json(row, one))
                facts.append(one)
            digest = writer.finish()
        files = {}
        if writer.num_pairs:
            with writing(path):
                writer.save_index(path)
            files[path.name] = {"bytes": writer.size, "sha256": digest}
        else:
            path.unlink()  # an archive without members is an error to every reader
        return self._stats(shard, with_facts(table, facts), facts, files)

    def _listed(self, shard: int, table: Any) -> dict[str, Any]:
        """The rows of one list; those without an address are not in img2dataset's."""
        arrow, parquet = require_extra("pyarrow", EXTRA), require_extra("pyarrow.parquet", EXTRA)
        rows = (table if self.kind == "urls" else table.select(["url", CAPTIONS])).to_pylist()
        facts = []
        for row in rows:
            missing = self.kind == "urls" and row["url"] is None
            status, problem = (STATUSES[1], "no address") if missing else (STATUSES[0], None)
            facts.append({"caption": row[CAPTIONS][0], "status": status, "error_message": problem})
        files = {}
        if self.kind == "urls":
            kept = [row for row in rows if row["url"] is not None]
            columns = {
                "url": [row["url"] for row in kept], "caption": [row[CAPTIONS][0] for row in kept],
                "id": [row["id"] for row in kept], "source_key": [row["source_key"] for row in kept],
                "lineage": [json.dumps(summary(row)) for row in kept],
            }  # fmt: skip
            texts = {name: arrow.int64() if name == "id" else arrow.string() for name in columns}
            listed = arrow.table({name: arrow.array(values, texts[name]) for name, values in columns.items()})
            path = self.folder / URLS / f"{shard:05d}.parquet"
            with writing(path), atomic_path(path) as temporary:
                parquet.write_table(listed, temporary, compression="zstd")
            files[f"{URLS}/{path.name}"] = _file_facts(path)
        return self._stats(shard, with_facts(table, facts), facts, files)

    def _stats(self, shard: int, table: Any, facts: list[dict[str, Any]], files: dict[str, Any]) -> dict[str, Any]:
        """Write the lineage; what the shard's stats say, in img2dataset's words."""
        path = self._path(shard, ".parquet")
        parquet = require_extra("pyarrow.parquet", EXTRA)
        with writing(path), atomic_path(path) as temporary:
            parquet.write_table(table, temporary, **PARQUET)
        states = collections.Counter(one["status"] for one in facts)
        reasons = collections.Counter(one["error_message"] or STATUSES[0] for one in facts)
        return {
            "count": len(facts), "successes": states[STATUSES[0]], "failed_to_download": states[STATUSES[1]],
            "failed_to_resize": states[STATUSES[2]], "status_dict": dict(sorted(reasons.items())),
            "files": {**files, path.name: _file_facts(path)},
        }  # fmt: skip

    def key(self, shard: int, at: int) -> str:
        """The key of a pair: the number of the shard and its own, with as many digits as img2dataset writes."""
        return f"{shard:05d}{at:0{max(4, len(str(self.order.config.shard_size - 1)))}d}"

    def _path(self, shard: int, ending: str) -> Path:
        return self.folder / f"{shard:05d}{ending}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lineage": None}


class DroppedWork:
    """Writes the lineage of the candidates of one part that were dropped."""

    def __init__(self, work: Path, entries: int, folder: Path, schema: Any):
        self.work, self.entries, self.folder, self.schema = work, entries, folder, schema

    def __call__(self, task: int, note: Note) -> int:
        arrow, parquet = require_extra("pyarrow", EXTRA), require_extra("pyarrow.parquet", EXTRA)
        note(f"dropped of part {task}")
        table = Lineage(Work(self.work), self.entries).dropped(task)
        fields = [field for field in self.schema if field.name != CAPTIONS]
        fields += [arrow.field("dropped_by", arrow.string()), arrow.field(DROPPED, arrow.string())]
        with writing(self.path(task)), atomic_path(self.path(task)) as temporary:
            parquet.write_table(table.cast(arrow.schema(fields)), temporary, **PARQUET)
        return len(table)

    def path(self, part: int) -> Path:
        return self.folder / DROPPED / f"part-{part:05d}.parquet"

    def rows(self, part: int) -> int:
        parquet = require_extra("pyarrow.parquet", EXTRA)
        return parquet.read_metadata(self.path(part)).num_rows


def write_uids(lineage: Lineage, path: Path) -> int:
    """Write the `uid`s of what is kept as DataComp's subset files have them: sorted pairs of 64-bit numbers; how many.

    Raises:
        DataError: if a kept candidate has no uid of 32 hexadecimal digits.
    """
    pieces = []
    for number in range(lineage.work.num_parts):
        table = lineage.kept(number, lineage.alive(number))
        found = np.empty(len(table), "u8,u8")
        for at, (key, meta) in enumerate(zip(table["source_key"].to_pylist(), table["meta"].to_pylist(), strict=True)):
            uid = json.loads(meta).get("uid") if meta else None
            if not isinstance(uid, str) or len(uid) != 32:
                raise DataError(f"the uid is {uid!r}", source=key, expected="32 hexadecimal digits", fix="leave out --uids")
            try:
                found[at] = (int(uid[:16], 16), int(uid[16:], 16))
            except ValueError:
                raise DataError(f"the uid is {uid!r}", source=key, expected="32 hexadecimal digits") from None
        pieces.append(found)
    merged = np.concatenate(pieces)
    merged.sort()
    with writing(path), atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, merged)
    return len(merged)


def _surveyed(lineage: Lineage) -> tuple[np.ndarray, Any, bool]:
    """Kept rows of each part, the schema that holds them all, and whether any has an address."""
    arrow = require_extra("pyarrow", EXTRA)
    counts, schemas, addresses = [], [], False
    for number in range(lineage.work.num_parts):
        rows = lineage.alive(number)
        counts.append(len(rows))
        schema = lineage.schema(number)
        if schema not in schemas:
            schemas.append(schema)
        if not addresses and not lineage.work.facts.pictures and len(rows):
            addresses = any(lineage.work.part(number, 1).urls)
    try:
        schema = arrow.unify_schemas(schemas, promote_options="permissive")
    except arrow.ArrowException as error:
        what = f"its parts do not fit together: {str(error).splitlines()[0]}"
        raise DataError(what, source=lineage.work.folder, fix="remove the stage that wrote them, and run it again") from None
    return np.array(counts, np.int64), schema, addresses


def _claim(folder: Path, begun: dict[str, Any]) -> None:
    """Refuse a folder that holds something else."""
    path = folder / BEGUN
    if path.is_file():
        found = read_json(path)
        if found != begun:
            changed = [name for name in begun if not isinstance(found, dict) or found.get(name) != begun[name]]
            what = f"holds what was written from something else ({', '.join(changed)} differ)"
            raise DataError(what, source=folder, fix="use another -o, or remove it")
    elif not is_vacant(folder):
        raise DataError("not empty, and not begun by `curate write`", source=folder, fix="use another -o")


def _ended(folder: Path, begun: dict[str, Any], num_shards: int, dropped: int) -> Written:
    """Write the manifest from the stats of the shards."""
    totals: collections.Counter[str] = collections.Counter()
    failures: collections.Counter[str] = collections.Counter()
    shards = []
    for shard in range(num_shards):
        stats = read_json(folder / f"{shard:05d}_stats.json")
        totals.update(rows=stats["count"], pairs=stats["successes"])
        failures.update({reason: count for reason, count in stats["status_dict"].items() if reason != STATUSES[0]})
        totals.update(num_bytes=sum(facts["bytes"] for facts in stats["files"].values()))
        shards.append({"shard": f"{shard:05d}", "pairs": stats["successes"], "files": stats["files"]})
    found = Written(
        kind=begun["kind"], shards=num_shards, rows=totals["rows"], pairs=totals["pairs"],
        failures=dict(sorted(failures.items())), num_bytes=totals["num_bytes"], dropped=dropped,
    )  # fmt: skip
    write_json(folder / MANIFEST, {**begun, **dataclasses.asdict(found), "files": shards})
    return found


def _columns(table: Any) -> dict[str, Any]:
    return {name: table[name].combine_chunks() for name in table.column_names}


def _file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
