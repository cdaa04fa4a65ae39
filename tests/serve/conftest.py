"""One browser for all tests of the page: its start takes longer than most of them, and each page has storage of its own."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    from browser import Browser

    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running
