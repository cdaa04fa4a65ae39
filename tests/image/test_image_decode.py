"""Decoding: every row of the table of hostile images, every format and mode, with pixels that can be checked by eye."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from image_samples import encode, noise, oriented, photo
from PIL import Image

from ostension.errors import DataError, LimitError
from ostension.image.decode import TRAITS, open_image, read_picture, to_rgb
from ostension.image.signatures import _PLUGINS, _SIGNATURES, reads

LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}
KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(["AVIF"] if reads("AVIF") else [])]


def pixels(source, **options) -> list:
    return np.asarray(open_image(source, **options)).tolist()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey_png(width: int, height: int) -> bytes:
    """A PNG of black grey pixels, of which only a million are there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min((width + 1) * height, 1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def test_16_bit_grey_png_is_scaled_and_not_clipped():
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    picture = read_picture(encode(Image.fromarray(ramp), "PNG"))
    assert "sixteen_bit" in picture.traits
    assert np.array_equal(np.asarray(picture.image), np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.asarray(open_image(encode(Image.fromarray(ramp), "PNG"))).mean() == 127.5


def test_16_bit_values_are_rounded_to_nearest():
    values = np.array([[0, 128, 129, 257 * 9 + 128, 257 * 9 + 129, 65535]], np.uint16)
    assert np.asarray(read_picture(Image.fromarray(values)).image).tolist() == [[0, 0, 1, 9, 10, 255]]


def test_16_bit_big_endian_tiff_reads_like_the_png():
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    big = Image.frombytes("I;16B", (16, 16), ramp.astype(">u2").tobytes())
    for image in (big, read_picture(encode(big, "TIFF")).image):
        assert np.array_equal(np.asarray(read_picture(image).image), np.arange(256, dtype=np.uint8).reshape(16, 16))


def test_16_bit_colour_png_keeps_its_high_bytes():
    rows = b"".join(b"\0" + struct.pack(">6H", 0, 0x1234, 0xFFFF, 0x8000, 0x00FF, 0x0100) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert pixels(data) == [[[0, 0x12, 0xFF], [0x80, 0, 1]]] * 2


def test_a_transparent_16_bit_grey_becomes_white():
    image = Image.fromarray(np.array([[1000, 65535, 0]], np.uint16))
    data = encode(image, "PNG", transparency=1000)
    assert read_picture(data).traits >= {"sixteen_bit", "alpha"}
    assert pixels(data) == [[[255] * 3, [255] * 3, [0] * 3]]
    assert pixels(data, alpha="drop") == [[[4] * 3, [255] * 3, [0] * 3]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused_because_nothing_says_what_white_is(mode):
    with pytest.raises(DataError, match=r"scan\.tif: .*no defined white"):
        open_image(encode(Image.new(mode, (4, 4)), "TIFF"), name="scan.tif")


def test_a_picture_of_too_many_pixels_is_refused_from_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(grey_png(9500, 9500))
    assert path.stat().st_size < 2_000
    with pytest.raises(LimitError, match=r"bomb\.png: 9,500 x 9,500 pixels; expected at most max_pixels = 64,000,000"):
        open_image(path)
    with pytest.raises(LimitError, match="9,500 x 9,500 pixels"):
        open_image(path, max_pixels=25_000_000)


def test_what_only_pillows_own_limit_stops_is_a_limit_error():
    with pytest.raises(LimitError, match="more pixels than Pillow opens"):
        open_image(grey_png(60_000, 60_000), max_pixels=10**10)


def test_a_side_longer_than_jpeg_allows_is_refused():
    assert open_image(grey_png(65_535, 1)).size == (65_535, 1)
    with pytest.raises(LimitError, match="sides of at most 65,535"):
        open_image(grey_png(65_536, 1))


def test_a_file_of_too_many_bytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "big.jpg"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse: reading it would take hours
    with pytest.raises(LimitError, match=r"big\.jpg: 1,000,000,000,000 bytes or more; expected at most max_bytes"):
        open_image(path)
    for source in (bytes(200), io.BytesIO(bytes(200))):
        with pytest.raises(LimitError, match="at most max_bytes = 100"):
            open_image(source, max_bytes=100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_a_data_error_that_names_the_file(kind, tmp_path):
    data = encode(photo(160, 120), kind)
    for part in (0.25, 0.6, 0.95):
        path = tmp_path / f"cut-{part}.{kind.lower()}"
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(DataError, match=rf"cut-{part}\.{kind.lower()}: the .*{kind}.* (cut short|damaged)"):
            open_image(path)


def test_a_truncated_jpeg_says_so():
    data = encode(photo(160, 120), "JPEG")
    with pytest.raises(DataError, match=r"the JPEG is cut short"):
        open_image(data[: len(data) // 2])


def test_a_flipped_byte_in_a_png_is_found_while_opening():
    data = bytearray(encode(photo(64, 48), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"broken\.png: the PNG is damaged"):
        open_image(bytes(data), name="broken.png")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\n  <html>", "an HTML page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><svg/>', "an XML document"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "PostScript"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(40), "a zip archive"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"P6 2 2 255\n" + bytes(12), "not a picture that can be read"),  # Pillow would read it
        (b"hello", "not a picture that can be read"),
        (bytes(1000), "not a picture that can be read"),
    ],
)  # fmt: skip
def test_what_is_not_a_picture_is_named_for_what_it_is(content, said, tmp_path):
    path = tmp_path / "thing.jpg"  # the name does not matter
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"thing\.jpg: .*{said}"):
        open_image(path)


def test_every_signature_alone_is_a_data_error():
    for kind, offset, signature in _SIGNATURES:
        with pytest.raises(DataError, match=rf"{kind}"):
            open_image(bytes(offset) + signature)


def test_a_format_that_this_pillow_lacks_is_named(monkeypatch):
    data = encode(photo(20, 10), "WEBP")
    monkeypatch.setattr("PIL.WebPImagePlugin.SUPPORTED", False)
    with pytest.raises(DataError, match="the installed Pillow does not read WEBP"):
        open_image(data)
    monkeypatch.setitem(_PLUGINS, "WEBP", "NoSuchPlugin")
    assert not reads("WEBP")


def test_cmyk_jpeg_has_the_colours_that_it_was_made_from():
    red, green, black, white = (0, 255, 255, 0), (255, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)
    for ink, colour in ((red, (255, 0, 0)), (green, (0, 255, 0)), (black, (0, 0, 0)), (white, (255, 255, 255))):
        data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
        assert read_picture(data).image.mode == "CMYK"
        assert np.abs(np.asarray(open_image(data)).astype(int) - colour).max() <= 2


def test_transparent_pixels_turn_white_or_show_what_lies_under_them():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128)])
    data = encode(image, "PNG")
    assert read_picture(data).traits == {"alpha", "degenerate"}
    assert pixels(data) == [[[255, 255, 255], [255, 0, 0], [127, 127, 127]]]
    assert pixels(data, alpha="drop") == [[[255, 0, 0], [255, 0, 0], [0, 0, 0]]]


def test_grey_with_alpha_is_composited_like_colour():
    image = Image.new("LA", (3, 2), (0, 0))
    image.putpixel((1, 0), (100, 255))
    data = encode(image, "PNG")
    assert pixels(data)[0] == [[255] * 3, [100] * 3, [255] * 3]
    assert pixels(data, alpha="drop")[0] == [[0] * 3, [100] * 3, [0] * 3]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_entry_is_composited(kind):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255, *[0] * 762])
    image.putpixel((1, 1), 1)
    data = encode(image, kind, transparency=0)
    assert "alpha" in read_picture(data).traits
    assert pixels(data)[1] == [[255] * 3, [0, 0, 255], [255] * 3, [255] * 3]
    assert pixels(data, alpha="drop")[1] == [[255, 0, 0], [0, 0, 255], [255, 0, 0], [255, 0, 0]]


