"""OpenAI's layout: its TorchScript archives and state dicts, which open_clip's plain `CLIP` shares.

The image tower's names are ours; the text tower's stand at the root. What the released archives do not store is known of
them all the same: they are recognised by their SHA-256, or by being a TorchScript program with half-precision weights,
which no other code in the field writes.

Source: openai/CLIP, clip/clip.py (files and checksums) and clip/model.py (names).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostension.formats import native
from ostension.formats.facts import Fact, Reading, family_preprocess, family_tokenizer, scale_cap
from ostension.formats.table import Entry, same, scalar

NAME = "openai"

# SHA-256 of the released archives: the name of the folder in each download address.
RELEASED = {
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "RN50",
    "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599": "RN101",
    "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd": "RN50x4",
    "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa": "RN50x16",
    "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c": "RN50x64",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B-32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B-16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L-14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L-14-336",
}
_INTEGERS = ("input_resolution", "context_length", "vocab_size")
# In fp16 or bf16 the largest log scale, ln 100, is stored a rounding step off.
_SCALE_EPSILON = {torch.float16: 2**-10, torch.bfloat16: 2**-7}


def entry(name: str) -> Entry:
    """Our parameter `name` in OpenAI's names."""
    if name in ("logit_scale", "logit_bias"):
        return scalar(name, name)
    return same(name, name.removeprefix("text."))


def read(
    state: Mapping[str, Tensor], path: Path, *, container: str, evidence: Mapping[str, Any], digest: str | None
) -> Reading:
    """The architecture from the shapes, and what the container proves about the rest.

    Args:
        digest: the file's SHA-256, or None where it was not computed.
    """
    vision, heads = native.read_vision(state, path, NAME)
    text, embed_dim = native.read_text(state, path, NAME, "")
    reading = Reading(path=path, layout=NAME, embed_dim=embed_dim, vision=vision, text=text)
    reading.facts["head_width"] = heads
    reading.facts["logit_scale_cap"] = read_cap(state)
    if "logit_bias" in state:
        reading.settings["init_logit_bias"] = float(state["logit_bias"])
    released = RELEASED.get(digest or "")
    if released is not None:
        reading.settings["name"] = released
        _add_openai_facts(reading, f"the file's SHA-256, OpenAI's {released}")
    elif container == "torchscript":
        _read_archive(reading, state, evidence)
    return reading


def read_cap(state: Mapping[str, Tensor]) -> Fact:
    """The cap of the logit scale, by the scale that the file holds."""
    scale = state.get("logit_scale")
    if scale is None or scale.numel() != 1:
        return Fact(100.0, "the layout (CLIP's training caps it)")
    return scale_cap(float(scale.float()), _SCALE_EPSILON.get(scale.dtype, 1e-5))


def _read_archive(reading: Reading, state: Mapping[str, Tensor], evidence: Mapping[str, Any]) -> None:
    half = any(tensor.dtype == torch.float16 for tensor in state.values())
    if half or all(name in state for name in _INTEGERS):
        proof = "half-precision weights" if half else "OpenAI's three integers"
        _add_openai_facts(reading, f"a TorchScript archive with {proof}, as only OpenAI's are")
        return
    classes = set(evidence.get("classes", {}).values())
    if classes and all(name.rsplit(".", 1)[-1] == "QuickGELU" for name in classes):
        fact = Fact("quick_gelu", "the archive's activation modules, of a class QuickGELU")
        reading.facts["vision.activation"] = reading.facts["text.activation"] = fact


def _add_openai_facts(reading: Reading, origin: str) -> None:
    reading.facts["vision.activation"] = reading.facts["text.activation"] = Fact("quick_gelu", origin)
    reading.facts["preprocess"] = Fact(family_preprocess("openai", reading.image_size), origin)
    tokenizer = family_tokenizer("openai", reading.text["vocab_size"], reading.text["context_length"], reading.path)
    reading.facts["tokenizer"] = Fact(tokenizer, origin)
