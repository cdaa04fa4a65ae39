"""Small sources and stages that tests of curation share."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ostension.curate.base import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """Settings.

    Attributes:
        least: words that a caption has at least.
    """

    least: int = 2


class Words(Stage):
    """Drops captions of few words."""

    name, config_type = "test-words", WordsConfig

    def map(self, part):
        counts = [[len(text.split()) for text in texts] for texts in part.texts]
        kept = [
            [t for t, n in zip(texts, found, strict=True) if n >= self.config.least]
            for texts, found in zip(part.texts, counts, strict=True)
        ]
        return {
            "dropped": [None if texts else "too few words" for texts in kept],
            "texts": kept,
            "text_reasons": [[None if n >= self.config.least else "too few words" for n in found] for found in counts],
            "words": [max(found, default=0) for found in counts],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongestConfig:
    """Settings.

    Attributes:
        share: of rows that are kept, those with the longest captions.
    """

    share: float = 0.5


class Longest(Stage):
    """Keeps a share of the rows, by the lengths of their captions."""

    name, config_type = "test-longest", LongestConfig

    def map(self, part):
        return {"length": [max(map(len, texts)) for texts in part.texts]}

    def reduce(self, parts, folder):
        lengths = np.concatenate([mapped["length"].to_numpy() for _, mapped in parts])
        return {"bound": int(np.sort(lengths)[::-1][max(0, round(len(lengths) * self.config.share) - 1)])}

    def decide(self, part, mapped, facts, folder):
        length = mapped["length"].to_numpy()
        return {"dropped": [None if value >= facts["bound"] else "short" for value in length], "length": length}


def picture(number: int, side: int = 16) -> bytes:
    """A small PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (number * 37 % 256, number * 91 % 256, number % 256)).save(out, "PNG")
    return out.getvalue()


def tar_of(path: Path, captions: list[str]) -> Path:
    """A tar shard with a picture for each caption."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number, caption in enumerate(captions):
            for ending, data in (("png", picture(number)), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def lines_of(path: Path, captions: list[str]) -> Path:
    """A file with a caption a line."""
    path.write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
    return path


def parts_of(entry) -> dict[str, bytes]:
    """The bytes of all part files of a stage."""
    return {path.name: path.read_bytes() for path in sorted(entry.folder.glob("*.parquet"))}
