"""Transforms against Pillow plus the documented arithmetic, against Hugging Face, and against stored numbers."""

from __future__ import annotations

import collections
import hashlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_samples import encode, noise, oriented, photo
from PIL import Image

from ostension.config import config_hash, from_tree, to_tree
from ostension.errors import ConfigError, DataError, LimitError
from ostension.image.transforms import PreprocessConfig, Transform, resized_size

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def reference(image: Image.Image, config: PreprocessConfig) -> torch.Tensor:
    """The pipeline as its authors wrote it down, in Pillow and torch, one plain step after the other."""
    if config.mode != "openai-exact":
        image = image.convert("RGB")
    side, (width, height) = config.image_size, image.size
    if config.resize == "squash":
        size = (side, side)
    else:
        short, long = sorted(image.size)
        stretched = int(side * long / short)
        size = (side, stretched) if width <= height else (stretched, side)
    image = image.resize(size, PILLOW[config.interpolation])
    if config.crop_rounding == "floor":
        left, top = ((length - side) // 2 for length in size)
    else:
        left, top = (int(round((length - side) / 2.0)) for length in size)  # noqa: RUF046 as torchvision has it
    pixels = np.array(image.crop((left, top, left + side, top + side)).convert("RGB"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.mean, config.std))
    return tensor.sub(mean).div(std)


def config(**options) -> PreprocessConfig:
    return PreprocessConfig(**{"image_size": 32, "alpha": "drop", **options})


@settings(max_examples=70, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)).filter(lambda size: max(size) <= 30 * min(size)),
    mode=st.sampled_from(["RGB", "L", "CMYK", "RGBA", "LA", "P", "1", "YCbCr"]),
    order=st.sampled_from(["openai-exact", "convert-first"]),
    resize=st.sampled_from(["shortest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    rounding=st.sampled_from(["half-even", "floor"]),
    side=st.sampled_from([16, 33]),
)
def test_the_exact_modes_have_the_bits_of_the_plain_pipeline(size, mode, order, resize, interpolation, rounding, side):
    image = noise(mode, *size)
    chosen = config(image_size=side, mode=order, resize=resize, interpolation=interpolation, crop_rounding=rounding)
    assert torch.equal(Transform(chosen)(image), reference(image, chosen))


@pytest.mark.parametrize("order", ["openai-exact", "convert-first"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 480), (225, 224), (224, 224), (100, 80), (448, 1000)])
def test_at_full_size_the_exact_modes_have_the_bits_of_the_plain_pipeline(order, size):
    data = encode(photo(*size), "JPEG", quality=90)
    chosen = config(image_size=224, mode=order)
    assert torch.equal(Transform(chosen)(data), reference(Image.open(io.BytesIO(data)), chosen))


def test_the_bits_of_the_arithmetic_are_right_for_every_value_and_channel():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values] * 3, axis=2))
    for mean, std in (((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)), ((0.5,) * 3, (0.5,) * 3)):
        transform = Transform(config(image_size=16, mean=mean, std=std))
        plain = torch.from_numpy(np.stack([values] * 3)).to(torch.float32) / 255
        plain = (plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        assert torch.equal(transform(image), plain)
        assert torch.equal(transform.normalize(transform.pixels(image)), plain)


def test_openai_order_differs_from_converting_first_only_where_it_should():
    exact, first = Transform(config(mode="openai-exact")), Transform(config(mode="convert-first"))
    for mode in ("RGB", "L"):
        assert torch.equal(exact(noise(mode, 50, 40)), first(noise(mode, 50, 40)))
    for mode in ("P", "RGBA", "CMYK", "1"):
        assert not torch.equal(exact(noise(mode, 50, 40)), first(noise(mode, 50, 40)))


def test_transparency_is_composited_before_the_resize_in_every_mode_that_asks_for_white():
    image = noise("RGBA", 50, 40)
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image)
    for mode in ("openai-exact", "convert-first"):
        assert torch.equal(Transform(config(mode=mode, alpha="white"))(image), reference(white, config(mode=mode)))


def test_16_bit_grey_is_scaled_in_every_mode():
    image = Image.fromarray(np.full((40, 40), 257 * 100, np.uint16))
    for mode in ("openai-exact", "convert-first", "fast"):
        assert Transform(config(mode=mode)).pixels(image).unique().tolist() == [100]


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1200, 800), (640, 480), (333, 251)])
def test_fast_moves_a_photo_by_at_most_one_level_in_few_places(size):
    data = encode(photo(*size), "JPEG", quality=90)
    exact, fast = (Transform(config(image_size=224, mode=mode)).pixels(data).int() for mode in ("convert-first", "fast"))
    off = (exact - fast).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01


