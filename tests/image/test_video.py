"""Videos as frames: the same pictures from every form, in any order, and one clean line for what is none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ostension.errors import DataError, LimitError, MissingExtraError
from ostension.image.video import MovingPicture, VideoFile, holds_frames, is_moving, is_video_file, open_video


def greys(count, side=16):
    """Frame n is grey 10 n, so that a picture says which frame it is."""
    return [Image.fromarray(np.full((side, side + 4, 3), 10 * n, np.uint8)) for n in range(count)]


def moving(form, count=6, **options):
    buffer = io.BytesIO()
    pictures = greys(count)
    pictures[0].save(buffer, form, save_all=True, append_images=pictures[1:], duration=50, **options)
    return buffer.getvalue()


def filmed(codec, container, count=25, **options):
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {name: str(value) for name, value in options.items()}
        for n in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * n, np.uint8), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def numbers(pictures):
    return [round(float(np.asarray(picture.convert("RGB")).mean()) / 10) for picture in pictures]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_frames_of_a_moving_picture_come_in_any_order_and_as_often_as_asked(form):
    video = open_video(moving(form, **({"lossless": True} if form == "WEBP" else {})))
    assert isinstance(video, MovingPicture) and len(video) == 6
    assert numbers(video.frames([4, 0, 4, 2])) == [4, 0, 4, 2]


def test_the_first_picture_of_an_apng_for_old_viewers_is_no_frame():
    buffer, pictures = io.BytesIO(), greys(4)
    pictures[0].save(buffer, "PNG", save_all=True, append_images=pictures[1:], default_image=True)
    video = open_video(buffer.getvalue())
    assert numbers(video.frames(range(len(video)))) == [1, 2, 3]


@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [("libx264", "mp4", {"g": 8, "bf": 2}), ("libvpx-vp9", "webm", {}), ("mpeg4", "avi", {}), ("mpeg4", "mpegts", {"g": 5}),
     ("libx264", "matroska", {"g": 100})],
)  # fmt: skip
def test_frames_of_a_video_file_are_reached_alone_and_together(codec, container, options, tmp_path):
    data = filmed(codec, container, **options)
    (tmp_path / "clip.mp4").write_bytes(data)
    for source in (data, tmp_path / "clip.mp4"):
        video = open_video(source)
        assert isinstance(video, VideoFile) and len(video) == 25
        assert numbers(video.frames([20, 3, 24, 3, 0])) == [20, 3, 24, 3, 0]
        assert numbers([video.frames([n])[0] for n in (17, 9)]) == [17, 9]
        assert numbers(video.frames(range(25))) == list(range(25))


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path):
    for n, picture in enumerate(greys(12)):
        picture.save(tmp_path / f"frame{n}.png")
    assert numbers(open_video(tmp_path).frames([1, 2, 10, 11])) == [1, 2, 10, 11]
    assert holds_frames(tmp_path)


def test_a_folder_of_moving_pictures_is_no_video(tmp_path):
    (tmp_path / "a.gif").write_bytes(moving("GIF"))
    assert not holds_frames(tmp_path)


def test_a_picture_is_a_video_of_one_frame_and_a_list_one_of_as_many():
    picture = greys(3)[2]
    assert numbers(open_video(picture).frames([0, 0])) == [2, 2]
    assert numbers(open_video([np.asarray(one) for one in greys(3)]).frames([2, 1])) == [2, 1]


def test_transparency_and_what_still_pictures_are_stay_what_they_are():
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(buffer, "PNG")
    assert open_video(buffer.getvalue()).frames([0])[0].mode == "RGBA"
    assert not is_moving(buffer.getvalue()) and not is_video_file(buffer.getvalue())


def test_what_is_no_video_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    cases = [
        (b"GIF89a" + b"\0" * 20, "damaged|cut short"), (b"\x1aE\xdf\xa3" + b"\0" * 300, "cannot be decoded"),
        (b"hello", "not a picture"), (tmp_path / "none.mp4", "cannot be read"),
        (tmp_path / "empty", "no pictures in this folder"), ([], "without frames"),
    ]  # fmt: skip
    for source, reason in cases:
        with pytest.raises(DataError, match=reason) as caught:
            open_video(source).frames([0])
        assert "\n" not in str(caught.value)


def test_cut_files_lose_their_last_frames_and_say_so():
    pytest.importorskip("av")
    data = filmed("mpeg4", "avi")
    for source, kind in ((data[: len(data) // 2], "video"), (moving("GIF")[:-40], "frame|GIF")):
        with pytest.raises(DataError, match=kind):
            video = open_video(source)
            assert len(video.frames([0])) == 1
            video.frames([len(video) - 1, 24])


def test_limits_hold_before_a_frame_is_decoded(monkeypatch):
    with pytest.raises(LimitError, match="max_pixels"):
        open_video(moving("GIF"), max_pixels=100)
    with pytest.raises(LimitError, match="6 frames"):
        open_video(moving("GIF"), max_frames=5)
    with pytest.raises(LimitError, match="max_pixels"):
        open_video(filmed("mpeg4", "avi"), max_pixels=100)
    monkeypatch.setattr("ostension.image.video.MAX_MOVING_PIXELS", 1000)
    with pytest.raises(LimitError, match="1,920 pixels in all frames"):
        open_video(moving("GIF"))


def test_a_moving_picture_among_frames_is_refused():
    with pytest.raises(DataError, match="a moving picture among the frames"):
        open_video([greys(1)[0], moving("GIF")]).frames([1])


def test_video_files_without_pyav_name_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"ostension\[video\]"):
        open_video(b"\x1aE\xdf\xa3" + b"\0" * 300)
