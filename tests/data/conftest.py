from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    """What is kept of tables, folders and remote files goes to a folder of the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OSTENSION_CACHE", str(folder))
    return folder
