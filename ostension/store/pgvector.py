"""A collection in PostgreSQL with pgvector, for many machines: pushed as it is, searched by the same call, with filters.

Each collection has one table, named by the hash of its key; so vectors of two models never meet. `facts` has the values of
each field as filters see them (see `facts`), `fields` what is shown with a hit. A push sends what changed, in one
transaction, and notes the state of the collection: a searcher of files in another state is refused. Products are the
database's, in float32; equal ones go by the row number.

Letters: N rows, E embedding, Q queries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ostension.errors import ConfigError, DataError, require_extra, unknown_name
from ostension.files import sha256_json
from ostension.store.exact import as_queries, search
from ostension.store.facts import Facts
from ostension.store.index import K, least_recall, probes
from ostension.store.searcher import Hit
from ostension.store.sets import EmbeddingSet
from ostension.store.where import ALIASES, Where

EXTRA = "pgvector"
SETS = "ostension_sets"
SEND = 2000  # rows that are read and sent at a time
MOST_EF = 1000  # pgvector's limit of hnsw.ef_search
_NUMBER = r"^\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What a push did: rows that were sent, taken away, and are there now; the recall@10 of the index, if there is one."""

    table: str
    sent: int
    removed: int
    rows: int
    recall: float | None


class Database:
    """A database, by its URL.

    Raises:
        MissingExtraError: if psycopg is not installed.
    """

    def __init__(self, url: str):
        self._psycopg = require_extra("psycopg", EXTRA)
        self._url = url

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        """A connection with one transaction.

        Raises:
            DataError: for what the database refuses, without the URL, which may have a password.
        """
        try:
            with self._psycopg.connect(self._url, connect_timeout=10) as connection:
                yield connection
        except self._psycopg.Error as error:
            why = (str(error).splitlines() or ["no reason given"])[0]
            raise DataError(f"the database says: {why}", fix="see docs/howto/search.md for what it needs") from None

    def push(self, opened: EmbeddingSet, *, hnsw: bool = False) -> Pushed:
        """Make the collection's table like the collection.

        Args:
            hnsw: also make an HNSW index and measure its recall.

        Raises:
            DataError: if the database refuses, as where the extension is not installed.
        """
        if not len(opened):
            raise DataError("there are no rows to push", source=opened.folder)
        table, kind = table_of(opened), "halfvec" if opened.key.stored == "float16" else "vector"
        with self.connected() as connection:
            run = connection.execute
            run("CREATE EXTENSION IF NOT EXISTS vector")
            run(
                f"CREATE TABLE IF NOT EXISTS {SETS} (name text PRIMARY KEY, key jsonb NOT NULL, state text NOT NULL,"
                " names jsonb NOT NULL, recall double precision)"
            )
            run(
                f'CREATE TABLE IF NOT EXISTS {table} (id text COLLATE "C" PRIMARY KEY, ord bigint NOT NULL,'
                " mark bigint NOT NULL, fields jsonb NOT NULL, facts jsonb NOT NULL,"
                f" embedding {kind}({opened.width}) NOT NULL)"
            )
            run(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")  # one writer; readers go on
            sent, removed = self._send(connection, opened, table, kind)
            recall = None
            if hnsw:
                run(f"CREATE INDEX IF NOT EXISTS {table}_hnsw ON {table} USING hnsw (embedding {kind}_ip_ops)")
                recall = self._recall(connection, opened, table, kind)
            else:
                run(f"DROP INDEX IF EXISTS {table}_hnsw")
            run(
                f"INSERT INTO {SETS} VALUES (%s, %s, %s, %s, %s) ON CONFLICT (name) DO UPDATE SET state = excluded.state,"
                " names = excluded.names, recall = excluded.recall",
                (table, json.dumps(opened.key.tree()), state_of(opened), json.dumps(Facts(opened).names()), recall),
            )
        return Pushed(table, sent, removed, len(opened), recall)

    def _send(self, connection: Any, opened: EmbeddingSet, table: str, kind: str) -> tuple[int, int]:
        there = dict(connection.execute(f"SELECT id, mark FROM {table}").fetchall())
        facts = Facts(opened)
        connection.execute(f"CREATE TEMP TABLE new (LIKE {table}) ON COMMIT DROP")
        connection.execute('CREATE TEMP TABLE moved (id text COLLATE "C", ord bigint) ON COMMIT DROP')
        sent = 0
        for start in range(0, len(opened), SEND):
            rows = np.arange(start, min(start + SEND, len(opened)))
            block = opened.rows[start : start + len(rows)]
            ids, known = opened.column("id", rows), facts.of(rows)
            lines, moved = [], []
            for place, (name, fields) in enumerate(zip(ids, known, strict=True)):
                shown = json.dumps(fields, ensure_ascii=False, sort_keys=True)
                digest = hashlib.blake2b(block[place].tobytes() + shown.encode(), digest_size=8).digest()
                mark = int.from_bytes(digest, "little", signed=True)
                moved.append((name, start + place))
                if there.get(name) != mark:
                    values = json.dumps({"id": [name], **_values(fields)}, ensure_ascii=False)
                    vector = "[" + ",".join(f"{number:.9g}" for number in block[place].tolist()) + "]"
                    lines.append((name, start + place, mark, shown, values, vector))
            with connection.cursor().copy("COPY new FROM STDIN") as copy:
                for line in lines:
                    copy.write_row(line)
            with connection.cursor().copy("COPY moved FROM STDIN") as copy:
                for pair in moved:
                    copy.write_row(pair)
            sent += len(lines)
        removed = connection.execute(f"DELETE FROM {table} WHERE id NOT IN (SELECT id FROM moved)").rowcount
        connection.execute(
            f"INSERT INTO {table} SELECT * FROM new ON CONFLICT (id) DO UPDATE SET ord = excluded.ord, mark = excluded.mark,"
            " fields = excluded.fields, facts = excluded.facts, embedding = excluded.embedding"
        )
        connection.execute(f"UPDATE {table} t SET ord = m.ord FROM moved m WHERE t.id = m.id AND t.ord <> m.ord")
        return sent, removed

    def _recall(self, connection: Any, opened: EmbeddingSet, table: str, kind: str) -> float:
        connection.execute(f"ANALYZE {table}")
        queries = probes(opened, 0)
        exact = search(opened.rows, queries, K).rows
        with _settings(connection, K):
            found = [[row for _, row, *_ in _ask(connection, table, kind, vector, K, None)] for vector in queries]
        return least_recall(found, exact)

    def searcher(self, opened: EmbeddingSet) -> DatabaseSearcher:
        """A searcher of a collection's table.

        Raises:
            DataError: if it was not pushed, or the collection has changed since.
        """
        table = table_of(opened)
        with self.connected() as connection:
            there = connection.execute("SELECT to_regclass(%s)", (SETS,)).fetchone()[0] is not None
            query = f"SELECT state, names, recall FROM {SETS} WHERE name = %s"
            found = connection.execute(query, (table,)).fetchone() if there else None
        if found is None:
            raise DataError("the database does not have this collection", source=opened.folder, fix="ostension index push")
        state, names, recall = found
        if state != state_of(opened):
            what = "the database has this collection in another state"
            raise DataError(what, source=opened.folder, fix="push it again: ostension index push")
        return DatabaseSearcher(self, opened, table, names, recall)


class DatabaseSearcher:
    """Finds rows in the database, as `Searcher` does in files."""

    def __init__(self, database: Database, opened: EmbeddingSet, table: str, names: Sequence[str], recall: float | None):
        self.opened, self._database, self._table = opened, database, table
        self._names, self._recall = list(names), recall

    @property
    def note(self) -> str:
        """What should be said with the answers; empty for exact ones."""
        if self._recall is None:
            return ""
        return f"approximate: HNSW index in PostgreSQL, measured recall@{K} {self._recall:.3f}"

    def check_fields(self, where: Where) -> None:
        """Refuse a filter that asks for a field which the set does not have."""
        for name in where.names():
            if name not in self._names:
                raise unknown_name("field", name, self._names, source=self.opened.folder)

    def find(self, vectors: Any, k: int = 10, where: Where | None = None) -> list[list[Hit]]:
        """The `k` best rows for each query, best first; see `Searcher.find`."""
        if k < 0:
            raise ConfigError(f"k = {k}", expected="0 or more")
        wanted = as_queries(vectors, self.opened.rows)
        if where is not None:
            self.check_fields(where)
        kind = "halfvec" if self.opened.key.stored == "float16" else "vector"
        with self._database.connected() as connection, _settings(connection, k):
            found = [_ask(connection, self._table, kind, vector, k, where) for vector in wanted]
        return [[Hit(name, -far, row, fields) for name, row, fields, far in some] for some in found]


def table_of(opened: EmbeddingSet) -> str:
    """The name of a collection's table."""
    return f"ostension_{opened.key.sha256()[:24]}"


def state_of(opened: EmbeddingSet) -> str:
    """A hash of which rows a set has, and which count."""
    manifest = opened.manifest
    shards = [[shard.name, shard.rows_sha256, shard.sidecar_sha256] for shard in manifest.shards]
    return sha256_json([shards, None if manifest.deleted is None else manifest.deleted.sha256])


def _ask(connection: Any, table: str, kind: str, vector: np.ndarray, k: int, where: Where | None) -> list[tuple[Any, ...]]:
    values: list[Any] = []
    passing = "" if where is None else "WHERE " + _condition(where, values)
    text = "[" + ",".join(f"{number:.9g}" for number in vector.tolist()) + "]"
    # The inner query alone can use an index; ties are put in the order of the set among what it finds.
    found = connection.execute(
        f"SELECT id, ord, fields, far FROM (SELECT id, ord, fields, embedding <#> %s::{kind} AS far FROM {table} {passing}"
        f" ORDER BY embedding <#> %s::{kind} LIMIT %s) best ORDER BY far, ord",
        [text, *values, text, k],
    )
    return found.fetchall()


@contextlib.contextmanager
def _settings(connection: Any, k: int) -> Iterator[None]:
    """Within it an HNSW index looks at enough nodes for k answers, and goes on where a filter leaves too few."""
    connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(max(100, min(MOST_EF, 4 * k))),))
    connection.execute("SELECT set_config('hnsw.iterative_scan', 'strict_order', true)")
    yield


