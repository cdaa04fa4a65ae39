"""Embed pictures, or captions, into a store, to search them, and keep it up to date."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.cli._collection import stdin_lines
from ostension.cli.classify import model_name
from ostension.errors import ConfigError, DataError, UsageError

if TYPE_CHECKING:
    from ostension.data.fetch import FetchPolicy
    from ostension.data.pairs import PairSource
    from ostension.store.collection import Source
    from ostension.store.fill import Progress
    from ostension.store.growing import Added

SHOWN = 10  # of those that could not be used, on the screen
EVERY_S = 2.0  # between lines of progress where stderr is no screen, ten times as long
FETCHING = 32  # threads that wait for servers
FETCHING_FLAGS = ("hosts", "max_bytes", "timeout", "allow_private")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed pictures, or captions, into a store, to search them, and keep it up to date.

    The same command again adds what is new, embeds what has changed, and goes on where a run was stopped or killed. Pictures
    that cannot be used are listed with the reason, on stderr and in STORE/NAME-failures.jsonl, and the rest goes on. Under
    `torchrun` every process, on every machine, embeds its part; all must see the pictures and the store.

    Prints one JSON object: what was done. Exit status 1 if pictures could not be used that had not been listed before (under
    torchrun 0, which would take it for a crash).

    Examples:
      ostension embed pictures/ -o store --model FOLDER
      ostension embed "shards/{00000..00331}.tar" -o store --name web --dtype bfloat16 --processes 8
      ostension embed photos.parquet -o store --prune
      ostension embed urls.txt -o store --hosts "pictures.example,*.cdn.example"
      find . -name "*.jpg" | ostension embed - -o store
      ostension embed captions.txt --of texts -o store --name captions
      torchrun --nproc-per-node 4 -m ostension embed pictures/ -o store

    Args:
        source: A folder of pictures (with NAME.txt and NAME.json beside them, or without), tar shards, Parquet, CSV, a table
            with a column of URLs, a .txt file with a path or a URL a line, or - for such lines on stdin. With --of texts
            captions: a .txt file or - with one a line, a table with a column of them, or those of any source of pictures.
        output: The folder of the store.
        name: The collection in it.
        of: What of the source is embedded: images, or texts, for a collection in which pictures find their captions.
        truncate: With --of texts, cut captions that are too long for the model instead of leaving them out.
        model: A model's folder, file or hub name. Default: the environment variable OSTENSION_MODEL.
        prefix: Put before the ids of this source, where two sources have the same ids.
        source_name: What the source is called in the collection. Default: its path. A folder that was moved keeps its name
            by this.
        metadata: A CSV or Parquet table with more fields, by a column id, key, filepath, file_name or path.
        prune: Also remove rows of this source whose pictures are gone from it.
        retry: Try again what could not be used before.
        dry_run: Say what would be done, and do nothing.
        batch_size: Pictures that pass the model together.
        workers: Threads that decode, or fetch. Default: one a processor, 32 for URLs.
        processes: Processes that decode and compute with one thread each, instead of --workers.
        threads: Threads that compute. Default: OMP_NUM_THREADS, else one a processor.
        stored: Type of the numbers on the disk. Default: that of the collection, else float16.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16; with another engine than torch the precision, auto,
            float32, bfloat16, int8. Default: that of the collection, else auto.
        engine: What runs the image tower: torch, onnx (onnxruntime), openvino, or auto, the fastest by a short measurement,
            which is kept. Default: that of the collection, else torch. --model may also be a folder of `ostension export`.
        image_column: The table's column with images, where it has no usual name.
        text_columns: Columns or JSON keys with captions, separated by commas.
        hosts: Hosts that URLs may be at, separated by commas. Default: every public one.
        max_bytes: Most bytes of a picture at a URL.
        timeout: Seconds for a picture at a URL.
        allow_private: Also fetch from addresses that are not public. For lists of your own only.
        quiet: Say nothing but the result and errors.
    """

    source: Annotated[str, tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    name: str = "default"
    of: Literal["images", "texts"] = "images"
    truncate: bool = False
    model: str | None = None
    prefix: str = ""
    source_name: str | None = None
    metadata: Path | None = None
    prune: bool = False
    retry: bool = False
    dry_run: bool = False
    batch_size: int = 64
    workers: int | None = None
    processes: int = 1
    threads: int | None = None
    stored: Literal["float16", "float32"] | None = None
    device: str = "auto"
    dtype: str | None = None
    engine: Literal["torch", "onnx", "openvino", "auto"] | None = None
    image_column: str | None = None
    text_columns: str = ""
    hosts: str = ""
    max_bytes: int = 20_000_000
    timeout: float = 10.0
    allow_private: bool = False
    quiet: bool = False

    def __post_init__(self):
        for name in ("batch_size", "processes", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}", expected="1 or more")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers is {self.workers}", expected="0 or more")
        if self.of == "texts" and self.processes > 1:
            raise UsageError("--processes is given for texts", fix="--threads, or torchrun with several processes")
        if self.of == "images" and self.truncate:
            raise UsageError("--truncate is given for pictures", fix="leave it out, or add --of texts")
        if self.of == "texts" and (flags := self._given("workers", "image_column") + self._given(*FETCHING_FLAGS)):
            raise UsageError(f"{flags[0]} has no effect on texts", fix="leave it out")
        if self.processes > 1 and self.workers:
            raise UsageError("--workers and --processes are both given", fix="several processes decode for themselves")

    def _given(self, *names: str) -> list[str]:
        """Those of some flags that are not as they are by default."""
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) != getattr(type(self), name)]

    def run(self) -> int:
        from ostension import runtime, world

        runtime.set_threads(self.threads)
        with world.joined("cuda" if self.device.startswith("cuda") else "cpu") as here:
            say = _Talk(quiet=self.quiet or not here.first)
            source, origin = here.together(lambda: self.open(say))
            added = self.add(source, origin, say)
            if here.first:
                self.tell(added, origin, say)
        # torchrun would call it a crash, and end the others in the middle of what they do.
        return 1 if added.failed and here.size == 1 else 0

    def open(self, say: _Talk) -> tuple[PairSource, Source]:
        """The source, with the fields of --metadata, and where it lies."""
        from ostension.data.layout import Layout
        from ostension.data.picture_lists import WithFields, fields_by_id
        from ostension.store.origins import LIST, left_out, open_source, open_texts

        texts = tuple(name.strip() for name in self.text_columns.split(",") if name.strip())
        layout, lines = Layout(image=self.image_column, texts=texts), stdin_lines() if self.source == LIST else ()
        try:
            if self.of == "texts":
                source, origin = open_texts(
                    self.source, prefix=self.prefix, name=self.source_name, columns=texts, layout=layout, lines=lines
                )
            else:
                source, origin = open_source(
                    self.source, prefix=self.prefix, name=self.source_name, layout=layout, policy=self.policy(), lines=lines
                )
        except ConfigError as error:
            if "layout." not in (error.fix or ""):
                raise
            raise ConfigError(
                error.what, source=error.source, expected=error.expected, fix="or name it: --image-column, --text-columns"
            ) from None  # who reads this knows flags, and no settings
        if origin.kind == "urls" and self.processes > 1:
            raise UsageError("--processes is given for pictures at URLs", fix="--workers is how many are fetched at once")
        self._check_effects(source, origin)
        for reason, count in left_out(source).items():
            if count:
                say(f"{count:,} left out: {reason}")
        if self.metadata is not None:
            found = WithFields(source, fields_by_id(self.metadata), self.metadata)
            if found.without:
                say(f"{found.without:,} of {len(found):,} samples are not in {self.metadata}")
            source = found
        return source, origin

    def _check_effects(self, source: PairSource, origin: Source) -> None:
        """Refuse flags that this source has no use for.

        Raises:
            UsageError: naming one.
        """
        from ostension.data.picture_lists import Listed

        if self.of == "images":
            flags = [] if origin.kind == "urls" else self._given(*FETCHING_FLAGS)
            if flags:
                raise UsageError(f"{flags[0]} is for pictures at URLs, and {self.source} has none", fix="leave it out")
            flags = self._given("image_column", "text_columns") if isinstance(source, Listed) else []
            if flags:
                raise UsageError(
                    f"{flags[0]} is for tables and shards with pictures, which {self.source} is not", fix="leave it out"
                )

    def policy(self) -> FetchPolicy:
        """What may be fetched; a server that says "noai" or "noimageai" is heard."""
        from ostension.data.fetch import NO_AI, FetchPolicy

        hosts = tuple(name.strip() for name in self.hosts.split(",") if name.strip())
        return FetchPolicy(
            hosts=hosts or None, max_bytes=self.max_bytes, timeout_s=self.timeout, disallowed=NO_AI,
            allow_private=self.allow_private, ports=None if self.allow_private else (80, 443),
        )  # fmt: skip

    def add(self, source: PairSource, origin: Source, say: _Talk) -> Added:
        """Load the model and add the source's pictures."""
        from ostension import world
        from ostension.export.engines import load_encoder
        from ostension.store.collection import collection_names, computed_by
        from ostension.store.folder import Store
        from ostension.store.growing import add
        from ostension.store.key import ModelKey

        store, named = Store(self.output), model_name(self.model)
        there = collection_names(store).get(self.name)
        key = store.keys()[there] if there else None
        engine, dtype = computed_by(key.computed) if key else ("torch", "auto")
        if self.engine is not None and self.engine != engine:
            engine, dtype = self.engine, "auto"
        dtype = self.dtype or dtype
        if engine != "torch" and self.processes > 1:
            raise UsageError(
                f"--processes is given with the engine {engine}", fix="an engine has threads of its own: --threads"
            )
        model = world.current().together(
            lambda: load_encoder(named, engine, device=self.device, dtype=dtype, threads=self.threads)  # type: ignore[arg-type]
        )
        made = ModelKey.of(model)
        stored = self.stored or (key.stored if key else "float16")
        say(f"store {self.output}, collection {self.name}; model {model.config.name} in {made.computed}")
        workers = self.workers if origin.kind != "urls" or self.workers is not None else FETCHING
        return add(
            store, model, source, name=self.name, origin=origin, stored=stored, batch_size=self.batch_size,
            workers=0 if self.processes > 1 else workers, processes=self.processes, retry=self.retry, prune=self.prune,
            dry_run=self.dry_run, made=made, model_at=os.path.abspath(named) if os.path.exists(named) else named,
            truncate=self.truncate, progress=say.progress, scanned=say.scanned,
        )  # fmt: skip

    def tell(self, added: Added, origin: Source, say: _Talk) -> None:
        """The result on stdout, and what could not be used on stderr and in a file."""
        from ostension.cli.classify import shown
        from ostension.files import atomic_path

        path = self.output / f"{self.name}-failures.jsonl"
        for name, reason in added.problems[:SHOWN]:
            say(f"{shown(Path(name))}: {reason}")
        if added.problems:
            before = f", {added.known_bad:,} of them before" if added.known_bad else ""
            say(f"{len(added.problems):,} of {added.samples:,} could not be used{before}")
        if not self.dry_run:
            listed = [{"id": name, "reason": why, "source": origin.name} for name, why in added.problems]
            listed = _of_others(path, origin.name) + listed
            try:
                if listed:
                    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
                        handle.writelines(json.dumps(entry) + "\n" for entry in listed)
                    if added.problems:
                        say(f"all of them: {path}")
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"cannot be written: {error.strerror}", source=path, fix="make room") from None
        tree: dict[str, Any] = {"store": str(self.output), "collection": self.name, "dry_run": self.dry_run}
        tree |= {name: value for name, value in dataclasses.asdict(added).items() if name not in ("name", "problems")}
        print(json.dumps(tree))


