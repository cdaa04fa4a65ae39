"""What the text tests share: strings that are hard to tokenise, and the reference implementations."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hard_strings import load_reference

from ostension.text.tokenizer import ClipTokenizer, TokenizerConfig, build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> ClipTokenizer:
    return build_tokenizer(TokenizerConfig())


@pytest.fixture(scope="session")
def openai():
    """OpenAI's tokenizer, with the special strings in its pattern disarmed as ours are."""
    found = importlib.util.find_spec("clip")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the reference is not installed: pip install --no-deps clip-anytorch==2.6.0")
    return load_reference(Path(found.submodule_search_locations[0]) / "simple_tokenizer.py")
