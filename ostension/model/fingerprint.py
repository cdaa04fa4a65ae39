"""Which model this is: a SHA-256 over everything that decides what it answers.

It covers the weights and the parts of the configuration that change an output (towers, activation, preprocessing,
tokenizer), and neither the name nor the layout on disk: a model converted from one layout to another keeps it. Tensors
are hashed as bfloat16, so that the same file loaded in float32 and in bfloat16 counts as the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ostension.config import to_tree
from ostension.files import sha256_json

# What a model is called, where it came from and how it was initialised does not change its answers.
NOT_BEHAVIOUR = ("name", "layout", "init_logit_scale", "init_logit_bias", "init_token_std")


def fingerprint(encoder: nn.Module) -> str:
    """The SHA-256 of an encoder's behaviour, in hexadecimal; of an exported one that of the model that it came from."""
    exported = getattr(encoder, "weights_fingerprint", None)
    if exported is not None:
        return exported
    return fingerprint_of(encoder.config, encoder.state_dict())


def fingerprint_of(config: Any, state: Mapping[str, Tensor]) -> str:
    """The same from a configuration (of a CLIP, or a detector) and the tensors of its model, each of which is read once."""
    tree = {key: value for key, value in to_tree(config).items() if key not in NOT_BEHAVIOUR}
    digest = hashlib.sha256(sha256_json(tree).encode("ascii"))
    for name in sorted(state):  # not items(): a mapping may read each tensor when it is asked for
        value = state[name].detach().cpu()
        if value.is_floating_point():
            value = value.to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name}:{tuple(value.shape)}:".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
