"""Linear maps and convolutions with what follows them, each in one call where that is possible.

Without gradients on a processor oneDNN's fused operators do the product, the bias, the activation and the shortcut
together; elsewhere the plain torch operations do, and these are the reference. Nothing has to be prepared: weights stay
where they are, and the one thing that is kept, a batch norm folded into the convolution before it, is made again whenever
a tensor that it came from has changed (docs/decisions/inference.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.shapes import Float


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), OpenAI's approximation of GELU."""
    if not torch.is_grad_enabled():
        return torch.sigmoid(1.702 * x).mul_(x)
    return x * torch.sigmoid(1.702 * x) if traced() else _QuickGelu.apply(x)


class _QuickGelu(torch.autograd.Function):
    """The same with gradients: 1.3 to 1.6 times as fast, and it keeps x alone, not the sigmoid too (a fifth of a block).

    With s = sigmoid(1.702 x), dy/dx = s (1 + 1.702 x (1 - s)), which is the derivative of SiLU at 1.702 x.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(1.702 * x).mul_(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        z = 1.702 * x
        if torch.is_grad_enabled():  # for second derivatives, which the kernel does not have
            return gradient * z.sigmoid() * (1 + z * (1 - z.sigmoid()))
        return torch.ops.aten.silu_backward(gradient, z)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

# What oneDNN can do while it writes a product: the name of the operation and of its variant.
FUSED_ACTIVATIONS = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


def linear(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, activation: str | None = None
) -> Float[Tensor, "*B O"]:
    """activation(x weightᵀ + bias).

    Without gradients on a processor the product goes to oneDNN directly: with float32 that is 1.1 to 1.2 times as fast as
    the BLAS behind `F.linear` (1.05 in bfloat16), and GELU costs nothing.
    """
    if _onednn(x, weight):
        fused = FUSED_ACTIVATIONS.get(activation or "", ("none", ""))
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, fused[0], [], fused[1])
        return y if activation is None or activation in FUSED_ACTIVATIONS else ACTIVATION_FUNCTIONS[activation](y)
    y = F.linear(x, weight, bias)
    return y if activation is None else ACTIVATION_FUNCTIONS[activation](y)


def mlp(
    x: Float[Tensor, "R W"], norm: nn.LayerNorm, inner: nn.Linear, outer: nn.Linear, activation: str
) -> Float[Tensor, "R W"]:
    """x + outer(activation(inner(norm(x)))).

    oneDNN has swish(z) = z sigmoid(z), and quick_gelu(z) = swish(1.702 z) / 1.702. So the fast form scales the norm and the
    inner bias by 1.702, and takes it out again where the residual is added: no rounding more than without.
    """
    if activation != "quick_gelu" or not _onednn(x, inner.weight):
        return x + linear(linear(norm(x), inner.weight, inner.bias, activation), outer.weight, outer.bias)
    scale = 1.702
    normed = F.layer_norm(x, norm.normalized_shape, scale * norm.weight.float(), scale * norm.bias.float(), norm.eps)
    inner_bias, outer_bias = ((scale * layer.bias.float()).to(x.dtype) for layer in (inner, outer))
    hidden = torch.ops.mkldnn._linear_pointwise(normed, inner.weight, inner_bias, "swish", [], "")
    return x.add(torch.ops.mkldnn._linear_pointwise(hidden, outer.weight, outer_bias, "none", [], ""), alpha=1 / scale)


def traced() -> bool:
    """Whether a graph is being recorded (export, compile), so that values and sizes of this call must not decide anything."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's fused operators may be called: nothing records, traces or casts, and they know tensor and dtype."""
    return (
        not torch.is_grad_enabled()
        and not traced()  # before anything asks an operator, which a recorded graph would hold
        and type(x) in (Tensor, nn.Parameter)  # no fake and no distributed ones
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _onednn_dtypes()
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:  # type: ignore[attr-defined]
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


@dataclasses.dataclass(frozen=True)
class _Folded:
    """A convolution with its batch norm inside, and the state of the tensors that it was made from."""

    state: tuple
    weight: Tensor
    bias: Tensor


_folded: WeakKeyDictionary[nn.Conv2d, _Folded] = WeakKeyDictionary()


def conv_norm(
    x: Float[Tensor, "B I H W"], conv: nn.Conv2d, norm: nn.BatchNorm2d, *, shortcut: Float[Tensor, "B O H2 W2"] | None = None,
    relu: bool = True,
) -> Float[Tensor, "B O H2 W2"]:
    """relu(norm(conv(x)) + shortcut).

    In eval mode norm(conv(x)) = conv'(x) + b' with w' = w g / sqrt(var + eps) and b' = b - mean g / sqrt(var + eps).
    """
    if norm.training or not _onednn(x, conv.weight):
        y = norm(conv(x))
        y = y if shortcut is None else y + shortcut
        return F.relu(y) if relu else y
    folded = _fold(conv, norm)
    places = (list(conv.padding), list(conv.stride), [1, 1], 1)
    name = "relu" if relu else "none"
    if shortcut is None:
        return torch.ops.mkldnn._convolution_pointwise(x, folded.weight, folded.bias, *places, name, [], "")
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, shortcut, folded.weight, folded.bias, *places, "add", 1.0, name if relu else None, [], ""
    )


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> _Folded:
    """The folded convolution, made anew when one of its tensors was replaced or written to.

    Writing through `.data` hides from the version counter; use `torch.no_grad()` instead, as optimisers do.
    """
    mean, var, steps = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and var is not None and steps is not None
    # A batch norm in training mode updates its statistics without counting a version, but it counts its batches.
    sources = (conv.weight, norm.weight, norm.bias, mean, var, steps)
    state = tuple((tensor.data_ptr(), tensor.dtype, -1 if tensor.is_inference() else tensor._version) for tensor in sources)
    known = _folded.get(conv)
    if known is not None and known.state == state:
        return known
    gain = norm.weight.float() * torch.rsqrt(var.float() + norm.eps)  # bfloat16 weights are folded in float32
    weight = (conv.weight.float() * gain[:, None, None, None]).to(conv.weight.dtype, memory_format=torch.channels_last)
    bias = (norm.bias.float() - mean.float() * gain).to(conv.weight.dtype)
    folded = _Folded(state, weight, bias)
    if not any(tensor.is_inference() for tensor in sources):  # those have no version counter
        _folded[conv] = folded
    return folded
