"""1x1 layers on a CPU, as the matrix products that they are.

PyTorch's convolutions compute such a layer through another format, or through copies of whole volumes, as often as not.
Here nothing is copied but what a stride picks out, and a gradient that is in another format than the input. A volume
[N, C, D, H, W] is seen as N matrices [C, M] of M voxels, or in channels-last as a single one.

:mod:`acsconv_cuda.ops` calls these for the ``torch`` backend where :func:`serves` says so, and the reference otherwise.
Narrow layers, and those from whose volumes a stride picks many voxels, have a fused kernel
(:mod:`acsconv_cuda.backends`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .geometry import Geometry
from .reference import memory_format

#: Rows up to which PyTorch computes a float32 convolution by its own code, through copies, and not by oneDNN.
_SMALL = 20480


def serves(operation: str, volume: Tensor, geometry: Geometry, groups: int) -> bool:
    """Whether the pass is computed here: 1x1, not grouped, no padding, on a CPU.

    Some forward passes in channels-last are not, where PyTorch's convolution is the faster one and has that format.
    """
    nowhere = (0, 0, 0)
    if geometry.kernel != (1, 1) or groups != 1 or volume.device.type != "cpu":
        return False
    if geometry.origin != (nowhere,) * 3 or geometry.shrink != nowhere:
        return False
    if operation != "forward" or memory_format(volume) is torch.contiguous_format:
        return True
    if volume.dtype.itemsize == 4:
        return geometry.stride == (1, 1, 1) or volume.shape[:4].numel() <= _SMALL
    return volume.dtype.itemsize == 8


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """:func:`acsconv_cuda.reference.acs_conv3d` of a 1x1 layer."""
    format = memory_format(input)
    picked = _picked(input, geometry)
    out = _empty(picked, weight.shape[0], picked.shape[2:], format)
    x, y, kernel = _matrices(picked, format), _matrices(out, format), weight.flatten(1)
    if bias is not None and input.dtype.itemsize == 2:
        _multiply(kernel, x, y, bias[:, None])  # rounded once, at the end
        return out
    _multiply(kernel, x, y)
    if bias is not None:
        y.add_(bias[:, None])  # faster than to begin with it
    return out


def backward_input(
    grad_output: Tensor,
    weight: Tensor,
    size: Sequence[int],
    geometry: Geometry,
    format: torch.memory_format,
) -> Tensor:
    """:func:`acsconv_cuda.reference.backward_input` of a 1x1 layer."""
    channels = weight.shape[1]
    picked = _empty(grad_output, channels, grad_output.shape[2:], format)
    _multiply(weight.flatten(1).t(), _matrices(grad_output, format), _matrices(picked, format))
    if geometry.stride == (1, 1, 1):
        return picked
    grad_input = _empty(grad_output, channels, size, format).zero_()
    _picked(grad_input, geometry).copy_(picked)
    return grad_input


def backward_weight(grad_output: Tensor, input: Tensor, geometry: Geometry) -> Tensor:
    """:func:`acsconv_cuda.reference.backward_weight` of a 1x1 layer."""
    format = memory_format(input)
    x, g = _matrices(_picked(input, geometry), format), _matrices(grad_output, format)
    # The narrower matrix first: few rows and many columns are what a product of long sums is fastest for.
    swapped = g.shape[-2] > x.shape[-2]
    left, right = (x, g) if swapped else (g, x)
    grad = g.new_empty(left.shape[-2], right.shape[-2])
    if g.dim() == 2:
        torch.mm(left, right.t(), out=grad)
    elif g.dtype.itemsize > 2:
        torch.addbmm(grad, left, right.transpose(1, 2), beta=0, out=grad)
    else:
        # Rounded for each sample, where the product is, and once more as a sum.
        total = grad.new_zeros(grad.shape, dtype=torch.float32)
        for a, b in zip(left, right, strict=True):
            total += torch.mm(a, b.t(), out=grad)
        grad = total
    grad_weight = g.new_empty(g.shape[-2], x.shape[-2], 1, 1)
    grad_weight[:, :, 0, 0].copy_(grad.t() if swapped else grad)
    return grad_weight


def _empty(like: Tensor, channels: int, size: Sequence[int], format: torch.memory_format) -> Tensor:
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=format)


def _picked(volume: Tensor, geometry: Geometry) -> Tensor:
    """The positions that the layer reads."""
    d, h, w = geometry.stride
    return volume if geometry.stride == (1, 1, 1) else volume[:, :, ::d, ::h, ::w]


def _matrices(volume: Tensor, format: torch.memory_format) -> Tensor:
    """[N, C, D, H, W] as [C, M], or as [N, C, M]: a view where the volume is dense and in that format."""
    batch, channels, depth, height, width = volume.shape
    voxels = depth * height * width
    if format is torch.channels_last_3d and (batch > 1 or not volume.is_contiguous(memory_format=format)):
        return volume.movedim(1, -1).reshape(batch * voxels, channels).t()
    if batch == 1:
        return volume.reshape(channels, voxels)  # a view in either format
    return volume.reshape(batch, channels, voxels)


def _multiply(kernel: Tensor, matrices: Tensor, out: Tensor, start: Tensor | None = None) -> None:
    """``start + kernel @ matrices`` into ``out``, by forms of these functions that autocast leaves alone."""
    if out.dim() == 3:
        kernel = kernel.expand(len(out), *kernel.shape)
    if start is None:
        (torch.mm if out.dim() == 2 else torch.bmm)(kernel, matrices, out=out)
    else:
        (torch.addmm if out.dim() == 2 else torch.baddbmm)(start, kernel, matrices, out=out)
