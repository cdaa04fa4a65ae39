"""Batch norm over the pairs of all processes: what one process with the whole batch would compute, forwards and back.

With n values of a channel in all, m their mean, v their variance and h = (x - m) / sqrt(v + eps),

    y = g h + b,    dL/dx = g / sqrt(v + eps) (dL/dy - mean(dL/dy) - h mean(dL/dy h)),

where the means run over all processes. Two numbers a channel travel each way. torch's own SyncBatchNorm does the same on
GPUs alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostension.world import World, current


def synchronise(module: nn.Module) -> None:
    """Make every two-dimensional batch norm in `module` see the whole batch while several processes train it."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = WholeBatchNorm2d


class WholeBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, and in training in several processes that of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        world = current()
        if not self.training or world.size == 1:
            return super().forward(x)
        y, mean, variance = _WholeNorm.apply(x, self.weight, self.bias, self.eps, world)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            count = world.size * x.numel() / x.shape[1]
            self.num_batches_tracked += 1
            factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean), factor)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), factor)
        return y


class _WholeNorm(torch.autograd.Function):
    """Normalised values, and the mean and the (biased) variance of each channel over all processes."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, world: World):
        wide = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        # Equal parts: the mean of the means, and the variance within plus that of the means.
        means, variances = world.rows(torch.stack([mean, variance])[None]).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.world = world
        ctx.mark_non_differentiable(mean, variance)
        gain = scale * weight
        y = (wide - _channel(mean)).mul_(_channel(gain)).add_(_channel(bias.to(gain)))
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx, gradient: Tensor, *_):
        x, weight, mean, scale = ctx.saved_tensors
        gradient = gradient.to(mean.dtype)
        normal = (x.to(mean.dtype) - _channel(mean)).mul_(_channel(scale))
        of_bias, of_weight = gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))
        count = ctx.world.size * x.numel() / x.shape[1]
        whole_bias, whole_weight = ctx.world.sum(torch.stack([of_bias, of_weight])) / count
        of_x = (gradient - _channel(whole_bias) - normal.mul_(_channel(whole_weight))).mul_(_channel(scale * weight))
        return of_x.to(x.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None


def _channel(value: Tensor) -> Tensor:
    return value[None, :, None, None]
