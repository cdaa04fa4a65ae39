"""Renaming of transformer blocks, shared by the layouts that have their own names for ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ostension.formats.table import Entry, fused, same

_BLOCK = re.compile(r"(visual|text)\.transformer\.resblocks\.(\d+)\.(.+)")


def split_block(name: str) -> tuple[str, str, str] | None:
    """Tower, number and rest of a block's parameter, or None for another one."""
    match = _BLOCK.fullmatch(name)
    return None if match is None else (match[1], match[2], match[3])


def rename(ours: str, prefix: str, rest: str, names: Mapping[str, str]) -> Entry:
    """A parameter `rest` = module.leaf, with the module renamed by `names`.

    Raises:
        KeyError: for a module that `names` does not have.
    """
    module, leaf = rest.rsplit(".", 1)
    return same(ours, f"{prefix}{names[module]}.{leaf}")


def split_heads(ours: str, prefix: str, rest: str, names: tuple[str, str, str]) -> Entry | None:
    """The fused query-key-value weight or bias as three of their own, or None for another parameter."""
    for leaf in ("weight", "bias"):
        if rest == f"attn.in_proj_{leaf}":
            return fused(
                ours, (f"{prefix}{names[0]}.{leaf}", f"{prefix}{names[1]}.{leaf}", f"{prefix}{names[2]}.{leaf}"), (1, 1, 1)
            )
    return None
