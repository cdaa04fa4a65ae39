"""Drop duplicates: same bytes, pixels, address, captions, near pictures by hash or detector; those of evaluation sets."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ostension.config import require
from ostension.curate.base import Columns, Part, Stage
from ostension.errors import ConfigError

if TYPE_CHECKING:
    from ostension.curate.duplicates_resolve import Choice
    from ostension.curate.duplicates_search import Reach

Rule = Literal["bytes", "pixels", "url", "caption", "hash"]
_LOG = logging.getLogger(__name__)
PICTURES = ("bytes", "pixels", "hash")
TABLE, EVALUATION, MEMBERS, SEARCHED = "table", "evaluation", "members", "searched.json"
PAST_BITS, PAST_COSINE = 4, 0.5  # how far the review sees past a threshold: in bits, and as a share of the detector's distance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        rules: By what two samples are one: bytes, pixels, url, caption, hash. A detector is a rule of its own.
        bits: Most differing bits of near hashes.
        detector: Folder of a trained near-duplicate detector.
        threshold: Least cosine of its rows.
        same_caption: Join pictures only where their captions are the same, too.
        join_blank: Join pictures that are nearly black or of one colour by hash and detector as well, and very plain ones by
            hash.
        keep: Of a group: the largest picture, then the highest score, then the longest captions; the highest score; the first.
        score: Column of an earlier stage, higher is better, such as agreement.score.
        max_group: Larger groups of near pictures are taken apart at stricter thresholds.
        direct: Drop a picture only if it is itself near to one that stays, not through others.
        merge_captions: Most captions of the one that stays, with other captions of its copies; 0 keeps its own.
        corrupt: What becomes of a picture that cannot be read.
        against: Evaluation sets, whose pictures are to go: tasks by name, or pictures.
        data: Folder of the tasks' data.
        split: Split of the tasks.
        look_bits: Most bits that are searched for the review; 4 past the threshold by default.
        look_threshold: Least cosine that is searched for the review; by default half as far again as the threshold.
        exclude: Keys of samples that stay in any case.
    """

    rules: tuple[Rule, ...] = ("bytes", "pixels", "hash")
    bits: int = 4
    detector: str | None = None
    threshold: float | None = None
    same_caption: bool = False
    join_blank: bool = False
    keep: Literal["largest", "score", "first"] = "largest"
    score: str | None = None
    max_group: int = 1000
    direct: bool = False
    merge_captions: int = 0
    corrupt: Literal["keep", "drop"] = "keep"
    against: tuple[str, ...] = ()
    data: str | None = None
    split: str = "test"
    look_bits: int | None = None
    look_threshold: float | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        from ostension.curate.duplicates_hashes import MOST_BITS

        require(len(set(self.rules)) == len(self.rules), "rules", self.rules, "each once")
        require(bool(self.rules) or self.detector is not None, "rules", self.rules, "one or more, or a detector")
        require(0 <= self.bits <= MOST_BITS, "bits", self.bits, f"0 to {MOST_BITS}; unrelated pictures differ in about 32")
        most = MOST_BITS if "hash" in self.rules else 0
        look = self.look_bits
        require(look is None or self.bits <= look <= most, "look_bits", look, f"{self.bits} to {MOST_BITS}, with the rule hash")
        if (self.detector is None) != (self.threshold is None):
            missing = "detector" if self.detector is None else "threshold"
            raise ConfigError(f"{missing} is missing", expected="a detector and a threshold, or neither")
        if self.threshold is not None:
            require(0 < self.threshold <= 1, "threshold", self.threshold, "a cosine, above 0 and at most 1")
        if self.look_threshold is not None:
            within = self.threshold is not None and 0 < self.look_threshold <= self.threshold
            require(within, "look_threshold", self.look_threshold, "a cosine up to the threshold, with a detector")
        require(self.max_group >= 2, "max_group", self.max_group, "2 or more")
        require(self.merge_captions >= 0, "merge_captions", self.merge_captions, "0 or more")
        require(self.keep != "score" or self.score is not None, "keep", self.keep, "a column in score")
        if self.keep == "first" and self.score is not None:
            raise ConfigError("score has no effect where the first is kept", fix="leave it out")
        if not self.against and self.data is not None:
            raise ConfigError("data says where tasks' pictures are", fix="name the tasks in against, or leave it out")
        if self.same_caption and not self.by_pictures and "url" not in self.rules:
            raise ConfigError(
                "same_caption has no effect beside captions alone", fix="leave it out, or name a rule of pictures"
            )
        if self.against and not self.by_pictures and "url" not in self.rules:
            raise ConfigError("pictures of evaluation sets are not found by captions", fix="name bytes, pixels, hash or url")

    @property
    def by_pictures(self) -> bool:
        return self.detector is not None or bool(set(self.rules) & set(PICTURES))

    @property
    def decodes(self) -> bool:
        """Whether pictures are decoded; else only their bytes are looked at, if that."""
        return self.detector is not None or bool({"pixels", "hash"} & set(self.rules))

    def reach(self) -> Reach:
        """How far the searches go."""
        from ostension.curate.duplicates_search import Reach

        rules = (*self.rules, *(("detector",) if self.detector is not None else ()))
        bits = min(16, self.bits + PAST_BITS) if self.look_bits is None else self.look_bits
        least = 1.0 if self.threshold is None else self.threshold
        cosine = max(0.0, least - PAST_COSINE * (1 - least)) if self.look_threshold is None else self.look_threshold
        return Reach(rules, bits, cosine, self.same_caption, self.join_blank)

    def choice(self) -> Choice:
        """What decides."""
        from ostension.curate.duplicates_resolve import Choice

        return Choice(self.bits, 1.0 if self.threshold is None else self.threshold, self.keep, self.max_group, self.direct)