def test_a_palette_with_partly_transparent_entries_is_composited():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([0, 0, 0, 0, 255, 0, *[0] * 762])
    image.putpixel((0, 0), 1)
    data = encode(image, "PNG", transparency=bytes([128, 255]))
    assert pixels(data)[0] == [[0, 255, 0], [127, 127, 127]]
    assert pixels(data, alpha="drop")[0] == [[0, 255, 0], [0, 0, 0]]


def test_a_transparent_colour_of_an_rgb_png_is_composited():
    image = Image.new("RGB", (2, 2), (9, 8, 7))
    image.putpixel((0, 0), (9, 8, 6))
    data = encode(image, "PNG", transparency=(9, 8, 7))
    assert read_picture(data).image.mode == "RGB"
    assert pixels(data)[0] == [[9, 8, 6], [255] * 3]
    assert pixels(data, alpha="drop")[0] == [[9, 8, 6], [9, 8, 7]]


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_an_animation_the_first_frame_is_taken_and_counted(kind, options):
    red, blue = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    data = encode(red, kind, save_all=True, append_images=[blue], **options)
    picture = read_picture(data)
    assert picture.traits == {"animated"} and picture.format == kind
    assert pixels(data) == [[[255, 0, 0]] * 8] * 6
    assert read_picture(encode(red, kind, **options)).traits == frozenset()


