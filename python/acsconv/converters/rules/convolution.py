"""Rules for convolutions that are not layers of their own: in subclasses of ``nn.Conv2d``, in networks' own code."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..fold import ConversionError, Volume, pair
from . import rule


@rule(torch.conv2d)
def conv2d(volume: Volume, function, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    kernel, stride = tuple(weight.shape[-2:]), pair(stride)
    if kernel == (1, 1) and padding not in ("same", "valid"):
        padding = pair(padding)
    pointwise = kernel == (1, 1) and stride == (1, 1) and padding in ((0, 0), "same", "valid")
    module = volume.stack[-1] if volume.stack else None
    arguments = (weight, bias, stride, padding, dilation, groups, module)
    if input.dim() != 4 or weight.dim() != 4:
        raise ConversionError(f"conv2d: expected a feature map of 4 dimensions, got {tuple(input.shape)}")
    if pointwise:  # any view of the positions will do
        return volume.target.convolve(input.unsqueeze(2), *arguments).squeeze(2)
    if groups > 1 and volume.batch not in (None, input.shape[0]) and groups % volume.batch == 0:
        raise ConversionError(
            "conv2d: the batch was moved into the channels, where kernels are split by view"
        )
    return volume.fold(volume.target.convolve(volume.unfold(input, "conv2d"), *arguments))


@rule(torch.conv_transpose2d)
def conv_transpose2d(
    volume: Volume,
    function,
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
):
    out = volume.target.convolve_transposed(
        volume.unfold(input, "conv_transpose2d"),
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
    )
    return volume.fold(out)


def _solid(volume: Volume, function, input, *args, **kwargs):
    """A 3D function on a folded map: a 3D layer that came into the network unnoticed."""
    if volume.find(input) is None:
        return function(input, *args, **kwargs)
    return volume.fold(function(volume.unfold(input, function.__name__), *args, **kwargs))


rule(
    torch.conv3d,
    torch.conv_transpose3d,
    F.max_pool3d,
    F.avg_pool3d,
    F.lp_pool3d,
    F.adaptive_avg_pool3d,
    F.adaptive_max_pool3d,
)(_solid)
