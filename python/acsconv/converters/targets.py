"""What convolutions become: one class for each value of ``to``.

A target makes the 3D layer that takes a 2D layer's place, and computes 2D convolutions that are not layers of their own
(``F.conv2d`` in a subclass of ``nn.Conv2d`` or in a network's own code) on a volume.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acsconv_cuda import acs_conv3d, acs_conv_transpose3d, soft_acs_conv3d

from ..operators import ACSConv, ACSConvTranspose, SoftACSConv
from .fold import ConversionError, pair, triple
from .layers import Conv3d, ConvTranspose3d, SliceConv, inflate, inflate_transposed, slice_conv3d


@dataclass(frozen=True)
class Target(ABC):
    """Base of the targets. Volumes are given, and returned, as [N, C, D, H, W] in the canonical order of axes.

    Attributes:
        name: what ``to`` said.
        planar: True where the network stays 2D in one plane: poolings and paddings then leave the third axis alone,
            but for its size, which follows the others'.
    """

    name = ""
    planar = False

    def to_canonical(self, volume: Tensor) -> Tensor:
        """People's order of axes as the network's own: the axis that the 2D network does not know comes first."""
        return volume

    def from_canonical(self, volume: Tensor) -> Tensor:
        return volume

    @abstractmethod
    def layer(self, conv: nn.Conv2d) -> nn.Module:
        """The layer in the place of a plain ``nn.Conv2d``, without weights (on the meta device).

        Raises:
            ValueError: its geometry has no counterpart.
        """

    @abstractmethod
    def transposed_layer(self, conv: nn.ConvTranspose2d) -> nn.Module:
        """The same for ``nn.ConvTranspose2d``."""

    def weight(self, conv: nn.Conv2d | nn.ConvTranspose2d, layer: nn.Module) -> Tensor | None:
        """The new layer's weight, from the 2D layer's; None: the 2D layer's as it is."""
        return None

    @abstractmethod
    def convolve(self, volume, weight, bias, stride, padding, dilation, groups, module) -> Tensor:
        """2D convolution with a 4D weight; the arguments are those of ``F.conv2d``, ``module`` is the one that runs."""

    def convolve_transposed(
        self, volume, weight, bias, stride, padding, output_padding, groups, dilation
    ) -> Tensor:
        """The same for ``F.conv_transpose2d``."""
        return acs_conv_transpose3d(
            volume,
            weight,
            bias,
            split=self._transposed_split(weight.shape[1] * groups),
            stride=triple(stride),
            groups=groups,
            **_by_kernel(
                weight.shape[-2:], padding=padding, output_padding=output_padding, dilation=dilation
            ),
        )

    def _transposed_split(self, out_channels: int) -> tuple[int, int, int] | None:
        return None


@dataclass(frozen=True)
class AcsTarget(Target):
    """``to="acs"``: every output channel in one of the three planes."""

    name = "acs"

    def layer(self, conv: nn.Conv2d) -> nn.Module:
        return ACSConv(**_acs_arguments(conv))

    def transposed_layer(self, conv: nn.ConvTranspose2d) -> nn.Module:
        kernel = _by_kernel(
            conv.kernel_size,
            padding=conv.padding,
            output_padding=conv.output_padding,
            dilation=conv.dilation,
        )
        return ACSConvTranspose(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=triple(conv.stride),
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
            dtype=conv.weight.dtype,
            **kernel,
        )

    def convolve(self, volume, weight, bias, stride, padding, dilation, groups, module) -> Tensor:
        return acs_conv3d(
            volume,
            weight,
            bias,
            stride=triple(stride),
            groups=groups,
            **_by_kernel(weight.shape[-2:], padding=padding, dilation=dilation),
        )


