"""Shards that are torn, foreign, hostile or changed (numbers 19 to 25 of the fault list)."""

from __future__ import annotations

import functools
import gzip
import io
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_making import members, picture, write_tar

from ostension.data.embedded import open_emoji
from ostension.data.leaks import check_disjoint
from ostension.data.open import open_pairs
from ostension.data.pairs import Subset
from ostension.data.tar_index import build_index, load_index
from ostension.data.tar_scan import TornArchive, scan
from ostension.data.tar_shards import TarShards
from ostension.errors import DataError


@pytest.mark.parametrize("share", np.random.default_rng(0).uniform(0.1, 0.99, 10).round(3).tolist())
def test_a_torn_shard_gives_the_samples_before_the_cut_and_is_reported(tmp_path, share, caplog):
    content = members(20)
    whole = write_tar(tmp_path / "torn.tar", content).read_bytes()
    sizes = [1024 if len(data) <= 512 else 1536 for _, data in content]  # a header and its padded content
    cut = int(sum(sizes) * share)
    (tmp_path / "torn.tar").write_bytes(whole[:cut])
    # A sample is whole once its image and its text are; content may be cut in its padding.
    ends = [sum(sizes[: at + 1]) - 512 + len(content[at][1]) for at in range(len(content))]
    expected = [number for number in range(20) if ends[3 * number + 1] <= cut]
    source = open_pairs(tmp_path / "torn.tar")
    assert [source.read(row).texts[0] for row in range(len(source))] == [f"picture {number}" for number in expected]
    summary = source.summary()
    assert "torn.tar: breaks off at byte" in caplog.text and len(summary.notes) == 1
    assert summary.rejects == ({"image without text": 1} if ends[3 * len(expected)] <= cut else {})


def test_a_shard_cut_between_two_samples_is_reported_too(tmp_path, caplog):
    whole = write_tar(tmp_path / "a.tar", members(2)).read_bytes()
    size = 2 * 3 * 1024
    (tmp_path / "a.tar").write_bytes(whole[:size])
    assert len(open_pairs(tmp_path / "a.tar")) == 2
    assert "no end mark" in caplog.text


def write_other(path, kind):
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "empty tar":
        write_tar(path, [])
    elif kind == "gzip":
        path.write_bytes(gzip.compress(write_tar(path, members(1)).read_bytes()))
    elif kind == "html":
        path.write_bytes(b"<!DOCTYPE html><html>404 not found</html>" * 30)
    elif kind == "folder":
        path.mkdir()
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(1).bytes(5000))
    elif kind == "only texts":
        write_tar(path, [("a.txt", b"a"), ("b.c.jpg", b"b")])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty file", "an empty file"),
        ("empty tar", "an archive without members"),
        ("gzip", "a gzip file, not a tar archive"),
        ("html", "HTML or XML, not a tar archive"),
        ("folder", "not a file"),
        ("noise", "not a tar archive"),
        ("only texts", "no pair of an image and a text .1 x member of another kind, 1 x text without image"),
        ("missing", "no such file"),
    ],
)
def test_a_file_that_is_no_shard_is_refused_on_opening(tmp_path, kind, message):
    path = tmp_path / "bad.tar"
    write_other(path, kind)
    with pytest.raises(DataError, match=message) as caught:
        open_pairs(path)
    assert "bad.tar" in str(caught.value)


def test_a_shard_missing_from_a_range_is_refused_on_opening(tmp_path):
    for number in (0, 1, 3):
        write_tar(tmp_path / f"{number:02}.tar", members(1, number))
    with pytest.raises(DataError, match=r"02\.tar: no such file or folder; 1 of 4 are missing"):
        open_pairs(f"{tmp_path}/{{00..03}}.tar")


