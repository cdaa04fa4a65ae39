"""A service that is stopped, killed, hung or restarted while others work with it; and its store, while a writer is killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from service_harness import GOOD_TEXTS, PATIENCE_S, NoAnswer, data_uri, jpeg, make_model, running, stopped, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc"),
    pytest.mark.timeout(600),
]
ROOT = Path(__file__).parents[2]
KEY = "a-key-of-these-tests-0123456789"
PICTURES = 120
WRITER = """
import sys, time, torch
torch.set_num_threads(1)
from ostension.formats.load import load
from ostension.store import Store, add
from ostension.store.origins import open_source
model = load(sys.argv[1], dtype="float32")
source, origin = open_source(sys.argv[3])
add(Store(sys.argv[2]), model, source, origin=origin, batch_size=4, shard_batches=1, workers=1,
    progress=lambda progress: time.sleep(float(sys.argv[4])))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


class Load:
    """Clients that ask all the time while entered; `seen` has the status of every answer, or what went wrong instead."""

    def __init__(self, ask, clients=4):
        self.ask, self.seen, self._over = ask, [], threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self):
        while not self._over.is_set():
            try:
                self.seen.append(self.ask().status)
            except NoAnswer:
                self.seen.append("nothing")
            except OSError as error:
                self.seen.append(type(error).__name__)
                if isinstance(error, ConnectionRefusedError):
                    return

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_a_hung_worker_is_replaced_and_nobody_waits_for_it(model, tmp_path):
    with running(tmp_path / "service", {"model": str(model), "hang_s": 2.0, "deadline_s": 60.0}) as service:
        pid = service.worker()
        with stopped(pid):
            asks = [lambda text=text: service.embed(text) for text in GOOD_TEXTS[:4]]
            answers = service.at_once([*asks, lambda: service.embed_image(jpeg())])
            assert {answer.status for answer in answers} == {503} and "retry-after" in answers[0].headers
            service.wait_ready()
            assert service.worker() != pid and service.embed(GOOD_TEXTS[0]).status == 200
            assert service.events("worker_hung") and service.metric("ostension_worker_restarts") >= 1


def test_the_command_stops_under_load_when_told_and_leaves_nobody_without_an_answer(model, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"# of the tests\n{KEY}\n")
    command = [sys.executable, "-m", "ostension", "serve", "--model", str(model), "--port", "0", "--keys-file", str(keys),
               "--threads", "1", "--dtype", "float32", "--drain", "20", "--max-queue", "100"]
    with running(tmp_path / "service", {}, command=command) as service:
        headers = {"Authorization": f"Bearer {KEY}"}
        assert service.embed("a").status == 401

        def ask():
            return service.ask("POST", "/v1/embeddings", {"input": GOOD_TEXTS[:8]}, headers)

        worker = service.worker()
        with Load(ask, clients=6) as load:
            until(lambda: load.seen.count(200) >= 20, service)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(PATIENCE_S) == 0
        # What came before the stop is answered, what comes later is refused. A client that this machine holds up for half a
        # second between its connection and its request is closed without a word, at most one for each client.
        lost = [one for one in load.seen if one in ("ConnectionResetError", "nothing")]
        assert set(load.seen) - set(lost) <= {200, 503, "ConnectionRefusedError"} and len(lost) <= 6, set(load.seen)
        assert KEY not in service.log() and "Traceback" not in service.log()
        until(lambda: not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2])


def test_a_killed_service_takes_its_worker_along(model, tmp_path):
    with running(tmp_path / "service", {"model": str(model)}) as service:
        worker = service.worker()
        service.process.kill()
        service.process.wait()
        until(lambda: not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2])


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    for number in range(PICTURES):
        (folder / f"{number:03}.jpg").write_bytes(jpeg(number, side=16))


def start_writer(model: Path, store: Path, pictures: Path, pause_s: float) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(model), str(store), str(pictures), str(pause_s)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_store_that_is_searched_while_its_writer_and_the_service_are_killed(model, tmp_path):
    """Searches see whole states only; after all kills the writer finishes, and everything is found."""
    write_pictures(tmp_path / "pictures")
    store = tmp_path / "store"
    store.mkdir()
    settings = {"model": str(model), "store": str(store), "previews": True}
    wrong: list[object] = []
    counts = [0]

    def search(service):
        query = {"query": {"image": data_uri(jpeg(counts[0] % PICTURES, side=16))}, "k": PICTURES + 10}
        answer = service.ask("POST", "/v1/search", query)
        if answer.status == 200:
            hits = answer.tree["data"]
            ids = [hit["id"] for hit in hits]
            scores = [hit["score"] for hit in hits]
            if len(set(ids)) != len(ids) or scores != sorted(scores, reverse=True) or not all(hit["fields"] for hit in hits):
                wrong.append(hits)
            if not all(re.fullmatch(r"\d{3}(\.jpg)?", Path(name).name) for name in ids):
                wrong.append(ids)
            if len(ids) < counts[0]:
                wrong.append(f"{len(ids)} after {counts[0]}")
            counts[0] = max(counts[0], len(ids))
        elif answer.status != 404:  # before the first commit there is no collection
            wrong.append(answer)
        return answer

    with running(tmp_path / "service", settings) as service:
        with Load(lambda: search(service), clients=1):
            for kill in range(3):
                writer = start_writer(model, store, tmp_path / "pictures", 0.3)
                before = counts[0]
                until(lambda before=before, writer=writer: counts[0] > before or writer.poll() is not None, service)
                assert writer.poll() is None, writer.communicate()[1]
                time.sleep(0.07 * kill)
                writer.kill()
                writer.communicate()
        assert not wrong and 0 < counts[0] < PICTURES, (wrong[:1], counts)
        writer = start_writer(model, store, tmp_path / "pictures", 0.05)
        until(lambda: search(service).status == 200 and counts[0] > 8, service)
        service.process.kill()  # in the middle of it
        service.process.wait()
        assert writer.communicate(timeout=PATIENCE_S)[1] is not None and writer.returncode == 0
    with running(tmp_path / "again", settings) as service:
        until(lambda: search(service).status == 200, service)
        assert counts[0] == PICTURES and not wrong, wrong[:1]
        hit = search(service).tree["data"][0]
        with contextlib.suppress(KeyError):
            assert hit["score"] > 0.99
        preview = service.ask("GET", f"/v1/collections/default/items/{hit['id']}/preview")
        assert preview.status == 200 and preview.body[:2] == b"\xff\xd8"
        (tmp_path / "secret.jpg").write_bytes(jpeg(1))
        outside = str(tmp_path / "secret.jpg")
        for name in ("../secret.jpg", "..%2fsecret.jpg", outside, "%2e%2e/secret.jpg", "000.jpg%00", "nothing"):
            answer = service.ask("GET", f"/v1/collections/default/items/{name}/preview")
            assert answer.status in (400, 404), (name, answer)
        # A picture that became a link out of its folder is not shown.
        shown = tmp_path / "pictures" / Path(hit["id"]).name
        shown = shown if shown.exists() else shown.with_suffix(".jpg")
        shown.unlink()
        shown.symlink_to(tmp_path / "secret.jpg")
        answer = service.ask("GET", f"/v1/collections/default/items/{hit['id']}/preview")
        assert answer.status == 404, answer
        cards = service.ask("GET", "/v1/collections")
        assert str(tmp_path) not in cards.body.decode() and cards.tree["data"][0]["rows"] == PICTURES
