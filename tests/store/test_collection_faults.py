"""A collection after kills and a full disk: the last commit, whole; and the run that goes on makes the same files."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from store_making import picture
from test_collection import SMALL, Named, counts, files

import ostension.files
from ostension.errors import DataError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Store, add, open_collection
from ostension.store.collection import compact, remove

ROOT = Path(__file__).parents[2]


class _Killed(BaseException):
    """What a kill looks like from inside: nothing may be put in order after it but locks, which the system frees."""


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return CLIP(preset("tiny-vit"), seed=3)


def grown_source() -> Named:
    """Pictures with bad ones, copies, and changes against `Named(10)`."""
    source = Named(22, broken=(4, 15))
    source.images[2], source.images[18] = picture(70), source.images[0]
    source.facts["p7"] = {"camera": "other"}
    return source


def killed_after(monkeypatch, replaces: int, act) -> bool:
    """Run `act` and kill it at the next file to be put into place after so many; whether it came to that."""
    left, real = [replaces], os.replace

    def replace(*arguments, **options):
        if left[0] == 0:
            raise _Killed
        left[0] -= 1
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        try:
            act()
        except _Killed:
            return True
    return False


@pytest.mark.slow  # flushes many files
def test_killed_at_any_file_readers_see_a_commit_and_the_same_command_makes_the_same_files(tmp_path, model, monkeypatch):
    begun, whole = tmp_path / "begun", tmp_path / "whole"
    for folder in (begun, whole):
        add(Store(folder), model, Named(10), **SMALL)
    add(Store(whole), model, grown_source(), **SMALL)
    expected, before = files(whole), files(begun)
    for replaces in range(40):
        folder = tmp_path / f"killed{replaces}"
        for name, content in before.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        killed = killed_after(monkeypatch, replaces, lambda folder=folder: add(Store(folder), model, grown_source(), **SMALL))
        opened = open_collection(folder)
        opened.verify()
        assert len(set(opened.ids)) == len(opened) >= 9 and np.isfinite(np.asarray(opened.rows)).all()
        add(Store(folder), model, grown_source(), **SMALL)
        assert files(folder) == expected, replaces
        if not killed:
            break
    assert replaces >= 8, "every file that is put into place was tried"


@pytest.mark.slow  # flushes many files
def test_killed_while_rows_are_removed_or_compacted_everything_is_as_before_or_as_after(tmp_path, model, monkeypatch):
    for number, act in enumerate([lambda folder: remove(folder, ["p1", "p5"]), compact]):
        for replaces in range(8):
            folder = tmp_path / f"{number}-{replaces}"
            add(Store(folder), model, Named(10), **SMALL)
            remove(folder, ["p8"])
            before = open_collection(folder)
            killed = killed_after(monkeypatch, replaces, lambda folder=folder, act=act: act(folder))
            opened = open_collection(folder)
            opened.verify()
            assert opened.ids == before.ids or not killed
            act(folder) if killed else None
            after = [name for name in before.ids if number == 1 or name not in ("p1", "p5")]
            assert open_collection(folder).ids == after
            if not killed:
                break


def test_a_full_disk_loses_the_last_shard_alone_and_says_so(tmp_path, model, monkeypatch):
    add(Store(tmp_path), model, Named(10), **SMALL)
    source = Named(40)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
        with pytest.raises(DataError, match="make room, then run it again"):
            add(Store(tmp_path), model, source, **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    opened = open_collection(tmp_path)
    opened.verify()
    assert len(opened) >= 10
    assert counts(add(Store(tmp_path), model, source, **SMALL))["rows"] == 40
    open_collection(tmp_path).verify()


def test_a_store_that_cannot_be_written_is_one_line(tmp_path, model, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ostension.files.Path, "mkdir", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        add(Store(tmp_path / "store"), model, Named(2), **SMALL)


KILLED = """
import os, sys, torch
sys.path[:0] = [{tests!r}]
torch.set_num_threads(1)
from test_collection import SMALL
from test_collection_faults import grown_source
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Store, add

def progress(now):
    if now.done >= {at}:
        os.kill(os.getpid(), 9)

add(Store({store!r}), CLIP(preset("tiny-vit"), seed=3), grown_source(), **SMALL, progress=progress)
"""


@pytest.mark.slow  # processes import torch
@pytest.mark.parametrize("at", [8, 16])
def test_a_process_that_is_really_killed_leaves_a_collection_that_goes_on(tmp_path, model, at):
    add(Store(tmp_path / "whole"), model, grown_source(), **SMALL)
    script = KILLED.format(tests=str(Path(__file__).parent), store=str(tmp_path / "killed"), at=at)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if at > 8:  # the second shard had been begun
        assert len(open_collection(tmp_path / "killed")) > 0 and not open_collection(tmp_path / "killed").complete
    add(Store(tmp_path / "killed"), model, grown_source(), **SMALL)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