def hostile_tar(path):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:

        def add(name, data=b"", kind=tarfile.REGTYPE, link=""):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(data)
            archive.addfile(member, io.BytesIO(data))

        for name in ("../escape", "/etc/escape", "a/../../escape", "line\nbreak"):
            add(f"{name}.png", picture(1))
            add(f"{name}.txt", b"escape")
        add("link.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add("hard.png", kind=tarfile.LNKTYPE, link="../escape.png")
        add("device.png", kind=tarfile.CHRTYPE)
        add("pipe.png", kind=tarfile.FIFOTYPE)
        add("n" * 10_000 + ".png", picture(2))
        add("twice.png", picture(3))
        add("twice.txt", b"first")
        add("twice.png", picture(4))
        add("twice.TXT", b"second")
        add("UPPER.PNG", picture(5))
        add("UPPER.TXT", b"upper")
        add("dots.in.key.png", picture(6))
        add("dots.in.key.txt", b"dots")
        add("imageonly.png", picture(7))
        add("textonly.txt", b"text")
        add("folder.png", kind=tarfile.DIRTYPE)
        add(".hidden.png", picture(8))


def test_hostile_members_have_a_defined_outcome_and_touch_no_file(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.tar"
    hostile_tar(path)
    source = TarShards([path])
    assert [source.key(row) for row in range(len(source))] == ["a/twice", "a/UPPER"]
    assert [source.read(row).texts for row in range(len(source))] == [("first",), ("upper",)]
    assert source.summary().rejects == {
        "unsafe name": 8,
        "not a regular file": 4,
        "name longer than 1024 bytes": 1,
        "a second image under one key": 1,
        "a second text under one key": 1,
        "member of another kind": 3,
        "image without text": 1,
        "text without image": 1,
    }
    assert sorted(entry.relative_to(tmp_path).as_posix() for entry in tmp_path.rglob("*")) == ["in", "in/a.tar", "in/a.tar.idx"]


def test_a_shard_that_grew_after_indexing_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(1))
    TarShards([path])
    with open(path, "ab") as handle:
        handle.write(bytes(512))
    with pytest.raises(DataError, match=r"changed since it was indexed: \d+ bytes, the index says \d+; .*data index --force"):
        TarShards([path])


def test_a_shard_changed_in_place_is_refused_by_its_hash(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(1))
    TarShards([path])
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"changed since it was indexed: its SHA-256 is not the one in a\.tar\.idx"):
        TarShards([path])


def test_a_shard_that_was_only_copied_is_accepted(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(1))
    TarShards([path])
    os.utime(path, (1, 1))
    assert len(TarShards([path])) == 1


def test_a_shard_cut_while_it_is_read_is_an_error_of_that_shard(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(5))
    source = TarShards([path])
    source.read(0)
    os.truncate(path, 3000)
    with pytest.raises(DataError, match=r"a\.tar: ends before byte .* changed while in use"):
        source.read(4)


@pytest.mark.parametrize("damage", ["cut", "flip", "swap", "text"])
def test_a_damaged_index_is_refused(tmp_path, damage):
    one, two = (write_tar(tmp_path / name, members(count)) for name, count in (("a.tar", 3), ("b.tar", 30)))
    TarShards([one, two])
    index = tmp_path / "a.tar.idx"
    content = index.read_bytes()
    index.write_bytes(
        {
            "cut": content[:-20],
            "flip": content.replace(b"tar 2", b"tar 1"),
            "swap": (tmp_path / "b.tar.idx").read_bytes(),
            "text": b"not an index",
        }[damage]
    )
    with pytest.raises(DataError, match=r"cannot be read as an index|kind or version|changed since"):
        TarShards([one])


def test_an_index_that_points_outside_its_shard_is_refused(tmp_path):
    import dataclasses

    from ostension.data.tar_index import save_index

    good = build_index(write_tar(tmp_path / "a.tar", members(3)))
    for change in (
        {"image": good.image + 10_000_000},
        {"text": good.text * -1},
        {"key_ends": good.key_ends[::-1].copy()},
        {"digest": good.digest[:2]},
        {"tar_size": 100},
    ):
        save_index(dataclasses.replace(good, **change), tmp_path / "a.tar.idx")
        with pytest.raises(DataError, match="contradicts itself"):
            load_index(tmp_path / "a.tar.idx")