def test_a_gif_whose_second_frame_is_cut_still_gives_the_first():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    picture = read_picture(data[:-6])
    assert to_rgb(picture.image).getpixel((0, 0)) == (255, 0, 0) and "animated" in picture.traits


def test_a_phones_jpeg_of_several_pictures_is_its_first_and_no_animation():
    first, second = photo(40, 30), photo(40, 30, seed=1)
    data = encode(first, "MPO", save_all=True, append_images=[second])
    picture = read_picture(data)
    assert picture.traits == frozenset() and picture.format == "JPEG"
    assert np.array_equal(read_picture(data, keep_memory=True).memory[..., :3], np.asarray(picture.image))
    assert np.array_equal(np.asarray(picture.image), np.asarray(Image.open(io.BytesIO(encode(first, "JPEG")))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_only_when_asked_for(orientation):
    image = Image.fromarray(np.arange(20 * 10 * 3, dtype=np.uint8).reshape(10, 20, 3))
    data = encode(image, "PNG", exif=oriented(orientation))
    array = np.asarray(image)
    turned = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.transpose(1, 0, 2),
        6: np.rot90(array, -1), 7: array[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(array),
    }[orientation]  # fmt: skip
    assert np.array_equal(np.asarray(open_image(data)), array)
    assert np.array_equal(np.asarray(open_image(data, exif=True)), turned)
    assert ("rotated" in read_picture(data, exif=True).traits) == (orientation != 1)
    assert "rotated" not in read_picture(data).traits


def test_a_tiff_is_turned_once_whatever_was_asked():
    data = encode(Image.new("RGB", (20, 10)), "TIFF", exif=oriented(6))
    assert open_image(data).size == open_image(data, exif=True).size == (10, 20)  # Pillow turns TIFF files itself


def test_unreadable_exif_leaves_the_picture_as_it_is():
    data = encode(photo(20, 10), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(256)))
    picture = read_picture(data, exif=True)
    assert picture.image.size == (20, 10) and picture.traits <= {"unreadable_exif"}


def test_a_single_pixel_is_accepted_and_flagged():
    picture = read_picture(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"))
    assert picture.traits == {"degenerate"} and to_rgb(picture.image).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("1", ["PNG", "BMP", "TIFF", "GIF"]), ("L", ["PNG", "BMP", "TIFF", "JPEG", "GIF"]),
        ("P", ["PNG", "BMP", "TIFF", "GIF"]), ("RGB", KINDS),
        ("CMYK", ["JPEG", "TIFF"]), ("RGBA", ["PNG", "TIFF", "WEBP"]), ("LA", ["PNG", "TIFF"]),
    ],
)  # fmt: skip
def test_every_mode_of_every_format_opens_as_rgb(mode, kinds):
    for kind in kinds:
        image = open_image(encode(noise(mode, 17, 11), kind))
        assert (image.mode, image.size) == ("RGB", (17, 11))


def test_grey_and_one_bit_pictures_keep_their_values():
    assert pixels(encode(Image.new("L", (1, 2), 77), "PNG")) == [[[77] * 3]] * 2
    bits = Image.new("1", (2, 1), 0)
    bits.putpixel((1, 0), 1)
    assert pixels(encode(bits, "PNG")) == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("kind", sorted(LOSSLESS))
def test_a_lossless_file_a_path_bytes_a_pillow_image_and_a_tensor_have_the_same_pixels(kind, tmp_path):
    image = photo(61, 47)
    data = encode(image, kind, **LOSSLESS[kind])
    path = tmp_path / "picture"
    path.write_bytes(data)
    array = np.asarray(image)
    sources = [
        path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), image, Image.open(path), array,
        torch.from_numpy(array.copy()), np.asfortranarray(array),
    ]  # fmt: skip
    with path.open("rb") as file:
        for source in [*sources, file]:
            assert np.array_equal(np.asarray(open_image(source)), array), type(source)