COMMAND = Embed


def _of_others(path: Path, source: str) -> list[dict[str, str]]:
    """What is listed in a file of failures of sources other than this one."""
    if not path.is_file():
        return []
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [entry for entry in entries if entry["source"] != source]
    except (ValueError, KeyError, TypeError, OSError):  # another version's, or damaged: it is written anew
        return []


class _Talk:
    """What is said on stderr while it goes on: one line that is written again and again, or a line now and then."""

    def __init__(self, quiet: bool):
        self._quiet, self._screen, self._last, self._open = quiet, sys.stderr.isatty(), time.monotonic(), False

    def __call__(self, text: str) -> None:
        if not self._quiet:
            self._end()
            print(f"ostension: {text}", file=sys.stderr, flush=True)

    def scanned(self, done: int, total: int) -> None:
        self._now(f"looked at {done:,} of {total:,}", done == total)

    def progress(self, progress: Progress) -> None:
        self._now(f"embedded {progress}", progress.done == progress.total)

    def _now(self, text: str, last: bool) -> None:
        now = time.monotonic()
        if self._quiet or (not last and now - self._last < (EVERY_S / 10 if self._screen else EVERY_S * 10)):
            return
        self._last = now
        if self._screen:
            print(f"\r\x1b[Kostension: {text}", end="", file=sys.stderr, flush=True)
            self._open = True
            if last:
                self._end()
        else:
            print(f"ostension: {text}", file=sys.stderr, flush=True)

    def _end(self) -> None:
        if self._open:
            print(file=sys.stderr)
            self._open = False
