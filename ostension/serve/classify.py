"""Classification: classes by words, in named sets or of saved predictors, and their probabilities for pictures.

The rows of classes are kept while the same classes are asked for. W_c is the mean of the unit embeddings of class c's
prompts, as a unit row (CLIP, section 3.1.4), and logits = scale * f @ W.T, as in `model.predictor`.

Letters: N pictures, C classes, M templates, E embedding.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ostension.errors import OstensionError
from ostension.serve.compute import PREDICTOR
from ostension.serve.problems import Problem, of_input, unknown
from ostension.serve.schemas import ClassifyRequest
from ostension.serve.service import Service

DEFAULT_TEMPLATE = "a photo of a {}."  # CLIP, section 3.1.4


async def classify(service: Service, body: ClassifyRequest, client: Hashable) -> dict[str, Any]:
    """The answer to a classify request as a tree."""
    given = [name for name in ("labels", "label_set", "predictor") if getattr(body, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "nothing"
        what = f"the classes are given by {found}; expected one of labels, label_set, predictor"
        raise Problem(400, what, "classes_not_given")
    images = [one if isinstance(one, str) else one.image for one in body.images]
    if body.predictor is not None:
        names, logits = await _by_predictor(service, body, images, client)
    else:
        classes = chosen_classes(service, body.labels, body.label_set)
        rows = await class_rows(service, classes, chosen_templates(service, body.templates), client)
        names = [one[0] for one in classes]
        embeddings = np.stack(await service.embed_images(images, "images", client))
        scale = service.backend.facts.logit_scale if service.backend.facts else 1.0
        logits = scale * (embeddings.astype(np.float64) @ rows.T)
    count = min(body.top_k, len(names), service.limits.max_results)
    return {
        "object": "list",
        "data": [
            {"object": "classification", "index": index, "predictions": best(names, row, count)}
            for index, row in enumerate(softmax(logits))
        ],
        "model": service.model_id,
        "num_labels": len(names),
    }


def chosen_classes(service: Service, labels: Sequence[str] | None, label_set: str | None) -> tuple[tuple[str, ...], ...]:
    """Checked classes, each the tuple of its names.

    Raises:
        Problem: for names that no classifier can be made of.
    """
    from ostension.text import prompts

    if label_set is not None:
        if label_set not in prompts.prompt_set_names():
            raise unknown("label set", label_set, prompts.prompt_set_names(), "label_set")
        return prompts.prompt_set(label_set).classes
    assert labels is not None
    if len(labels) > service.limits.max_labels:
        what = f"there are {len(labels):,} labels; expected at most {service.limits.max_labels:,}"
        raise Problem(400, what, "too_many_labels", param="labels")
    for index, label in enumerate(labels):
        service.inputs.check_text(label, f"labels[{index}]")
    try:
        return prompts.as_classes(labels)
    except OstensionError as error:
        raise of_input(error, "labels") from None


def chosen_templates(service: Service, given: str | list[str] | None) -> tuple[str, ...]:
    """Checked templates.

    Raises:
        Problem: for a template without exactly one `{}`, or an unknown set.
    """
    from ostension.text import prompts

    if isinstance(given, list) and len(given) > service.limits.max_templates:
        what = f"there are {len(given):,} templates; expected at most {service.limits.max_templates:,}"
        raise Problem(400, what, "too_many_templates", param="templates")
    if isinstance(given, str) and "{}" not in given and given not in prompts.template_names():
        raise unknown("set of templates", given, prompts.template_names(), "templates")
    for template in given if isinstance(given, list) else [given or DEFAULT_TEMPLATE]:
        service.inputs.check_text(template, "templates")
    try:
        return prompts.as_templates(given if given is not None else (DEFAULT_TEMPLATE,))
    except OstensionError as error:
        raise of_input(error, "templates") from None


async def class_rows(
    service: Service, classes: Sequence[Sequence[str]], templates: Sequence[str], client: Hashable
) -> np.ndarray:
    """W (C, E) in float64."""
    from ostension.text.prompts import compose

    count = sum(map(len, classes)) * len(templates)
    if count > service.limits.max_prompts:
        what = f"{len(classes):,} classes in {len(templates)} templates are {count:,} prompts"
        raise Problem(400, f"{what}; expected at most {service.limits.max_prompts:,}", "too_many_prompts", param="labels")
    try:
        grid = await service.in_thread(lambda: compose(service.inputs.tokenizer, templates, classes))
    except OstensionError as error:
        raise of_input(error, "labels") from None
    rows = np.stack(await service.rows_of_tokens([ids for prompts in grid for ids in prompts], client)).astype(np.float64)
    ends = np.cumsum([len(prompts) for prompts in grid])[:-1]
    return np.stack([unit(group.mean(axis=0)) for group in np.split(rows, ends)])


async def _by_predictor(
    service: Service, body: ClassifyRequest, images: Sequence[str], client: Hashable
) -> tuple[list[str], np.ndarray]:
    if body.templates is not None:
        raise Problem(400, "a saved predictor has its prompts; leave templates out", "templates_not_used", param="templates")
    known = service.settings.predictors
    if body.predictor not in known:
        raise unknown("predictor", str(body.predictor), sorted(known), "predictor")
    rows = await service.embed_images(images, "images", client, lane=f"{PREDICTOR}{body.predictor}")
    assert service.backend.facts is not None
    return service.backend.facts.predictors[str(body.predictor)]["class_names"], np.stack(rows).astype(np.float64)


def unit(row: np.ndarray) -> np.ndarray:
    """The row with length 1."""
    return row / max(float(np.linalg.norm(row)), 1e-12)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (N, C)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def best(names: Sequence[str], probabilities: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The most probable classes; equals stand in the order of the classes."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"label": names[int(index)], "probability": float(probabilities[index])} for index in order]
