"""The command with each engine, seen from outside: what torch answers, the others answer."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from service_harness import GOOD_TEXTS, POISON, data_uri, jpeg, make_model, running

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a store of a few pictures that it embedded."""
    found = tmp_path_factory.mktemp("engines")
    model = make_model(found / "tiny")
    (found / "pictures").mkdir()
    for number in range(6):
        (found / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    command = [sys.executable, "-m", "ostension", "embed", str(found / "pictures"), "-o", str(found / "store")]
    subprocess.run([*command, "--model", str(model), "--dtype", "float32"], check=True, capture_output=True)
    return found


def answers(folder, engine):
    command = [sys.executable, "-m", "ostension", "serve", "--model", str(folder / "tiny"), "--store", str(folder / "store"),
               "--port", "0", "--threads", "1", "--dtype", "float32", "--engine", engine]  # fmt: skip
    with running(folder / engine, {}, command=command) as service:
        assert service.ask("GET", "/v1/models").tree["data"][0]["engine"] == engine
        rows = service.embed([{"text": GOOD_TEXTS[0]}, {"image": data_uri(jpeg(3))}, GOOD_TEXTS[5]]).rows()
        body = {"images": [data_uri(jpeg(1)), data_uri(jpeg(2))], "labels": ["dogs", "boats", "hats"], "templates": ["a {}."]}
        classes = service.ask("POST", "/v1/classify", body).tree["data"]
        hits = service.ask("POST", "/v1/search", {"query": {"image": data_uri(jpeg(4))}, "k": 3}).tree["data"]
        assert service.embed(POISON).status == 500 and service.embed(GOOD_TEXTS[1]).status == 200
        assert service.stop() == 0
    chances = [[one["probability"] for one in sorted(row["predictions"], key=lambda one: one["label"])] for row in classes]
    return rows, np.array(chances), [hit["id"] for hit in hits], np.array([hit["score"] for hit in hits])


def test_every_engine_answers_what_torch_answers(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # where the graphs are kept
    rows, chances, ids, scores = answers(folder, "torch")
    assert ids[0] == "4.jpg"
    for engine in ("onnx", "openvino"):
        found = answers(folder, engine)
        assert found[2] == ids, engine
        for ours, theirs in ((rows, found[0]), (chances, found[1]), (scores, found[3])):
            np.testing.assert_allclose(theirs, ours, atol=1e-5, err_msg=engine)
