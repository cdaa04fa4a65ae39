"""Features of all pictures of NLIP's study under a locked image tower, computed once and kept in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ostension.config import to_tree
from ostension.files import atomic_path, sha256_json
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint_of
from ostension.recipes._nlip_data import NlipSet
from ostension.shapes import Float

BATCH = 64


def identity_of(known: NlipSet, model: CLIP) -> str:
    """Of the pictures, and of what looks at them: the tower before its projection, and the preprocessing."""
    state = {name: value for name, value in model.visual.state_dict().items() if name != "proj"}
    seen = [to_tree(model.config.vision), to_tree(model.config.preprocess), fingerprint_of({}, state)]
    return sha256_json([known.fingerprint, *seen])


def features_of(known: NlipSet, model: CLIP, path: Path) -> Float[torch.Tensor, "N W"]:
    """The pooled features of the pictures, from `path` if they are there; those of other pictures or weights are replaced."""
    identity = identity_of(known, model)
    if path.is_file():
        with np.load(path) as kept:
            if str(kept["identity"]) == identity:
                return torch.from_numpy(kept["features"])
    rows = []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(known.pictures), BATCH):
            images = model.transform.batch(known.pictures[start : start + BATCH])
            rows.append(model.image_features(images)["pooled"].float())
    features = torch.cat(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, features=features.numpy(), identity=identity)
    return features