def test_the_same_shard_in_two_splits_is_refused(tmp_path):
    one, two = (write_tar(tmp_path / name, members(2, start)) for name, start in (("a.tar", 0), ("b.tar", 2)))
    copy = tmp_path / "held.tar"
    copy.write_bytes(one.read_bytes())
    check_disjoint(open_pairs(one), open_pairs(two))
    with pytest.raises(DataError, match=r"a\.tar: also held out, as held\.tar"):
        check_disjoint(open_pairs([one, two]), open_pairs(copy))


def test_one_common_image_in_two_splits_is_refused_whatever_its_key_and_text(tmp_path):
    train = open_pairs(write_tar(tmp_path / "a.tar", members(5)))
    held = write_tar(tmp_path / "b.tar", [*members(2, start=100), ("other.png", picture(3)), ("other.txt", b"another caption")])
    with pytest.raises(DataError, match="1 images of the training data are also held out, such as a/00003 and b/other"):
        check_disjoint(train, open_pairs(held))
    check_disjoint(Subset(train, [0, 1, 2, 4]), open_pairs(held))


def test_training_on_the_embedded_set_never_sees_a_held_out_picture():
    train = open_emoji("train")
    for split in ("new-style-seen-names", "new-style-new-names", "seen-style-new-names"):
        check_disjoint(train, open_emoji(split))
    with pytest.raises(DataError, match="245 images"):
        check_disjoint(open_emoji("all"), open_emoji("seen-style-new-names"))


EXTENDED = [b"30 path=x\n", b"13 size=9999\n", b"8 size=\n", b"0 =\n", b"999999999999 a=b\n", b"11 path=ab\n", b"9 size=3\n"]


def scan_all(data: bytes) -> int:
    """The members of an archive in memory, torn or not; every span lies inside it."""
    count = 0
    try:
        for member in scan(lambda offset, size: data[offset : offset + size], len(data)):
            count += 1
            assert 0 < member.offset <= member.offset + member.size <= len(data)
    except TornArchive as error:
        assert 0 <= error.offset <= len(data)
    return count


@functools.cache
def archive_to_damage() -> bytes:
    """An archive with every kind of header: PAX and long GNU names, links, devices, folders."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hostile_tar(folder / "a.tar")
        write_tar(folder / "b.tar", [("ö" * 150 + ".png", picture(1)), ("a.png", picture(2))], tarfile.PAX_FORMAT)
        good, hostile = (folder / "b.tar").read_bytes(), (folder / "a.tar").read_bytes()
    data = good[: good.rindex(b"IEND") // 512 * 512 + 512] + hostile
    assert scan_all(data) > 20
    return data


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=30), cut=st.integers(0, 1 << 16))
def test_the_scanner_survives_damaged_archives(changes, cut):
    data = bytearray(archive_to_damage())
    for position, value in changes:
        data[position % len(data)] = value
    scan_all(bytes(data[: len(data) - cut % len(data)]))


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from([b"0", b"L", b"x", b"g", b"5", b"2", b"S", b"\0"]),
    size=st.one_of(st.binary(min_size=12, max_size=12), st.integers(0, 5000).map(lambda size: b"%011o\0" % size)),
    content=st.one_of(st.binary(max_size=600), st.sampled_from(EXTENDED)),
)
def test_the_scanner_survives_headers_with_a_good_checksum_and_bad_content(kind, size, content):
    header = bytearray(512)
    header[:5], header[124:136], header[156:157], header[257:263] = b"x.png", size, kind, b"ustar\0"
    header[148:156] = b"%06o\0 " % (sum(header) + 8 * 32)
    body = content + bytes(-len(content) % 512)
    scan_all(bytes(header) + body + bytes(header) + body + bytes(1024))
