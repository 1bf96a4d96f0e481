"""ACS convolution as a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acsconv_cuda import acs_conv3d
from acsconv_cuda.geometry import check_split

from .base_acsconv import _ACSConv


class ACSConv(_ACSConv):
    """ACS convolution: a 2D layer's kernels, split by output channel, each third convolving another plane of a volume.

    A drop-in replacement for ``nn.Conv3d`` with a third of its weights (K=3), whose ``state_dict`` is that of
    ``nn.Conv2d``: 2D checkpoints load unchanged.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: an int for K x K kernels, or a pair (K_h, K_w).
        stride: in voxels; an int or one per axis (D, H, W).
        padding: in voxels; an int, one per axis, a pair (p_h, p_w) that belongs to the kernel's axes, ``'same'``
            (stride 1) or ``'valid'``.
        dilation: in voxels; an int, one per axis, or a pair that belongs to the kernel's axes.
        groups: channel groups; C_in for a depthwise convolution.
        acs_kernel_split: output channels of the axial, coronal and sagittal group; a third each by default.
        bias: whether to learn a bias.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.

    Shape:
        input [N, C_in, D, H, W] or [C_in, D, H, W]; output [N, C_out, D', H', W'], each size that of ``nn.Conv3d`` with
        a cubic kernel.

    Raises:
        TypeError, ValueError: see :func:`acsconv_cuda.acs_conv3d`; the message names the argument.

    Example:
        >>> conv = ACSConv(3, 10, kernel_size=3, padding=1)
        >>> conv(torch.rand(2, 3, 16, 16, 16)).shape
        torch.Size([2, 10, 16, 16, 16])

    Source: Yang et al., "Reinventing 2D Convolutions for 3D Images", IEEE JBHI 2021; ``operators/acsconv.py`` of
    acsconv 0.1.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        acs_kernel_split: Sequence[int] | None = None,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            False,
            0,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.acs_kernel_split = check_split(acs_kernel_split, self.out_channels, "acs_kernel_split")

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._kernels()
        return acs_conv3d(x, weight, bias, split=self.acs_kernel_split, **self._geometry_arguments())

    def extra_repr(self) -> str:
        return super().extra_repr() + f", acs_kernel_split={self.acs_kernel_split}"
