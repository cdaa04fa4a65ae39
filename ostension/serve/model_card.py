"""What `GET /v1/models` says: the model, its numbers, its limits, and the names that requests may use."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from ostension.config import to_tree
from ostension.serve.service import Service


def model_card(service: Service) -> dict[str, Any]:
    """The model's card as a tree; what only the weights say is None until they are read."""
    from ostension.text import prompts

    config, facts = service.files.config, service.backend.facts
    predictors = facts.predictors if facts is not None else {}
    return {
        "id": service.model_id,
        "object": "model",
        "created": int(service.started),
        "owned_by": "ostension",
        "sha256": facts.sha256 if facts else None,
        "embed_dim": config.embed_dim,
        "context_length": service.files.tokenizer.context_length,
        "image_size": config.preprocess.image_size,
        "normalized": True,
        "logit_scale": facts.logit_scale if facts else None,
        "logit_bias": facts.logit_bias if facts else None,
        "dtype": facts.dtype if facts else None,
        "engine": facts.engine if facts else service.settings.engine,
        "limits": dataclasses.asdict(service.limits),
        "template_sets": prompts.template_names(),
        "label_sets": prompts.prompt_set_names(),
        "predictors": [{"name": name, **card} for name, card in predictors.items()],
        "architecture": to_tree(config),
        "provenance": without_paths(facts.provenance) if facts else {},
        "url_hosts": list(service.settings.allow_url_hosts),
    }


def without_paths(value: Any) -> Any:
    """A JSON tree in which paths of this machine are only their last parts."""
    if isinstance(value, dict):
        return {name: without_paths(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(part) for part in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", "file:"))):
        return os.path.basename(value.rstrip("/")) or "folder"
    return value
