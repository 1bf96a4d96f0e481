"""PyTorch's 2D modules that have a 3D counterpart of the same parameters: BatchNorm2d is BatchNorm3d, and so on.

A network keeps the module object; its class and the sizes in its attributes change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .fold import pair, triple
from .rules.pooling import avg_pool3d


class BatchNorm3d(nn.BatchNorm3d):
    """``nn.BatchNorm3d`` that takes a folded map, too: its statistics are those of the volume."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (4, 5):
            raise ValueError(f"input: expected [N, C, D, H, W], got {input.dim()} dimensions")


class AvgPool3d(nn.AvgPool3d):
    """``nn.AvgPool3d`` that, like ``nn.AvgPool2d``, takes maps below the kernel's size where padding makes room."""

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


def _max_pool(pool: nn.MaxPool2d) -> dict[str, Any]:
    return {name: triple(getattr(pool, name)) for name in ("kernel_size", "stride", "padding", "dilation")}


def _avg_pool(pool: nn.AvgPool2d) -> dict[str, Any]:
    sizes = {name: triple(getattr(pool, name)) for name in ("kernel_size", "stride", "padding")}
    divisor = pool.divisor_override
    return {**sizes, "divisor_override": None if divisor is None else divisor * sizes["kernel_size"][0]}


def _lp_pool(pool: nn.LPPool2d) -> dict[str, Any]:
    stride = pool.stride if pool.stride is not None else pool.kernel_size
    return {"kernel_size": triple(pool.kernel_size), "stride": triple(stride)}


def _adaptive_pool(pool: nn.Module) -> dict[str, Any]:
    size = pool.output_size
    if size is None or isinstance(size, int):
        return {}
    height, width = pair(size)
    return {"output_size": (height, height, width)}


def _padding(pad: nn.Module) -> dict[str, Any]:
    left, right, top, bottom = pad.padding
    return {"padding": (left, right, top, bottom, top, bottom)}


def _no_sizes(module: nn.Module) -> dict[str, Any]:
    return {}


#: 2D class -> (3D class, function that gives the attributes that change). Exact classes only: a subclass has its own
#: code.
EVERYWHERE: dict[type, tuple[type, Callable[[nn.Module], dict[str, Any]]]] = {
    nn.BatchNorm2d: (BatchNorm3d, _no_sizes),
    nn.InstanceNorm2d: (nn.InstanceNorm3d, _no_sizes),
}

#: The same, for networks that do not stay 2D in one plane.
IN_VOLUMES: dict[type, tuple[type, Callable[[nn.Module], dict[str, Any]]]] = {
    nn.MaxPool2d: (nn.MaxPool3d, _max_pool),
    nn.AvgPool2d: (AvgPool3d, _avg_pool),
    nn.LPPool2d: (nn.LPPool3d, _lp_pool),
    nn.AdaptiveAvgPool2d: (nn.AdaptiveAvgPool3d, _adaptive_pool),
    nn.AdaptiveMaxPool2d: (nn.AdaptiveMaxPool3d, _adaptive_pool),
    nn.ZeroPad2d: (nn.ZeroPad3d, _padding),
    nn.ConstantPad2d: (nn.ConstantPad3d, _padding),
    nn.ReflectionPad2d: (nn.ReflectionPad3d, _padding),
    nn.ReplicationPad2d: (nn.ReplicationPad3d, _padding),
    nn.CircularPad2d: (nn.CircularPad3d, _padding),
}


def twin(module: nn.Module, planar: bool) -> tuple[type, dict[str, Any]] | None:
    """The 3D class of a 2D module and the attributes that change, or None."""
    if getattr(module, "return_indices", False):
        return None  # what unpools asks for the 2D class
    found = EVERYWHERE.get(type(module)) or (None if planar else IN_VOLUMES.get(type(module)))
    return None if found is None else (found[0], found[1](module))