def _values(fields: dict[str, Any]) -> dict[str, list[Any]]:
    """The values of each field, as `Facts` has them."""
    from ostension.store.facts import leaves

    found: dict[str, list[Any]] = {}
    for name, value in leaves(fields, ""):
        found.setdefault(name, []).append(value)
    for alias, name in ALIASES.items():
        if name in found and alias not in found:
            found[alias] = found[name]
    return found


def _condition(where: Where, values: list[Any]) -> str:
    """A filter as SQL; the values go into the list, never into the text."""
    if where.op == "not":
        return f"NOT ({_condition(where.parts[0], values)})"
    if where.parts:
        return "(" + f" {where.op.upper()} ".join(_condition(part, values) for part in where.parts) + ")"
    if where.op == "exists":
        values.append(where.field)
        return f"{'NOT ' if where.value is False else ''}jsonb_exists(facts, %s)"
    if where.op in ("ne", "nin"):
        return f"NOT {_condition(Where('eq' if where.op == 'ne' else 'in', where.field, where.value), values)}"
    values.append(where.field)
    tests = [_one("eq", value, values) for value in where.value] if where.op == "in" else [_one(where.op, where.value, values)]
    return f"EXISTS (SELECT FROM jsonb_array_elements(facts -> %s) v WHERE {' OR '.join(tests)})"


