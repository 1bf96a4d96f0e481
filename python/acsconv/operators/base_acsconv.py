"""What the ACS layers share: parameters, attributes, repr."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import init

from acsconv_cuda.functional import PADDING_MODES
from acsconv_cuda.geometry import as_int, as_ints, resolve, resolve_transposed


class _ACSConv(nn.Module):
    """Base of the ACS layers: the parameters of a 2D convolution, the geometry of a 3D one.

    Subclasses of one's own find the arguments of acsconv 0.1.1, in their order.

    Attributes, as in acsconv 0.1.1:
        weight: [C_out, C_in / groups, K_h, K_w], transposed [C_in, C_out / groups, K_h, K_w]: key and shape of the 2D
            layer's.
        bias: [C_out] or None.
        kernel_size: a triple for a square kernel, the pair (K_h, K_w) for a rectangular one.
        stride, dilation: triples (D, H, W); ``dilation`` a pair where it was given per kernel axis.
        padding: a triple, a pair where it was given per kernel axis, or ``'same'`` / ``'valid'``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilation: int | Sequence[int],
        transposed: bool,
        output_padding: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels, out_channels = as_int(in_channels, "in_channels"), as_int(out_channels, "out_channels")
        groups = as_int(groups, "groups")
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value % groups:
                raise ValueError(f"{name}: {value} is not divisible by groups={groups}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(
                f"padding_mode: expected one of {', '.join(map(repr, PADDING_MODES))}, got {padding_mode!r}"
            )
        kernel = _kernel_pair(kernel_size)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = _per_axis(stride, "stride")
        self.padding = padding if isinstance(padding, str) else _per_axis(padding, "padding")
        self.dilation = _per_axis(dilation, "dilation")
        self.transposed = transposed
        self.output_padding = _per_axis(output_padding, "output_padding")
        # These refuse what has no geometry.
        if transposed:
            resolve_transposed(kernel, self.stride, self.padding, self.output_padding, self.dilation)
        else:
            resolve(kernel, self.stride, self.padding, self.dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        channels = (
            (in_channels, out_channels // groups) if transposed else (out_channels, in_channels // groups)
        )
        self.weight = nn.Parameter(torch.empty(*channels, *kernel, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.kernel_size = (kernel[0],) * 3 if kernel[0] == kernel[1] else kernel
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises weight and bias as ``nn.Conv2d`` does."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in, _ = init._calculate_fan_in_and_fan_out(self.weight)
            if fan_in != 0:
                bound = 1 / math.sqrt(fan_in)
                init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        if self.padding != (0, 0, 0):
            text += f", padding={self.padding!r}"
        if self.dilation != (1, 1, 1):
            text += f", dilation={self.dilation}"
        if self.output_padding != (0, 0, 0):
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode!r}"
        return text

    def _apply(self, fn, recurse: bool = True):
        """As ``nn.Module``'s; ``.to(memory_format=torch.channels_last_3d)`` takes the weight as that of a volume."""

        def apply(tensor: torch.Tensor) -> torch.Tensor:
            try:
                return fn(tensor)
            except RuntimeError as error:
                if tensor.dim() != 4 or "channels_last_3d" not in str(error):
                    raise
                return fn(tensor.unsqueeze(2)).squeeze(2)

        return super()._apply(apply, recurse)

    def _kernels(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias, without the exception that ``nn.Module`` makes and catches for every such attribute."""
        try:
            return self._parameters["weight"], self._parameters["bias"]
        except KeyError:  # one is no parameter: pruned, or parametrized
            return self.weight, self.bias

    def _geometry_arguments(self) -> dict:
        """The keywords of the layer's function that say where it reads, from the attributes as they are now."""
        special = (
            {"output_padding": self.output_padding}
            if self.transposed
            else {"padding_mode": self.padding_mode}
        )
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            **special,
        }


def _kernel_pair(kernel_size: int | Sequence[int]) -> tuple[int, int]:
    """(K_h, K_w) from an int, a pair, or a triple of three equal numbers."""
    size = as_ints(kernel_size, "kernel_size")
    if isinstance(size, int):
        return size, size
    if len(size) == 2:
        return size
    if len(size) == 3 and len(set(size)) == 1:
        return size[:2]
    raise ValueError(f"kernel_size: expected an int, a pair (K_h, K_w) or three equal numbers, got {size}")


def _per_axis(value: int | Sequence[int], name: str) -> int | tuple[int, ...]:
    """A triple where all axes agree, as acsconv 0.1.1 stores it; else a tuple as given, for ``resolve`` to judge."""
    value = as_ints(value, name)
    if isinstance(value, int):
        return (value,) * 3
    return (value[0],) * 3 if len(value) in (1, 2) and len(set(value)) == 1 else value
