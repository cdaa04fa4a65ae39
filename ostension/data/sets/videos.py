"""Videos as samples: files that move, one a sample, or frames that lie as pictures and are put together by video.

A task of the kind "video" may hold either. Frames belong to the video that stands before the last slash of their id
("archery/v_01/0007.jpg" is of "archery/v_01"), or to the value of a field, and are ordered by id, numbers by their value. A
picture that lies in no folder of its own, such as the middle frames that are passed around of UCF101, is a video of one frame.

Whoever knows of pictures only sees the middle frame of each video, as the published probes and prompts on videos did.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ostension.data.pairs import PairSource
from ostension.data.sets.base import LabelledSet
from ostension.errors import DataError
from ostension.image.signatures import VIDEO_SUFFIXES
from ostension.image.video import Frames, Video, is_moving, is_video_file, natural_order, open_video

if TYPE_CHECKING:
    from ostension.data.task_data import TaskData


def video_of(source: PairSource, index: int) -> Video:
    """A sample of a source as a video; a picture is one of one frame.

    Raises:
        DataError, LimitError, MissingExtraError: as `open_video`.
    """
    read = getattr(source, "video", None)
    if read is not None:
        return read(index)
    pair = source.read(index)
    return open_video(pair.image, name=pair.key)


def videos_of(data: TaskData, field: str = "") -> TaskData:
    """A split with one sample a video.

    Args:
        field: the field of the frames that names their video; empty for what stands before the last slash of an id.

    Raises:
        DataError: for a field that the frames do not have, or videos whose frames have different labels.
    """
    if isinstance(data.samples, VideoSet):
        return data
    videos = VideoSet(data.samples, field)
    first = np.array([members[0] for members in videos.members])
    return dataclasses.replace(
        data, samples=videos, targets=None if data.targets is None else data.targets[first],
        groups={name: values[first] for name, values in data.groups.items()},
    )  # fmt: skip


def files_as_videos(found: LabelledSet) -> LabelledSet:
    """A set whose samples are files that move as one of videos; any other as it is."""
    if found.embeddings is not None:
        return found
    named = any(name.rpartition(".")[2].lower() in VIDEO_SUFFIXES for name in found.ids)
    return VideoSet(found) if named or _moves(found, 0) else found


class VideoSet(LabelledSet):
    """The videos of a set of frames, or of files that move, in the order in which they first occur.

    Attributes:
        members: the numbers of each video's samples in `parent`, in the order of its frames.
    """

    def __init__(self, parent: LabelledSet, field: str = ""):
        self.parent = parent
        names = _names(parent, field)
        groups: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            groups.setdefault(name, []).append(index)
        self.members = [
            members if len(members) == 1 else sorted(members, key=lambda index: natural_order(parent.ids[index]))
            for members in groups.values()
        ]
        first = [members[0] for members in self.members]
        for name, members in groups.items():
            if len({parent.labels[index] for index in members}) > 1:
                raise DataError(f"frames of the video {name!r} have different labels", source=parent.location)

        def take(column: Sequence[Any]) -> list[Any]:
            return [column[index] for index in first]

        super().__init__(
            parent.location, list(groups), take(parent.labels), splits=None if parent.splits is None else take(parent.splits),
            fields={name: take(values) for name, values in parent.fields.items()}, rejects=parent.rejects,
        )  # fmt: skip

        self.levels_in_ids = max(name.count("/") for name in self.ids)  # no id names a video of several samples any more

    def image(self, index: int) -> bytes:
        """The middle frame: of n frames number (n - 1) // 2; as PNG, where it is no file of its own."""
        members = self.members[index]
        if len(members) > 1:
            return self.parent.image(members[(len(members) - 1) // 2])
        video = self.video(index)
        if len(video) == 1:
            return self.parent.image(members[0])
        buffer = io.BytesIO()
        video.frames([(len(video) - 1) // 2])[0].save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def video(self, index: int) -> Video:
        members = self.members[index]
        if len(members) == 1:
            return self.parent.video(members[0])
        return Frames(_Pictures(self.parent, members), self.ids[index])

    def content(self) -> list[Any]:
        return ["videos", self.members, self.parent.content()]


class _Pictures(Sequence):
    """The encoded pictures of some samples, each read when it is asked for."""

    def __init__(self, parent: LabelledSet, members: Sequence[int]):
        self.parent, self.members = parent, members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        return self.parent.image(self.members[index])


def _names(parent: LabelledSet, field: str) -> list[str]:
    """The video of each sample."""
    if field:
        if field not in parent.fields:
            known = ", ".join(parent.fields) or "none"
            raise DataError(f"the frames have no field {field!r}", source=parent.location, expected=f"one of {known}")
        return list(parent.fields[field])
    # An id of as many folders as the set's own levels names a class or a shard before its last slash, and no video.
    found = [name.rpartition("/")[0] if name.count("/") > parent.levels_in_ids else name for name in parent.ids]
    if len(set(found)) < len(found):
        together = next(index for index, name in enumerate(found) if name != parent.ids[index])
        if _moves(parent, together):  # files that move lie in folders too
            return list(parent.ids)
    return found


def _moves(parent: LabelledSet, index: int) -> bool:
    head = parent.image(index)[:65536]
    return is_moving(head) or is_video_file(head)
