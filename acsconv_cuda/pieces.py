"""What the reference cuts an ACS convolution into: pieces of output channels, and axes as ``conv3d`` can compute them.

A :class:`Piece` is one grouped convolution of one view; an :class:`Axis` says which slice of the input, which stride
and padding give a view's outputs along it. Numbers only: :mod:`acsconv_cuda.reference` computes with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from .geometry import VIEWS, Geometry


class Axis(NamedTuple):
    """How one axis of one view is computed by a convolution that pads both ends alike."""

    begin: int  # the input is sliced to [begin, end) with this step ...
    end: int
    step: int
    stride: int  # ... convolved with this stride and padding, ...
    padding: int
    skip: int  # ... and of the result the first `skip` outputs and the last `excess` are dropped. What is left are ...
    excess: int
    first: int  # ... the view's outputs [first, last); outside them the view reads only zeros
    last: int


class Piece(NamedTuple):
    """Output channels [out_begin, out_end) of one view, computed by one grouped convolution."""

    view: int
    out_begin: int
    out_end: int
    in_begin: int
    in_end: int
    groups: int


def channels_of(piece: Piece) -> slice:
    return slice(piece.out_begin, piece.out_end)


def all_pieces(
    weight: Tensor, split: Sequence[int] | None, groups: int, geometry: Geometry
) -> Iterator[tuple[Piece, Tensor]]:
    """Every convolution of an ACS (``split`` given) or Soft ACS operation, with its part of the weight."""
    if split is not None:
        for piece in pieces_of(weight, split, groups, geometry):
            yield piece, weight[channels_of(piece)]
        return
    for view, kernel in enumerate(weight):
        for piece in view_pieces(view, 0, kernel.shape[0], kernel.shape[0] // groups, kernel.shape[1]):
            yield piece, kernel[channels_of(piece)]


def pieces_of(weight: Tensor, split: Sequence[int], groups: int, geometry: Geometry) -> Iterator[Piece]:
    """The convolutions that make up one ACS convolution, in the order of their output channels."""
    if geometry.is_one_view():
        yield Piece(0, 0, weight.shape[0], 0, weight.shape[1] * groups, groups)
        return
    yield from split_pieces(split, weight.shape[0] // groups, weight.shape[1])


def split_pieces(split: Sequence[int], per_out: int, per_in: int) -> Iterator[Piece]:
    """The pieces of all views; a channel group has ``per_out`` output and ``per_in`` input channels."""
    begin = 0
    for view, channels in enumerate(split):
        yield from view_pieces(view, begin, begin + channels, per_out, per_in)
        begin += channels


def view_pieces(view: int, begin: int, end: int, per_out: int, per_in: int) -> Iterator[Piece]:
    """Output channels [begin, end) of one view, cut where a channel group is only partly inside."""
    while begin < end:
        group, inside = divmod(begin, per_out)
        whole = 0 if inside else (end - begin) // per_out
        stop = begin + whole * per_out if whole else min(end, (group + 1) * per_out)
        count = max(whole, 1)
        yield Piece(view, begin, stop, group * per_in, (group + count) * per_in, count)
        begin = stop


def view_axes(
    view: int, geometry: Geometry, in_size: Sequence[int], out_size: Sequence[int]
) -> tuple[Axis, ...]:
    """How each axis of a view is computed; see :class:`Axis`."""
    kernel = VIEWS[view].kernel3d(geometry.kernel)
    thin = None if geometry.is_one_view() else VIEWS[view].thin
    axes = []
    for axis in range(3):
        size, out, stride, origin = (
            in_size[axis],
            out_size[axis],
            geometry.stride[axis],
            geometry.origin[view][axis],
        )
        if axis == thin:
            # Outputs whose one position lies inside: a strided slice of the input.
            first = max(0, -(origin // stride))
            last = max(first, min(out, (size - 1 - origin) // stride + 1))
            begin = origin + first * stride
            axes.append(
                Axis(begin, begin + max(0, (last - first - 1) * stride + 1), stride, 1, 0, 0, 0, first, last)
            )
            continue
        # What is read before the input and behind it; negative where the input is not used to its end.
        before = -origin
        reach = geometry.dilation[view][axis] * (kernel[axis] - 1)
        behind = (out - 1) * stride + origin + reach - (size - 1)
        # What a last step cannot reach need not be cut off: the input stays whole, and need not be copied.
        begin, end = max(0, -before), size + (behind if behind <= -stride else 0)
        before, behind = max(0, before), max(0, behind)
        # A convolution pads both ends alike: pad more at the front where the end needs it, and skip those outputs.
        skip = max(0, -((before - behind) // stride))
        padding = before + skip * stride
        computed = (end - begin + 2 * padding - reach - 1) // stride + 1
        axes.append(Axis(begin, end, 1, stride, padding, skip, computed - skip - out, 0, out))
    return tuple(axes)


def reads_nothing(axes: tuple[Axis, ...]) -> bool:
    """Whether every position that the view reads lies outside the volume."""
    return any(a.begin >= a.end for a in axes)


def is_whole(axes: tuple[Axis, ...], size: Sequence[int]) -> bool:
    return all(a.begin == 0 and a.end == s and a.step == 1 for a, s in zip(axes, size))
