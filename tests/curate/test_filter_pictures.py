"""Rules for pictures: headers of every format, files cut short, animated ones, sizes, what only decoding finds."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ostension.curate.images_header import CUT, DAMAGED, NOT_ONE, TOO_LARGE, looked_through, read_header
from ostension.curate.images_rules import Pictures, judge, size_in
from ostension.errors import ConfigError

LIMIT = 1_000_000


def encoded(kind="PNG", size=(40, 30), frames=1, seed=0, **options):
    rng = np.random.default_rng(seed)
    pixels = [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)) for _ in range(frames)]
    out = io.BytesIO()
    if frames > 1:
        options.update(save_all=True, append_images=pixels[1:])
    pixels[0].save(out, kind, **options)
    return out.getvalue()


def plain(colour=(10, 20, 30), size=(8, 8)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


STILL = {kind: encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}
MOVING = {kind: encoded(kind, frames=3) for kind in ("GIF", "WEBP", "PNG", "TIFF")}


@pytest.mark.parametrize("kind", STILL)
def test_the_header_of_every_format_is_read(kind):
    assert read_header(STILL[kind], LIMIT) == (None, kind, 40, 30, 1)


@pytest.mark.parametrize("kind", MOVING)
def test_frames_are_counted(kind):
    assert read_header(MOVING[kind], LIMIT) == (None, kind, 40, 30, 3)


ENDING = {f"{name} {kind}": table[kind] for name, table in (("still", STILL), ("moving", MOVING)) for kind in table}


@pytest.mark.parametrize("name", [name for name in ENDING if not name.endswith(("BMP", "TIFF"))])
@pytest.mark.parametrize("share", [0.4, 0.8, 0.99])
def test_a_file_that_is_cut_short_is_told_from_its_header_and_ending(name, share):
    data = ENDING[name]
    assert read_header(data[: int(len(data) * share)], LIMIT).problem == CUT


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"quality": 95, "subsampling": 0}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}]
)
def test_whole_jpegs_of_every_kind_are_whole(options):
    data = encoded("JPEG", (200, 150), **options)
    assert read_header(data, LIMIT).problem is None
    assert read_header(data + b"trailing bytes of a camera", LIMIT).problem is None
    assert read_header(data[:-40], LIMIT).problem == CUT


def test_a_thumbnail_inside_does_not_make_a_cut_jpeg_whole():
    thumbnail, data = encoded("JPEG", (16, 16)), encoded("JPEG", (200, 150))
    comment = b"\xff\xfe" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    both = data[:2] + comment + data[2:]
    assert read_header(both, LIMIT).problem is None
    assert read_header(both[:-100], LIMIT).problem == CUT


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", NOT_ONE),
        (b"<html>not found</html>", NOT_ONE),
        (b"\0" * 100, NOT_ONE),
        (b"%PDF-1.4", NOT_ONE),
        (b"\xff\xd8\xff\xd9", DAMAGED),
        (b"\xff\xd8\xff", CUT),
        (b"\x89PNG\r\n\x1a\n", CUT),
        (b"GIF89a", CUT),
        (b"GIF89a" + b"\x08\0\x08\0\0\0\0" + b"\x21\xf9\xff", CUT),
        (b"RIFF\x04\0\0\0WEBP", DAMAGED),
        (b"BM" + b"\xff" * 60, DAMAGED),
        (b"II*\0" + b"\xff" * 60, DAMAGED),
    ],
)
def test_what_is_no_picture_and_what_is_damaged_is_said(data, problem):
    assert read_header(data, LIMIT).problem == problem


def test_a_bomb_is_refused_by_its_header():
    body = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"
    assert read_header(bomb, LIMIT).problem == TOO_LARGE
    assert judge(bomb, {}, Pictures(check="decode")).reason == TOO_LARGE
    assert judge(STILL["PNG"], {}, Pictures(max_pixels=1199)).reason == TOO_LARGE
    assert judge(STILL["PNG"], {}, Pictures(max_pixels=1200)).reason is None


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([*STILL.values(), *MOVING.values()]), st.data())
def test_hostile_bytes_never_raise(data, drawn):
    bad = bytearray(data)
    for _ in range(drawn.draw(st.integers(1, 8))):
        bad[drawn.draw(st.integers(0, min(len(bad) - 1, 400)))] = drawn.draw(st.integers(0, 255))
    bad = bytes(bad[: drawn.draw(st.integers(1, len(bad)))])
    header = read_header(bad, LIMIT)
    assert header.problem in (None, NOT_ONE, DAMAGED, CUT, TOO_LARGE)
    assert header.frames >= 1
    assert looked_through(bad, LIMIT)[0] in (None, NOT_ONE, DAMAGED, CUT, TOO_LARGE)


def test_damaged_pixels_are_found_by_decoding_only():
    data = bytearray(encoded("PNG", (64, 64)))
    data[len(data) // 2] ^= 0xFF
    assert judge(bytes(data), {}, Pictures(check="header")).reason is None
    assert judge(bytes(data), {}, Pictures(check="decode")).reason == DAMAGED


@pytest.mark.parametrize(
    ("rules", "size", "reason"),
    [
        ({"min_side": 30}, (40, 30), None),
        ({"min_side": 31}, (40, 30), "too small"),
        ({"max_aspect": 3.0}, (90, 30), None),
        ({"max_aspect": 3.0}, (91, 30), "too narrow"),
        ({"max_aspect": 3.0}, (30, 91), "too narrow"),
        ({"max_pixels": 0, "min_side": 1}, (40, 30), None),
    ],
)
def test_sizes_are_limits_that_are_kept_exactly(rules, size, reason):
    assert judge(encoded(size=size), {}, Pictures(**rules)).reason == reason


def test_bytes_formats_and_frames():
    data = STILL["JPEG"]
    assert judge(data, {}, Pictures(min_bytes=len(data))).reason is None
    assert judge(data, {}, Pictures(min_bytes=len(data) + 1)).reason == "too few bytes"
    assert judge(data, {}, Pictures(max_bytes=len(data) - 1)).reason == "too many bytes"
    assert judge(data, {}, Pictures(formats=("PNG", "WEBP"))).reason == "format not wanted"
    assert judge(data, {}, Pictures(formats=("any",), check="header")).reason is None
    for moving in MOVING.values():
        assert judge(moving, {}, Pictures(animated="drop")).reason == "animated"
        assert judge(moving, {}, Pictures(animated="keep", check="header")).reason is None


def test_plain_pictures_are_found_within_a_tolerance():
    assert judge(plain(), {}, Pictures(plain=0)).reason == "plain picture"
    assert judge(plain(), {}, Pictures(plain=-1, check="decode")).reason is None
    assert judge(STILL["PNG"], {}, Pictures(plain=2)).reason is None
    nearly = Image.new("L", (8, 8), 100)
    nearly.putpixel((3, 3), 103)
    out = io.BytesIO()
    nearly.save(out, "PNG")
    assert judge(out.getvalue(), {}, Pictures(plain=2)).reason is None
    assert judge(out.getvalue(), {}, Pictures(plain=3)).reason == "plain picture"


def test_an_invisible_picture_is_plain():
    clear = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8))
    clear.putalpha(0)
    out = io.BytesIO()
    clear.save(out, "PNG")
    assert judge(out.getvalue(), {}, Pictures(plain=0)).reason == "plain picture"


def test_sizes_of_before_resizing_come_from_the_fields():
    meta = {"original_width": 800, "original_height": "600", "width": 10, "height": 10}
    assert size_in(meta) == (800, 600)
    assert size_in({"WIDTH": 5.0, "HEIGHT": 4}) == (5, 4)
    assert size_in({"width": None, "height": 3}) == size_in({"width": "nan", "height": 3}) == size_in({}) == (0, 0)
    rules = Pictures(sizes="meta", min_side=200)
    assert not rules.reads and rules.active
    assert judge(None, meta, rules).reason is None
    assert judge(None, {}, rules).reason == "size not known"
    assert judge(None, {"width": 100, "height": 500}, rules).reason == "too small"


def test_rules_that_cannot_be_meant_are_refused():
    for bad in ({"min_side": -1}, {"max_aspect": 0.5}, {"formats": ("jpeg",)}, {"plain": 256}):
        with pytest.raises(ConfigError, match=f"pictures.{next(iter(bad))}"):
            Pictures(**bad)


def test_nothing_is_read_where_nothing_asks_for_it():
    assert not Pictures().active and not Pictures().reads
    assert not Pictures(check="off", min_side=200, plain=3).active
    assert Pictures(min_side=200).reads and not Pictures(min_side=200).decodes
    assert Pictures(plain=0).decodes
