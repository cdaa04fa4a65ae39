"""The operators used without gradients equal the plain ones, and follow every change of the weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from ostension.model import fused
from ostension.model.fused import ACTIVATION_FUNCTIONS
from ostension.model.layers import attention


def naive_attention(q, k, v, allowed=None):
    scores = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(dim=-1) @ v.double()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (2, 5), (1, 1)])
def test_attention_is_its_equation(dtype, tolerance, queries, keys):
    q, k, v = (torch.randn(2, 3, length, 8).to(dtype) for length in (queries, keys, keys))
    assert (attention(q, k, v) - naive_attention(q, k, v)).abs().max() < tolerance
    causal = torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None]
    assert (attention(q, k, v, causal=True) - naive_attention(q, k, v, causal)).abs().max() < tolerance
    mask = torch.rand(2, 1, queries, keys) < 0.5
    mask[..., 0] = True
    assert (attention(q, k, v, mask=mask) - naive_attention(q, k, v, mask)).abs().max() < tolerance


@pytest.mark.parametrize("activation", [None, *ACTIVATION_FUNCTIONS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_linear_map_is_the_same_with_and_without_gradients(activation, dtype, tolerance):
    x, weight, bias = torch.randn(3, 4, 16).to(dtype), torch.randn(8, 16).to(dtype), torch.randn(8).to(dtype)
    plain = fused.linear(x, weight, bias, activation)
    with torch.no_grad():
        assert (fused.linear(x, weight, bias, activation) - plain).abs().max() < tolerance
        assert (fused.linear(x[:, 1], weight[2:5], bias[2:5], activation) - plain[:, 1, 2:5]).abs().max() < tolerance
        assert fused.linear(x[:0], weight, None, activation).shape == (0, 4, 8)


def test_quick_gelu_is_its_equation():
    x = torch.linspace(-8, 8, 101)
    assert torch.allclose(ACTIVATION_FUNCTIONS["quick_gelu"](x), x * torch.sigmoid(1.702 * x))
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(ACTIVATION_FUNCTIONS["quick_gelu"], x)
    assert torch.autograd.gradgradcheck(ACTIVATION_FUNCTIONS["quick_gelu"], x)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-siglip", "tiny-resnet"])
def test_an_image_tower_is_the_same_with_and_without_gradients(tiny, name):
    model = tiny(name)
    images = torch.randn(3, 3, *(2 * [model.config.vision.image_size]))
    plain = model.encode_image(images)
    with torch.no_grad():
        assert F.cosine_similarity(model.encode_image(images), plain).min() > 1 - 1e-6
        assert (model.encode_image(images) - plain).abs().max() < 2e-5 * max(1.0, float(plain.abs().max()))


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-siglip", "tiny-resnet"])
def test_bfloat16_weights_stay_near_float32(tiny, name):
    model = tiny(name)
    images = torch.randn(3, 3, *(2 * [model.config.vision.image_size]))
    with torch.no_grad():
        exact = model.encode_image(images, normalize=True)
        rough = model.bfloat16().encode_image(images, normalize=True)
    assert float((exact * rough).sum(dim=1).min()) > 0.999


def test_folded_norms_follow_every_change_of_their_tensors(tiny):
    model, images = tiny("tiny-resnet"), torch.randn(2, 3, 64, 64)

    def assert_equal_paths():
        with torch.no_grad():
            fast = model.encode_image(images)
        assert torch.allclose(fast, model.encode_image(images), rtol=1e-3, atol=2e-5)
        return fast

    seen = [assert_equal_paths()]
    with torch.no_grad():
        model.visual.layer2[0].conv3.weight.mul_(1.5)
    seen.append(assert_equal_paths())
    model.visual.bn1.running_mean.add_(0.3)
    seen.append(assert_equal_paths())
    model.train()
    with torch.no_grad():
        model.encode_image(images * 2)  # batch norm updates its statistics
    model.eval()
    seen.append(assert_equal_paths())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.encode_image(images).square().mean().backward()
    optimizer.step()
    seen.append(assert_equal_paths())
    model.load_state_dict({name: tensor * 0.9 for name, tensor in model.state_dict().items()})
    seen.append(assert_equal_paths())
    assert all(not torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])


def test_a_copy_of_a_model_does_not_share_folded_weights(tiny):
    model, images = tiny("tiny-resnet"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model.encode_image(images)
        other = copy.deepcopy(model)
        other.visual.conv1.weight.mul_(2)
        assert not torch.equal(other.encode_image(images), before)
        assert torch.equal(model.encode_image(images), before)


def test_folding_leaves_no_trace_in_the_state(tiny):
    model = tiny("tiny-resnet")
    names = list(model.state_dict())
    with torch.no_grad():
        model.encode_image(torch.randn(1, 3, 64, 64))
    assert list(model.state_dict()) == names


def test_in_training_mode_batch_norm_uses_the_batch_even_without_gradients(tiny):
    model, images = tiny("tiny-resnet").train(), torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model.encode_image(images), copy.deepcopy(model).encode_image(images))
        assert not torch.allclose(model.encode_image(images[:2]), model.encode_image(images)[:2])
