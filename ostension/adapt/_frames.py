"""What a method learns from where a sample is a video: frames of it, live or as kept features of the frozen tower.

Kept are the image tower's outputs before the projection, as unit rows would lose the lengths over which frames are averaged.
What is kept of a frame is the tower's output for exactly the bytes that a live step would see.

Letters: N videos, F frames (of all clips and crops of a video), K draws, E embedding, S pixels a side.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ostension.adapt._examples import CROPS, Labelled
from ostension.config import to_tree
from ostension.data.pairs import Pair, Summary, image_digest
from ostension.data.sets.videos import video_of
from ostension.files import sha256_json
from ostension.image.augment import CropConfig
from ostension.image.clips import ClipConfig, fixed_views, random_clip
from ostension.image.transforms import PreprocessConfig, Transform
from ostension.model.clip import CLIP
from ostension.runtime import numpy_generator
from ostension.shapes import Float, UInt8
from ostension.store import Store, embed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips(Labelled):
    """Videos with a class each.

    Attributes:
        reading: which frames of a video are seen.
    """

    reading: ClipConfig

    @classmethod
    def of(cls, data: Labelled, reading: ClipConfig) -> Clips:
        """Samples as videos; a picture is one of one frame."""
        fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(Labelled)}
        return cls(**fields, reading=reading)

    def features(
        self, model: CLIP, views: int = 0, progress: Callable | None = None, crop: CropConfig = CROPS, level: Any = "post"
    ) -> Float[Tensor, "K N F E"]:
        """Projected rows of frames, which are not unit ones: of the fixed views, or of the random clips 1 to `views`."""
        draws: Sequence[int | None] = range(1, views + 1) if views else (None,)
        return torch.stack([self._kept(model, draw, crop, progress) for draw in draws])

    def pixels(
        self, model: CLIP, indices: np.ndarray, *, seed: int = 0, epoch: int | None = None, crop: CropConfig = CROPS
    ) -> Float[Tensor, "B F 3 S S"]:
        """Preprocessed frames; with an `epoch` a random clip of each video: a function of seed, epoch and video."""
        draw = None if epoch is None else (seed, epoch)
        found = [self.frames(model.transform, index, draw, crop) for index in np.asarray(indices).tolist()]
        return model.transform.normalize(torch.stack(found))

    def frames(
        self, transform: Transform, index: int, draw: tuple[int, int] | None, crop: CropConfig = CROPS
    ) -> UInt8[Tensor, "F 3 S S"]:
        """A video's frames before normalisation: of the fixed views, or of the random clip (seed, epoch)."""
        video = video_of(self.source, index)
        if draw is None:
            return fixed_views(video, transform, self.reading)
        return random_clip(video, transform, self.reading, crop, numpy_generator(draw[0], "clip", draw[1], index))

    def _kept(self, model: CLIP, draw: int | None, crop: CropConfig, progress: Callable | None) -> Float[Tensor, "N F E"]:
        source = _FrameSource(self, model.transform.config, None if draw is None else (0, draw), crop)
        # The frames are cut already; nothing is resized any more.
        transform = Transform(dataclasses.replace(model.transform.config, resize="squash", short_side=None))
        given: dict[str, Any] = {"levels": ("pre",), "transform": transform, "progress": progress}
        if self.store is not None:
            rows = np.asarray(embed(self.store, model, source, split=self.name, **given)["pre", 0].rows)
        else:
            with tempfile.TemporaryDirectory() as folder:
                rows = np.array(embed(Store(folder), model, source, stored="float32", **given)["pre", 0].rows)
        with torch.no_grad():
            projected = model.project_image(torch.from_numpy(rows.astype(np.float32)))
        wide = torch.promote_types(model.dtype, torch.float32)
        return projected.to("cpu", wide).unflatten(0, (len(self), source.count))


class _FrameSource:
    """The frames of clips as pairs, video after video, each a bitmap of the size that the tower takes."""

    def __init__(self, clips: Clips, preprocess: PreprocessConfig, draw: tuple[int, int] | None, crop: CropConfig):
        self.clips, self.transform, self.draw, self.crop = clips, Transform(preprocess), draw, crop
        reading = clips.reading
        self.count = reading.frames * (reading.clips * reading.crops if draw is None else 1)
        self._last: tuple[int, Tensor] | None = None  # the frames of a video are read one after the other

    def __len__(self) -> int:
        return len(self.clips) * self.count

    def key(self, index: int) -> str:
        return f"{self.clips.source.key(index // self.count)}#{index % self.count}"

    def read(self, index: int) -> Pair:
        number, place = divmod(index, self.count)
        if self._last is None or self._last[0] != number:
            self._last = number, self.clips.frames(self.transform, number, self.draw, self.crop)
        buffer = io.BytesIO()
        Image.fromarray(self._last[1][place].permute(1, 2, 0).numpy()).save(buffer, "BMP")
        return Pair(key=self.key(index), image=buffer.getvalue(), texts=(), meta={})

    def fingerprint(self) -> str:
        drawn = None if self.draw is None else [self.draw, to_tree(self.crop)]
        seen = [to_tree(self.clips.reading), to_tree(self.transform.config), drawn]
        return sha256_json(["frames 1", self.clips.source.fingerprint(), seen])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest(self.read(index).image) for index in range(len(self))], dtype=np.uint64)

    def summary(self) -> Summary:
        return Summary(num_pairs=len(self), num_bytes=self.clips.source.summary().num_bytes, rejects={})
