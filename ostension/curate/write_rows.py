"""What is said of one written pair: in img2dataset's words, in its JSON, and before its lineage in the Parquet."""

from __future__ import annotations

import json
import re
from typing import Any

from ostension.curate.base import TEXTS
from ostension.curate.lineage import CAPTIONS, plain
from ostension.curate.work import EXTRA
from ostension.errors import require_extra

STATUSES = ("success", "failed_to_download", "failed_to_resize")  # img2dataset's
SHORT = 16  # values of a list that a sample's JSON repeats; all are in the Parquet
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OWN = {CAPTIONS, "lineage", "source_key"}  # of an earlier writing, they would contradict this one


def described(key: str, row: dict[str, Any]) -> dict[str, Any]:
    """What img2dataset says of a sample; `sha256` and the original size are of the file as it was first fetched."""
    meta = _meta(row)
    sizes = {name: meta.get(name) for name in ("original_width", "original_height")}
    sizes = {name: value if type(value) is int and 0 < value < 1 << 31 else None for name, value in sizes.items()}
    digest = meta.get("sha256")
    digest = digest if isinstance(digest, str) and _SHA256.fullmatch(digest) else None
    return {
        "key": key, "url": row["url"], "caption": row[CAPTIONS][0], "status": STATUSES[0], "error_message": None,
        "width": None, "height": None, **sizes, "sha256": digest, "content_sha256": None,
    }  # fmt: skip


def with_facts(table: Any, facts: list[dict[str, Any]]) -> Any:
    """The lineage with the facts of each row before it; a stage's columns keep their names."""
    arrow = require_extra("pyarrow", EXTRA)
    numbers = {"width", "height", "original_width", "original_height"}
    columns = {
        name: arrow.array([one[name] for one in facts], arrow.int32() if name in numbers else arrow.string())
        for name in facts[0]
    }
    columns.update({name: table[name] for name in table.column_names if name not in columns})
    return arrow.table(columns)


def _meta(row: dict[str, Any]) -> dict[str, Any]:
    return json.loads(row["meta"]) if row["meta"] else {}


def sample_json(row: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """KEY.json: what the source said of a sample, for readers that look for its names, then what is known of it now."""
    said = {name: value for name, value in _meta(row).items() if name not in _OWN}
    return plain({**said, **facts, CAPTIONS: row[CAPTIONS], "source_key": row["source_key"], "lineage": summary(row)})


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """The stages' columns of a row as JSON, without long lists."""
    found = {}
    for name, value in row.items():
        _, dot, column = name.rpartition(".")
        if not dot or column in (TEXTS, "text_reasons") or value is None or (isinstance(value, list) and len(value) > SHORT):
            continue
        found[name] = plain(value)
    return found