@dataclass(frozen=True)
class SoftTarget(AcsTarget):
    """``to="soft"`` and ``to="mean"``: every output channel in all three planes. Transposed convolutions become ACS."""

    mean: bool = False

    @property
    def name(self) -> str:
        return "mean" if self.mean else "soft"

    def layer(self, conv: nn.Conv2d) -> nn.Module:
        return SoftACSConv(mean=self.mean, **_acs_arguments(conv))

    def convolve(self, volume, weight, bias, stride, padding, dilation, groups, module) -> Tensor:
        # A convolution that no layer owns, such as a fixed blur, has no weights for the views to learn.
        core = getattr(module, "soft_w_core", None)
        if core is None or core.shape[0] != weight.shape[0]:
            views = weight.new_full((weight.shape[0], 3), 1 / 3)
        else:
            views = core.softmax(-1)
        return soft_acs_conv3d(
            volume,
            weight,
            views,
            bias,
            stride=triple(stride),
            groups=groups,
            **_by_kernel(weight.shape[-2:], padding=padding, dilation=dilation),
        )


@dataclass(frozen=True)
class SliceTarget(Target):
    """``to="2.5d"``: the 2D network on every slice across ``unsqueeze_axis``."""

    name = "2.5d"
    planar = True

    axis: int = -3

    def to_canonical(self, volume: Tensor) -> Tensor:
        return volume.movedim(self.axis, 2)

    def from_canonical(self, volume: Tensor) -> Tensor:
        return volume.movedim(2, self.axis)

    def layer(self, conv: nn.Conv2d) -> nn.Module:
        return SliceConv(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            self.axis,
            "meta",
            conv.weight.dtype,
        )

    def transposed_layer(self, conv: nn.ConvTranspose2d) -> nn.Module:
        layer = AcsTarget().transposed_layer(conv)
        split = [0, 0, 0]
        split[3 + self.axis] = conv.out_channels
        layer.acs_kernel_split = tuple(split)
        return layer

    def weight(self, conv: nn.Conv2d | nn.ConvTranspose2d, layer: nn.Module) -> Tensor | None:
        return conv.weight.unsqueeze(self.axis) if isinstance(layer, SliceConv) else None

    def convolve(self, volume, weight, bias, stride, padding, dilation, groups, module) -> Tensor:
        padding = padding if isinstance(padding, str) else pair(padding)
        return slice_conv3d(volume, weight, bias, pair(stride), padding, pair(dilation), groups)

    def _transposed_split(self, out_channels: int) -> tuple[int, int, int]:
        return out_channels, 0, 0  # canonical order: the axis left alone comes first


@dataclass(frozen=True)
class CubeTarget(Target):
    """``to="3d"``: ``nn.Conv3d`` with cubic kernels, 2D weights repeated along ``repeat_axis``; None: new weights."""

    name = "3d"
    repeat_axis: int | None = -3

    def layer(self, conv: nn.Conv2d) -> nn.Module:
        padding = conv.padding if isinstance(conv.padding, str) else triple(conv.padding)
        layer = Conv3d(
            conv.in_channels,
            conv.out_channels,
            self._cube(conv.kernel_size),
            triple(conv.stride),
            padding,
            triple(conv.dilation),
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
            dtype=conv.weight.dtype,
        )
        layer.repeat_axis = self._axis
        return layer

    def transposed_layer(self, conv: nn.ConvTranspose2d) -> nn.Module:
        layer = ConvTranspose3d(
            conv.in_channels,
            conv.out_channels,
            self._cube(conv.kernel_size),
            triple(conv.stride),
            triple(conv.padding),
            triple(conv.output_padding),
            conv.groups,
            conv.bias is not None,
            triple(conv.dilation),
            conv.padding_mode,
            device="meta",
            dtype=conv.weight.dtype,
        )
        layer.repeat_axis = self._axis
        return layer

    def weight(self, conv: nn.Conv2d | nn.ConvTranspose2d, layer: nn.Module) -> Tensor | None:
        if self.repeat_axis is None:
            fresh = torch.empty(layer.weight.shape, dtype=conv.weight.dtype, device=conv.weight.device)
            return nn.init.kaiming_uniform_(fresh, a=5**0.5)
        if isinstance(layer, ConvTranspose3d):
            axis = self.repeat_axis
            return inflate_transposed(conv.weight, axis, layer.stride[axis], layer.dilation[axis])
        return inflate(conv.weight, self.repeat_axis)

    def convolve(self, volume, weight, bias, stride, padding, dilation, groups, module) -> Tensor:
        padding = padding if isinstance(padding, str) else triple(padding)
        weight = inflate(weight, self._axis)
        return F.conv3d(volume, weight, bias, triple(stride), padding, triple(dilation), groups)

    def convolve_transposed(
        self, volume, weight, bias, stride, padding, output_padding, groups, dilation
    ) -> Tensor:
        stride, dilation = triple(stride), triple(dilation)
        weight = inflate_transposed(weight, self._axis, stride[self._axis], dilation[self._axis])
        return F.conv_transpose3d(
            volume, weight, bias, stride, triple(padding), triple(output_padding), groups, dilation
        )

    @property
    def _axis(self) -> int:
        return -3 if self.repeat_axis is None else self.repeat_axis

    def _cube(self, kernel: tuple[int, int]) -> tuple[int, int, int]:
        """The kernel's extents after :func:`inflate`."""
        cube = list(kernel)
        cube.insert(3 + self._axis, kernel[1] if self._axis == -1 else kernel[0])
        return tuple(cube)