def _one(op: str, value: Any, values: list[Any]) -> str:
    """One value of a row, `v`, compared as `where` compares."""
    text: Callable[[str], str] = lambda what: f'({what}) COLLATE "C"'
    plain = "v #>> '{}'"
    if op in ("contains", "prefix"):
        values.append(("true" if value else "false") if isinstance(value, bool) else str(value))
        function = "strpos(lower({}), lower(%s)) > 0" if op == "contains" else "starts_with(lower({}), lower(%s))"
        return function.format(plain)
    sign = {"eq": "=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}[op]
    if isinstance(value, bool):
        values.append(str(value).lower())
        return f"(jsonb_typeof(v) IN ('boolean', 'string') AND {text(f'lower({plain})')} {sign} %s)"
    if isinstance(value, str):
        values.extend((value.lower(), value))
        return f"(CASE jsonb_typeof(v) WHEN 'boolean' THEN {text(plain)} {sign} %s ELSE {text(plain)} {sign} %s END)"
    values.extend((value, value))
    number = f"({plain})::numeric {sign} %s"
    return (
        f"(CASE WHEN jsonb_typeof(v) = 'number' THEN {number}"
        f" WHEN jsonb_typeof(v) = 'string' AND {plain} ~ '{_NUMBER}' THEN {number} ELSE false END)"
    )
