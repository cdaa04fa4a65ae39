"""Search a store by words, pictures, items, or arithmetic with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.cli._collection import OfCollection, json_line, load_for, printable, say, stdin_lines
from ostension.errors import DataError, UsageError

if TYPE_CHECKING:
    from ostension.store.query import Expression
    from ostension.store.searcher import Hit
    from ostension.store.sets import EmbeddingSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(OfCollection):
    """Search a store by words, pictures, items, or arithmetic with them.

    A query is words, or a sum: terms with " + " and " - " between them, spaces on both sides. A term is words, @ID for an
    item of the store, image:FILE for a picture, with a weight before it as in 0.5*people. Quotes around a term make words
    of anything. Several queries are answered one after the other.

    Examples:
      ostension search store "a dog on the beach"
      ostension search store "sunset - people + 0.5*boat" -k 20 --where "width >= 640 and not label = indoor"
      ostension search store --image photo.jpg --like dogs/17.jpg
      ostension search store "red" --image dress.jpg --html red-dresses.html
      ostension search store --file queries.txt --format jsonl > hits.jsonl
      ostension search store "a cat" -k 50 --link-to cats
      ostension search store "tabby" --predictor my-classifier

    Args:
        queries: Words or sums; - for one a line on stdin.
        file: A text file with one query a line.
        image: A picture to search with; repeat the flag for several. It is added to each query.
        like: The id of an item to search with; repeat the flag for several. It is added to each query.
        k: How many hits for each query.
        where: Which items may be found: comparisons (= != < <= > >= in contains prefix exists) with and, or, not, brackets.
        model: The model that made the store. Default: the one that the store remembers, else the environment variable
            OSTENSION_MODEL.
        predictor: A saved predictor, adapted or not: words are names of its classes, and their rows are searched for.
        format: A table, or one JSON object for each hit.
        html: Write a page with the pictures to this file instead.
        copy_to: Copy the pictures that were found into this folder.
        link_to: Make links to the pictures that were found in this folder.
        approximate: Use the approximate index that `ostension index build` made. Default: only past ten million items.
        exact: Never use an approximate index.
        database: Search in this PostgreSQL database, which `ostension index push` filled, instead of the files.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
    """

    queries: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    file: Path | None = None
    image: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    like: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    where: str | None = None
    model: str | None = None
    predictor: Path | None = None
    format: Literal["table", "jsonl"] = "table"
    html: Path | None = None
    copy_to: Path | None = None
    link_to: Path | None = None
    approximate: bool = False
    exact: bool = False
    database: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self):
        if not (self.queries or self.file or self.image or self.like):
            raise UsageError("nothing to search for", expected='words as "a dog on the beach", --image, --like or --file')
        if self.k < 0:
            raise UsageError(f"-k is {self.k}", expected="0 or more")
        if self.copy_to is not None and self.link_to is not None:
            raise UsageError("--copy-to and --link-to are both given", expected="one of them")
        if self.exact + self.approximate + (self.database is not None) > 1:
            raise UsageError("--exact, --approximate and --database exclude each other", expected="one of them at most")

    def run(self) -> int:
        from ostension import runtime
        from ostension.cli._search_hits import linked, page, place
        from ostension.store import where
        from ostension.store.query import vectors
        from ostension.store.searcher import Searcher

        expressions = self.expressions()
        wanted = where.parse(self.where) if self.where is not None else None
        opened = self.opened()
        searcher: Any = self._searcher(opened)
        if wanted is not None:
            searcher.check_fields(wanted)  # a typing error must not cost the time of loading a model
        files = Searcher(opened) if self.database is not None else searcher
        model = None
        if any(term.kind != "id" for one in expressions for term in one.terms):
            runtime.set_threads()
            model = self._embedder(opened)
        found = searcher.find(vectors(expressions, model, files.vectors), self.k, wanted)
        if note := searcher.note:
            say(note)
        if self.html is not None:
            page(self.html, opened, [(str(one), hits) for one, hits in zip(expressions, found, strict=True)])
            say(f"wrote {self.html}")
        else:
            self._print(expressions, found)
        if self.copy_to is not None or self.link_to is not None:
            together = [hit for hits in found for hit in hits]
            if self.copy_to is not None:
                failed = place(self.copy_to, opened, together)
            else:
                assert self.link_to is not None
                failed = linked(self.link_to, opened, together)
            for reason in failed:
                say(reason)
            return 1 if failed else 0
        return 0

    def expressions(self) -> list[Expression]:
        """What the flags ask for."""
        from ostension.store.query import Expression, Term, parse

        texts = [line for text in self.queries for line in (map(str.strip, stdin_lines()) if text == "-" else [text])]
        if self.file is not None:
            try:
                texts += _lines(self.file.read_text(encoding="utf-8-sig"))
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"cannot be read ({error})", source=self.file, expected="UTF-8, one query a line") from None
        added = Expression((*(Term("image", path) for path in self.image), *(Term("id", name) for name in self.like)))
        if not texts:
            if not added.terms:
                raise UsageError("nothing to search for", expected="one query a line")
            return [added]
        return [parse(text) + added for text in texts]

    def _embedder(self, opened: EmbeddingSet) -> Any:
        if self.predictor is None:
            return load_for(opened, self.model, device=self.device, dtype=self.dtype)
        from ostension.model.predictor import Predictor
        from ostension.store.class_rows import ClassRows

        found = Predictor.load(self.predictor, self.model, device=self.device, dtype=self.dtype)
        return ClassRows(found, self.predictor, opened)

    def _searcher(self, opened: EmbeddingSet) -> Any:
        from ostension.store.searcher import Searcher

        if self.database is not None:
            from ostension.store.pgvector import Database

            return Database(self.database).searcher(opened)
        return Searcher(opened, index="approximate" if self.approximate else "exact" if self.exact else "auto")

    def _print(self, expressions: Sequence[Expression], found: Sequence[Sequence[Hit]]) -> None:
        for one, hits in zip(expressions, found, strict=True):
            if self.format == "jsonl":
                for rank, hit in enumerate(hits, 1):
                    entry = {"query": str(one), "rank": rank, "id": hit.id, "score": round(hit.score, 6), "fields": hit.fields}
                    print(json_line(entry), flush=True)
                continue
            if len(expressions) > 1 or len(one.terms) > 1:
                print(f"# {printable(str(one))}")
            if not hits:
                print("  nothing found")
            for hit in hits:
                print(f"  {hit.score:7.4f}  {printable(hit.id)}{_said(hit)}", flush=True)


COMMAND = Search


def _said(hit: Hit) -> str:
    """The labels, or else the first text, of a hit."""
    labels, texts = hit.fields.get("labels") or [], hit.fields.get("texts") or []
    shown = ", ".join(map(str, labels)) or (str(texts[0]) if texts else "")
    shown = "" if shown == hit.id else shown  # a caption of a list is called what it says
    return f"  {printable(shown if len(shown) <= 60 else shown[:59] + '…')}" if shown else ""


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]
