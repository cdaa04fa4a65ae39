"""Processes for the tests of this folder."""

from __future__ import annotations

import pytest
from process_harness import Processes


@pytest.fixture(scope="session")
def processes():
    """A server that forks processes; torch is imported once."""
    made = Processes()
    yield made
    made.close()
