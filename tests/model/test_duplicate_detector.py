"""The detector's network: its start, weight norm, blur; and folders that load in one call."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ostension.errors import CheckpointError, ConfigError, DataError
from ostension.formats.duplicate_detector import load_detector, save_detector
from ostension.image.transforms import PreprocessConfig
from ostension.model.duplicate_detector import GELU_GAIN, DetectorConfig, DuplicateDetector, WeightNormConv, blurred_half
from ostension.model.fingerprint import fingerprint
from ostension.runtime import torch_generator


def config(layers=(1, 1), width=8, size=32):
    return DetectorConfig(
        embed_dim=16, layers=layers, width=width, preprocess=PreprocessConfig(image_size=size, resize="squash")
    )


def pink(count, size):
    """Pictures whose spectrum falls as photographs' do, with spread one."""
    noise = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=torch_generator("pink")))
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    x = torch.fft.irfft2(noise / (rows**2 + columns**2).sqrt().clamp(min=1 / size))
    return x / x.std()


def test_the_gain_undoes_what_gelu_takes_of_the_spread():
    z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    mean = torch.trapezoid(F.gelu(z) * density, z)
    variance = torch.trapezoid((F.gelu(z) - mean) ** 2 * density, z)
    assert float(1 / variance.sqrt()) == pytest.approx(GELU_GAIN, abs=1e-4)


def test_a_deep_network_starts_with_maps_of_a_sane_spread_at_every_stage():
    detector = DuplicateDetector(config((3, 4, 6, 3), width=16, size=64))
    with torch.no_grad():
        maps = detector.image_features(pink(8, 64), detector.visual.tap_names())
    names = ("embedded", "blocks.0", "blocks.1", "blocks.2", "blocks.3")
    spreads = {name: float(maps[name].std(dim=0).mean()) for name in names}
    assert all(0.3 < spread < 1.5 for spread in spreads.values()), spreads


def test_the_weight_has_the_gain_as_its_norm_whatever_the_direction_is():
    conv = WeightNormConv(3, 4, 3)
    with torch.no_grad():
        conv.direction.normal_(0, 5)
        conv.gain.copy_(torch.tensor([1.0, 2.0, 0.5, 0.0]))
        conv.bias.zero_()
        norms = conv.weight().flatten(1).norm(dim=1)
        before = conv.weight().clone()
        conv.direction.mul_(7)
        torch.testing.assert_close(conv.weight(), before)
    torch.testing.assert_close(norms, conv.gain)


def test_blurring_keeps_what_is_flat_and_removes_what_alternates():
    flat = torch.full((1, 2, 6, 6), 3.0)
    torch.testing.assert_close(blurred_half(flat), torch.full((1, 2, 3, 3), 3.0))
    stripes = torch.tensor([1.0, -1.0]).repeat(3).expand(1, 1, 6, 6)
    torch.testing.assert_close(blurred_half(stripes), torch.zeros(1, 1, 3, 3))
    assert blurred_half(torch.ones(1, 1, 1, 1)).item() == 1.0


def test_the_paper_s_network_is_a_resnet_50():
    detector = DuplicateDetector(config((3, 4, 6, 3), width=64, size=64), seed=None)
    convolutions = [module for module in detector.modules() if isinstance(module, WeightNormConv)]
    assert len(convolutions) == 1 + 3 * 16 + 4  # with the projection in the place of the classifier: 50 layers and 4 shortcuts
    assert 23e6 < sum(weight.numel() for weight in detector.parameters()) < 24e6


def test_recomputed_blocks_give_the_same_gradient():
    gradients = []
    for again in (False, True):
        detector = DuplicateDetector(config())
        detector.set_checkpointing(image=again)
        detector(pink(2, 32)).square().sum(dim=1).mean().backward()
        gradients.append([weight.grad for weight in detector.parameters()])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other)
    with pytest.raises(ConfigError, match="no text tower"):
        DuplicateDetector(config()).set_checkpointing(text=True)


def test_a_folder_loads_in_one_call_with_the_same_rows_and_fingerprint(tmp_path):
    detector = DuplicateDetector(config(), seed=3).eval()
    detector.provenance = {"run": "a test"}
    save_detector(detector, tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    assert fingerprint(loaded) == fingerprint(detector) != fingerprint(DuplicateDetector(config(), seed=4))
    assert loaded.provenance == {"run": "a test"}
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(pink(3, 32)), detector(pink(3, 32)), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="already has something in it"):
        save_detector(detector, tmp_path / "model")


def test_a_folder_that_is_no_detector_or_is_damaged_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no detector.json"):
        load_detector(tmp_path)
    save_detector(DuplicateDetector(config()), tmp_path / "model")
    weights = tmp_path / "model" / "detector.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="not the one that was saved"):
        load_detector(tmp_path / "model")


def test_pictures_of_another_size_and_settings_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="shape"):
        DuplicateDetector(config())(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ConfigError, match="image_size"):
        config((1, 1, 1, 1), size=16)
    with pytest.raises(ConfigError, match="layers"):
        config(())
