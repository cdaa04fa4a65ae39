"""Frames of clips: one of each segment, the same part of all, and views that cover the video."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ostension.image.augment import CropConfig
from ostension.image.clips import ClipConfig, fixed_views, random_clip, segment_frames
from ostension.image.transforms import PreprocessConfig, Transform
from ostension.image.video import Frames


def numbered(count, size=(20, 16)):
    """Frame n: grey n, brighter to the right and to the bottom."""
    across = np.linspace(0, 60, size[0])[None, :, None] + np.linspace(0, 30, size[1])[:, None, None]
    return Frames([Image.fromarray((across + n * 2 + np.zeros(3)).astype(np.uint8)) for n in range(count)], "video")


TRANSFORM = Transform(PreprocessConfig(image_size=12))


@given(st.integers(1, 300), st.integers(1, 16), st.integers(0, 5))
def test_random_frames_lie_in_their_segments_in_order(count, frames, seed):
    found = segment_frames(count, frames, np.random.default_rng(seed))
    assert len(found) == frames and (np.diff(found) >= 0).all() and 0 <= found.min() <= found.max() < count
    if count > frames:
        ticks = np.arange(frames + 1) * count // frames
        assert (ticks[:-1] <= found).all() and (found < ticks[1:]).all()
    else:
        assert set(found) == set(range(count))


def test_fixed_frames_are_the_middle_ones_and_clips_lie_between_them():
    assert segment_frames(80, 8).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert segment_frames(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert segment_frames(1, 4).tolist() == [0] * 4
    clips = [segment_frames(80, 2, clip=clip, clips=4).tolist() for clip in range(4)]
    assert clips == [[5, 45], [15, 55], [25, 65], [35, 75]]


def test_segments_are_a_function_of_the_generator():
    first, second = (segment_frames(100, 8, np.random.default_rng(3)) for _ in range(2))
    assert (first == second).all() and (first != segment_frames(100, 8, np.random.default_rng(4))).any()


def test_one_view_is_the_models_own_preprocessing_of_the_middle_frames():
    video, config = numbered(40), ClipConfig(frames=4)
    wanted = torch.stack([TRANSFORM.pixels(video.pictures[place]) for place in (5, 15, 25, 35)])
    assert torch.equal(fixed_views(video, TRANSFORM, config), wanted)


def test_three_crops_go_along_the_longer_side():
    for size in ((40, 16), (16, 40)):
        found = fixed_views(numbered(8, size), TRANSFORM, ClipConfig(frames=2, clips=2, crops=3)).float()
        assert found.shape == (12, 3, 12, 12)
        shades = found.mean(dim=(1, 2, 3)).view(2, 3, 2)  # clip, crop, frame
        assert (shades.diff(dim=1) > 3).all() and (shades.diff(dim=2) > 0).all()


def test_a_random_clip_has_one_part_one_mirroring_and_one_colour_for_all_frames():
    still = Frames([numbered(1).pictures[0]] * 8, "video")
    crop = CropConfig(kind="resized", scale=(0.2, 0.5), mirror=True)
    found = [random_clip(still, TRANSFORM, ClipConfig(frames=4), crop, np.random.default_rng(seed)) for seed in range(12)]
    assert all((clip == clip[0]).all() for clip in found)
    assert len({clip[0].numpy().tobytes() for clip in found}) > 6
    turned = [bool(clip[0, 0, :, 0].float().mean() > clip[0, 0, :, -1].float().mean()) for clip in found]
    assert any(turned) and not all(turned)


def test_grey_clips_have_no_colour_and_others_keep_theirs():
    red = Frames([Image.new("RGB", (20, 20), (200, 10, 10))], "video")
    crop = CropConfig(kind="square")
    for share, grey in ((1.0, True), (0.0, False)):
        clip = random_clip(red, TRANSFORM, ClipConfig(frames=2, grey=share), crop, np.random.default_rng(0))
        assert bool((clip[:, 0] == clip[:, 1]).all()) is grey


def test_frames_of_different_sizes_show_the_same_share():
    pictures = [Image.new("RGB", size, (9, 9, 9)) for size in ((20, 20), (40, 40))]
    clip = random_clip(Frames(pictures, "v"), TRANSFORM, ClipConfig(frames=2), CropConfig(), np.random.default_rng(0))
    assert clip.shape == (2, 3, 12, 12)
