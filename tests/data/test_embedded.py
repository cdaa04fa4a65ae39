from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ostension.data.embedded import FOLDER, SPLITS, identical_pictures, load_emoji, open_emoji
from ostension.data.tar_shards import TarShards
from ostension.errors import ConfigError
from ostension.files import read_json, sha256_file

ROOT = Path(__file__).parents[2]
STYLES = ("noto", "twemoji", "fluent3d", "openmoji", "openmoji_black")


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


def test_the_set_has_the_counts_of_its_record(emoji):
    record = read_json(FOLDER / "record.json")
    assert (len(emoji), len(emoji.concepts), emoji.styles) == (8143, 1636, STYLES)
    assert (record["pictures"], record["concepts"], tuple(record["shards"])) == (8143, 1636, STYLES)
    assert Counter(emoji.style.tolist()) == {0: 1636, 1: 1636, 2: 1599, 3: 1636, 4: 1636}
    for style, facts in record["shards"].items():
        assert sha256_file(FOLDER / f"{style}-000.tar") == facts["sha256"]


def test_splits_are_1391_names_to_learn_and_245_never_seen(emoji):
    sizes = {split: len(emoji.rows(split)) for split in SPLITS}
    assert sizes == {
        "all": 8143,
        "train": 5530,
        "new-style-seen-names": 1391,
        "new-style-new-names": 245,
        "seen-style-new-names": 245,
    }
    assert sum(concept.held_out for concept in emoji.concepts) == 245
    for split, size in sizes.items():
        source = open_emoji(split)
        assert len(source) == size
        row = emoji.rows(split)[-1]
        assert source.read(size - 1).meta["concept"] == emoji.concepts[emoji.concept[row]].concept
    with pytest.raises(ConfigError, match="unknown split"):
        emoji.rows("test")


def test_training_has_neither_the_new_style_nor_a_new_name(emoji):
    train = emoji.rows("train")
    assert "twemoji" not in {emoji.styles[style] for style in emoji.style[train]}
    assert not any(emoji.concepts[concept].held_out for concept in emoji.concept[train])
    new = emoji.rows("new-style-new-names")
    assert set(emoji.concept[new]) == set(emoji.concept[emoji.rows("seen-style-new-names")])
    assert {emoji.styles[style] for style in emoji.style[new]} == {"twemoji"}


def test_every_concept_has_a_name_in_every_language_and_its_own_name(emoji):
    languages = {"en", "de", "es", "fr", "hi", "ja", "ru", "zh"}
    assert all(set(concept.names) == languages and all(concept.names.values()) for concept in emoji.concepts)
    names = emoji.names()
    assert len(set(names)) == 1636
    grinning = names.index("grinning face")
    assert emoji.names("de")[grinning] == "grinsendes Gesicht" and emoji.names("ja")[grinning] == "にっこり笑う"
    assert "smile" in emoji.concepts[grinning].tags and emoji.concepts[grinning].subgroup == "face-smiling"
    with pytest.raises(ConfigError, match="unknown language 'fi'"):
        emoji.names("fi")


def test_pictures_are_drawings_on_transparent_ground(emoji):
    alpha = emoji.pixels[..., 3]
    assert emoji.pixels.dtype == np.uint8 and emoji.pixels.shape == (8143, 64, 64, 4)
    # One line drawing is empty in its package.
    empty = np.flatnonzero(alpha.reshape(len(emoji), -1).max(1) < 200)
    assert [(emoji.styles[emoji.style[row]], emoji.names()[emoji.concept[row]]) for row in empty] == [
        ("openmoji_black", "NEW button")
    ]
    corners = alpha[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).all(1).mean() > 0.8
    # The red heart is red in the coloured styles and black in the line drawings.
    heart = emoji.names().index("red heart")
    for row in np.flatnonzero(emoji.concept == heart):
        inside = emoji.pixels[row][alpha[row] > 200].mean(0)
        red = inside[0] - inside[1:3].mean() > 80
        assert red == (emoji.styles[emoji.style[row]] != "openmoji_black")


def test_identical_pictures_are_on_one_side_of_the_split(emoji):
    held_out = {concept.concept: concept.held_out for concept in emoji.concepts}
    total = 0
    for style in STYLES:
        for group in identical_pictures(style):
            assert len({held_out[concept] for concept in group}) == 1
            total += 1
    assert total == 77 and identical_pictures("no such style") == ()
    # Families without faces: the only pictures of the new style that cannot be told apart.
    assert sorted(map(len, identical_pictures("twemoji"))) == [5, 7, 8, 10]


def test_the_split_record_follows_from_the_pictures_by_its_rule(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from emoji_splits import build_splits

    source = open_emoji()
    pictures: dict[str, dict[str, bytes]] = {}
    for index in range(len(source)):
        pair = source.read(index)
        pictures.setdefault(pair.meta["style"], {})[pair.meta["concept"]] = pair.image
    assert build_splits(pictures) == json.loads((FOLDER / "splits.json").read_text())


def test_shards_are_plain_tars_that_any_webdataset_reader_understands():
    with tarfile.open(FOLDER / "noto-000.tar") as archive:
        members = archive.getmembers()
        assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}
        assert [member.name.partition(".")[2] for member in members[:6]] == ["webp", "txt", "json"] * 2
        assert [member.name for member in members] == sorted(
            (member.name for member in members), key=lambda name: (name.split(".")[0], "wtj".index(name.split(".")[1][0]))
        )
        assert json.load(archive.extractfile(members[2]))["concept"] == "0023-20E3"


@pytest.fixture
def build_emoji(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import build_emoji

    return build_emoji


def test_packages_are_pinned_and_licences_are_shipped(build_emoji):
    record = read_json(FOLDER / "record.json")
    assert {name: facts["sha256"] for name, facts in record["packages"].items()} == build_emoji.PACKAGES
    assert "Attribution-ShareAlike 4.0 International" in (FOLDER / "LICENSES" / "openmoji.txt").read_text()
    assert "Miles Johnson" in (FOLDER / "LICENSES" / "emojibase-data.txt").read_text()
    notice = (ROOT / "NOTICE").read_text()
    for name in ("Noto Emoji", "Twemoji", "Fluent Emoji", "OpenMoji", "emojibase-data", "Changes made to all pictures"):
        assert name in notice


def test_a_package_with_another_content_is_refused(build_emoji, tmp_path):
    (tmp_path / "openmoji-17.0.0.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the package that this script was written for"):
        build_emoji.fetch("openmoji@17.0.0", build_emoji.PACKAGES["openmoji@17.0.0"], tmp_path)


def test_a_shard_is_the_same_bytes_whenever_it_is_written(build_emoji, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 4), dtype=np.uint8)
    concepts = {
        name: build_emoji.Concept(concept=name, name=name.lower(), tags=["x"], names={"de": "ä"}, group="g", subgroup="s")
        for name in ("A", "B")
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pictures = {concept: build_emoji.encode(Image.fromarray(pixels)) for concept in concepts}
        build_emoji.write_shard(tmp_path / name / "s-000.tar", "s", concepts, pictures)
    for suffix in ("", ".idx"):
        assert (tmp_path / "one" / f"s-000.tar{suffix}").read_bytes() == (tmp_path / "two" / f"s-000.tar{suffix}").read_bytes()
    pair = TarShards([tmp_path / "one" / "s-000.tar"]).read(1)
    assert (pair.texts, pair.meta["names"], pair.meta["style"]) == (("b",), {"de": "ä"}, "s")
    with Image.open(io.BytesIO(pair.image)) as image:
        assert (image.size, image.mode, image.format) == ((64, 64), "RGBA", "WEBP")