def test_a_jpeg_has_the_pixels_that_pillow_decodes():
    data = encode(photo(61, 47), "JPEG", quality=90, subsampling=0)
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros((4, 4, 3)), "float64, 4 x 4 x 3"),
        (np.zeros((3, 4, 4), np.uint8), "uint8, 3 x 4 x 4"),
        (np.zeros((4, 4), np.uint8), "uint8, 4 x 4"),
        (np.zeros((0, 4, 3), np.uint8), "uint8, 0 x 4 x 3"),
        (torch.zeros(4, 4, 3, requires_grad=True), "cannot be read"),
        (3.5, "cannot be made from float"),
        (None, "cannot be made from NoneType"),
        ([1, 2], "cannot be made from list"),
    ],
)
def test_pixels_of_another_kind_are_refused_with_what_was_expected(source, said):
    with pytest.raises(DataError, match=rf"{said}.*uint8 array H x W x 3"):
        open_image(source)


def test_a_path_that_cannot_be_read_says_why(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path / "missing.png": "No such file", tmp_path: "this is a folder", tmp_path / "pipe": "not a regular file",
        "https://example.org/cat.jpg": "download the file first", "nul\0.png": "cannot be read", "x" * 5000: "cannot be read",
    }  # fmt: skip
    for path, said in cases.items():
        with pytest.raises(DataError, match=said):
            open_image(path)
    with pytest.raises(DataError, match="open as text"):
        open_image(io.StringIO("hello"))


def test_a_damaged_pillow_image_is_a_data_error_too(tmp_path):
    data = encode(photo(160, 120), "JPEG")
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "half.jpg") as image, pytest.raises(DataError, match=r"half\.jpg: the JPEG is cut short"):
        open_image(image)


def test_a_run_length_coded_bmp_has_a_limit_of_its_own():
    def bmp(width: int, height: int) -> bytes:
        palette = bytes(256 * 4)
        rows = b"\x01\x00\x00\x00" * height + b"\x00\x01"
        offset = 14 + 40 + len(palette)
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
        return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + header + palette + rows

    assert open_image(bmp(20, 10)).size == (20, 10)
    with pytest.raises(LimitError, match="run-length coded BMP of 60,000 x 1,000"):
        open_image(bmp(60_000, 1_000))


def test_no_warning_of_pillow_escapes_and_the_callers_filters_come_back():
    jpeg = encode(photo(20, 10), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(200)))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0] * 768)
    sources = [jpeg, encode(palette, "PNG", transparency=bytes([9, 200]))]
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for source in sources:
            for alpha in ("white", "drop"):
                open_image(source, exif=True, alpha=alpha)
        with pytest.raises(DataError, match="cut short"):  # past Pillow's own limit, which warns, and within ours
            open_image(grey_png(9_500, 9_500), max_pixels=100_000_000)
    assert not caught
    assert warnings.filters == before


def test_threads_that_decode_at_once_leave_the_warning_filters_alone():
    data = encode(photo(40, 30), "PNG")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [open_image(data) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_traits_are_documented_names():
    picture = read_picture(encode(noise("LA", 1, 5), "PNG"))
    assert picture.traits <= set(TRAITS) and picture.traits == {"alpha", "degenerate"}


def test_the_memory_of_a_jpeg_can_be_had_without_a_copy(monkeypatch):
    data = encode(photo(61, 47), "JPEG", exif=oriented(6))
    plain = np.asarray(open_image(data))
    picture = read_picture(data, keep_memory=True)
    assert np.array_equal(np.asarray(picture.image), plain) and np.array_equal(picture.memory[..., :3], plain)
    assert read_picture(data, keep_memory=True, exif=True).memory is None  # the turned picture lies elsewhere
    for other in (encode(photo(61, 47), "PNG"), encode(noise("L", 9, 9), "JPEG"), photo(9, 9)):
        assert read_picture(other, keep_memory=True).memory is None
    with pytest.raises(DataError, match="cut short"):
        read_picture(data[: len(data) // 2], keep_memory=True)

    def changed(*arguments):
        raise TypeError("a later Pillow")

    monkeypatch.setattr(Image.core, "map_buffer", changed)
    picture = read_picture(data, keep_memory=True)
    assert picture.memory is None and np.array_equal(np.asarray(picture.image), plain)


def test_a_caller_pil_image_is_not_changed():
    image = noise("RGBA", 9, 7)
    before = image.tobytes()
    open_image(image)
    assert image.mode == "RGBA" and image.tobytes() == before


def test_names_given_by_the_caller_win_over_paths(tmp_path):
    path = Path(tmp_path / "a.png")
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="^shard 3, key 17: "):
        open_image(path, name="shard 3, key 17")
