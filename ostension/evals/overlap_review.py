"""What a person decides about an evaluation set: from which similarity on a pair is a duplicate, and which pairs are none.

The threshold is set for each set by looking (`overlap_page`), high enough that what passes is nearly always a copy. Traps, in
which a high similarity says little, are flagged: a picture that is nearly black or of one colour is like every other such
picture, and of a tiny picture too little is left to tell two things apart.

Source: CLIP, Appendix C (hand-set thresholds for precision; black frames of videos and small pictures as what goes wrong).
Letters: N evaluation pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ostension.config import from_tree, require, to_tree
from ostension.data.pairs import PairSource
from ostension.errors import ConfigError, DataError
from ostension.evals.overlap_neighbours import Neighbours
from ostension.files import read_json, sha256_json, write_json
from ostension.image.decode import open_image
from ostension.shapes import Bool, Float

FILE = "decision.json"
TINY_PX = 48  # of the short side; CIFAR's pictures have 32
DARK, DARK_SHARE = 24, 0.98  # grey levels, and the share of pixels below them
FLAT = 6.0  # spread of the grey levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What counts as a duplicate.

    Attributes:
        threshold: least cosine of the detector; None takes no pair for its cosine.
        bits: most differing bits of the perceptual hash; None takes no pair for its hash.
        excluded: evaluation ids that are no duplicates all the same, each with the reason.
        flagged: how many of the pairs that pass are traps (before any are excluded).
        search: the hash of what was searched; a decision is for that alone.
        by: who decided.

    Files of the same bytes are duplicates whatever the numbers are, unless they are excluded.
    """

    threshold: float | None = None
    bits: int | None = None
    excluded: dict[str, str] = dataclasses.field(default_factory=dict)
    flagged: int = 0
    search: str = ""
    by: str = ""

    def __post_init__(self):
        if self.threshold is None and self.bits is None:
            raise ConfigError("neither a threshold nor bits are given", expected="one of the two, or both")
        require(self.threshold is None or -1 <= self.threshold <= 1, "threshold", self.threshold, "a cosine, at most 1")
        require(self.bits is None or 0 <= self.bits <= 32, "bits", self.bits, "0 to 32; unrelated pictures differ in about 32")

    def save(self, folder: Path) -> None:
        """Write it beside the neighbours."""
        write_json(folder / FILE, to_tree(self))

    @staticmethod
    def load(folder: str | Path, neighbours: Neighbours) -> Decision:
        """The decision in a folder.

        Raises:
            DataError: if there is none, or it is about another search.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise DataError(
                "no threshold was decided on", source=folder,
                fix="look at the page of `ostension eval overlap review`, then: ostension eval overlap decide",
            )  # fmt: skip
        found = from_tree(Decision, read_json(path), path)
        if found.search != search_of(neighbours):
            raise DataError("is about another search than the neighbours here", source=path, fix="decide again")
        return found


def search_of(neighbours: Neighbours) -> str:
    """The hash of what was searched."""
    return sha256_json({name: neighbours.facts[name] for name in ("evaluation", "training", "k")})


def scores_of(neighbours: Neighbours) -> Float[np.ndarray, " N"]:
    """What pairs are sorted by: the detector's cosine, else 1 - bits / 32, else -1; files of the same bytes have 1."""
    hashed = np.where(neighbours.bits >= 0, 1 - neighbours.bits / 32, -1.0)
    return np.where(neighbours.same_file >= 0, 1.0, neighbours.best if neighbours.similarity.shape[1] else hashed)


def passing(neighbours: Neighbours, threshold: float | None, bits: int | None) -> Bool[np.ndarray, " N"]:
    """Which evaluation pictures have a duplicate by the numbers.

    Raises:
        ConfigError: for a threshold without a detector's cosines, or bits without hashes.
    """
    if threshold is not None and not neighbours.similarity.shape[1]:
        raise ConfigError("a threshold of cosines, but the search had no detector", fix="give --bits")
    if bits is not None and (neighbours.bits < 0).all():
        raise ConfigError("bits of hashes, but the search had none", fix="give --threshold")
    found = neighbours.same_file >= 0
    if threshold is not None:
        found = found | (neighbours.best >= threshold)
    return found if bits is None else found | ((neighbours.bits >= 0) & (neighbours.bits <= bits))


