"""Which frames of a video a model sees, and which part of each: clips of F frames from F equal segments.

    random   one frame of each segment, one part and one mirroring for all frames (training)
    fixed    the middle frame of each segment, the model's own preprocessing
    views    clip v of V takes the frame at (v + 1/2) / V of each segment; three crops along the longer side

Where a video has no more than F frames, the random clip has all of them, some twice, in order.

Source: Wang et al. 2016, Temporal Segment Networks; sampling and crops as in Text4Vis's published code, which takes the first
frame of each segment at test where the paper it follows takes the middle one, and cuts three crops along the width only.

Letters: F frames, V clips, S pixels a side.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ostension.config import require
from ostension.image.augment import CropConfig, random_box
from ostension.image.decode import to_rgb
from ostension.image.transforms import PreprocessConfig, Transform
from ostension.image.video import Video
from ostension.shapes import Int, UInt8

WIDER = 8 / 7  # the short side over the crop's where there are three crops: 256 and 224
CROPS_AT = (0.0, 0.5, 1.0)  # along the longer side


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How a video is seen.

    Attributes:
        frames: of a clip.
        clips: of a video, whose embeddings are averaged.
        crops: of a clip: the middle one by the model's own preprocessing, or three along the longer side, averaged too.
        grey: share of random clips without colour.
    """

    frames: int = 8
    clips: int = 1
    crops: Literal[1, 3] = 1
    grey: float = 0.2

    def __post_init__(self):
        require(self.frames >= 1, "frames", self.frames, "1 or more")
        require(self.clips >= 1, "clips", self.clips, "1 or more")
        require(0 <= self.grey <= 1, "grey", self.grey, "a share, 0 to 1")


def segment_frames(
    count: int, frames: int, generator: np.random.Generator | None = None, *, clip: int = 0, clips: int = 1
) -> Int[np.ndarray, " F"]:
    """Numbers of one frame of each of F equal segments of `count` frames, in order.

    Args:
        generator: draws them; without it those at (clip + 1/2) / clips of each segment.
    """
    if generator is None:
        return np.minimum(((np.arange(frames) + (clip + 0.5) / clips) * count / frames).astype(np.int64), count - 1)
    if count <= frames:
        repeated = generator.integers(count, size=frames - count)
        return np.sort(np.concatenate([np.arange(count), repeated]))
    ticks = np.arange(frames + 1) * count // frames
    return ticks[:-1] + (generator.random(frames) * np.diff(ticks)).astype(np.int64)


def fixed_views(video: Video, transform: Transform, config: ClipConfig) -> UInt8[Tensor, "VF 3 S S"]:
    """The frames of all clips in all crops, clip after clip and crop after crop, before normalisation."""
    places = [segment_frames(len(video), config.frames, clip=clip, clips=config.clips) for clip in range(config.clips)]
    read = dict.fromkeys(int(place) for clip in places for place in clip)
    pictures = dict(zip(read, video.frames(list(read)), strict=True))
    found = []
    if config.crops == 1:
        pixels = {place: transform.pixels(picture, name=video.name) for place, picture in pictures.items()}
        found = [pixels[int(place)] for clip in places for place in clip]
    else:
        wide = Transform(_wider(transform.config))
        cut = {(place, at): _cut(wide, picture, at, video.name) for place, picture in pictures.items() for at in CROPS_AT}
        found = [cut[int(place), at] for clip in places for at in CROPS_AT for place in clip]
    return torch.stack(found)


def random_clip(
    video: Video, transform: Transform, config: ClipConfig, crop: CropConfig, generator: np.random.Generator
) -> UInt8[Tensor, "F 3 S S"]:
    """A random frame of each segment, with one random part, mirroring and want of colour for all; before normalisation."""
    places = segment_frames(len(video), config.frames, generator).tolist()
    drawn = int(generator.integers(2**62))
    mirrored, grey = bool(generator.random() < 0.5) and crop.mirror, bool(generator.random() < config.grey)
    settings = transform.config
    squash = Transform(dataclasses.replace(settings, resize="squash", short_side=None))
    found = {}
    for place, frame in zip(places, video.frames(places), strict=True):
        if place in found:
            continue
        picture = to_rgb(frame, settings.alpha, name=video.name)
        picture = picture.convert("L").convert("RGB") if grey else picture
        same = np.random.default_rng(drawn)  # one part for all frames, which may differ in size
        if crop.kind == "resized":
            pixels = squash.pixels(picture.crop(random_box(picture.size, crop, same)), name=video.name)
        else:
            across, down = same.random(2)
            pixels = transform.pixels(picture, name=video.name, place=(across, down))
        found[place] = pixels.flip(-1) if mirrored else pixels
    return torch.stack([found[place] for place in places])


def _wider(config: PreprocessConfig) -> PreprocessConfig:
    short = max(config.short_side or 0, round(config.image_size * WIDER))
    return dataclasses.replace(config, resize="shortest", short_side=short)


def _cut(transform: Transform, picture: Image.Image, at: float, name: str) -> UInt8[Tensor, "3 S S"]:
    return transform.pixels(picture, name=name, place=(at, 0.5) if picture.width >= picture.height else (0.5, at))