def test_fast_gives_the_same_pixels_wherever_they_lie():
    image = photo(300, 200)
    data = encode(image, "JPEG", quality=95)
    decoded = Image.open(io.BytesIO(data))
    transform = Transform(config(mode="fast"))
    assert torch.equal(transform(data), transform(decoded))
    assert torch.equal(transform(data), transform(encode(decoded, "PNG")))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    binary=st.booleans(),
    resize=st.sampled_from(["shortest", "squash"]),
)
def test_fast_keeps_its_bound_of_two_levels_on_anything(size, binary, resize):
    image = noise("RGB", *size, binary=binary)
    exact, fast = (Transform(config(mode=mode, resize=resize)).pixels(image).int() for mode in ("convert-first", "fast"))
    assert (exact - fast).abs().max() <= 2


@pytest.mark.slow
def test_hugging_faces_processor_gives_the_same_tensor():
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip", reason="needs transformers 5")
    processor = processing.CLIPImageProcessorPil()
    transform = Transform(config(image_size=224, mode="convert-first", crop_rounding="floor"))
    for index, size in enumerate([(500, 375), (375, 501), (230, 224), (91, 130)]):
        image = photo(*size, seed=index)
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        assert np.allclose(transform(image).numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "rule", "expected"),
    [
        ((500, 375), "shortest", (298, 224)),  # 298.67
        ((375, 500), "shortest", (224, 298)),
        ((224, 224), "shortest", (224, 224)),
        ((1, 4000), "shortest", (224, 896_000)),
        ((500, 375), "squash", (224, 224)),
        ((500, 375), "longest", (224, 168)),
        ((3, 4000), "longest", (1, 224)),  # 0.17, but a picture has a pixel
    ],
)
def test_the_resized_size_follows_the_rule(size, rule, expected):
    assert resized_size(size, 224, rule) == expected


def test_an_odd_spare_pixel_is_cut_half_even_or_floor():
    for width, rounding, left in ((35, "half-even", 2), (35, "floor", 1), (33, "half-even", 0), (37, "half-even", 2)):
        image = noise("RGB", width, 32)
        expected = np.asarray(image).transpose(2, 0, 1)[:, :, left : left + 32]
        assert np.array_equal(Transform(config(crop_rounding=rounding)).pixels(image).numpy(), expected)


def test_longest_pads_to_a_square_with_the_fill():
    pixels = Transform(config(image_size=8, resize="longest", fill=9)).pixels(Image.new("RGB", (40, 25), (200, 200, 200)))
    assert pixels.shape == (3, 8, 8)
    assert pixels[0, :, 0].tolist() == [9, 200, 200, 200, 200, 200, 9, 9]  # 5 rows of 8: one above, two below


def test_a_batch_is_its_pictures_in_order_for_any_number_of_threads(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(photo(50, 40, seed=1), "PNG"))
    array = np.asarray(photo(33, 33, seed=4))
    images = [tmp_path / "a.png", encode(photo(60, 40, seed=2), "JPEG"), photo(40, 60, seed=3), array] * 5
    transform = Transform(config())
    expected = torch.stack([transform(image) for image in images])
    for workers in (0, 1, 3, 50):
        assert torch.equal(transform.batch(images, workers=workers), expected)
    assert transform.batch([]).shape == (0, 3, 32, 32)
    assert torch.equal(transform.batch(iter(images[:2])), expected[:2])


def test_one_picture_is_not_taken_for_a_batch():
    for single in ("cat.jpg", b"\xff\xd8\xff"):
        with pytest.raises(DataError, match="is not a batch; expected a list"):
            Transform(config()).batch(single)


def test_a_crop_can_be_taken_at_any_place():
    image = noise("RGB", 40, 32)
    planes = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    transform = Transform(config())
    for share, left in ((0.0, 0), (0.5, 4), (0.999, 8), (1.0, 8)):
        assert torch.equal(transform(image, place=(share, 0.3)), transform.normalize(planes[:, :, left : left + 32]))


