"""Videos as frames: how many there are, and the pictures of those that are asked for.

    a list of pictures, or a folder of them in the order of their names     each is a frame
    a moving picture: GIF, WebP, APNG, AVIF                                 through Pillow
    MP4, WebM, Matroska, AVI, MPEG-TS and the like                          through PyAV (the extra "video")
    any other picture                                                       a video of one frame

A video file is gone through once on opening, packet by packet and without decoding, which gives the times of its frames. A
frame is then reached from the key frame before it, so what is asked for decides the cost and not the length of the video.

Letters: F frames.
"""

from __future__ import annotations

import bisect
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ostension.errors import DataError, LimitError, require_extra
from ostension.image.decode import MAX_BYTES, MAX_PIXELS, check_size, damaged, has_transparency, read_picture
from ostension.image.signatures import VIDEO_SUFFIXES, format_of
from ostension.image.silence import pillow_silence

MAX_FRAMES = 1_000_000  # nine hours at 30 a second
MAX_MOVING_PIXELS = 50_000_000_000  # of all frames of a moving picture, which are drawn one over the other: a minute or two
MAX_VIDEO_BYTES = 4_000_000_000  # of a file, which is not held in memory
MOVING_FORMATS = frozenset(("GIF", "WEBP", "PNG", "AVIF"))
FRAME_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))
_PICTURE_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"hevc")
_HEAD = 1 << 16  # bytes in which a format shows that it moves


@runtime_checkable
class Video(Protocol):
    """Frames that can be read in any order.

    Attributes:
        name: what to call it in messages.
    """

    name: str

    def __len__(self) -> int: ...

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        """The frames of these numbers, each as often as it is asked for; raises `DataError` for what cannot be decoded."""
        ...


def open_video(
    source: Any, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, max_frames: int = MAX_FRAMES,
    name: str | None = None,
) -> Video:  # fmt: skip
    """The video of a file, a folder of frames, a file's bytes, or a list of pictures.

    Args:
        source: a path, bytes, one picture, or a list of what `decode.read_picture` takes.
        max_pixels: most pixels of a frame.
        max_bytes: most bytes of what is held in memory: pictures, and moving ones.
        max_frames: most frames.
        name: what to call it in messages, if its path does not say it.

    Raises:
        DataError: for what is missing, has no frames, or is neither a video nor a picture.
        LimitError: past a limit.
        MissingExtraError: for a video file without PyAV.
    """
    limits = {"max_pixels": max_pixels, "max_bytes": max_bytes}
    if isinstance(source, (list, tuple)):
        return _checked(Frames(source, name or "<frames>", **limits), max_frames)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        name = name or str(path)
        if path.is_dir():
            return _checked(Frames(frame_files(path), name, **limits), max_frames)
        head = _head(path, name)
        if is_video_file(head):
            if (size := path.stat().st_size) > MAX_VIDEO_BYTES:
                raise LimitError(f"{size:,} bytes", source=name, expected=f"at most {MAX_VIDEO_BYTES:,}")
            return _checked(VideoFile(path, name, max_pixels=max_pixels, max_frames=max_frames), max_frames)
        if not is_moving(head):
            return Frames([path], name, **limits)
        if (size := path.stat().st_size) > max_bytes:
            raise LimitError(f"{size:,} bytes", source=name, expected=f"at most max_bytes = {max_bytes:,}")
        source = path.read_bytes()
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        name = name or f"<{len(data):,} bytes>"
        if is_video_file(data[:_HEAD]):
            return _checked(VideoFile(data, name, max_pixels=max_pixels, max_frames=max_frames), max_frames)
        if is_moving(data[:_HEAD]) and len(data) <= max_bytes:
            return _checked(MovingPicture(data, name, max_pixels=max_pixels), max_frames)
        return Frames([data], name, **limits)
    return Frames([source], name or "<picture>", **limits)


