"""The service under more load than it can carry: what holds on every machine. benchmarks/serve_load.py measures times."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from service_harness import GOOD_TEXTS, PATIENCE_S, data_uri, jpeg, make_model, running, stopped, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc"),
    pytest.mark.timeout(600),
]
GENERATOR = Path(__file__).parents[2] / "benchmarks" / "_load.py"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    settings = {"queue_images": 40, "queue_tokens": 400, "cache_bytes": 0, "deadline_s": 100.0}
    settings["model"] = str(make_model(folder / "tiny"))
    with running(folder / "service", settings) as found:
        yield found


def request(inputs, rows=None):
    return {"path": "/v1/embeddings", "body": {"input": inputs, "encoding_format": "base64"}, "expected": rows}


def load(service, seconds, **streams):
    """What came of streams of (clients, requests, most requests)."""
    given = [{"name": name, "clients": clients, "requests": wanted, "most": most}
             for name, (clients, wanted, most) in streams.items()]
    spec = {"host": "127.0.0.1", "port": service.port, "seconds": seconds, "streams": given}
    command, most = [sys.executable, str(GENERATOR)], seconds + 2 * PATIENCE_S
    done = subprocess.run(command, input=json.dumps(spec), capture_output=True, text=True, timeout=most)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["streams"]


def statuses(found):
    return collections.Counter(status for *_, status in found["answers"])


@pytest.fixture(scope="module")
def known(service):
    """Requests with the rows that their answers have when nothing else is asked."""
    inputs = list(GOOD_TEXTS) + [[{"image": data_uri(jpeg(seed))}] for seed in range(8)]
    inputs.append([*GOOD_TEXTS[:3], {"image": data_uri(jpeg(3))}])
    return [request(one, service.embed(one).rows().tolist()) for one in inputs]


def test_nothing_is_lost_or_wrong_under_more_than_the_service_can_do(service, known):
    load(service, 2.0, all=(64, known, None))  # whatever grows once has grown
    memory, descriptors = service.memory(), service.descriptors()
    found = load(service, 5.0, all=(64, known, None))["all"]
    seen = statuses(found)
    assert set(seen) <= {200, 429} and seen[200] > 0 and not found["errors"], (seen, found["errors"])
    assert found["without_retry_after"] == 0
    assert found["worst"] < 1e-6  # the same alone and in company, float32
    assert service.memory() - memory < 50 * MEGABYTE
    until(lambda: service.descriptors() <= descriptors + 2, service)
    assert service.ready() and service.metric("ostension_queue_cost") == 0


def test_what_does_not_fit_the_queue_is_refused_at_once_and_the_rest_is_answered(service, known):
    """Nothing is computed while the worker is stopped, so what is refused does not depend on the machine."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    with pool, stopped(service.worker()):
        asked = pool.submit(load, service, 30.0, all=(80, known[:16], 80))
        until(lambda: service.metric("ostension_requests_total", route="/v1/embeddings", status="429") > 0, service)
        until(lambda: service.metric("ostension_requests_active") < 60, service)
        os.kill(service.worker(), signal.SIGCONT)
        found = asked.result()["all"]
    seen = statuses(found)
    assert set(seen) == {200, 429} and sum(seen.values()) == 80 and not found["errors"]
    assert found["without_retry_after"] == 0 and found["worst"] < 1e-6


def test_single_texts_are_answered_beside_a_client_that_sends_batches_without_end(service, known):
    many = [request([{"image": data_uri(jpeg(seed))} for seed in range(32)])]
    found = load(service, 4.0, one=(1, known[:8], None), many=(1, many, None))
    assert set(statuses(found["one"])) == {200} and set(statuses(found["many"])) == {200}
    assert found["one"]["worst"] < 1e-6 and not found["one"]["errors"] and not found["many"]["errors"]
    assert len(found["one"]["answers"]) > len(found["many"]["answers"])  # nobody's 32 pictures stand before one text


def test_five_hundred_connections_at_once_are_all_answered(service, known):
    found = load(service, 60.0, all=(500, known, 500))["all"]
    seen = statuses(found)
    assert sum(seen.values()) == 500 and set(seen) <= {200, 429, 503} and not found["errors"], (seen, found["errors"])
    assert found["without_retry_after"] == 0 and found["worst"] < 1e-6
    assert service.embed(GOOD_TEXTS[0]).status == 200 and "Traceback" not in service.log()
