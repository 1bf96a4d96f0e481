"""Rules for modules of timm and MONAI whose own code computes with the height of a map, or with the batch as channels.

They are found by the names of their classes and packages; no package is imported.
"""

from __future__ import annotations

import functools
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fold import Volume, per_slice, take_slices, triple
from . import module_rule
from .resampling import space_to_depth

_module_rule = functools.partial(module_rule, packages=("timm", "monai", "segmentation_models_pytorch"))


def pad_same(volume: Volume, input: Tensor, kernel, stride, dilation=(1, 1), value: float = 0.0) -> Tensor:
    """TensorFlow's "same" padding, which depends on the size of the map: ceil(size / stride) outputs on every axis."""
    pads = []
    for size, k, s, d in zip(
        volume.grid(input, "pad_same"), *(triple(v) for v in (kernel, stride, dilation))
    ):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    maps = volume.unfold(input, "pad_same")
    if volume.target.planar:
        maps = take_slices(maps, -pads[0][0], 1, maps.shape[2] + sum(pads[0]))
        pads[0] = (0, 0)
    return volume.fold(F.pad(maps, [n for both in reversed(pads) for n in both], value=value))


@_module_rule("Conv2dSame", "Conv2dSameExport")
def conv2d_same(volume: Volume, module, forward, input):
    input = pad_same(volume, input, module.kernel_size, module.stride, module.dilation)
    return F.conv2d(input, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)


@_module_rule("StdConv2dSame", "ScaledStdConv2dSame")
def std_conv2d_same(volume: Volume, module, forward, input):
    if module.same_pad:
        input = pad_same(volume, input, module.kernel_size, module.stride, module.dilation)
    # The class without "Same" in its name does all but the padding.
    plain = getattr(sys.modules[type(module).__module__], type(module).__name__.removesuffix("Same"))
    return plain.forward(module, input)


@_module_rule("MaxPool2dSame")
def max_pool2d_same(volume: Volume, module, forward, input):
    input = pad_same(volume, input, module.kernel_size, module.stride, module.dilation, -float("inf"))
    return F.max_pool2d(input, module.kernel_size, module.stride, (0, 0), module.dilation, module.ceil_mode)


@_module_rule("AvgPool2dSame")
def avg_pool2d_same(volume: Volume, module, forward, input):
    input = pad_same(volume, input, module.kernel_size, module.stride)
    return F.avg_pool2d(
        input, module.kernel_size, module.stride, 0, module.ceil_mode, module.count_include_pad
    )


@_module_rule("CondConv2d")
def cond_conv2d(volume: Volume, module, forward, input, routing_weights):
    # Its kernels, one set for each sample, stand side by side in the channels: one sample at a time, they do not.
    batch, volume.batch = volume.batch, 1
    try:
        samples = zip(input.split(1), routing_weights.split(1))
        return torch.cat([_cond_conv2d(volume, module, *sample) for sample in samples])
    finally:
        volume.batch = batch


def _cond_conv2d(volume: Volume, module, input, routing_weights):
    weight = (routing_weights @ module.weight).view(module.weight_shape)
    bias = None if module.bias is None else (routing_weights @ module.bias).view(-1)
    padding = module.padding
    if module.dynamic_padding:
        input, padding = pad_same(volume, input, module.kernel_size, module.stride, module.dilation), 0
    return F.conv2d(input, weight, bias, module.stride, padding, module.dilation, module.groups)


@_module_rule("SpaceToDepth")
def space_to_depth_module(volume: Volume, module, forward, input):
    with volume.off():
        return space_to_depth(volume, input, module.bs, forward)


@_module_rule("DepthToSpace")
def depth_to_space_module(volume: Volume, module, forward, input):
    with volume.off():
        maps = per_slice(forward, volume.unfold(input, "DepthToSpace"))
        return volume.fold(maps.repeat_interleave(module.bs, 2))


@_module_rule("SubpixelUpsample")
def subpixel_upsample(volume: Volume, module, forward, input):
    if module.dimensions != 2:
        return forward(input)
    return module.pad_pool(torch.pixel_shuffle(module.conv_block(input), module.scale_factor))


@_module_rule("PositionalEncodingFourier")
def positional_encoding_fourier(volume: Volume, module, forward, shape):
    batch, *size = shape
    depth, height, width = volume.resize(size, "PositionalEncodingFourier")
    volume.grids.setdefault((height, width), (1, height, width))
    maps = forward((batch, height, width))  # positions in the plane, the same in every slice
    with volume.off():
        return volume.fold(maps.unsqueeze(2).expand(-1, -1, depth, -1, -1))
