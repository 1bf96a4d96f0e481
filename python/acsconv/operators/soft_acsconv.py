"""Soft and mean ACS convolution as a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acsconv_cuda import soft_acs_conv3d

from .base_acsconv import _ACSConv
from .functional import conv3D_output_shape_f


class SoftACSConv(_ACSConv):
    """Soft ACS convolution: every kernel convolves all three planes, and learned weights combine the three results.

    Args:
        mean: combine by the mean (mean ACS) and learn no weights for it.

        The other arguments, shapes and errors are those of :class:`~acsconv.operators.ACSConv`, which has
        ``acs_kernel_split`` in the place of ``mean``.

    Attributes:
        soft_w_core: [C_out, 3] unless ``mean``; its softmax over the last axis weights the axial, coronal and sagittal
            result.

    Example:
        >>> conv = SoftACSConv(3, 10, kernel_size=3, padding=1)
        >>> conv(torch.rand(2, 3, 16, 16, 16)).shape
        torch.Size([2, 10, 16, 16, 16])

    Source: Yang et al., IEEE JBHI 2021; ``operators/soft_acsconv.py`` of acsconv 0.1.1.
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
        mean: bool = False,
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
        if not mean:
            self.soft_w_core = nn.Parameter(torch.rand(out_channels, 3, device=device, dtype=dtype))
        self.mean = mean

    def conv3D_output_shape_f(self, i: int, input_shape: Sequence[int]) -> int:
        """Output size along axis ``i`` (0 = D, 1 = H, 2 = W) for numeric padding, as in acsconv 0.1.1."""
        return conv3D_output_shape_f(
            i, input_shape, self.kernel_size, self.dilation, self.padding, self.stride
        )

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._kernels()
        if self.mean:
            view_weights = weight.new_full((self.out_channels, 3), 1 / 3)
        else:
            view_weights = self.soft_w_core.softmax(-1)
        return soft_acs_conv3d(x, weight, view_weights, bias, **self._geometry_arguments())

    def extra_repr(self) -> str:
        return super().extra_repr() + f", mean={self.mean}"
