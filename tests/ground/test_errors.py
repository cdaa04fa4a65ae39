"""Errors say what, where, what was expected and how to mend it, in one line."""

from __future__ import annotations

import pickle

import pytest

from ostension.errors import ConfigError, DataError, MissingExtraError, nearest, require_extra, unknown_name


def test_a_message_joins_source_what_expected_and_fix_on_one_line():
    error = DataError("cut off\nat byte 12", source="a.jpg", expected="a whole JPEG", fix="copy it again")
    assert str(error) == "a.jpg: cut off at byte 12; expected a whole JPEG; copy it again"


def test_unknown_names_list_the_nearest_three():
    error = unknown_name("model", "vit-b-23", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50"])
    assert isinstance(error, ConfigError)
    assert "'ViT-B-32'" in str(error)
    assert "'RN50'" not in str(error)


def test_nearest_gives_something_even_for_a_far_name_and_nothing_from_nothing():
    assert nearest("zzz", ["alpha", "beta"]) != []
    assert nearest("zzz", []) == []


def test_a_missing_extra_names_the_install_line():
    with pytest.raises(MissingExtraError, match=r"pip install 'ostension\[hub\]'"):
        require_extra("no_such_module_anywhere", "hub")


def test_errors_survive_a_process_boundary():
    error = pickle.loads(pickle.dumps(DataError("torn", source="x.tar", expected="a tar", fix="fetch it again")))
    assert isinstance(error, DataError)
    assert str(error) == "x.tar: torn; expected a tar; fetch it again"
