"""The audit of class names (`evals.audit`) with the service's model, whose queue embeds what it asks for like any request's."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ostension.errors import OstensionError
from ostension.serve.classify import chosen_templates
from ostension.serve.problems import Problem, of_input
from ostension.serve.schemas import AuditRequest
from ostension.serve.service import Service, unavailable

TRIED = "openai_imagenet_best7"  # templates that names are tried in where fewer than three are given
AT_ONCE = 512  # prompts that are put into the queue together


async def audit_names(service: Service, body: AuditRequest, client: Hashable) -> dict[str, Any]:
    """The answer to an audit request as a tree.

    Raises:
        Problem: for names that no classifier can be made of, or too many of them.
    """
    from ostension.text.prompts import as_templates

    templates = chosen_templates(service, body.templates)
    tried = max(len(templates), len(as_templates(TRIED)))
    for index, label in enumerate(body.labels):
        service.inputs.check_text(label, f"labels[{index}]")
    if len(body.labels) > service.limits.max_labels or len(body.labels) * tried > service.limits.max_prompts:
        what = f"{len(body.labels):,} labels in {tried} templates; expected at most {service.limits.max_prompts:,} prompts"
        raise Problem(400, what, "too_many_prompts", param="labels")
    if service.backend.facts is None:
        raise unavailable()
    encoder = _QueueEncoder(service, client, asyncio.get_running_loop())
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="audit")
    try:
        found = await asyncio.get_running_loop().run_in_executor(pool, _audit, encoder, list(body.labels), templates)
    except OstensionError as error:
        raise of_input(error, "labels") from None
    finally:
        encoder.cancel()
        pool.shutdown(wait=False)
    return {"object": "audit", **found, "model": service.model_id}


def _audit(encoder: _QueueEncoder, labels: Sequence[str], templates: Sequence[str]) -> dict[str, Any]:
    from ostension.evals.audit.model_inputs import ModelInputs, prompt_lengths, task_of_names
    from ostension.evals.audit.page import verdict
    from ostension.evals.audit.run import audit
    from ostension.evals.audit.subject import subject_of
    from ostension.text.prompts import as_templates

    task = task_of_names(labels, templates, "the labels")
    model: Any = encoder
    lengths, room = prompt_lengths(model, task)
    subject = subject_of(ModelInputs(model, task), templates=as_templates(TRIED), lengths=lengths, context_length=room)
    found = audit(subject)
    tree = found.tree()
    return {
        "verdict": verdict(found),
        "findings": tree["findings"],
        "skipped": tree["skipped"],
        "neighbours": tree["neighbours"],
    }


class _QueueEncoder:
    """What an audit needs of a model, from a thread: texts are embedded by the service's queue."""

    def __init__(self, service: Service, client: Hashable, loop: asyncio.AbstractEventLoop):
        self.config, self.tokenizer = service.files.config, service.files.tokenizer
        self._service, self._client, self._loop = service, client, loop
        self._asked: concurrent.futures.Future[Any] | None = None
        self._over = False

    def scale(self) -> Any:
        """The multiplier of the logits, as a tensor."""
        import torch

        assert self._service.backend.facts is not None
        return torch.tensor(self._service.backend.facts.logit_scale)

    def embed_texts(self, texts: Sequence[str], *, truncate: bool = False) -> Any:
        """Unit rows (N, E) of texts, waited for."""
        import torch

        rows: list[np.ndarray] = []
        for start in range(0, len(texts), AT_ONCE):
            if self._over:
                raise concurrent.futures.CancelledError
            part = texts[start : start + AT_ONCE]
            work = self._service.embed_texts(part, "labels", self._client, truncate=truncate)
            self._asked = asyncio.run_coroutine_threadsafe(work, self._loop)
            rows += self._asked.result().rows
        return torch.from_numpy(np.stack(rows))

    def cancel(self) -> None:
        """Nobody waits any more: ask for nothing else."""
        self._over = True
        if self._asked is not None:
            self._asked.cancel()
