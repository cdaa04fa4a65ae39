"""What a person decides about duplicates: thresholds, and samples that stay in any case; carried out without a new search.

The search of `dedup` went past its thresholds (`look_bits`, `look_threshold`), so that a decision between there and equality
needs only the pairs that it kept. A decision changes the settings of the stage and makes its last columns anew; what was
computed from pictures stays. It is written down beside them, bound to the search, with who made it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ostension.config import from_tree, to_tree
from ostension.curate.base import load_stage
from ostension.curate.duplicates_search import load_pairs
from ostension.curate.duplicates_table import Table
from ostension.curate.run import REDUCED, run_stage
from ostension.curate.work import DONE, STAGE, Entry, Work, identity, read_part
from ostension.errors import ConfigError, DataError
from ostension.evals.overlap_review import FILE, Decision
from ostension.files import read_json, write_json

if TYPE_CHECKING:
    from ostension.curate.stages.dedup import Config

NAME = "dedup"


class Sample(NamedTuple):
    """A candidate: its key, its captions, and its place in the source."""

    key: str
    texts: tuple[str, ...]
    place: int


def entry_of(work: Work) -> Entry:
    """The last stage that dropped duplicates.

    Raises:
        DataError: if there is none, or it has not ended.
    """
    found = [entry for entry in work.entries if entry.name == NAME]
    if not found:
        raise DataError("no duplicates were looked for", source=work.folder, fix="run `ostension curate dedup` before")
    found[-1].counts()  # it has ended
    return found[-1]


def config_of(entry: Entry) -> Config:
    """The settings of the stage."""
    return from_tree(load_stage(NAME).config_type, entry.settings, source=entry.folder / STAGE)


def samples_of(work: Work, ids: Sequence[int] | np.ndarray) -> dict[int, Sample]:
    """Candidates by their ids."""
    wanted, size = np.unique(np.asarray(ids, dtype=np.int64)), work.facts.part_size
    found = {}
    for number in np.unique(wanted // size).tolist():
        here = wanted[wanted // size == number]
        table = read_part(work.entries[0].part(number), ["key", "texts", "place"]).take(here - number * size)
        for one, row in zip(here.tolist(), table.to_pylist(), strict=True):
            found[one] = Sample(row["key"], tuple(row["texts"]), row["place"])
    return found


def decide(
    work: Work, *, bits: int | None = None, threshold: float | None = None, exclude: Sequence[str] = (), by: str = "",
    workers: int = 0,
) -> Entry:  # fmt: skip
    """Carry out a decision: the stage's last columns are made anew, and nothing is searched.

    Args:
        bits, threshold: None leaves what the stage has.
        exclude: keys of samples that stay in any case.
        by: who decided.

    Raises:
        ConfigError: for thresholds that the search did not reach, or a key that is none of a duplicate.
        DataError: if stages after this one rest on it.
    """
    entry = entry_of(work)
    if entry.number + 1 < len(work.entries):
        later = work.entries[entry.number + 1].folder
        raise DataError(
            "later stages rest on these duplicates", source=work.folder, fix=f"remove {later} and what comes after it"
        )
    config = config_of(entry)
    reach = config.reach()
    if bits is not None and ("hash" not in config.rules or bits > reach.bits):
        expected = f"at most {reach.bits}" if "hash" in config.rules else "none, as hashes were not compared"
        raise ConfigError(f"{bits} bits", expected=expected, fix="search again with --look-bits")
    if threshold is not None and (config.detector is None or threshold < reach.cosine):
        expected = "none, as there was no detector" if config.detector is None else f"{reach.cosine:.4f} or more"
        raise ConfigError(f"a threshold of {threshold:g}", expected=expected, fix="search again with --look-threshold")
    _check_keys(work, entry, config, exclude)
    changed = dataclasses.replace(
        config, bits=config.bits if bits is None else bits, threshold=config.threshold if threshold is None else threshold,
        look_bits=reach.bits if "hash" in config.rules else None, look_threshold=reach.cosine if config.detector else None,
        exclude=tuple(exclude),
    )  # fmt: skip
    search = entry.counts()["facts"]["search"]
    _replace_settings(work, entry, to_tree(changed))
    made = run_stage(work, NAME, changed, place=entry.number, workers=workers)
    reasons = dict.fromkeys(exclude, "seen to be another picture")
    hashes = changed.bits if "hash" in changed.rules else None
    if hashes is not None or changed.threshold is not None:
        decision = Decision(threshold=changed.threshold, bits=hashes, excluded=reasons, search=search, by=by)
        decision.save(made.folder)
    return made


def decision_of(entry: Entry) -> Decision | None:
    """The decision that was written down, if it is about this search."""
    if not (entry.folder / FILE).is_file():
        return None
    found = from_tree(Decision, read_json(entry.folder / FILE), entry.folder / FILE)
    return found if found.search == entry.counts()["facts"]["search"] else None


def _check_keys(work: Work, entry: Entry, config: Config, keys: Sequence[str]) -> None:
    """Every key is one of a sample that is in a pair, as far as the search went."""
    from ostension.curate.stages.dedup import TABLE

    left = set(keys)
    if not left:
        return
    pairs = load_pairs(entry.folder, config.reach().rules).values()
    places = np.unique(np.concatenate([side for edges in pairs for side in (edges.a, edges.b)]))
    ids, size = Table(entry.folder / TABLE)["id"][places], work.facts.part_size
    for number in np.unique(ids // size).tolist():
        here = ids[ids // size == number] - number * size
        left -= set(read_part(work.entries[0].part(number), ["key"])["key"].take(here).to_pylist())
    if left:
        raise ConfigError(f"{sorted(left)[0]!r} is in no pair of duplicates", expected="keys of samples that are")


def _replace_settings(work: Work, entry: Entry, settings: Mapping[str, Any]) -> None:
    """Make the stage one with other settings, of which its first pass and its search are the same."""
    for path in (entry.folder / DONE, entry.folder / REDUCED, *_ended(entry.folder)):
        path.unlink(missing_ok=True)
    tree = read_json(entry.folder / STAGE)
    before = work.entries[entry.number - 1].identity
    made = identity(before, NAME, settings, tree["inputs"])
    write_json(entry.folder / STAGE, {**tree, "settings": dict(settings), "identity": made})


def _ended(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))
