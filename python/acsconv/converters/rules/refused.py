"""Refusals: functions that would accept a folded map and compute something that has no meaning on a volume.

On a folded map [N, C, D * H, W], what treats the last two axes alike is right; what treats one of them alone would run
through the boundaries between slices. It is refused, never passed. A rule of one's own (:func:`.rule`) takes
precedence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fold import POINT, ConversionError, Volume
from . import rule

_HELP = "register a rule for it with acsconv.converters.rule or acsconv.converters.module_rule"


def _is_map(volume: Volume, input) -> bool:
    return volume.find(input) not in (None, POINT)


def _refuse(volume: Volume, function, input):
    raise ConversionError(
        f"{function.__name__}: works along one axis of a feature map {tuple(input.shape)}, which has no counterpart "
        f"in a volume; {_HELP}"
    )


def _whole(volume: Volume, function, input, *args, **kwargs):
    if _is_map(volume, input):
        _refuse(volume, function, input)
    return function(input, *args, **kwargs)


def _product(volume: Volume, function, input, other):
    for tensor in (input, other):
        if _is_map(volume, tensor):
            _refuse(volume, function, tensor)
    return function(input, other)


def _coordinates(volume: Volume, function, *tensors, **kwargs):
    axes = tensors[0] if isinstance(tensors[0], (list, tuple)) else tensors
    sizes = tuple(int(axis.numel()) for axis in axes)
    if len(sizes) == 2 and any(volume.grids.get(s, POINT) != POINT for s in (sizes, sizes[::-1])):
        raise ConversionError(f"meshgrid: coordinates {sizes} of a folded map are none of a volume; {_HELP}")
    return function(*tensors, **kwargs)


def _tensors(volume: Volume, function, tensors, *args, **kwargs):
    dim = args[0] if args else kwargs.get("dim", 0)
    for tensor in tensors:
        if _is_map(volume, tensor) and dim in (2, 3, -1, -2):
            _refuse(volume, function, tensor)
    return function(tensors, *args, **kwargs)


def _along(position: int, several: bool = True, default: int | None = None, name: str = "dim"):
    """A rule that refuses a function along one of the last two axes alone.

    Args:
        position: of the axis among the arguments behind the input; ``name`` is its keyword.
        several: whether further positional integers are axes, too, as in ``x.flip(2, 3)``.
        default: the axis where none is given.
    """

    def checked(volume: Volume, function, input, *args, **kwargs):
        if _is_map(volume, input):
            dims = args[position] if len(args) > position else kwargs.get(name, kwargs.get("axis", default))
            if type(dims) is int:
                dims = args[position:] if several and len(args) > position + 1 else (dims,)
            if isinstance(dims, (tuple, list)):
                spatial = {d % 4 for d in dims if type(d) is int} & {2, 3}
                if len(spatial) == 1:
                    _refuse(volume, function, input)
        return function(input, *args, **kwargs)

    return checked


def _norm(volume: Volume, function, input, *args, **kwargs):
    """Over two axes these are matrix norms, but for the one that is the norm of all elements."""
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    order = args[0] if args else kwargs.get("ord", kwargs.get("p"))
    matrix = order == "nuc" if function in (torch.norm, Tensor.norm) else order not in (None, "fro")
    if matrix and isinstance(dims, (tuple, list)) and len(dims) == 2 and {d % 4 for d in dims} & {2, 3}:
        _whole(volume, function, input)
    return _along(1)(volume, function, input, *args, **kwargs)


def _roll(volume: Volume, function, input, shifts, dims=None):
    spatial = dims is None or any(d % 4 in (2, 3) for d in ((dims,) if isinstance(dims, int) else dims))
    if spatial and _is_map(volume, input):
        _refuse(volume, function, input)
    return function(input, shifts, dims)


def _swap(volume: Volume, function, input, *args, **kwargs):
    dims = [d for d in (*args, *kwargs.values()) if type(d) is int]
    if len(dims) == 2 and {d % 4 for d in dims} == {2, 3} and _is_map(volume, input):
        _refuse(volume, function, input)
    return function(input, *args, **kwargs)


def _assign(volume: Volume, function, input, index, value):
    if _is_map(volume, input) and isinstance(index, tuple):
        spatial = index[-2:] if any(i is Ellipsis for i in index) else index[2:]
        if any(not (isinstance(i, slice) and i == slice(None)) and i is not Ellipsis for i in spatial):
            _refuse(volume, function, input)
    return function(input, index, value)


rule(
    F.unfold,
    F.fold,
    F.grid_sample,
    torch.grid_sampler,
    torch.rot90,
    Tensor.rot90,
    torch.fft.fft2,
    torch.fft.rfft2,
    torch.fft.ifft2,
    torch.fft.irfft2,
    torch.fft.hfft2,
    torch.fft.ihfft2,
    torch.fft.fftn,
    torch.fft.rfftn,
    torch.fft.ifftn,
    torch.fft.irfftn,
    torch.fft.hfftn,
    torch.fft.ihfftn,
    torch.fft.fftshift,
    torch.fft.ifftshift,
    F.fractional_max_pool2d,
    F.fractional_max_pool2d_with_indices,
    F.layer_norm,
    F.rms_norm,
    F.linear,
    F.pairwise_distance,
    torch.linalg.matrix_norm,
    Tensor.tril,
    Tensor.triu,
    torch.tril,
    torch.triu,
)(_whole)
rule(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__)(_product)
rule(torch.meshgrid)(_coordinates)
rule(torch.cat, torch.concat)(_tensors)
rule(torch.roll, Tensor.roll)(_roll)
rule(F.normalize, torch.linalg.vector_norm)(_along(1))
rule(torch.norm, Tensor.norm, torch.linalg.norm)(_norm)
rule(F.cosine_similarity)(_along(1, several=False, default=1))
rule(F.gumbel_softmax)(_along(3, several=False, default=-1))
rule(torch.flip, Tensor.flip)(_along(0, name="dims"))
rule(
    torch.mean,
    Tensor.mean,
    torch.sum,
    Tensor.sum,
    torch.amax,
    Tensor.amax,
    torch.amin,
    Tensor.amin,
    torch.std,
    Tensor.std,
    torch.var,
    Tensor.var,
    torch.var_mean,
    torch.logsumexp,
    Tensor.logsumexp,
    torch.nanmean,
    Tensor.nanmean,
    torch.nansum,
    Tensor.nansum,
    torch.std_mean,
    torch.any,
    Tensor.any,
    torch.all,
    Tensor.all,
    torch.special.logsumexp,
    torch.count_nonzero,
    Tensor.count_nonzero,
)(_along(0))
rule(torch.topk, Tensor.topk, torch.kthvalue, Tensor.kthvalue, torch.diff, Tensor.diff)(_along(1, default=-1))
rule(
    torch.quantile,
    Tensor.quantile,
    torch.nanquantile,
    Tensor.nanquantile,
    torch.take_along_dim,
    Tensor.take_along_dim,
)(_along(1, several=False))
rule(
    F.softmax,
    F.log_softmax,
    F.softmin,
    torch.softmax,
    Tensor.softmax,
    torch.special.softmax,
    torch.log_softmax,
    Tensor.log_softmax,
    torch.special.log_softmax,
    torch.cumsum,
    Tensor.cumsum,
    torch.cumprod,
    Tensor.cumprod,
    torch.max,
    Tensor.max,
    torch.min,
    Tensor.min,
    torch.argmax,
    Tensor.argmax,
    torch.argmin,
    Tensor.argmin,
    torch.prod,
    Tensor.prod,
    torch.median,
    Tensor.median,
    torch.nanmedian,
    Tensor.nanmedian,
    torch.aminmax,
    Tensor.aminmax,
    torch.cummax,
    Tensor.cummax,
    torch.cummin,
    Tensor.cummin,
    torch.logcumsumexp,
    Tensor.logcumsumexp,
    torch.gather,
    Tensor.gather,
    torch.scatter,
    Tensor.scatter,
    Tensor.scatter_,
    torch.scatter_add,
    Tensor.scatter_add,
    Tensor.scatter_add_,
    torch.scatter_reduce,
    Tensor.scatter_reduce,
    Tensor.scatter_reduce_,
    torch.index_select,
    Tensor.index_select,
    torch.unbind,
    Tensor.unbind,
    torch.select,
    Tensor.select,
    torch.narrow,
    Tensor.narrow,
    Tensor.unfold,
)(_along(0, several=False))
rule(
    torch.sort,
    Tensor.sort,
    torch.argsort,
    Tensor.argsort,
    torch.mode,
    Tensor.mode,
    F.glu,
)(_along(0, several=False, default=-1))
rule(
    torch.fft.fft,
    torch.fft.rfft,
    torch.fft.ifft,
    torch.fft.irfft,
    torch.fft.hfft,
    torch.fft.ihfft,
)(_along(1, several=False, default=-1))
rule(
    torch.chunk,
    Tensor.chunk,
    torch.split,
    Tensor.split,
    torch.tensor_split,
    Tensor.tensor_split,
)(_along(1, several=False, default=0))
rule(torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes)(_swap)
rule(Tensor.__setitem__)(_assign)