def decide(
    neighbours: Neighbours,
    source: PairSource | None = None,
    *,
    threshold: float | None = None,
    bits: int | None = None,
    excluded: Sequence[str] = (),
    drop_flagged: bool = False,
    by: str = "",
) -> Decision:
    """A decision, checked.

    Args:
        source: of the evaluation pictures, whose traps are looked for among the pairs that pass.
        excluded: ids of evaluation pictures that a person found to be no duplicates.
        drop_flagged: exclude all traps.

    Raises:
        ConfigError: for an id that does not pass anyway; for traps to be dropped without pictures.
    """
    found = passing(neighbours, threshold, bits)
    through = {neighbours.ids[row]: row for row in np.flatnonzero(found).tolist()}
    for name in excluded:
        if name not in through:
            what = "is not among the duplicates" if name in neighbours.ids else "is no picture of the set"
            raise ConfigError(f"{name!r} {what}", expected=f"one of the {len(through):,} evaluation ids that pass")
    if drop_flagged and source is None:
        raise ConfigError("traps cannot be dropped without the pictures", expected="the evaluation set")
    traps: dict[str, str] = {}
    if source is not None:
        for name, row in through.items():
            if why := flags(_open(source, int(neighbours.samples[row]))):
                traps[name] = ", ".join(why)
    reasons = {**(traps if drop_flagged else {}), **dict.fromkeys(excluded, "seen to be another picture")}
    return Decision(
        threshold=threshold, bits=bits, excluded=reasons, flagged=len(traps), search=search_of(neighbours), by=by,
    )  # fmt: skip


def duplicates(neighbours: Neighbours, decision: Decision) -> Bool[np.ndarray, " N"]:
    """Which evaluation pictures are near-duplicates of a training picture."""
    found = passing(neighbours, decision.threshold, decision.bits)
    return found & ~np.isin(np.array(neighbours.ids), list(decision.excluded))


def notes_of(decision: Decision) -> tuple[str, ...]:
    """What a reader of a result should know of the decision."""
    notes = []
    if decision.excluded:
        notes.append(f"pairs that pass and were taken out: {len(decision.excluded):,}")
    left = decision.flagged - sum(reason != "seen to be another picture" for reason in decision.excluded.values())
    if left > 0:
        notes.append(f"pairs that are nearly black, of one colour or tiny: {left:,}")
    return tuple(notes)


def flags(picture: Image.Image) -> tuple[str, ...]:
    """The traps that a picture is: "tiny (32 x 32)", "nearly black", "of one colour"."""
    tiny = (f"tiny ({picture.width} x {picture.height})",) if min(picture.size) < TINY_PX else ()
    nothing = blank(picture)
    return (*tiny, nothing) if nothing else tiny


def blank(picture: Image.Image) -> str:
    """Why there is nothing to see in a picture: "nearly black", "of one colour"; empty where there is."""
    grey = np.asarray(picture.convert("L"))
    if (grey < DARK).mean() >= DARK_SHARE:
        return "nearly black"
    return "of one colour" if grey.std() < FLAT else ""


def _open(source: PairSource, sample: int) -> Image.Image:
    pair = source.read(sample)
    return open_image(pair.image, name=pair.key)


def named_counts(neighbours: Neighbours, decision: Decision) -> Mapping[str, int]:
    """How many pictures there are, are duplicates, are the same file, and were taken out."""
    return {
        "all": len(neighbours), "overlap": int(duplicates(neighbours, decision).sum()),
        "same_file": int((neighbours.same_file >= 0).sum()), "excluded": len(decision.excluded),
    }  # fmt: skip
