"""Layers that take the place of 2D convolutions where neither PyTorch's nor :mod:`acsconv.operators`' are enough.

All keep the attributes of their base class and load the 4D weights of the 2D layer as well as their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acsconv_cuda.geometry import resolve

from ..operators import Conv2_5d
from .fold import take_slices


class SliceConv(Conv2_5d):
    """A 2D convolution of every slice that follows the 2D sizes along the axis left alone, too.

    Along ``unsqueeze_axis`` the output has the size that the plane's axes would have, and its slice is the input's at
    the thin position of an ACS convolution, the nearest one at the border. A volume made by repeating one slice
    therefore gives the 2D layer's output in every slice, whatever the padding. :class:`Conv2_5d` itself has padding 0
    on that axis.

    Args:
        kernel_size, stride, padding, dilation: of the 2D layer, (h, w); ``padding`` also ``'same'`` or ``'valid'``.

    Shape:
        input [N, C_in, D, H, W] or [C_in, D, H, W];
        weight [C_out, C_in / groups, 1, K_h, K_w] for ``unsqueeze_axis=-3``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        unsqueeze_axis: int = -3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        def with_thin(plane: tuple[int, int], thin: int) -> tuple[int, ...]:
            values = list(plane)
            values.insert(3 + unsqueeze_axis, thin)
            return tuple(values)

        nn.Conv3d.__init__(
            self,
            in_channels,
            out_channels,
            with_thin(kernel_size, 1),
            with_thin(stride, stride[0]),
            padding if isinstance(padding, str) else with_thin(padding, 0),
            with_thin(dilation, 1),
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.unsqueeze_axis = unsqueeze_axis
        self.plane = (stride, padding, dilation)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 4:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        if input.dim() != 5:
            raise ValueError(f"input: expected [N, C, D, H, W] or [C, D, H, W], got {input.dim()} dimensions")
        axis = self.unsqueeze_axis
        weight = self.weight.squeeze(axis)
        out = slice_conv3d(
            input.movedim(axis, 2), weight, self.bias, *self.plane, self.groups, self.padding_mode
        )
        return out.movedim(2, axis)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        _inflate_loaded(state_dict, prefix, lambda weight: weight.unsqueeze(self.unsqueeze_axis))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` that also loads 4D weights, repeated along ``repeat_axis`` (-3, -2, -1) and divided by its size."""

    repeat_axis = -3

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        _inflate_loaded(state_dict, prefix, lambda weight: inflate(weight, self.repeat_axis))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ConvTranspose3d(nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` that also loads 4D weights, as :func:`inflate_transposed` spreads them."""

    repeat_axis = -3

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        stride = self.stride[self.repeat_axis]
        dilation = self.dilation[self.repeat_axis]
        _inflate_loaded(
            state_dict, prefix, lambda weight: inflate_transposed(weight, self.repeat_axis, stride, dilation)
        )
        super()._load_from_state_dict(state_dict, prefix, *args)


def inflate(weight: Tensor, axis: int) -> Tensor:
    """[C_out, C_in, K_h, K_w] repeated along a new ``axis`` and divided by the number of repetitions, as I3D does.

    Source: Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017.
    """
    count = _repetitions(weight, axis)
    return torch.stack([weight / count] * count, dim=axis)


def inflate_transposed(weight: Tensor, axis: int, stride: int, dilation: int) -> Tensor:
    """The same for a transposed convolution: each tap is divided by the number of taps that meet at its outputs."""
    count = _repetitions(weight, axis)
    phases = [tap * dilation % stride for tap in range(count)]
    return torch.stack([weight / phases.count(phase) for phase in phases], dim=axis)


def slice_conv3d(
    volume: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
    padding_mode: str = "zeros",
) -> Tensor:
    """2D convolution of the slices of [N, C, D, H, W] along D, with the slices of :class:`SliceConv`.

    Args:
        weight: [C_out, C_in / groups, K_h, K_w].
        stride, padding, dilation: of the 2D layer, (h, w); the depth follows h.
    """
    kernel, stride_depth = weight.shape[-2:], stride[0]
    # Along the depth a square kernel of K_h with the height's padding: its geometry has the size and the thin position.
    if isinstance(padding, str):
        if padding == "same" and (stride[0], stride[1]) != (1, 1):
            raise ValueError("padding: 'same' needs stride 1")
        depth_padding = padding
    else:
        depth_padding = padding[0]
    along = resolve((kernel[0], kernel[0]), (stride_depth,) * 3, depth_padding, dilation[0])
    count = along.output_size((volume.shape[2],) * 3)[0]
    if count < 1:
        raise ValueError(f"input: a depth of {volume.shape[2]} is too small for a kernel of {kernel[0]}")
    volume = take_slices(volume, along.origin[0][0], stride_depth, count)
    left, right = _plane_padding(kernel, padding, dilation)
    if padding_mode != "zeros" or left != right:
        pads = (left[1], right[1], left[0], right[0], 0, 0)
        mode = "constant" if padding_mode == "zeros" else padding_mode
        volume, left = F.pad(volume, pads, mode=mode), (0, 0)
    return F.conv3d(volume, weight.unsqueeze(2), bias, (1, *stride), (0, *left), (1, *dilation), groups)


def _plane_padding(kernel, padding, dilation) -> tuple[tuple[int, int], tuple[int, int]]:
    """(h, w) before and behind."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return tuple(padding), tuple(padding)


def _repetitions(weight: Tensor, axis: int) -> int:
    """K of the new axis of a kernel [K_h, K_w]: the height's, but the width's where the new axis is the last."""
    return weight.shape[-1] if axis == -1 else weight.shape[-2]


def _inflate_loaded(state_dict: dict, prefix: str, inflate) -> None:
    weight = state_dict.get(prefix + "weight")
    if weight is not None and weight.dim() == 4:
        state_dict[prefix + "weight"] = inflate(weight)
