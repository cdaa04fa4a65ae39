"""Which layout a state dict has, by its names.

Order of the tests: Hugging Face, big_vision, open_clip with timm, open_clip's custom text tower, OpenAI. What passes none
of them is compared with every known name; a file in which most names are known counts as that layout with an error in it
(the reader then names the tensor), any other is refused with its unmatched names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ostension.errors import CheckpointError
from ostension.formats import big_vision, hf_clip, open_clip, openai, ours, siglip, timm_siglip
from ostension.formats.table import Layout, expected_shapes, ignored

NAMES = (ours.NAME, openai.NAME, open_clip.NAME, timm_siglip.NAME, hf_clip.NAME, siglip.NAME, big_vision.NAME)
# Part of the names that must be known for a file to count as a damaged one of its layout.
_MOSTLY = 0.6
_PATCHES = "vision_model.embeddings.patch_embedding.weight"


def detect(names: Iterable[str], path: Path) -> str:
    """The layout that the tensors of `path` are in, one of `NAMES`.

    Raises:
        CheckpointError: listing the unmatched names, with the nearest known layout.
    """
    found = [name for name in names if not ignored(name)]
    return _by_test(set(found)) or _by_likeness(found, path)


def _by_test(names: set[str]) -> str | None:
    def any_begins(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if _PATCHES in names:
        if "logit_bias" in names or "vision_model.head.probe" in names:
            return siglip.NAME
        return hf_clip.NAME if "visual_projection.weight" in names else None
    if any_begins("params/img/", "img/"):
        return big_vision.NAME
    if any_begins("text_decoder."):
        return None  # CoCa
    if any_begins("visual.attn_pool.") or "text.text_projection_bias" in names:
        return ours.NAME
    if any_begins("visual.trunk."):
        return timm_siglip.NAME if "visual.trunk.attn_pool.latent" in names and "logit_bias" in names else None
    if any_begins("text.transformer.resblocks.") and any_begins("visual."):
        return open_clip.NAME
    if any_begins("visual.") and "text_projection" in names:
        return openai.NAME
    return None


def _by_likeness(names: list[str], path: Path) -> str:
    shapes = [_numberless(name.removeprefix("params/")) for name in names]
    scores = {layout: [shape in known for shape in shapes] for layout, known in _signatures().items()}
    nearest = max(scores, key=lambda layout: sum(scores[layout]))
    matched = scores[nearest]
    if sum(matched) > _MOSTLY * len(names):
        return nearest
    unmatched = [name for name, known in zip(names, matched, strict=True) if not known]
    shown = ", ".join(repr(name) for name in unmatched[:5]) + (f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else "")
    raise CheckpointError(
        f"of no known layout: {sum(matched)} of its {len(names)} names match {nearest!r}, the nearest; unmatched: {shown}",
        source=path,
        expected=f"one of {', '.join(NAMES)}",
    )


def _signatures() -> dict[str, set[str]]:
    """Every name that each layout can have, numbers replaced, from one model of each form."""
    from ostension.model.presets import preset

    plain = [name for form in ("tiny-vit", "tiny-resnet") for name in expected_shapes(preset(form))]
    bias = list(expected_shapes(preset("tiny-siglip")))
    vit = [
        name
        for name in plain
        if not name.startswith(("visual.layer", "visual.bn", "visual.conv2", "visual.conv3", "visual.attnpool"))
    ]
    layouts: dict[str, tuple[Layout, list[str]]] = {
        openai.NAME: (openai.entry, plain),
        open_clip.NAME: (open_clip.entry, plain),
        timm_siglip.NAME: (timm_siglip.entry, bias),
        hf_clip.NAME: (hf_clip.entry, vit),
        siglip.NAME: (siglip.entry, bias),
        big_vision.NAME: (big_vision.layout({"visual": 12, "text": 12}), bias),
        ours.NAME: (ours.entry, bias),
    }
    return {
        name: {_numberless(theirs) for ours_name in names for theirs in layout(ours_name).theirs}
        for name, (layout, names) in layouts.items()
    }


def _numberless(name: str) -> str:
    # The stages of a residual network are part of a name; blocks are numbers of their own.
    return re.sub(r"(?<=[._])\d+(?=[./])", "#", name)