def is_video_file(head: bytes) -> bool:
    """Whether a file that begins like this is a video for PyAV, by the signatures of its containers."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _PICTURE_BRANDS
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    return head.startswith((b"\x1aE\xdf\xa3", b"FLV\x01", b"OggS", b"\x00\x00\x01\xba")) or (
        head[:1] == b"G" and head[188:189] == b"G" and len(head) > 188  # the packets of MPEG-TS
    )


def is_moving(head: bytes) -> bool:
    """Whether a picture that begins like this may have several frames."""
    if head.startswith(b"\x89PNG"):
        return b"acTL" in head.partition(b"IDAT")[0]
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return bool(head[20] & 2) if len(head) > 20 else False
    return head.startswith((b"GIF87a", b"GIF89a")) or head[4:12] == b"ftypavis"


def holds_frames(folder: Path) -> bool:
    """Whether a folder's own files are the frames of one video: pictures that do not move, and no video."""
    found = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    stills = [path for path in found if path.suffix.lower() in FRAME_SUFFIXES]
    files = any(path.suffix.lower()[1:] in VIDEO_SUFFIXES for path in found)
    return bool(stills) and not files and not is_moving(_head(stills[0]))


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, numbers by their value.

    Raises:
        DataError: if there is none.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES and not path.name.startswith(".")]
    if not found:
        raise DataError("no pictures in this folder", source=folder, expected="a video's frames")
    return sorted(found, key=lambda path: natural_order(path.name))


def natural_order(name: str) -> list[Any]:
    """A key by which frame 9 comes before frame 10."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name) if part]


class Frames:
    """A video from pictures, each read when it is asked for."""

    def __init__(self, pictures: Sequence[Any], name: str, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES):
        self.pictures, self.name = pictures, name
        self.limits: dict[str, Any] = {"max_pixels": max_pixels, "max_bytes": max_bytes}

    def __len__(self) -> int:
        return len(self.pictures)

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        found = {index: self._frame(index) for index in sorted(set(indices))}
        return [found[index] for index in indices]

    def _frame(self, index: int) -> Image.Image:
        source = self.pictures[index]
        whole = self.name if len(self) == 1 else f"{self.name}, frame {index}"
        name = None if isinstance(source, (str, os.PathLike)) else whole
        picture = read_picture(source, name=name, **self.limits)
        if "animated" in picture.traits and len(self) > 1:
            what = "a moving picture among the frames of a video"
            raise DataError(what, source=picture.name, expected="pictures of one frame")
        return picture.image


class MovingPicture:
    """The frames of a GIF, WebP, APNG or AVIF, each whole, as a viewer shows them."""

    def __init__(self, data: bytes, name: str, *, max_pixels: int = MAX_PIXELS):
        self.data, self.name, self.max_pixels = data, name, max_pixels
        self.kind = format_of(data, name)
        with pillow_silence:
            image = self._opened()
            check_size(image, max_pixels, name)
            try:
                # The first picture of an APNG may be for viewers that do not know of the others.
                self.first = int(bool(getattr(image, "default_image", False)))
                self.count = int(getattr(image, "n_frames", 1)) - self.first
            except Exception as error:
                raise damaged(error, self.kind, name) from None
        if (pixels := self.count * image.width * image.height) > MAX_MOVING_PIXELS:
            raise LimitError(f"{pixels:,} pixels in all frames", source=name, expected=f"at most {MAX_MOVING_PIXELS:,}")

    def __len__(self) -> int:
        return self.count

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        found: dict[int, Image.Image] = {}
        with pillow_silence:
            image = self._opened()
            for index in sorted(set(indices)):
                try:
                    image.seek(index + self.first)
                    image.load()
                    found[index] = image.convert("RGBA" if has_transparency(image) else "RGB")
                except Exception as error:
                    problem = damaged(error, self.kind, self.name)
                    raise DataError(f"frame {index}: {problem.what}", source=self.name) from None
        return [found[index] for index in indices]

    def _opened(self) -> Image.Image:
        try:
            return Image.open(io.BytesIO(self.data), formats=(self.kind,))
        except Image.DecompressionBombError:
            raise LimitError("more pixels than Pillow opens at all", source=self.name) from None
        except Exception as error:
            raise damaged(error, self.kind, self.name) from None


class VideoFile:
    """The frames of the first video stream of a file, through PyAV; turned as the file says."""

    def __init__(self, source: Path | bytes, name: str, *, max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES):
        self.source, self.name = source, name
        self._av = require_extra("av", "video")
        times: list[int] = []
        keys: list[int] = []
        with _Container(self) as (container, stream):
            context = stream.codec_context
            if (pixels := context.width * context.height) > max_pixels:
                what = f"frames of {context.width:,} x {context.height:,} pixels"
                raise LimitError(what, source=name, expected=f"at most max_pixels = {max_pixels:,}")
            if not pixels:
                raise DataError("the video has no size", source=name)
            for packet in container.demux(stream):
                time = packet.dts if packet.pts is None else packet.pts
                if packet.size and time is not None:
                    times.append(time)
                    if packet.is_keyframe:
                        keys.append(time)
                    if len(times) > max_frames:
                        raise LimitError(f"more than {max_frames:,} frames", source=name)
        self.times, self.keys = sorted(set(times)), sorted(keys)

    def __len__(self) -> int:
        return len(self.times)

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        found: dict[int, Image.Image] = {}
        with _Container(self) as (container, stream):
            decoded: Iterator[Any] = iter(())
            reached: int | None = None  # the time of the frame that was decoded last
            for index in sorted(set(indices)):
                wanted = self.times[index]
                key = bisect.bisect_right(self.keys, wanted) - 1
                if reached is None or (key >= 0 and self.keys[key] > reached):
                    decoded = self._from(container, stream, wanted)
                for frame in decoded:
                    # Frames without a time come one after the other; what a file's edit list hides has no frame of its own.
                    reached = frame.pts if frame.pts is not None else wanted
                    if reached >= wanted:
                        image = frame.to_image()
                        found[index] = image.rotate(frame.rotation, expand=True) if frame.rotation else image
                        break
                else:
                    raise DataError(f"the video is cut short or damaged at frame {index} of {len(self)}", source=self.name)
        return [found[index] for index in indices]

    def _from(self, container: Any, stream: Any, wanted: int) -> Iterator[Any]:
        """The frames from the key frame before `wanted` on; from the beginning where a container's seeking lands behind it."""
        container.seek(wanted, stream=stream, backward=True)
        decoded = container.decode(stream)
        first = next(decoded, None)
        if first is None or (first.pts is not None and first.pts > wanted):
            container.seek(self.times[0], stream=stream, backward=True)
            return container.decode(stream)
        return itertools.chain([first], decoded)


