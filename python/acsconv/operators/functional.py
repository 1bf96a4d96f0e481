"""The functions of acsconv 0.1.1's ``operators.functional``, with its argument orders."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from acsconv_cuda import acs_conv3d

__all__ = ["acs_conv_f", "conv3D_output_shape_f"]


def conv3D_output_shape_f(
    i: int,
    input_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> int:
    """Output size of ``nn.Conv3d`` along axis ``i`` (0 = D, 1 = H, 2 = W), each argument one number per axis."""
    return (input_shape[i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1


def acs_conv_f(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int] | str,
    stride: Sequence[int],
    groups: int,
    out_channels: int,
    acs_kernel_split: Sequence[int],
) -> Tensor:
    """ACS convolution; see :func:`acsconv_cuda.acs_conv3d` for shapes, dtypes and errors.

    ``kernel_size`` and ``out_channels`` are what ``weight`` [C_out, C_in / groups, K_h, K_w] says anyway.

    Raises:
        ValueError: they contradict it.
    """
    kernel = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)[-2:]
    if tuple(weight.shape[2:]) != kernel or weight.shape[0] != out_channels:
        raise ValueError(
            f"weight: {list(weight.shape)} does not go with kernel_size {kernel_size} and out_channels "
            f"{out_channels}"
        )
    return acs_conv3d(
        x,
        weight,
        bias,
        split=acs_kernel_split,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
