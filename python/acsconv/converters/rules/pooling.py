"""Rules for pooling. A kernel (h, w) becomes (h, h, w); in 2.5D it stays, and slices are picked as convolutions do."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from acsconv_cuda.geometry import resolve

from ..fold import ConversionError, Grid, Volume, pair, per_slice, take_slices, triple
from . import rule


def avg_pool3d(
    input: Tensor,
    kernel_size: Grid,
    stride: Grid | None = None,
    padding: Grid = (0, 0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """``F.avg_pool3d`` that, like ``F.avg_pool2d``, takes inputs below the kernel's size where padding makes room."""
    stride = stride or kernel_size
    if all(size >= kernel for size, kernel in zip(input.shape[-3:], kernel_size)):
        return F.avg_pool3d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
    pads = [p for p in reversed(padding) for _ in range(2)]
    if ceil_mode:
        raise ConversionError(f"avg_pool: a map of {tuple(input.shape[-3:])} is too small for {kernel_size}")

    def pooled(tensor: Tensor) -> Tensor:
        return F.avg_pool3d(F.pad(tensor, pads), kernel_size, stride, 0, False, True, divisor_override)

    if count_include_pad or divisor_override is not None:
        return pooled(input)
    return pooled(input) / pooled(torch.ones_like(input[:1, :1]))


def pick_slices(volume: Tensor, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool):
    """The slices of [N, C, D, H, W] that a pooling across D with these sizes is centred on."""
    along = resolve((kernel, kernel), (stride,) * 3, padding, dilation)
    depth = volume.shape[2]
    room = depth - along.shrink[0] - 1
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= depth + padding:  # the last window must not begin behind the map
        count -= 1
    return take_slices(volume, along.origin[0][0], stride, count)


def _pool(
    volume: Volume, input: Tensor, pool: Callable, kernel_size, stride, padding=0, dilation=1, ceil_mode=False
):
    """``pool(maps, kernel, stride, padding, dilation)``, all triples, on a folded map."""
    is_whole = pair(kernel_size) == tuple(int(n) for n in input.shape[-2:])
    if is_whole and not any(pair(padding)):
        kernel = volume.grid(input, "pooling")
        whole = pool(volume.unfold(input, "pooling"), kernel, kernel, (0, 0, 0), (1, 1, 1))
        return _fold_all(volume, whole)
    kernel_size, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
    stride = pair(stride) if stride is not None and stride != [] and stride != () else kernel_size
    maps = volume.unfold(input, "pooling")
    if not volume.target.planar:
        return _fold_all(volume, pool(maps, *map(triple, (kernel_size, stride, padding, dilation))))
    maps = pick_slices(maps, kernel_size[0], stride[0], padding[0], dilation[0], ceil_mode)
    out = pool(maps, (1, *kernel_size), (1, *stride), (0, *padding), (1, *dilation))
    return _fold_all(volume, out)


def _fold_all(volume: Volume, out):
    return volume.fold(out) if isinstance(out, Tensor) else tuple(volume.fold(part) for part in out)


@rule(F.max_pool2d, torch.max_pool2d)
def max_pool2d(
    volume,
    function,
    input,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
):
    def pool(maps, kernel, stride, padding, dilation):
        return F.max_pool3d(maps, kernel, stride, padding, dilation, ceil_mode)

    return _pool(volume, input, pool, kernel_size, stride, padding, dilation, ceil_mode)


@rule(F.max_pool2d_with_indices)
def max_pool2d_with_indices(
    volume,
    function,
    input,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=True,
):
    def pool(maps, kernel, stride, padding, dilation):
        if volume.target.planar:  # indices count within a slice, as max_unpool2d below reads them
            return per_slice(
                lambda m: F.max_pool2d(m, kernel[1:], stride[1:], padding[1:], dilation[1:], ceil_mode, True),
                maps,
            )
        return F.max_pool3d(maps, kernel, stride, padding, dilation, ceil_mode, return_indices=True)

    return _pool(volume, input, pool, kernel_size, stride, padding, dilation, ceil_mode)


@rule(F.max_unpool2d)
def max_unpool2d(volume, function, input, indices, kernel_size, stride=None, padding=0, output_size=None):
    size = None if output_size is None else volume.resize(output_size[-2:], "max_unpool2d")
    maps, indices = volume.unfold(input, "max_unpool2d"), volume.unfold(indices, "max_unpool2d")
    if not volume.target.planar:
        stride = stride if stride is None else triple(stride)
        return volume.fold(F.max_unpool3d(maps, indices, triple(kernel_size), stride, triple(padding), size))
    plane = size if size is None else size[1:]
    out = per_slice(lambda m, i: function(m, i, kernel_size, stride, padding, plane), maps, indices)
    kernel, step, pad = (pair(v)[0] for v in (kernel_size, stride or kernel_size, padding))
    depth = (maps.shape[2] - 1) * step - 2 * pad + kernel if size is None else size[0]
    source = (torch.arange(depth, device=input.device) + pad).div(step, rounding_mode="floor")
    return volume.fold(out.index_select(2, source.clamp(0, maps.shape[2] - 1)))


@rule(F.avg_pool2d)
def avg_pool2d(
    volume,
    function,
    input,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    def pool(maps, kernel, stride, padding, dilation):
        divisor = None if divisor_override is None else divisor_override * kernel[0]
        return avg_pool3d(maps, kernel, stride, padding, ceil_mode, count_include_pad, divisor)

    return _pool(volume, input, pool, kernel_size, stride, padding, 1, ceil_mode)


@rule(F.lp_pool2d)
def lp_pool2d(volume, function, input, norm_type, kernel_size, stride=None, ceil_mode=False):
    def pool(maps, kernel, stride, padding, dilation):
        return F.lp_pool3d(maps, norm_type, kernel, stride, ceil_mode)

    return _pool(volume, input, pool, kernel_size, stride, 0, 1, ceil_mode)


def adaptive_size(output_size, grid: Grid) -> Grid:
    """(d, h, w) of an adaptive pooling to ``output_size`` = (h, w): the depth as the height, None as the map is."""
    height, width = (output_size,) * 2 if output_size is None else pair(output_size)
    if (height is None) != (width is None):
        raise ConversionError(
            f"adaptive pooling to {output_size}: strips of a plane have no counterpart in a volume"
        )
    return (
        grid[0] if height is None else height,
        grid[1] if height is None else height,
        grid[2] if width is None else width,
    )


def _adaptive(pool: Callable) -> Callable:
    def pooled(volume: Volume, function, input, output_size, return_indices=False):
        if output_size in (1, (1, 1), [1, 1]) and not return_indices:
            return function(input, 1)
        grid = volume.grid(input, function.__name__)
        if not isinstance(output_size, int) and tuple(output_size) in volume.grids:
            size = volume.resize(output_size, function.__name__)
        else:
            size = adaptive_size(output_size, grid)
            volume.pooled.add(size)
        maps = volume.unfold(input, function.__name__)
        return _fold_all(volume, pool(maps, size, *((True,) if return_indices else ())))

    return pooled


rule(F.adaptive_avg_pool2d)(_adaptive(F.adaptive_avg_pool3d))
rule(F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices)(_adaptive(F.adaptive_max_pool3d))
