"""Models on the hub: from the library's cache without a connection, and from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from format_samples import random_model, same_weights

from ostension.errors import CheckpointError
from ostension.formats.load import load, save

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The library's cache, with one model of Hugging Face's layout in it, and no connection."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    save(random_model("tiny-vit"), repo / "snapshots" / COMMIT, "hf")
    return repo


@pytest.mark.parametrize("name", ["hf-hub:org/tiny", "hf-hub:org/tiny@main", f"hf-hub:org/tiny@{COMMIT}"])
def test_a_cached_model_loads_offline(cache, name):
    model = load(name, dtype="float32")
    same_weights(random_model("tiny-vit"), model)
    assert model.provenance["source"] == name
    assert model.provenance["revision"] == COMMIT


@pytest.mark.parametrize("name", ["org/other", "org/tiny@v2"])
def test_what_is_not_in_the_cache_is_said_plainly(cache, name):
    with pytest.raises(CheckpointError, match="is not in the hub's cache .* and HF_HUB_OFFLINE is set; connect once"):
        load(f"hf-hub:{name}")


def test_a_cached_folder_without_weights_is_said_plainly(cache):
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="in the hub's cache without its weights"):
        load("hf-hub:org/tiny")


@pytest.mark.parametrize("name", ["tiny", "org/../../etc", "org/tiny/extra", "", "org/ti ny", "-x/y"])
def test_malformed_names_are_refused_before_anything_is_asked(cache, name):
    with pytest.raises(CheckpointError, match="is not the name of a model; expected hf-hub:ORG/NAME"):
        load(f"hf-hub:{name}")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs. The weights' first download breaks off half-way."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body: bool):
        path, headers, status = self.path.split("?")[0], {}, 200
        if path.startswith("/api/models/org/tiny"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": digest(data)} for name, data in self.files.items()
            ]
            siblings = [{"rfilename": name} for name in self.files]
            data = json.dumps(entries if "/tree/" in path else {"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith("/org/tiny/resolve/"):
            name = path.rsplit("/", 1)[1]
            data, headers = self.files[name], {"ETag": f'"{digest(self.files[name])}"', "X-Repo-Commit": COMMIT}
        else:
            data, headers, status = b"", {"X-Error-Code": "RepoNotFound"}, 404
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        broken = path.endswith("model.safetensors") and path not in self.asked
        if body:
            self.asked.append(path)
            self.wfile.write(data[: len(data) // 2] if broken else data)
            self.close_connection = broken


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.mark.slow
def test_a_broken_download_is_taken_up_again_and_then_works_without_a_connection(tmp_path):
    save(random_model("tiny-vit"), tmp_path / "model", "hf")
    Hub.files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    Hub.files |= {"README.md": b"# not needed", "pytorch_model.bin": b"not needed either"}
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def describe(*names: str) -> list[str]:
        """What a fresh process says about each name, as JSON or as the text of the error."""
        code = (
            "import json, sys\n"
            "from ostension.errors import CheckpointError\n"
            "from ostension.formats.inspect import describe\n"
            "for name in sys.argv[1:]:\n"
            "    try:\n"
            "        print(json.dumps(describe(name)))\n"
            "    except CheckpointError as error:\n"
            "        print(error)\n"
        )
        command = [sys.executable, "-c", code, *names]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [*done.stdout.splitlines(), done.stderr]

    found, missing, _ = describe("hf-hub:org/tiny", "hf-hub:org/none")
    assert json.loads(found)["revision"] == COMMIT
    assert missing.startswith("the hub has no model 'org/none', or it is private")
    assert sum(path.endswith("model.safetensors") for path in Hub.asked) == 2
    assert not any(path.endswith(("README.md", "pytorch_model.bin")) for path in Hub.asked)
    server.shutdown()
    server.server_close()
    again, said = describe("hf-hub:org/tiny")
    assert json.loads(again) == json.loads(found)
    assert "no connection to the hub" in said
