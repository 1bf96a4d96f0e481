"""Rules for interpolation, padding and the exchange of space for channels."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fold import ConversionError, Volume, per_slice, take_slices
from . import rule

_MODES = {"bilinear": "trilinear", "linear": "trilinear"}


@rule(F.interpolate, F.upsample)
def interpolate(
    volume: Volume,
    function,
    input,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    if input.dim() != 4:
        return F.interpolate(
            input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )
    maps = volume.unfold(input, "interpolate")
    if antialias:
        raise ConversionError("interpolate: antialias=True has no counterpart for volumes in PyTorch")
    if isinstance(size, int):
        size = (size, size)
    if size is not None and len(size) != 3:
        size = volume.resize(size, "interpolate")
    if isinstance(scale_factor, (tuple, list)):
        scale_factor = (scale_factor[0], *scale_factor) if len(scale_factor) == 2 else tuple(scale_factor)
    resample = functools.partial(
        F.interpolate, align_corners=align_corners, recompute_scale_factor=recompute_scale_factor
    )
    if mode == "bicubic":
        return volume.fold(_bicubic(maps, size, scale_factor, resample))
    return volume.fold(resample(maps, size, scale_factor, _MODES.get(mode, mode)))


def _bicubic(maps: Tensor, size, scale_factor, resample: Callable) -> Tensor:
    """Cubic in the plane, linear along the depth: PyTorch has no tricubic interpolation."""
    if size is not None:
        maps = per_slice(lambda m: resample(m, size[1:], mode="bicubic"), maps)
        return resample(maps, size, mode="trilinear")
    depth, *plane = scale_factor if isinstance(scale_factor, tuple) else (scale_factor,) * 3
    # Factors, not the sizes that they give: positions are computed from them.
    maps = per_slice(lambda m: resample(m, scale_factor=tuple(plane), mode="bicubic"), maps)
    return resample(maps, scale_factor=(depth, 1.0, 1.0), mode="trilinear")


@rule(F.pad)
def pad(volume: Volume, function, input, pad, mode="constant", value=None):
    grid = volume.find(input)
    pads = [int(n) for n in pad] + [0] * (4 - len(pad))
    if grid is None or not any(pads[:4]):
        if input.dim() == 4 and any(pads[:4]) and mode != "constant":
            volume.grid(input, "pad")
        return function(input, pad, mode, value)
    target = volume.grids.get((grid[0] * grid[1] + pads[2] + pads[3], grid[2] + pads[0] + pads[1]))
    if target is not None and target != grid:
        # The code made a map as large as another one: so are all three axes, with the same ends preferred.
        missing = [new - old for new, old in zip(target, grid)]
        front = [n // 2 if before else 0 for n, before in zip(missing, (pads[2], pads[2], pads[0]))]
        (d, h, w) = ((f, n - f) for f, n in zip(front, missing))
    else:
        w, h = pads[0:2], pads[2:4]
        d = h
    maps = volume.unfold(input, "pad")
    if volume.target.planar:
        maps, d = take_slices(maps, -d[0], 1, grid[0] + sum(d)), (0, 0)
    return volume.fold(function(maps, [*w, *h, *d, *pads[4:]], mode, value))


@rule(torch.pixel_shuffle)
def pixel_shuffle(volume: Volume, function, input, upscale_factor):
    maps = per_slice(lambda m: function(m, upscale_factor), volume.unfold(input, "pixel_shuffle"))
    return volume.fold(maps.repeat_interleave(upscale_factor, 2))


def space_to_depth(volume: Volume, input: Tensor, factor: int, function: Callable) -> Tensor:
    """``function`` moves ``factor`` x ``factor`` positions of a plane into channels; as many slices are averaged."""
    maps = F.avg_pool3d(volume.unfold(input, "space to depth"), (factor, 1, 1))
    return volume.fold(per_slice(function, maps))


@rule(torch.pixel_unshuffle)
def pixel_unshuffle(volume: Volume, function, input, downscale_factor):
    return space_to_depth(volume, input, downscale_factor, lambda m: function(m, downscale_factor))
