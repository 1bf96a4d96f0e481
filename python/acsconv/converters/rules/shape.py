"""Rules for slicing, flattening and making tensors by sizes that were read off a folded map."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fold import POINT, ConversionError, Volume
from . import rule

_ALL = slice(None)


@rule(Tensor.__getitem__)
def getitem(volume: Volume, function, input, index):
    grid = volume.find(input) if isinstance(index, tuple) else None
    if grid is None or grid == POINT:
        return function(input, index)
    items = _per_axis(index)
    if all(isinstance(i, slice) and i == _ALL for i in items[2:]):
        return function(input, index)
    if any(i is None for i in index):
        raise ConversionError(f"slice {index}: cuts a map and adds axes at once")
    slices = _crop(volume, grid, items[2:])
    return volume.fold(function(volume.unfold(input, "slice"), (*items[:2], *slices)))


def _per_axis(index: tuple) -> tuple:
    """What an index of a 4D tensor says of each of its axes."""
    items = [i for i in index if i is not None]
    at = next((k for k, i in enumerate(items) if i is Ellipsis), len(items))
    items[at : at + 1] = [_ALL] * (4 - len(items[:at]) - len(items[at + 1 :]))
    return tuple(items)


def _crop(volume: Volume, grid, plane: tuple) -> list[slice]:
    """The slices of (D, H, W) that stand for those of (h, w)."""
    if not all(isinstance(i, slice) for i in plane):
        raise ConversionError(f"slice {plane}: one row or column of a map has no counterpart in a volume")
    sizes = (grid[0] * grid[1], grid[2])
    bounds = [i.indices(size) for i, size in zip(plane, sizes)]
    # From a small offset to the end, perhaps in steps: as along the height, so along the depth.
    if all(i.stop is None or i.stop < 0 for i in plane):
        for i, least in zip(plane, (min(grid[:2]), grid[2])):
            if any(abs(int(bound or 0)) >= least for bound in (i.start, i.stop)):
                raise ConversionError(f"slice {plane}: leaves nothing of a volume {grid}")
        return [plane[0], plane[0], plane[1]]
    lengths = [len(range(*b)) for b in bounds]
    if any(step != 1 for _, _, step in bounds):
        raise ConversionError(f"slice {plane}: steps up to an end that was computed from the folded size")
    size = volume.resize(lengths, f"slice {plane}")
    starts = [start for start, _, _ in bounds]
    if starts == [0, 0]:
        return [slice(0, n) for n in size]
    if starts == [(s - n) // 2 for s, n in zip(sizes, lengths)]:  # the middle
        return [slice((old - new) // 2, (old - new) // 2 + new) for old, new in zip(grid, size)]
    raise ConversionError(f"slice {plane}: neither the beginning nor the middle of a map")


def _without_depth(volume: Volume, input: Tensor) -> Tensor:
    """The mean over the depth of a map that a pooling made: what follows has weights for (h, w) alone."""
    grid = volume.find(input)
    if grid is None or grid == POINT or grid[0] == 1 or grid not in volume.pooled:
        return input
    return volume.unfold(input, "flatten").mean(2)


@rule(Tensor.flatten, torch.flatten)
def flatten(volume: Volume, function, input, start_dim=0, end_dim=-1):
    if start_dim == 1 and end_dim in (-1, 3):
        input = _without_depth(volume, input)
    return function(input, start_dim, end_dim)


@rule(Tensor.view, Tensor.reshape, torch.reshape)
def view(volume: Volume, function, input, *shape, **kwargs):
    sizes = kwargs.get("shape", shape[0] if len(shape) == 1 else shape)
    if isinstance(sizes, (tuple, list)) and len(sizes) == 2 and input.dim() == 4:
        whole = sizes[0] == input.shape[0] and sizes[1] == -1
        if whole or (sizes[0] == -1 and sizes[1] != -1):
            input = _without_depth(volume, input).contiguous()
    return function(input, *shape, **kwargs)


@rule(torch.empty, torch.zeros, torch.ones)
def make(volume: Volume, function, *size, **kwargs):
    sizes = kwargs.pop("size", size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
    if len(sizes) == 4 and sizes[0] == volume.batch and (int(sizes[2]), int(sizes[3])) not in volume.grids:
        grid = volume.resize(sizes[2:], function.__name__)
        return volume.fold(function(*sizes[:2], *grid, **kwargs))
    return function(sizes, **kwargs)
