"""The embedded emoji as labelled sets: all of them by code point, with the splits of `embedded`, and on backgrounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ostension.data.embedded import FOLDER, SPLITS, open_emoji
from ostension.data.sets.backgrounds import EmojiBackgrounds
from ostension.data.sets.base import LabelledSet
from ostension.errors import unknown_name


class EmbeddedEmoji(LabelledSet):
    """All pictures of the embedded set; those that belong to no split have an empty one."""

    def __init__(self) -> None:
        self._pairs = open_emoji("all")
        ids = [self._pairs.key(index) for index in range(len(self._pairs))]
        place = {name: index for index, name in enumerate(ids)}
        splits = [""] * len(ids)
        for split in SPLITS[1:]:
            part = open_emoji(split)
            for index in range(len(part)):
                splits[place[part.key(index)]] = split
        names = [name.rpartition("/")[2].partition("-") for name in ids]
        styles, concepts = [style for style, _, _ in names], [(concept,) for _, _, concept in names]
        super().__init__(FOLDER, ids, concepts, splits=splits, fields={"style": styles})

    def image(self, index: int) -> bytes:
        return self._pairs.read(index).image

    def content(self) -> list[Any]:
        return [self._pairs.fingerprint()]


EMBEDDED: dict[str, Callable[[], LabelledSet]] = {"emoji": EmbeddedEmoji, "emoji_backgrounds": EmojiBackgrounds}


def open_embedded(name: str) -> LabelledSet:
    """The embedded set of that name.

    Raises:
        ConfigError: for an unknown one.
    """
    if name not in EMBEDDED:
        raise unknown_name("embedded set", name, EMBEDDED)
    return EMBEDDED[name]()
