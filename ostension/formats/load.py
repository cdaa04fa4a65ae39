"""Load a model from any known layout, and save it in ours, open_clip's or Hugging Face's.

    model = load("folder/or/file.pt", dtype="float32")
    save(model, "my-model")                                    # our layout
    save(model, "for-transformers", layout="hf")

A load maps the file into memory and gives each tensor to the model as it stands, or cast one by one, so there are never
two full copies.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ostension.errors import MissingExtraError
from ostension.formats.facts import Asked, Tokenizers, facts_tree
from ostension.formats.reader import Opened, open_weights
from ostension.formats.writer import write_model
from ostension.image.transforms import PreprocessConfig
from ostension.model.clip import CLIP
from ostension.runtime import pick_device, pick_dtype

__all__ = ["load", "save"]
# Kept in float32 whatever the rest is cast to: bfloat16 would change the logits' multiplier by a per cent.
_ALWAYS_FLOAT32 = ("logit_scale", "logit_bias")


def load(
    path_or_name: str | os.PathLike,
    *,
    device: str = "auto",
    dtype: str = "auto",
    layout: str | None = None,
    activation: str | None = None,
    preprocess: str | PreprocessConfig | None = None,
    tokenizer: str | Tokenizers | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    ema: bool = False,
    verify: bool = True,
) -> CLIP:
    """The model in a folder or file, in evaluation mode.

    Args:
        path_or_name: a folder, a weight file, `local-dir:PATH` or `hf-hub:ORG/NAME[@REVISION]`.
        dtype: of the weights: "auto" (bfloat16 where the processor has units for it), or a name. The logit scale and bias
            stay in float32.
        layout: the layout to read it as, or None to find out (`formats.detect.NAMES`).
        activation, preprocess, tokenizer: what the file does not say (`formats.facts.Asked`).
        image_size, context_length: interpolate the position embeddings to another picture size, or number of tokens.
        ema: take the averaged weights of a training checkpoint that has both.
        verify: compare the files of our layout with their manifest, and record the SHA-256 of any other; costs a second a
            gigabyte.

    Raises:
        CheckpointError: if the files cannot be found, trusted or understood, or something is not known and was not given.
        ConfigError: for an unknown layout, family, device or dtype, or a size that the towers cannot have.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    opened = open_weights(
        path_or_name,
        asked=Asked(activation=activation, preprocess=preprocess, tokenizer=tokenizer),
        layout=layout,
        ema=ema,
        verify=verify,
    )
    model = build_model(opened, place, kind)
    if image_size is not None or context_length is not None:
        model = model.resized(image_size=image_size, context_length=context_length)
    return model


def save(model: CLIP, folder: str | os.PathLike, layout: str = "ostension", *, overwrite: bool = False) -> None:
    """Write `model` into a folder, whole or not at all.

    Args:
        layout: "ostension", "open_clip" or "hf" (CLIP's or SigLIP's folder, as the model's form asks for).
        overwrite: replace a folder that has something in it.

    Raises:
        CheckpointError: if the layout cannot say what the model is, or the folder is not empty.
        ConfigError: for an unknown layout.
    """
    write_model(model, folder, layout, overwrite=overwrite)


def build_model(opened: Opened, device: torch.device, dtype: torch.dtype) -> CLIP:
    """The model of opened weights; each tensor is cast and moved alone."""
    with torch.device("meta"):
        model = CLIP(opened.config)

    def finish(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.to(device)
        return tensor.to(device, torch.float32 if name in _ALWAYS_FLOAT32 else dtype).contiguous()

    model.load_state_dict(opened.state(finish), strict=True, assign=True)
    model.provenance = provenance(opened)
    attach_tokenizer(model, opened)
    return model.eval()


def provenance(opened: Opened) -> dict[str, Any]:
    """Where the weights come from, as a JSON tree."""
    record: dict[str, Any] = {
        "source": opened.source.name,
        "layout": opened.layout,
        "container": opened.container,
        "sha256": opened.hashes,
        "facts": facts_tree(opened.facts),
        "notes": opened.notes,
    }
    if opened.source.revision is not None:
        record["revision"] = opened.source.revision
    if opened.provenance:
        record["before"] = opened.provenance
    return record


def attach_tokenizer(model: CLIP, opened: Opened) -> None:
    """Give `model` the tokenizer of the folder's files, which also checks that their vocabulary is the one we ship."""
    from ostension.text.hf_fast import HF_FILE
    from ostension.text.sentencepiece import MODEL_FILES
    from ostension.text.tokenizer import build_tokenizer
    from ostension.text.wordpiece import VOCABULARY

    config, folder = model.config.tokenizer, opened.source.folder
    files = {"sentencepiece": MODEL_FILES, "wordpiece": (VOCABULARY,), "hf_fast": (HF_FILE,)}.get(config.kind)
    if files is not None:
        if not any((folder / name).is_file() for name in files):
            kind = config.kind if config.kind == "sentencepiece" else "tokenizer"
            opened.notes.append(f"no {kind} model beside the weights: images and token ids only")
            return
        try:
            model.tokenizer = build_tokenizer(config, folder)
        except MissingExtraError as error:
            opened.notes.append(str(error))
    elif "tokenizer" in opened.facts and opened.facts["tokenizer"].origin != "given":
        model.tokenizer = build_tokenizer(config, folder)
