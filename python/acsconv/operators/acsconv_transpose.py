"""Transposed ACS convolution as a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acsconv_cuda import acs_conv_transpose3d
from acsconv_cuda.geometry import AXES, as_ints, check_split, resolve_transposed

from .base_acsconv import _ACSConv


class ACSConvTranspose(_ACSConv):
    """Transposed ACS convolution: a transposed 2D layer's kernels, each third at work in another plane of a volume.

    Its ``state_dict`` is that of ``nn.ConvTranspose2d``, and so are its arguments and their order.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: an int for K x K kernels, or a pair (K_h, K_w).
        stride: in voxels; an int or one per axis (D, H, W).
        padding: in voxels; an int, one per axis, or a pair (p_h, p_w) that belongs to the kernel's axes.
        output_padding: an int or one per axis, below the stride or the dilation.
        groups: channel groups.
        bias: whether to learn a bias.
        dilation: in voxels; an int, one per axis, or a pair that belongs to the kernel's axes.
        padding_mode: ``'zeros'``.
        acs_kernel_split: output channels of the axial, coronal and sagittal group; a third each by default.

    Shape:
        input [N, C_in, D, H, W] or [C_in, D, H, W]; output [N, C_out, D', H', W'], each size that of
        ``nn.ConvTranspose3d`` with a cubic kernel.

    Raises:
        TypeError, ValueError: see :func:`acsconv_cuda.acs_conv_transpose3d`; the message names the argument.

    Example:
        >>> up = ACSConvTranspose(8, 4, kernel_size=2, stride=2)
        >>> up(torch.rand(2, 8, 4, 5, 6)).shape
        torch.Size([2, 4, 8, 10, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        acs_kernel_split: Sequence[int] | None = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode: expected 'zeros' for a transposed layer, got {padding_mode!r}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            True,
            output_padding,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.acs_kernel_split = check_split(acs_kernel_split, self.out_channels, "acs_kernel_split")

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """``output_size``, the wanted (D', H', W'), stands in for ``output_padding``, as in ``nn.ConvTranspose2d``."""
        options = self._geometry_arguments()
        if output_size is not None:
            options["output_padding"] = self._output_padding_for(x, output_size)
        return acs_conv_transpose3d(x, self.weight, self.bias, split=self.acs_kernel_split, **options)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", acs_kernel_split={self.acs_kernel_split}"

    def _output_padding_for(self, x: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        wanted = as_ints(output_size, "output_size")
        if isinstance(wanted, int) or len(wanted) not in (3, x.dim()):
            raise ValueError(f"output_size: expected (D, H, W), got {output_size!r}")
        geometry = resolve_transposed(self.weight.shape[2:], self.stride, self.padding, 0, self.dilation)
        least = geometry.output_size(x.shape[-3:])
        for axis, (size, smallest, stride) in enumerate(zip(wanted[-3:], least, self.stride)):
            if not smallest <= size < smallest + stride:
                raise ValueError(
                    f"output_size: expected {smallest} to {smallest + stride - 1} along {AXES[axis]}, got {size}"
                )
        return tuple(size - smallest for size, smallest in zip(wanted[-3:], least))
