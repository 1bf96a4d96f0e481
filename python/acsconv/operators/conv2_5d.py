"""2.5D convolution as a layer: the 2D kernel in one plane only."""

from __future__ import annotations

import torch
from torch import nn

from acsconv_cuda.geometry import as_int


class Conv2_5d(nn.Conv3d):
    """``nn.Conv3d`` whose kernel has the extent 1, and padding 0, along one axis: a 2D convolution of every slice.

    Args:
        kernel_size, padding: ints, for the two axes of the plane (``padding`` also ``'same'`` or ``'valid'``).
        stride, dilation: as in ``nn.Conv3d``; the stride holds on all three axes.
        padding_mode: as in ``nn.Conv3d``; None is ``'zeros'``.
        unsqueeze_axis: the axis left alone: -3 (D), -2 (H) or -1 (W).

        The other arguments, shapes and errors are those of ``nn.Conv3d``.

    Raises:
        TypeError: ``kernel_size`` or ``padding`` is not an int.
        ValueError: another ``unsqueeze_axis``.

    Source: ``operators/conv2_5d.py`` of acsconv 0.1.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int | tuple[int, int, int] = 1,
        padding: int | str = 0,
        dilation: int | tuple[int, int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str | None = None,
        unsqueeze_axis: int = -3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if unsqueeze_axis not in (-3, -2, -1):
            raise ValueError(f"unsqueeze_axis: expected -3, -2 or -1, got {unsqueeze_axis!r}")
        kernel_size = as_int(kernel_size, "kernel_size")
        padding = padding if isinstance(padding, str) else as_int(padding, "padding")
        kernel, pads = [kernel_size] * 3, [padding] * 3
        kernel[unsqueeze_axis], pads[unsqueeze_axis] = 1, 0
        super().__init__(
            in_channels,
            out_channels,
            tuple(kernel),
            stride,
            padding if isinstance(padding, str) else tuple(pads),
            dilation,
            groups,
            bias,
            padding_mode or "zeros",
            device,
            dtype,
        )
        self.unsqueeze_axis = unsqueeze_axis
