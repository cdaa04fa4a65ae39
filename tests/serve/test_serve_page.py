"""The page on serving does what it says: the command, the requests, and the end by a signal."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from service_making import PATIENCE_S, png, tiny_model

from ostension.cli.main import main
from ostension.formats.load import save
from ostension.serve.client import Client

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "serve.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("page")
    save(tiny_model(), where / "model")
    (where / "pictures").mkdir()
    for seed, name in enumerate(("cat.png", "dog.png", "boat.png")):
        (where / "pictures" / name).write_bytes(png(seed))
        shutil.copy(where / "pictures" / name, where / name)
    arguments = [str(where / "pictures"), "-o", str(where / "store"), "--model", str(where / "model"), "--dtype", "float32"]
    assert main(["embed", *arguments]) == 0
    return where


@pytest.fixture(scope="module")
def service(folder):
    command = [sys.executable, "-m", "ostension", "serve", "--model", "model", "--store", "store", "--previews"]
    command += ["--port", "0", "--dtype", "float32", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[2]), "OMP_NUM_THREADS": "1"}
    environment.pop("OSTENSION_KEYS", None)
    before = sorted(str(path) for path in folder.rglob("*"))
    with open(folder.with_name("serve.log"), "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=log, stdout=subprocess.DEVNULL)
    try:
        text = folder.with_name("serve.log")
        found, limit = None, time.monotonic() + 3 * PATIENCE_S
        while found is None and process.poll() is None and time.monotonic() < limit:
            found = re.search(r"http://127\.0\.0\.1:\d+", text.read_text())
            time.sleep(0.05)
        assert found is not None, text.read_text()
        client = Client(found[0])
        while not client.ready() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        assert client.ready(), text.read_text()
        client.close()
        yield found[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0, text.read_text()
        assert sorted(str(path) for path in folder.rglob("*")) == before  # nothing was written
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_what_the_page_shows_works(service, folder, monkeypatch, capsys):
    text = PAGE.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", service).replace("MODEL-ID", "tiny-vit")
    monkeypatch.chdir(folder)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    shown = capsys.readouterr().out
    assert shown.startswith("2 32\n") and "['default']" in shown and ".png" in shown
    names["client"].close()
    names["openai"].close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_what_the_page_asks_with_curl_is_answered(service, folder):
    text = PAGE.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", service)
    (command,) = [
        block for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL) if "curl" in block
    ]
    answer = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert '"index":1' in answer.stdout and '"error"' not in answer.stdout, answer.stdout


def test_a_model_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OSTENSION_MODEL", raising=False)
    assert main(["serve"]) == 2 and "no model" in capsys.readouterr().err
    assert main(["serve", "--model", "nothing"]) == 1
    said = capsys.readouterr().err
    assert "nothing" in said and len(said.strip().splitlines()) == 1
    assert main(["serve", "--model", "m", "--host", "0.0.0.0"]) == 2 and "key" in capsys.readouterr().err
