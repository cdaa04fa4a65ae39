"""Files are whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ostension.errors import CheckpointError, DataError
from ostension.files import atomic_path, folder_lock, read_json, sha256_file, sha256_json, write_json, write_text


def test_an_error_while_writing_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert target.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_goes_there_and_back_and_refuses_numbers_that_are_not_json(tmp_path):
    write_json(tmp_path / "a.json", {"name": "höher", "value": 1.5})
    assert read_json(tmp_path / "a.json") == {"name": "höher", "value": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert read_json(tmp_path / "a.json")["value"] == 1.5


@pytest.mark.parametrize(("content", "reason"), [(b"{", "not JSON"), (b"\xff\xfe", "not UTF-8"), (None, "no such file")])
def test_unreadable_json_is_one_line_of_the_asked_error(tmp_path, content, reason):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_json(path, CheckpointError)


def test_hashes_are_the_known_ones(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea")
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1})


def test_a_held_folder_names_the_process_that_holds_it(tmp_path):
    code = (
        "import sys; from ostension.files import folder_lock; from ostension.errors import DataError\n"
        f"try:\n with folder_lock({str(tmp_path)!r}): print('got it')\nexcept DataError as e: print(e)"
    )
    with folder_lock(tmp_path):
        held = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    free = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"process {os.getpid()}" in held
    assert free.strip() == "got it"


def test_a_second_lock_in_one_process_is_refused_too(tmp_path):
    with folder_lock(tmp_path), pytest.raises(DataError, match="in use"), folder_lock(tmp_path):
        pass
