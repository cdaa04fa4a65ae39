"""Captions in tar shards, tables and folders: which there are, all of them as pairs, where texts come from."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from shard_making import picture, write_tar

from ostension.data.captions import AllCaptions, text_counts
from ostension.data.layout import Layout
from ostension.data.open import open_pairs
from ostension.data.pairs import Joined, Subset
from ostension.errors import ConfigError, DataError


def sample(number, text=None, meta=None):
    found = [(f"{number}.png", picture(number))]
    found += [] if text is None else [(f"{number}.txt", text.encode())]
    return found + ([] if meta is None else [(f"{number}.json", json.dumps(meta).encode())])


def shard(path, *samples):
    return write_tar(path, [member for one in samples for member in one])


def texts(source):
    return [source.read(index).texts for index in range(len(source))]


@pytest.fixture
def mixed(tmp_path):
    return shard(
        tmp_path / "a.tar",
        sample(0, "alt 0", {"caption": "made 0", "extra": ["x", "y"]}),
        sample(1, "alt 1"),
        sample(2, None, {"caption": "made 2"}),
        sample(3, "alt 3", {"caption": None, "extra": []}),
        sample(4),
    )


def test_captions_come_from_the_text_member_or_keys_of_the_json_or_both(mixed):
    assert texts(open_pairs(mixed)) == [("alt 0",), ("alt 1",), ("alt 3",)]
    assert open_pairs(mixed).summary().rejects == {"image without text": 2}
    made = open_pairs(mixed, layout=Layout(texts=("caption",)))
    assert [made.key(index) for index in range(len(made))] == ["a/0", "a/2", "a/3"]
    assert texts(Subset(made, [0, 1])) == [("made 0",), ("made 2",)]
    assert made.summary().rejects == {"image without json": 1, "image without text": 1}
    with pytest.raises(DataError, match=r"a\.tar \(3\): text is empty"):
        made.read(2)
    both = open_pairs(mixed, layout=Layout(texts=("txt", "caption", "extra"), shares=(2, 1, 1)))
    assert texts(both) == [("alt 0", "made 0", "x", "y"), ("alt 1",), ("made 2",), ("alt 3",)]
    assert both.read(0).weights == (2, 1, 0.5, 0.5)
    assert len({source.fingerprint() for source in (made, both, open_pairs(mixed))}) == 3
    assert both.image_digests().shape == (4,) and both.read(0).meta["caption"] == "made 0"


def test_lines_of_a_text_member_are_captions_if_asked_for(tmp_path):
    path = shard(tmp_path / "a.tar", sample(0, "one\n two \n\n"), sample(1, "three"))
    assert texts(open_pairs(path)) == [("one\n two",), ("three",)]
    source = open_pairs(path, layout=Layout(lines=True))
    assert texts(source) == [("one", "two"), ("three",)] and text_counts(source).tolist() == [2, 1]


def test_columns_of_a_table_are_captions(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "a.csv").write_text("filepath,title,alt\n0.png,one,two\n0.png,,three\n0.png,, \n")
    source = open_pairs(tmp_path / "a.csv", layout=Layout(texts=("title", "alt")))
    assert texts(source) == [("one", "two"), ("three",)] and text_counts(source).tolist() == [2, 1]
    assert source.summary().rejects == {"no text": 1}


def test_all_captions_are_pairs_of_their_own(mixed, tmp_path):
    layout = Layout(texts=("txt", "caption", "extra"))
    source = AllCaptions(open_pairs(mixed, layout=layout))
    assert texts(source) == [("alt 0",), ("made 0",), ("x",), ("y",), ("alt 1",), ("made 2",), ("alt 3",)]
    assert [source.key(index) for index in (0, 3, 4)] == ["a/0#1", "a/0#4", "a/1#1"] and source.read(3).key == "a/0#4"
    assert source.image_digests().tolist() == np.repeat(source.source.image_digests(), [4, 1, 1, 1]).tolist()
    assert source.summary().num_pairs == len(source) == 7
    again = pickle.loads(pickle.dumps(source))
    assert texts(again) == texts(source) and again.fingerprint() == source.fingerprint() != source.source.fingerprint()


def test_all_captions_of_sources_with_one_each_hold_nothing(mixed):
    source = AllCaptions(open_pairs(mixed))
    assert source._ends is None and texts(source) == texts(source.source) and source.key(1) == "a/1"


def test_all_captions_of_several_kinds_of_sources(tmp_path, mixed):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(0))
    (folder / "a.txt").write_text("one\ntwo\n")
    source = AllCaptions(open_pairs(f"{mixed}::{folder}"))
    assert texts(source) == [("alt 0",), ("alt 1",), ("alt 3",), ("one",), ("two",)]
    assert texts(AllCaptions(Subset(source.source, [3, 0]))) == [("one",), ("two",), ("alt 0",)]
    assert isinstance(source.source, Joined)
    (folder / "a.txt").write_text("one\n")
    with pytest.raises(DataError, match="has 1 captions, caption 2 was counted: it changed"):
        source.read(4)


def test_a_broken_text_counts_as_one_pair_and_is_refused_when_read(tmp_path):
    content = [*sample(0, "one\ntwo"), ("1.png", picture(1)), ("1.txt", b"\xff"), *sample(2, "three")]
    source = AllCaptions(open_pairs(write_tar(tmp_path / "a.tar", content), layout=Layout(lines=True)))
    assert len(source) == 4
    with pytest.raises(DataError, match="not UTF-8"):
        source.read(2)
    assert source.read(3).texts == ("three",)


@pytest.mark.parametrize("value", [3, {"a": 1}, ["x", 4]])
def test_a_caption_that_is_no_text_is_refused_when_read(tmp_path, value):
    source = open_pairs(shard(tmp_path / "a.tar", sample(0, "x", {"caption": value})), layout=Layout(texts=("caption",)))
    with pytest.raises(DataError, match=r"a\.tar \(0\): a text of type"):
        source.read(0)


def test_a_shard_without_what_the_layout_wants_says_what_it_looked_for(tmp_path):
    path = shard(tmp_path / "a.tar", sample(0, "x"))
    with pytest.raises(DataError, match=r"1 x image without json.*KEY\.json with 'caption'"):
        open_pairs(path, layout=Layout(texts=("caption",)))


@pytest.mark.parametrize(
    "settings",
    [
        {"texts": ("a", "a")},
        {"texts": ("a",), "shares": (1, 2)},
        {"shares": (1,)},
        {"texts": ("a",), "shares": (0,)},
        {"texts": ("",)},
    ],
)
def test_layouts_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ConfigError, match="layout"):
        Layout(**settings)


def test_a_layout_without_effect_is_refused(tmp_path, mixed):
    with pytest.raises(ConfigError, match="there is no table among the data"):
        open_pairs(mixed, layout=Layout(image="jpg"))
    with pytest.raises(ConfigError, match="have no effect"):
        open_pairs("emoji", layout=Layout(texts=("caption",)))
