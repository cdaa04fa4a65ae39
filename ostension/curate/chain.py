"""A whole curation as one TOML file: the source, then its stages in order.

    source = "cc/{00000..00331}.tar"     # or a list
    part_size = 10000                    # optional
    layout = { texts = ["title"] }       # optional, as `data.layout.Layout`

    [[stages]]
    name = "match"
    queries = "queries.parquet"          # a stage's settings stand beside its name

    [[stages]]
    name = "balance"
    limit = 20000

Paths of the source and in settings are relative to where the command is run.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostension.config import from_tree
from ostension.curate.base import Stage, load_stage
from ostension.curate.candidates import describe
from ostension.curate.run import On, Progress, begin, connected, run_stage
from ostension.curate.work import PART_SIZE, Work
from ostension.data.layout import USUAL, Layout
from ostension.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """A curation.

    Attributes:
        source: what the pairs or captions come from.
        stages: in order.
        part_size: rows a part.
        layout: of the source.
        captions_only: take the captions alone (see `candidates.describe`).
    """

    source: tuple[str, ...]
    stages: tuple[Stage, ...]
    part_size: int = PART_SIZE
    layout: Layout = USUAL
    captions_only: bool = False


def read_chain(path: Path) -> Chain:
    """The chain in a TOML file.

    Raises:
        ConfigError: for a file that is no TOML, unknown stages or settings.
        DataError: if it cannot be read.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=path, expected="a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"no TOML: {error}", source=path) from None
    listed = tree.pop("stages", [])
    if not isinstance(listed, list) or not listed or not all(isinstance(item, Mapping) for item in listed):
        raise ConfigError("no stages", source=path, expected="one [[stages]] table or more")
    stages = tuple(_stage(dict(item), number, path) for number, item in enumerate(listed, 1))
    if isinstance(tree.get("source"), str):
        tree["source"] = [tree["source"]]
    head = from_tree(_Head, tree, source=path)
    return Chain(stages=stages, **{field.name: getattr(head, field.name) for field in dataclasses.fields(head)})


def run_chain(
    chain: Chain, folder: Path, *, workers: int = 0, on: On = "local", progress: Progress | None = None
) -> Work:  # fmt: skip
    """Run every stage that is not done.

    Raises:
        DataError: if the folder's stages are others.
    """
    for stage in chain.stages:
        stage.check()
    facts = describe(chain.source, layout=chain.layout, part_size=chain.part_size, captions_only=chain.captions_only)
    with connected(on, workers):
        work = begin(folder, facts, workers=workers, on=on, progress=progress)
        for place, stage in enumerate(chain.stages, 1):
            run_stage(work, stage.name, stage.config, place=place, workers=workers, on=on, progress=progress)
    return work


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Head:
    source: tuple[str, ...]
    part_size: int = PART_SIZE
    layout: Layout = USUAL
    captions_only: bool = False


def _stage(tree: dict[str, Any], number: int, path: Path) -> Stage:
    name = tree.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"stage {number} has no name", source=path, expected='name = "match", say')
    kind = load_stage(name, source=f"{path} stage {number}")
    return kind(from_tree(kind.config_type, tree, source=f"{path} stage {number} ({name})"))
