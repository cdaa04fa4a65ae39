"""The routes against the model itself: what they answer, and what they refuse and how."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest
import torch
from service_making import app_of, ask, png, started, tiny_model, uri

from ostension.model.predictor import Predictor

TEXTS = ["a cat", "a dog on the beach", "two boats"]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def call(model):
    """Ask a service several things one after the other: (method, path, body) -> answers."""

    def run(*requests, model_=model, **settings):
        async def work():
            async with started(app_of(model_, **settings)) as app:
                return [await ask(app, *request) for request in requests]

        return asyncio.run(work())

    return run


def post(path, **body):
    return ("POST", path, body)


def embed(**body):
    return post("/v1/embeddings", **body)


def test_texts_and_pictures_are_embedded_as_the_model_does_in_the_order_given(call, model):
    pictures = [png(seed) for seed in range(3)]
    items = [{"text": TEXTS[0]}, {"image": uri(pictures[0])}, TEXTS[1], {"image": base64.b64encode(pictures[1]).decode()}]
    mixed, texts, single = call(embed(input=items), embed(input=TEXTS, model="tiny-vit"), embed(input=TEXTS[2]))
    rows, images = model.embed_texts(TEXTS).numpy(), model.embed_images(pictures).numpy()
    assert mixed.status == texts.status == single.status == 200
    np.testing.assert_allclose(mixed.rows(), [rows[0], images[0], rows[1], images[1]], atol=2e-6)
    np.testing.assert_allclose(texts.rows(), rows, atol=2e-6)
    np.testing.assert_allclose(single.rows(), rows[2:], atol=2e-6)
    assert [one["index"] for one in mixed.tree["data"]] == [0, 1, 2, 3]
    tokens = sum(map(len, model.tokenizer.ragged(TEXTS)))
    assert texts.tree["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens} and texts.tree["model"] == "tiny-vit"


def test_float_and_base64_are_the_same_numbers(call):
    plain, packed, other = call(
        embed(input=TEXTS), embed(input=TEXTS, encoding_format="base64"), embed(input=TEXTS, embedding_type="base64")
    )
    decoded = np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in packed.tree["data"]])
    assert np.array_equal(decoded, plain.rows()) and other.tree["data"] == packed.tree["data"]


def test_strings_are_pictures_only_where_the_request_says_so(call, model):
    picture = uri(png())
    as_image, as_text = call(embed(input=[picture], modality="image"), embed(input=["data:image/png;base64,AAAA"]))
    np.testing.assert_allclose(as_image.rows(), model.embed_images([png()]).numpy(), atol=2e-6)
    np.testing.assert_allclose(as_text.rows(), model.embed_texts(["data:image/png;base64,AAAA"]).numpy(), atol=2e-6)


def test_a_text_that_was_asked_for_before_is_not_computed_again(model):
    async def work():
        async with started(app_of(model)) as app:
            first = await ask(app, *embed(input=TEXTS))
            before = app.state.service.metrics.items.labels("text")._value.get()
            again = await ask(app, *embed(input=[TEXTS[1], TEXTS[1], TEXTS[0]]))
            service = app.state.service
            return (
                first,
                again,
                before,
                service.metrics.items.labels("text")._value.get(),
                service.metrics.cache_hits._value.get(),
            )

    first, again, before, after, hits = asyncio.run(work())
    assert np.array_equal(again.rows(), first.rows()[[1, 1, 0]])
    assert hits == 3 and after - before < 2  # the canary may have asked once more


def test_a_request_does_not_depend_on_its_companions(model):
    many = [f"a photo of {number} things" for number in range(40)]

    async def work():
        async with started(app_of(model, cache_bytes=0)) as app:
            alone = [await ask(app, *embed(input=[text])) for text in many[:5]]
            together = await asyncio.gather(*(ask(app, *embed(input=[text])) for text in many))
            return alone, together

    alone, together = asyncio.run(work())
    for one, other in zip(alone, together[:5], strict=True):
        assert np.abs(one.rows() - other.rows()).max() < 1e-6


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": []}, "input", "1 to 128"),
        ({"input": ["x"] * 1000}, "input", "1 to 128"),
        ({"input": [["nested"]]}, "input[0]", "string"),
        ({"input": [3]}, "input[0]", "string"),
        ({"input": 3}, "input", "string"),
        ({}, "input", "required"),
        ({"input": "x", "wish": 1}, "wish", "not permitted"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "float"),
        ({"input": "x", "encoding_format": "float", "embedding_type": "base64"}, None, "different things"),
        ({"input": "x", "dimensions": 16}, "dimensions", "32"),
        ({"input": "x", "dimensions": "32"}, "dimensions", "integer"),
        ({"input": "x", "normalized": False}, "normalized", "True"),
        ({"input": "x", "modality": "audio"}, "modality", "image"),
        ({"input": ["fine", "x" * 100_000]}, "input[1]", "characters"),
        ({"input": ["fine", "word " * 100]}, "input[1]", "tokens"),
        ({"input": ["fine", ""]}, "input[1]", "empty"),
        ({"input": ["\ud800"]}, "input[0]", "surrogate"),
        ({"input": [{"text": "x", "image": "y"}]}, "input[0]", "not permitted"),
        ({"input": ["x", {"image": "no base64!"}]}, "input[1]", "base64"),
        ({"input": [{"image": ""}]}, "input[0]", "empty"),
        ({"input": [{"image": "data:text/html;base64,AAAA"}]}, "input[0]", "text/html"),
        ({"input": [{"image": "data:image/png,AAAA"}]}, "input[0]", "base64"),
        ({"input": [{"image": "data:image/png;base64"}]}, "input[0]", "comma"),
        ({"input": [{"image": "http://127.0.0.1/x.png"}]}, "input[0]", "not fetched"),
        ({"input": [{"image": "file:///etc/passwd"}]}, "input[0]", "kind"),
        ({"input": [{"image": "/etc/passwd"}]}, "input[0]", "base64"),
        ({"input": [{"image": base64.b64encode(b"<html>").decode()}]}, "input[0]", "not a picture"),
        ({"input": [{"image": uri(png()[:200])}]}, "input[0]", "cut short"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_not_right_is_400_and_says_where_and_why(call, body, param, said):
    (answer,) = call(embed(**body))
    assert answer.status == 400 and answer.error["type"] == "invalid_request_error"
    assert (answer.error["param"] or "").startswith(param or "") and said in answer.error["message"], answer
    assert "/" not in answer.error["message"].replace("text/html", "").replace("image/...", "")


def test_pictures_past_the_limits_are_refused_by_their_headers(call):
    (large, many) = call(
        embed(input=[{"image": uri(png(size=(100, 101)))}]), embed(input=[{"image": uri(png())}]),
        limits={"max_pixels": 10_000, "max_image_bytes": 5_000},
    )  # fmt: skip
    assert large.status == 400 and large.error["code"] == "image_too_large"
    assert many.status == 400 and many.error["code"] == "image_too_large"
    (pixels,) = call(embed(input=[{"image": uri(png(size=(100, 101)))}]), limits={"max_pixels": 10_000})
    assert pixels.status == 400 and pixels.error["code"] == "limit_exceeded" and "10,000" in pixels.error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"input": NaN}', b'{"input": 1e999}'])
def test_a_body_that_is_no_object_is_400(call, body):
    (answer,) = call(("POST", "/v1/embeddings", body))
    assert answer.status == 400 and answer.error["type"] == "invalid_request_error"


def test_unknown_models_paths_and_methods(call):
    model, path, method, other = call(
        embed(input="x", model="gpt"), ("GET", "/v1/nothing"), ("GET", "/v1/embeddings"), ("GET", "/v1/models/gpt")
    )
    assert model.status == other.status == 404 and model.error["code"] == "model_not_found"
    assert "tiny-vit" in model.error["message"]
    assert path.status == 404 and path.error["code"] == "not_found"
    assert method.status == 405 and method.error["code"] == "method_not_allowed" and method.headers["allow"] == "POST"


def test_truncation_is_asked_for(call, model):
    long = "word " * 100
    (answer,) = call(embed(input=[long], truncate=True))
    np.testing.assert_allclose(answer.rows(), model.embed_texts([long], truncate=True).numpy(), atol=2e-6)


def test_pictures_are_classified_as_the_model_does(call, model):
    names, templates, pictures = ["cat", "dog", "a cup of tea"], ["a photo of a {}.", "a drawing of a {}."], [png(1), png(2)]
    (answer,) = call(post("/v1/classify", images=[uri(one) for one in pictures], labels=names, templates=templates, top_k=3))
    expected = model.classifier(names, templates).predict(pictures).numpy()
    for row, probabilities in zip(answer.tree["data"], expected, strict=True):
        found = {one["label"]: one["probability"] for one in row["predictions"]}
        np.testing.assert_allclose([found[name] for name in names], probabilities, atol=1e-5)
        assert [one["probability"] for one in row["predictions"]] == sorted(found.values(), reverse=True)


def test_published_sets_of_classes_and_templates_have_names(call, model):
    (answer,) = call(post("/v1/classify", images=[uri(png())], label_set="cifar10", templates="cifar10", top_k=2))
    assert answer.tree["num_labels"] == 10 and len(answer.tree["data"][0]["predictions"]) == 2


def test_saved_predictors_answer_by_their_names(call, model):
    weights = torch.nn.functional.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    predictor = Predictor(class_names=["a", "b", "c", "d"], weights=weights, scale=10.0, encoder=model)
    answer, card, unknown, templates = call(
        post("/v1/classify", images=[uri(png(3))], predictor="mine", top_k=4), ("GET", "/v1/models"),
        post("/v1/classify", images=[uri(png(3))], predictor="other"),
        post("/v1/classify", images=[uri(png(3))], predictor="mine", templates="photo"),
        predictors={"mine": predictor},
    )  # fmt: skip
    expected = predictor([png(3)])[0]
    found = [(one["label"], one["probability"]) for one in answer.tree["data"][0]["predictions"]]
    assert [name for name, _ in found] == [name for name, _ in expected.top(4)]
    np.testing.assert_allclose([value for _, value in found], [value for _, value in expected.top(4)], atol=1e-5)
    assert card.tree["data"][0]["predictors"] == [
        {"name": "mine", "kind": "matrix", "class_names": ["a", "b", "c", "d"], "templates": []}
    ]
    assert unknown.status == 404 and unknown.error["code"] == "predictor_not_found"
    assert templates.status == 400 and templates.error["code"] == "templates_not_used"


@pytest.mark.parametrize(
    ("change", "param", "status"),
    [
        ({"labels": None}, None, 400),
        ({"label_set": "cifar10"}, None, 400),
        ({"labels": []}, "labels", 400),
        ({"labels": ["cat", "cat"]}, "labels", 400),
        ({"labels": ["cat", " "]}, "labels", 400),
        ({"labels": [f"thing {number}" for number in range(2000)]}, "labels", 400),
        ({"labels": [f"thing {number}" for number in range(900)], "templates": "openai_imagenet"}, "labels", 400),
        ({"labels": None, "label_set": "nothing"}, "label_set", 404),
        ({"templates": ["no placeholder"]}, "templates", 400),
        ({"templates": ["{} and {}"]}, "templates", 400),
        ({"templates": "unknown_set"}, "templates", 404),
        ({"templates": []}, "templates", 400),
        ({"images": []}, "images", 400),
        ({"top_k": 0}, "top_k", 400),
        ({"images": ["broken"]}, "images[0]", 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_classifications_that_cannot_be_meant(call, change, param, status):
    body = {"images": [uri(png())], "labels": ["cat", "dog"], **change}
    (answer,) = call(("POST", "/v1/classify", {name: value for name, value in body.items() if value is not None}))
    assert answer.status == status, answer
    if param:
        assert answer.error["param"] == param


def test_similarities_are_cosines_and_come_with_the_scale(call, model):
    pictures = [png(4), png(5)]
    (answer,) = call(post("/v1/similarity", images=[uri(one) for one in pictures], texts=TEXTS))
    expected = model.embed_images(pictures) @ model.embed_texts(TEXTS).T
    np.testing.assert_allclose(answer.tree["similarity"], expected.numpy(), atol=1e-5)
    assert answer.tree["logit_scale"] == pytest.approx(model.scale().item()) and answer.tree["logit_bias"] is None


def test_the_model_card_tells_what_clients_need(call, model):
    model.provenance = {"source": "/home/somebody/secret/model", "before": {"source": "/a/b"}, "layout": "ours"}
    listed, one = call(("GET", "/v1/models"), ("GET", "/v1/models/tiny-vit"))
    model.provenance = {}
    card = listed.tree["data"][0]
    assert card == {**one.tree, "created": card["created"]} and len(card["sha256"]) == 64
    assert (card["embed_dim"], card["context_length"], card["image_size"], card["normalized"]) == (32, 24, 32, True)
    assert card["limits"]["max_batch_items"] == 128 and "openai_imagenet" in card["template_sets"]
    assert "/" not in json.dumps(card["provenance"]) and card["provenance"]["source"] == "model"


def test_the_document_describes_every_route_and_its_failures(call):
    document, docs = call(("GET", "/openapi.json"), ("GET", "/docs"))
    paths = document.tree["paths"]
    assert {"/v1/embeddings", "/v1/classify", "/v1/search", "/v1/similarity", "/v1/audit", "/v1/models", "/v1/collections",
            "/health/live", "/health/ready", "/metrics"} <= set(paths)  # fmt: skip
    answers = paths["/v1/embeddings"]["post"]["responses"]
    assert {"200", "400", "401", "413", "429", "503", "504"} <= set(answers) and "422" not in answers
    assert answers["400"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorAnswer")
    assert docs.status == 200 and b"<script" not in docs.body and b"http://" not in docs.body and b"https://" not in docs.body
    assert b"/v1/embeddings" in docs.body


def test_health_and_metrics(call):
    live, ready, _, metrics = call(("GET", "/health/live"), ("GET", "/health/ready"), embed(input="x"), ("GET", "/metrics"))
    assert live.tree == {"status": "live", "reason": None} and ready.tree["status"] == "ready"
    text = metrics.body.decode()
    assert metrics.headers["content-type"].startswith("text/plain") and 'route="/v1/embeddings",status="200"} 1.0' in text
    for name in ("requests_total", "queue_depth", "batch_size", "wait_seconds", "decode_seconds", "forward_seconds",
                 "rejected_total", "cache_hits_total", "ready"):  # fmt: skip
        assert f"ostension_{name}" in text


def test_an_audit_says_what_is_wrong_with_names(call):
    bad, one, many = call(
        post("/v1/audit", labels=["cat", "cats", "crane"], templates=["a photo of a {}."]), post("/v1/audit", labels=["cat"]),
        post("/v1/audit", labels=[f"thing {number}" for number in range(900)]),
    )  # fmt: skip
    assert bad.status == 200 and any("cats" in finding["classes"] for finding in bad.tree["findings"])
    assert {"kind", "severity", "evidence", "suggestion", "rule"} <= set(bad.tree["findings"][0])
    assert one.status == many.status == 400


def test_a_service_without_a_store_has_no_collections(call):
    listed, found = call(("GET", "/v1/collections"), post("/v1/search", query={"text": "x"}))
    assert listed.tree["data"] == [] and found.status == 404 and found.error["code"] == "collection_not_found"
