"""Requests made from the OpenAPI document, most of them nonsense: never a 5xx, never another form of error than ours.

`OSTENSION_CASES` sets how many requests there are in all (5,000 were run; the default is for every day).
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request

import hypothesis
import pytest
import schemathesis
from service_making import app_of, listening, tiny_model

CASES = int(os.environ.get("OSTENSION_CASES", "150"))


@pytest.fixture(scope="module")
def url():
    with listening(app_of(tiny_model())) as address:
        yield address


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # of how schemathesis draws
def test_no_request_of_the_document_is_answered_with_5xx(url):
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        document = json.load(answer)
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 12
    counts: dict[int, int] = {}
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for operation in operations:
        has_body = operation.method.upper() == "POST"  # without one there is nothing to get wrong
        for mode in modes if has_body else modes[:1]:
            asked(operation, mode, url, counts, max(1, CASES // 16))
    assert not any(status >= 500 for status in counts), counts
    assert sum(counts.values()) >= CASES // 2 and counts.get(200, 0) > 0 and counts.get(400, 0) > 0


def asked(operation, mode, url, counts, examples):
    @hypothesis.settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def once(case):
        answer = case.call(base_url=url)
        counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, answer.text

    once()