class _Container:
    """A file opened with PyAV and its video stream; every failure in it is a `DataError` of one line."""

    def __init__(self, video: VideoFile):
        self.video = video

    def __enter__(self) -> tuple[Any, Any]:
        av, source = self.video._av, self.video.source
        try:
            self.container = av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._problem(error) from None
        if not self.container.streams.video:
            self.container.close()
            raise DataError("there is no video in it", source=self.video.name, expected="a file with a video stream")
        stream = self.container.streams.video[0]
        stream.codec_context.thread_count = 1  # several videos are read side by side; threads of each would compete
        return self.container, stream

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.container.close()
        if isinstance(error, (self.video._av.FFmpegError, OSError, ValueError)) and not isinstance(error, DataError):
            raise self._problem(error) from None

    def _problem(self, error: BaseException) -> DataError:
        text = str(getattr(error, "strerror", None) or error).split("\n")[0][:160]
        return DataError(f"the video cannot be decoded ({text})", source=self.video.name)


def _head(path: Path, name: str | None = None) -> bytes:
    try:
        with path.open("rb") as handle:
            return handle.read(_HEAD)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", source=name or path) from None


def _checked(video: Video, max_frames: int) -> Video:
    if not len(video):
        raise DataError("a video without frames", source=video.name)
    if len(video) > max_frames:
        raise LimitError(f"{len(video):,} frames", source=video.name, expected=f"at most {max_frames:,}")
    return video
