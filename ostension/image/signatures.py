"""What a file is, by its first bytes: one of the formats that are read, or what it is instead."""

from __future__ import annotations

import importlib

from ostension.errors import DataError

# Files of videos, by their names; what they are is seen by `video.is_video_file`.
VIDEO_SUFFIXES = frozenset({"mp4", "m4v", "mov", "webm", "mkv", "avi", "ts", "mpg", "mpeg", "flv", "ogv"})
# Format, offset of the signature, signature.
_SIGNATURES = (
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("WEBP", 8, b"WEBP"),
    ("GIF", 0, b"GIF87a"),
    ("GIF", 0, b"GIF89a"),
    ("BMP", 0, b"BM"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("TIFF", 0, b"II+\0"),
    ("TIFF", 0, b"MM\0+"),
    ("AVIF", 4, b"ftypavif"),
    ("AVIF", 4, b"ftypavis"),
    ("AVIF", 4, b"ftypmif1"),
    ("AVIF", 4, b"ftypmsf1"),
)
_PLUGINS = {
    "JPEG": "JpegImagePlugin", "PNG": "PngImagePlugin", "WEBP": "WebPImagePlugin", "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin", "TIFF": "TiffImagePlugin", "AVIF": "AvifImagePlugin",
}
# What people hand over instead of a picture: signature (lower case) and name.
_OTHERS = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document (SVG is not read)"),
    (b"%pdf", "a PDF document"),
    (b"%!ps", "a PostScript document (EPS is not read)"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document (EPS is not read)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"pk\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x00\x00\x00\x0cjp", "JPEG 2000, which is not read"),
    (b"\xff\x0a", "JPEG XL, which is not read"),
    (b"\x00\x00\x00\x0cjxl", "JPEG XL, which is not read"),
)


def reads(kind: str) -> bool:
    """Whether the installed Pillow reads a format; loads its plugin, for which Pillow itself would import all it has."""
    try:
        plugin = importlib.import_module(f"PIL.{_PLUGINS[kind]}")
    except ImportError:
        return False
    return getattr(plugin, "SUPPORTED", True)


def format_of(data: bytes, name: str) -> str:
    """Pillow's name of the format, with Pillow's plugin for it loaded.

    Raises:
        DataError: for anything else, saying what it looks like.
    """
    for kind, offset, signature in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            if not reads(kind):
                raise DataError(f"the installed Pillow does not read {kind}", source=name, fix="convert the picture")
            return kind
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    what = next((what for signature, what in _OTHERS if start.startswith(signature)), None)
    if what is None and start[4:8] == b"ftyp":
        what = "HEIC or a video, which are not read"
    raise DataError(
        f"not a picture: this is {what}" if what else "not a picture that can be read", source=name,
        expected="JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF",
    )
