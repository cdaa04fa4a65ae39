"""Videos of a task: files that move and frames in folders or shards, one sample a video; its middle frame for pictures."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from ostension.data.sets.open import open_set
from ostension.data.sets.videos import VideoSet, video_of, videos_of
from ostension.data.task import read_task
from ostension.data.task_data import open_task
from ostension.errors import DataError


def picture(value, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, form)
    return buffer.getvalue()


def gif(values):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in values]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def shade(data):
    return round(float(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).mean()))


def shades(video):
    return [round(float(np.asarray(frame.convert("RGB")).mean())) for frame in video.frames(range(len(video)))]


def written(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def task_of(root, split="test"):
    (root / "moves.toml").write_text(
        'title = "Moves"\nversion = 1\nkind = "video"\nmetric = "accuracy"\ntemplates = ["a video of {}."]\n'
        'licence = "none"\ncitation = "none"\n[classes]\nrun = ["running"]\nsit = ["sitting"]\n'
        f'[splits.{split}]\ncount = 2\n[[sources]]\nkind = "folder"\npath = "moves"\n'
    )
    return root / "moves.toml"


def test_frames_in_folders_are_put_together_in_the_order_of_their_numbers(tmp_path):
    frames = {f"run/v1/{n}.png": picture(20 * n) for n in (1, 2, 10)} | {"sit/v2/1.png": picture(7)}
    videos = VideoSet(open_set(written(tmp_path, frames)))
    assert videos.ids == ["run/v1", "sit/v2"] and videos.labels == [("run",), ("sit",)]
    assert shades(videos.video(0)) == [20, 40, 200] and shade(videos.image(0)) == 40
    assert shades(videos.video(1)) == [7]


def test_files_that_move_are_a_video_each_wherever_they_lie(tmp_path):
    files = {"run/a/1.gif": gif([0, 50, 100, 150]), "run/a/2.gif": gif([9, 8]), "sit/3.gif": gif([5, 6, 7])}
    videos = VideoSet(open_set(written(tmp_path, files)))
    assert videos.ids == ["run/a/1.gif", "run/a/2.gif", "sit/3.gif"]
    assert shades(videos.video(0)) == [0, 50, 100, 150]
    assert shade(videos.image(0)) == 50 and shade(videos.image(2)) == 6


def test_pictures_in_class_folders_are_videos_of_one_frame(tmp_path):
    """The middle frames that are passed around of UCF101: a class's folder is no video."""
    files = {f"run/{n}.png": picture(n) for n in range(3)}
    assert len(VideoSet(open_set(written(tmp_path, files)))) == 3


def test_frames_in_shards_are_put_together(tmp_path):
    with tarfile.open(tmp_path / "test-0.tar", "w") as tar:
        for name in ("v1/0001", "v1/0002", "v2/0001"):
            for suffix, data in (("png", picture(int(name[-1]) * 30)), ("cls", b"run")):
                entry = tarfile.TarInfo(f"{name}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    videos = VideoSet(open_set(tmp_path))
    assert videos.ids == ["test-0/v1", "test-0/v2"] and shades(videos.video(0)) == [30, 60]


def test_a_task_gives_one_sample_a_video_with_its_label(tmp_path):
    frames = {f"moves/run/v1/{n}.png": picture(n) for n in range(3)} | {"moves/sit/v2/0.png": picture(9)}
    written(tmp_path, frames)
    data = open_task(task_of(tmp_path))
    found = videos_of(data)
    assert len(data) == 4 and len(found) == 2 and found.targets.tolist() == [0, 1]
    assert found.samples.fingerprint() != data.samples.fingerprint()
    assert videos_of(found) is found


def test_video_files_are_samples_of_video_tasks_alone(tmp_path):
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for value in (0, 60, 120):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), "rgb24")))
        out.mux(stream.encode())
    written(tmp_path, {"moves/run/a.mp4": buffer.getvalue(), "moves/sit/b.png": picture(3)})
    videos = videos_of(open_task(task_of(tmp_path)))
    assert len(videos) == 2 and len(videos.samples.video(0)) == 3
    assert abs(shade(videos.samples.image(0)) - 60) <= 2
    assert len(open_set(tmp_path / "moves")) == 1


def test_frames_of_one_video_with_different_labels_are_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label,video\na.png,run,v\nb.png,sit,v\n")
    written(tmp_path, {"a.png": picture(1), "b.png": picture(2)})
    with pytest.raises(DataError, match="different labels"):
        VideoSet(open_set(tmp_path), "video")
    with pytest.raises(DataError, match="no field 'clip'.*label|no field 'clip'.*video"):
        VideoSet(open_set(tmp_path), "clip")


def test_any_source_of_pairs_gives_videos():
    class Pairs:
        def __len__(self):
            return 1

        def read(self, index):
            from ostension.data.pairs import Pair

            return Pair(key="only", image=gif([1, 2]), texts=(), meta={})

    assert len(video_of(Pairs(), 0)) == 2


def test_shipped_video_tasks_can_be_read():
    assert {read_task(name).kind for name in ("ucf101", "kinetics700")} == {"video"}


def test_tasks_of_files_that_move_show_their_middle_frames(tmp_path):
    """So that whatever looks at pictures measures them too."""
    files = {"moves/run/a.gif": gif([0, 50, 100]), "moves/run/c.gif": gif([1, 2, 3]), "moves/sit/b.gif": gif([9, 7, 5])}
    written(tmp_path, files)
    data = open_task(task_of(tmp_path))
    assert [shade(data.samples.read(index).image) for index in range(3)] == [50, 2, 7]
    assert len(videos_of(data)) == 3 and shades(videos_of(data).samples.video(2)) == [9, 7, 5]