class Dedup(Stage):
    """See `Config`."""

    name, config_type = "dedup", Config
    config: Config

    def check(self) -> None:
        if self.config.detector is not None:
            _ = self._detector
        for _ in self._evaluation_sources():
            pass

    def inputs(self) -> dict[str, Any]:
        found: dict[str, Any] = {"against": [source.fingerprint() for _, source in self._evaluation_sources()]}
        if self.config.detector is not None:
            from ostension.model.fingerprint import fingerprint

            found["detector"] = fingerprint(self._detector)
        return found

    def map(self, part: Part) -> Columns:
        """What is known of each sample (`duplicates_pictures`); nothing is dropped here."""
        from ostension.curate.duplicates_captions import caption_digest, url_digest
        from ostension.curate.duplicates_pictures import look
        from ostension.curate.duplicates_table import packed

        config, count = self.config, len(part)
        if config.by_pictures:
            if not part.has_pictures:
                rules = ", ".join(rule for rule in config.rules if rule in PICTURES) or "detector"
                raise ConfigError(
                    f"the rules {rules} need pictures, and there are captions alone", fix="use --rules caption url"
                )
            images = ((lambda index=index: part.image(index)) for index in range(count))
            facts = look(images, part.keys, decode=config.decodes, detector=self._detector)
        else:
            facts = look([], [])
        captions = [caption_digest(texts) for texts in part.texts]
        columns: dict[str, Any] = {"bad": facts.bad or [None] * count}
        for name, kind in (
            ("seen", np.uint8),
            ("digest", np.uint64),
            ("pixels", np.uint64),
            ("hash", np.uint64),
            ("area", np.int64),
        ):
            columns[name] = getattr(facts, name) if config.by_pictures else np.zeros(count, kind)
        columns["caption"] = np.array(captions, dtype=np.uint64)
        columns["address"] = np.array([url_digest(url) for url in part.urls], dtype=np.uint64)
        columns["length"] = np.array([max(map(len, texts), default=0) for texts in part.texts], dtype=np.int32)
        columns["score"] = np.zeros(count) if config.score is None else _numbers(part.column(config.score), config.score)
        if facts.rows is not None:
            columns["row_of_detector"] = packed(facts.rows)
        return columns

    def reduce(self, parts: Iterable[tuple[Part, Any]], folder: Path) -> dict[str, Any]:
        """The search, unless it is there from before a change of thresholds, and what follows from it."""
        from ostension.curate.duplicates_pictures import Seen
        from ostension.curate.duplicates_resolve import resolve
        from ostension.curate.duplicates_search import find_evaluation, find_pairs, load_pairs, save_pairs
        from ostension.curate.duplicates_table import Table, gather
        from ostension.files import read_json, sha256_json, write_json

        config, reach, choice = self.config, self.config.reach(), self.config.choice()
        inputs = self.inputs()
        key = sha256_json([reach._asdict(), inputs, config.score, bool(config.merge_captions)])
        seen = read_json(folder / SEARCHED) if (folder / SEARCHED).is_file() else {}
        if seen.get("key") != key:
            (folder / SEARCHED).unlink(missing_ok=True)
            bad: dict[str, int] = {}
            table = gather(_counted(parts, bad), folder / TABLE, inputs.get("detector"), texts=bool(config.merge_captions))
            found = {rule: (edges, count) for rule, edges, count in find_pairs(table, reach)}
            save_pairs(folder, {rule: edges for rule, (edges, _) in found.items()})
            names: list[str] = []
            if config.against:
                evaluation = self._evaluation()
                (folder / EVALUATION).mkdir(exist_ok=True)
                find_evaluation(table, evaluation, reach, folder / EVALUATION)
                names = list(evaluation.names)
                write_json(folder / EVALUATION / "names.json", names)
            pairs = {rule: count for rule, (_, count) in found.items()}
            seen = {"key": key, "pairs": pairs, "unreadable": bad, "evaluation": len(names)}
            write_json(folder / SEARCHED, seen)
        table, place = Table(folder / TABLE), folder / EVALUATION if config.against else None
        made = resolve(table, load_pairs(folder, reach.rules), reach, choice, place, folder / MEMBERS)
        little = {name.lower(): int((table["seen"] == Seen[name]).sum()) for name in ("BLANK", "PLAIN")}
        facts = {**made, "pairs": seen["pairs"], **little, "unreadable": seen["unreadable"]}
        for line in _warnings(facts, config):
            _LOG.warning(line)
        return {**facts, "search": key, "evaluation": seen["evaluation"]}

    def decide(self, part: Part, mapped: Any, facts: Mapping[str, Any], folder: Path) -> Columns:
        """The group of each sample, the one that stays of it, how far that is, and why this one goes."""
        from ostension.curate.duplicates_outcome import Rest, outcome
        from ostension.curate.duplicates_table import Table

        config = self.config
        rest = Rest(
            evaluation=folder / EVALUATION if config.against else None, hashes="hash" in config.rules,
            drop_unreadable=config.corrupt == "drop", merge_captions=config.merge_captions, exclude=frozenset(config.exclude),
        )  # fmt: skip
        return outcome(part, mapped, Table(folder / TABLE), folder / MEMBERS, config.choice(), rest)

    def figures(self, facts: Mapping[str, Any], folder: Path) -> list[Any]:
        from ostension.curate.duplicates_figures import dedup_figures

        return dedup_figures(facts)

    @cached_property
    def _detector(self) -> Any:
        if self.config.detector is None:
            return None
        from ostension.formats.duplicate_detector import load_detector

        return load_detector(self.config.detector, device="cpu")

    def _evaluation_sources(self) -> list[tuple[str, Any]]:
        from ostension.curate.duplicates_pictures import evaluation_sources

        return list(evaluation_sources(self.config.against, self.config.data, self.config.split))

    def _evaluation(self) -> Any:
        """What is known of all evaluation pictures."""
        from ostension.curate.duplicates_captions import url_digest
        from ostension.curate.duplicates_pictures import look, urls_of
        from ostension.curate.duplicates_search import Evaluation

        names, images, urls = [], [], []
        for title, source in self._evaluation_sources():
            for index in range(len(source)):
                names.append(f"{title}: {source.key(index)}")
                images.append(lambda source=source, index=index: source.read(index).image)
                urls.append(url_digest(urls_of(source, index)) if "url" in self.config.rules else 0)
        facts = look(images, names, decode=self.config.decodes, detector=self._detector)
        return Evaluation(names, facts, np.array(urls, dtype=np.uint64))