def test_a_batch_names_the_picture_that_fails(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a picture")
    transform = Transform(config())
    for workers in (0, 3):
        with pytest.raises(DataError, match=r"bad\.jpg: not a picture"):
            transform.batch([photo(40, 40), bad, b"also bad"], workers=workers)
        with pytest.raises(DataError, match="^image 1 of 3: not a picture"):
            transform.batch([photo(40, 40), b"bad", photo(40, 40)], workers=workers)


def test_what_was_met_is_counted_for_the_caller():
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    images = [encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), noise("RGBA", 1, 1), photo(20, 20)]
    seen: collections.Counter[str] = collections.Counter()
    Transform(config()).batch(images, workers=2, seen=seen)
    assert seen == {"animated": 1, "alpha": 1, "degenerate": 1}
    Transform(config())(images[1], seen=seen)
    assert seen["alpha"] == 2


def test_the_limits_and_exif_of_the_configuration_are_used():
    data = encode(photo(40, 20), "JPEG", exif=oriented(6))
    turned = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
    assert Transform(config(exif=True)).pixels(data).equal(Transform(config()).pixels(turned))
    for limit in ({"max_pixels": 799}, {"max_bytes": 100}):
        with pytest.raises(LimitError):
            Transform(config(**limit))(data)


def test_the_same_picture_from_any_source_gives_the_same_tensor(tmp_path):
    image = photo(61, 47)
    transform = Transform(config())
    expected = transform(image)
    for kind, options in {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items():
        data = encode(image, kind, **options)
        path = tmp_path / f"picture.{kind}"
        path.write_bytes(data)
        for source in (path, data, io.BytesIO(data), Image.open(path), torch.from_numpy(np.array(Image.open(path)))):
            assert torch.equal(transform(source), expected)
    close = transform(encode(image, "JPEG", quality=100, subsampling=0))
    assert (close - expected).abs().max() < 0.15  # a few levels of 1/255, over a standard deviation of 0.26


def formula(width: int, height: int) -> Image.Image:
    """A picture that any program can make: no random numbers, no resize."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    planes = ((x * 7 + y * 13) % 256, (x * y + 31 * x) % 256, (x * x + y * y) // 7 % 256)
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


# SHA-256 of what Pillow 13.0 makes of `formula(width, height)` at 48 pixels, planes in order. Made in this folder with:
# python -c "import test_image_transforms as t; print({size: t.golden(t.formula(*size)) for size in t.GOLDEN})"
GOLDEN = {
    (500, 375): "cb004a621e3c3bb4", (375, 501): "891fd773832b33fe", (1, 37): "0d5705c0c890618f",
    (53, 1): "73d687a0d7a0cfb8", (7, 7): "3b255ef54e88948a", (640, 211): "acb4cfc7a78e9bb9",
}  # fmt: skip


def golden(image: Image.Image) -> str:
    chosen = config(image_size=48, mode="openai-exact")
    tensor = reference(image, chosen)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (chosen.mean, chosen.std))
    pixels = ((tensor * std + mean) * 255).round().to(torch.uint8)
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("size", sorted(GOLDEN))
def test_the_pixels_are_the_stored_ones(size):
    pixels = Transform(config(image_size=48, mode="openai-exact")).pixels(formula(*size))
    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16] == GOLDEN[size]


def test_a_two_by_two_square_has_the_values_worked_out_by_hand():
    # Halving 4 x 4: the output between inputs 0..3 of an edge 0, 0, 255, 255 has the kernel's inner weights; at the border
    # the kernel is cut and its rest made to add up to one: (0.8671875, 0.8671875, 0.2265625) / 1.9609375 and its like.
    row = np.array([0, 0, 255, 255], np.uint8)
    image = Image.fromarray(np.repeat(np.repeat(row[None, :, None], 4, 0), 3, 2))
    kernel = np.array([0.8671875, 0.8671875, 0.2265625, -0.0703125])
    left = (kernel * row).sum() / kernel.sum()
    expected = int(left + 0.5)
    assert Transform(config(image_size=2)).pixels(image)[0].tolist() == [[expected, 255 - expected]] * 2


def test_the_configuration_survives_its_tree_and_refuses_nonsense():
    chosen = config(mode="fast", resize="longest", fill=3)
    assert from_tree(PreprocessConfig, to_tree(chosen)) == chosen
    assert config_hash(chosen) != config_hash(config())
    for bad in ({"image_size": 0}, {"std": (0.0, 1.0, 1.0)}, {"fill": 256}, {"max_pixels": 0}, {"max_bytes": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            config(**bad)
    with pytest.raises(ConfigError, match="nearest"):
        from_tree(PreprocessConfig, {"image_size": 4, "image_sise": 4})
    assert "image_size=32" in repr(Transform(chosen))