@dataclass(frozen=True)
class CustomTarget(Target):
    """``to=function``: ``function(conv2d)`` makes the layer, weights included; it is given volumes [N, C, D, H, W]."""

    make: Callable[[nn.Conv2d], nn.Module]

    def __hash__(self) -> int:  # callables need not be hashable
        return hash(CustomTarget)

    @property
    def name(self) -> str:
        return getattr(self.make, "__name__", type(self.make).__name__)

    def layer(self, conv: nn.Conv2d) -> nn.Module:
        return self.make(conv)

    def transposed_layer(self, conv: nn.ConvTranspose2d) -> nn.Module:
        return AcsTarget().transposed_layer(conv)

    def convolve(self, volume, weight, bias, stride, padding, dilation, groups, module) -> Tensor:
        raise ConversionError(f"conv2d: to={self.name} makes layers only; this call belongs to no nn.Conv2d")


def make_target(to: str | Callable, unsqueeze_axis: int, i3d_repeat_axis: int | None) -> Target:
    """The target that ``convert``'s arguments name.

    Raises:
        ValueError: an unknown name or axis.
    """
    for name, axis in (("unsqueeze_axis", unsqueeze_axis), ("i3d_repeat_axis", i3d_repeat_axis)):
        if axis not in (-3, -2, -1) and not (name == "i3d_repeat_axis" and axis is None):
            raise ValueError(f"{name}: expected -3, -2 or -1, got {axis!r}")
    if callable(to):
        return CustomTarget(to)
    targets = {
        "acs": AcsTarget,
        "soft": lambda: SoftTarget(mean=False),
        "mean": lambda: SoftTarget(mean=True),
        "2.5d": lambda: SliceTarget(unsqueeze_axis),
        "3d": lambda: CubeTarget(i3d_repeat_axis),
    }
    if not isinstance(to, str) or to not in targets:
        raise ValueError(f"to: expected one of {', '.join(map(repr, targets))} or a function, got {to!r}")
    return targets[to]()


def _acs_arguments(conv: nn.Conv2d) -> dict[str, Any]:
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": triple(conv.stride),
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
        "device": "meta",
        "dtype": conv.weight.dtype,
        **_by_kernel(conv.kernel_size, padding=conv.padding, dilation=conv.dilation),
    }


def _by_kernel(kernel, **values) -> dict[str, Any]:
    """2D values (h, w) as the ACS functions take them: of a square kernel they belong to the volume's axes (D, H, W),
    of a rectangular one to the kernel's."""
    square = kernel[0] == kernel[1]
    return {
        name: value if isinstance(value, str) else triple(value) if square else pair(value)
        for name, value in values.items()
    }