def _counted(parts: Iterable[tuple[Part, Any]], bad: dict[str, int]) -> Iterable[tuple[Part, Any]]:
    """The parts; on their way the reasons why pictures cannot be read are counted."""
    for part, found in parts:
        for reason in found["bad"].drop_null().to_pylist():
            bad[reason] = bad.get(reason, 0) + 1
        yield part, found


def _numbers(column: Any, name: str) -> np.ndarray:
    found = column.to_numpy(zero_copy_only=False)
    if found.dtype.kind not in "iuf":
        raise ConfigError(f"{name} is no column of numbers", source="score", expected="such as agreement.score")
    return found.astype(np.float64)


def _warnings(facts: Mapping[str, Any], config: Config) -> list[str]:
    lines = []
    for rule, steps in facts["too_large"].items():
        count = next(iter(steps.values()))
        left = steps.get("0", 0)
        said = (
            f"{count:,} groups by {rule} had more than {config.max_group:,} members and were taken apart at stricter thresholds"
        )
        lines.append(f"{said}; {left:,} stay as large, since all in them are equal" if left else said)
    if facts["blank"] and not config.join_blank and ("hash" in config.rules or config.detector is not None):
        lines.append(f"{facts['blank']:,} pictures are nearly black or of one colour: not compared by hash or detector")
    if facts["plain"] and not config.join_blank and "hash" in config.rules:
        lines.append(f"{facts['plain']:,} pictures are so plain that their hashes say little: not compared by hash")
    if unreadable := sum(facts["unreadable"].values()):
        lines.append(f"{unreadable:,} pictures cannot be read and are {'dropped' if config.corrupt == 'drop' else 'kept'}")
    return lines
