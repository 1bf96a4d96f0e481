"""ACS convolution in pure PyTorch: the definition, and the fallback on every device and dtype.

Each view is one or a few ``conv3d`` calls on a *view* of the input: the thin axis is a strided slice that holds
just the positions read there, and the convolution's own padding stands for the border. The input is never padded
into a copy.

:func:`acs_conv3d` and :func:`soft_acs_conv3d` are compositions of differentiable PyTorch functions: the oracle of
the tests, and the path for dtypes that the operators do not have (complex). :func:`backward_input` and
:func:`backward_weight` are their gradients written out, for the operators: views one after the other, added in
place, where autograd would hold all three. :func:`acs_conv_transpose3d` is a composition too, and the only
implementation of the transposed convolution.

Source of the operation: Yang et al., "Reinventing 2D Convolutions for 3D Images", IEEE JBHI 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import VIEWS, Geometry, TransposedGeometry


class _Axis(NamedTuple):
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


class _Piece(NamedTuple):
    """Output channels [out_begin, out_end) of one view, computed by one grouped convolution."""

    view: int
    out_begin: int
    out_end: int
    in_begin: int
    in_end: int
    groups: int


def acs_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    split: Sequence[int],
    geometry: Geometry,
    groups: int = 1,
) -> Tensor:
    """ACS convolution.

    Args:
        input: [N, C_in, D, H, W], any dtype that ``conv3d`` takes.
        weight: [C_out, C_in / groups, K_h, K_w].
        bias: [C_out] or None.
        split: output channels of the axial, coronal and sagittal view; a view of 0 is allowed.
        geometry: from :func:`acsconv_cuda.geometry.resolve`.

    Returns:
        [N, C_out, D', H', W'] in the input's memory format.
    """
    pieces = _pieces(weight, split, groups, geometry)
    out = _join([_convolve(input, weight[_channels(piece)], bias, piece, geometry) for piece in pieces])
    return out.contiguous(memory_format=memory_format(input))


def soft_acs_conv3d(
    input: Tensor, kernels: Tensor, bias: Tensor | None, geometry: Geometry, groups: int = 1
) -> Tensor:
    """Soft ACS convolution: every output channel is the sum of all three views, each with a kernel of its own.

    Args:
        input: [N, C_in, D, H, W].
        kernels: [3, C_out, C_in / groups, K_h, K_w], from :func:`fold_view_weights`.

    Other arguments and the result as in :func:`acs_conv3d`.
    """
    out = None
    for view, kernel in enumerate(kernels):
        view_bias = bias if view == 0 else None
        pieces = _view_pieces(view, 0, kernel.shape[0], kernel.shape[0] // groups, kernel.shape[1])
        part = _join(
            [_convolve(input, kernel[_channels(piece)], view_bias, piece, geometry) for piece in pieces]
        )
        out = part if out is None else out + part
    return out.contiguous(memory_format=memory_format(input))


def fold_view_weights(weight: Tensor, view_weights: Tensor) -> Tensor:
    """The three views' kernels [3, C_out, C_in / groups, K_h, K_w] of a Soft ACS convolution.

    The operation is linear in its kernel, so the factors ``view_weights`` [C_out, 3] of the axial, coronal and
    sagittal view go into ``weight`` [C_out, C_in / groups, K_h, K_w], and no view's output has to be scaled.
    """
    return weight * view_weights.t()[:, :, None, None, None]


def acs_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    split: Sequence[int],
    geometry: TransposedGeometry,
    groups: int = 1,
) -> Tensor:
    """Transposed ACS convolution.

    Args:
        input: [N, C_in, D, H, W], any dtype that ``conv_transpose3d`` takes.
        weight: [C_in, C_out / groups, K_h, K_w].
        bias: [C_out] or None.
        split: output channels of the axial, coronal and sagittal view; a view of 0 is allowed.
        geometry: from :func:`acsconv_cuda.geometry.resolve_transposed`.

    Returns:
        [N, C_out, D', H', W'] in the input's memory format.
    """
    per_out, per_in = weight.shape[1], weight.shape[0] // groups
    size = geometry.output_size(input.shape[2:])
    if 0 in input.shape[2:]:  # of an empty batch: no position to take, and the result is as empty
        return (input.sum() + weight.sum()).expand(0, per_out * groups, *size)
    if geometry.is_one_view():
        pieces = iter([_Piece(0, 0, per_out * groups, 0, weight.shape[0], groups)])
    else:
        pieces = _split_pieces(split, per_out, per_in)
    parts = []
    for piece in pieces:
        first = piece.out_begin % per_out
        columns = slice(first, first + (piece.out_end - piece.out_begin) // piece.groups)
        kernel = weight[piece.in_begin : piece.in_end, columns]
        part_bias = None if bias is None else bias[_channels(piece)]
        parts.append(_convolve_transposed(input, kernel, part_bias, piece, geometry, size))
    return _join(parts).contiguous(memory_format=memory_format(input))


def backward_input(
    grad_output: Tensor,
    weight: Tensor,
    size: Sequence[int],
    split: Sequence[int] | None,
    geometry: Geometry,
    groups: int,
    format: torch.memory_format,
) -> Tensor:
    """Gradient of the input.

    Args:
        grad_output: [N, C_out, D', H', W'].
        weight: [C_out, C_in / groups, K_h, K_w]; for Soft ACS its kernels [3, C_out, C_in / groups, K_h, K_w].
        size: the input's (D, H, W).
        split: as in the forward pass; None for Soft ACS.

    Returns:
        [N, C_in, D, H, W], dense in the given memory format.
    """
    shape = (grad_output.shape[0], weight.shape[-3] * groups, *size)
    options = {"dtype": grad_output.dtype, "device": grad_output.device}
    grad_input = None
    for piece, kernel in _all_pieces(weight, split, groups, geometry):
        share, axes = _input_gradient(grad_output[:, _channels(piece)], kernel, size, piece, geometry)
        if share is None:
            continue
        if grad_input is None and share.shape == shape:
            grad_input = share
            continue
        if grad_input is None:
            grad_input = torch.empty(shape, memory_format=format, **options).zero_()
        _slice_input(grad_input, piece, axes).add_(share)
    if grad_input is None:
        return torch.empty(shape, memory_format=format, **options).zero_()
    return grad_input.contiguous(memory_format=format)


def backward_weight(
    grad_output: Tensor, input: Tensor, split: Sequence[int] | None, geometry: Geometry, groups: int
) -> Tensor:
    """Gradient of the weight; arguments as in :func:`backward_input`.

    Returns:
        [C_out, C_in / groups, K_h, K_w]; for Soft ACS (``split`` None) [3, C_out, C_in / groups, K_h, K_w].
    """
    shape = (grad_output.shape[1], input.shape[1] // groups, *geometry.kernel)
    grad_weight = grad_output.new_empty(shape if split is not None else (3, *shape))
    for piece, grad_kernel in _all_pieces(grad_weight, split, groups, geometry):
        grad_kernel.copy_(
            _weight_gradient(grad_output[:, _channels(piece)], input, grad_kernel, piece, geometry)
        )
    return grad_weight


def memory_format(tensor: Tensor) -> torch.memory_format:
    """The format an output takes from its input: channels-last only if the input is that and not contiguous too."""
    # Inside torch.func's transforms nothing but "contiguous" can be asked of a tensor.
    if tensor.is_contiguous() or torch._C._are_functorch_transforms_active():
        return torch.contiguous_format
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def _channels(piece: _Piece) -> slice:
    return slice(piece.out_begin, piece.out_end)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _all_pieces(
    weight: Tensor, split: Sequence[int] | None, groups: int, geometry: Geometry
) -> Iterator[tuple[_Piece, Tensor]]:
    """Every convolution of an ACS (``split`` given) or Soft ACS operation, with its part of the weight."""
    if split is not None:
        for piece in _pieces(weight, split, groups, geometry):
            yield piece, weight[_channels(piece)]
        return
    for view, kernel in enumerate(weight):
        for piece in _view_pieces(view, 0, kernel.shape[0], kernel.shape[0] // groups, kernel.shape[1]):
            yield piece, kernel[_channels(piece)]


def _pieces(weight: Tensor, split: Sequence[int], groups: int, geometry: Geometry) -> Iterator[_Piece]:
    """The convolutions that make up one ACS convolution, in the order of their output channels."""
    if geometry.is_one_view():
        yield _Piece(0, 0, weight.shape[0], 0, weight.shape[1] * groups, groups)
        return
    yield from _split_pieces(split, weight.shape[0] // groups, weight.shape[1])


def _split_pieces(split: Sequence[int], per_out: int, per_in: int) -> Iterator[_Piece]:
    """The pieces of all views; a channel group has ``per_out`` output and ``per_in`` input channels."""
    begin = 0
    for view, channels in enumerate(split):
        yield from _view_pieces(view, begin, begin + channels, per_out, per_in)
        begin += channels


def _view_pieces(view: int, begin: int, end: int, per_out: int, per_in: int) -> Iterator[_Piece]:
    """Output channels [begin, end) of one view, cut where a channel group is only partly inside."""
    while begin < end:
        group, inside = divmod(begin, per_out)
        whole = 0 if inside else (end - begin) // per_out
        stop = begin + whole * per_out if whole else min(end, (group + 1) * per_out)
        count = max(whole, 1)
        yield _Piece(view, begin, stop, group * per_in, (group + count) * per_in, count)
        begin = stop


def _axes(
    view: int, geometry: Geometry, in_size: Sequence[int], out_size: Sequence[int]
) -> tuple[_Axis, ...]:
    """How each axis of a view is computed; see :class:`_Axis`."""
    kernel = VIEWS[view].kernel3d(geometry.kernel)
    axes = []
    for axis in range(3):
        size, out, stride, origin = (
            in_size[axis],
            out_size[axis],
            geometry.stride[axis],
            geometry.origin[view][axis],
        )
        if axis == VIEWS[view].thin:
            # Outputs whose one position lies inside: a strided slice of the input.
            first = max(0, -(origin // stride))
            last = max(first, min(out, (size - 1 - origin) // stride + 1))
            begin = origin + first * stride
            axes.append(
                _Axis(begin, begin + max(0, (last - first - 1) * stride + 1), stride, 1, 0, 0, 0, first, last)
            )
            continue
        # What is read before the input and behind it; negative where the input is not used to its end.
        before = -origin
        reach = geometry.dilation[view][axis] * (kernel[axis] - 1)
        behind = (out - 1) * stride + origin + reach - (size - 1)
        begin, end = max(0, -before), size + min(0, behind)
        before, behind = max(0, before), max(0, behind)
        # A convolution pads both ends alike: pad more at the front where the end needs it, and skip those outputs.
        skip = max(0, -((before - behind) // stride))
        padding = before + skip * stride
        computed = (end - begin + 2 * padding - reach - 1) // stride + 1
        axes.append(_Axis(begin, end, 1, stride, padding, skip, computed - skip - out, 0, out))
    return tuple(axes)


def _reads_nothing(axes: tuple[_Axis, ...]) -> bool:
    """Whether every position that the view reads lies outside the volume."""
    return any(a.begin >= a.end for a in axes)


def _is_whole(axes: tuple[_Axis, ...], size: Sequence[int]) -> bool:
    return all(a.begin == 0 and a.end == s and a.step == 1 for a, s in zip(axes, size))


def _slice_input(input: Tensor, piece: _Piece, axes: tuple[_Axis, ...]) -> Tensor:
    """The view of the input [N, channels of the piece, ...] that the piece's convolution reads."""
    if piece.in_begin != 0 or piece.in_end != input.shape[1]:
        input = input[:, piece.in_begin : piece.in_end]
    if _is_whole(axes, input.shape[2:]):
        return input
    d, h, w = (slice(a.begin, a.end, a.step) for a in axes)
    return input[:, :, d, h, w]


def _convolve(
    input: Tensor, weight: Tensor, bias: Tensor | None, piece: _Piece, geometry: Geometry
) -> Tensor:
    """Output channels of one piece, [N, channels, D', H', W']; ``bias`` is that of the whole layer."""
    size = geometry.output_size(input.shape[2:])
    axes = _axes(piece.view, geometry, input.shape[2:], size)
    if bias is not None:
        bias = bias[_channels(piece)]
    if _reads_nothing(axes):
        # Only the bias is left. The empty sums are 0, but keep the result part of the graph.
        zero = input[:, :0].sum(dtype=input.dtype) + weight[:0].sum(dtype=input.dtype)
        out = zero if bias is None else zero + bias[:, None, None, None]
        return out.expand(input.shape[0], weight.shape[0], *size)
    border = any(a.first > 0 or a.last < n for a, n in zip(axes, size))
    guard = torch.is_grad_enabled() and weight.requires_grad
    dtype = _safe_dtype(input, axes)
    x, kernel, stride, padding, dilation, front = _arguments(
        _slice_input(input, piece, axes).to(dtype), weight.to(dtype), piece.view, geometry, axes, guard
    )
    inner_bias = None if border or bias is None else bias.to(dtype)
    out = F.conv3d(x, kernel, inner_bias, stride, padding, dilation, piece.groups)
    if front != 2:  # else no view: autograd forbids changing a view in place that an operator returned
        out = out.transpose(2, front)
    out = out.to(input.dtype)
    if any(a.skip or a.excess for a in axes):
        out = F.pad(out, [-n for a in axes[::-1] for n in (a.skip, a.excess)])
    if border:
        out = F.pad(out, [n for a, total in zip(axes[::-1], size[::-1]) for n in (a.first, total - a.last)])
        if bias is not None:
            out = out + bias[:, None, None, None]
    return out


def _convolve_transposed(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    piece: _Piece,
    geometry: TransposedGeometry,
    size: Sequence[int],
) -> Tensor:
    """Output channels of one piece, [N, channels, D', H', W']; ``kernel`` and ``bias`` are the piece's own.

    Every slice is convolved once, in its plane; then the thin axis takes those that are nearest.
    """
    thin = VIEWS[piece.view].thin
    # As in _safe_dtype: this is the gradient of a convolution whose output the input would be.
    narrow = input.device.type == "cpu" and input.dtype == torch.bfloat16 and 1 in input.shape[2:]
    dtype = torch.float32 if narrow else input.dtype
    x = input[:, piece.in_begin : piece.in_end].to(dtype)
    kernel = kernel.unsqueeze(2 + thin).to(dtype)
    stride = [1 if axis == thin else s for axis, s in enumerate(geometry.stride)]
    padding, dilation = list(geometry.padding[piece.view]), list(geometry.dilation[piece.view])
    extra = [0 if axis == thin else n for axis, n in enumerate(geometry.output_padding)]
    front = 0  # the axis that trades places with D
    if torch.is_grad_enabled() and kernel.requires_grad and _weight_gradient_is_faulty(x, kernel, stride):
        front = thin
        for values in (stride, padding, dilation, extra):
            values[0], values[front] = values[front], values[0]
    out = F.conv_transpose3d(
        x.transpose(2, 2 + front),
        kernel.transpose(2, 2 + front),
        None if bias is None else bias.to(dtype),
        stride,
        padding,
        extra,
        piece.groups,
        dilation,
    )
    out = out.transpose(2, 2 + front).to(input.dtype)
    positions = torch.arange(size[thin], device=input.device) + geometry.shift[thin]
    nearest = positions.div(geometry.stride[thin], rounding_mode="floor").clamp(0, input.shape[2 + thin] - 1)
    return out.index_select(2 + thin, nearest)


def _input_gradient(
    grad_output: Tensor, weight: Tensor, size: Sequence[int], piece: _Piece, geometry: Geometry
) -> tuple[Tensor | None, tuple[_Axis, ...]]:
    """The piece's share in the gradient of the input, for the slice that the axes describe; None if there is none."""
    axes = _axes(piece.view, geometry, size, tuple(grad_output.shape[2:]))
    if _reads_nothing(axes):
        return None, axes
    dtype = _safe_dtype(grad_output, axes)
    x = grad_output.new_empty(1, dtype=dtype).expand(
        grad_output.shape[0],
        piece.in_end - piece.in_begin,
        *(len(range(a.begin, a.end, a.step)) for a in axes),
    )
    arguments = _arguments(x, weight.to(dtype), piece.view, geometry, axes, False)
    share = _convolution_backward(
        _of_full_convolution(grad_output, axes).to(dtype), arguments, piece.groups, 0
    )
    return share.to(grad_output.dtype), axes


def _weight_gradient(
    grad_output: Tensor, input: Tensor, like: Tensor, piece: _Piece, geometry: Geometry
) -> Tensor:
    """The gradient of the piece's part of the weight, of the shape of ``like``."""
    axes = _axes(piece.view, geometry, input.shape[2:], tuple(grad_output.shape[2:]))
    if _reads_nothing(axes):
        return torch.zeros_like(like)
    dtype = _safe_dtype(input, axes)
    x = _slice_input(input, piece, axes).to(dtype)
    arguments = _arguments(x, like.to(dtype), piece.view, geometry, axes, True)
    grad_kernel = _convolution_backward(
        _of_full_convolution(grad_output, axes).to(dtype), arguments, piece.groups, 1
    )
    return grad_kernel.squeeze(2 + VIEWS[piece.view].thin).to(input.dtype)


def _convolution_backward(grad_output: Tensor, arguments: tuple, groups: int, which: int) -> Tensor:
    """PyTorch's gradient of x (``which`` = 0) or of the kernel (1); ``arguments`` are those of :func:`_arguments`."""
    x, kernel, stride, padding, dilation, front = arguments
    wanted = [which == 0, which == 1, False]
    gradients = torch.ops.aten.convolution_backward(
        grad_output.transpose(2, front),
        x,
        kernel,
        None,
        stride,
        padding,
        dilation,
        False,
        [0, 0, 0],
        groups,
        wanted,
    )
    return gradients[which].transpose(2, front)


def _of_full_convolution(grad_output: Tensor, axes: tuple[_Axis, ...]) -> Tensor:
    """From the gradient of a view's output to that of the convolution which computes it: what is dropped has none."""
    d, h, w = (slice(a.first, a.last) for a in axes)
    grad_output = grad_output[:, :, d, h, w]
    if any(a.skip or a.excess for a in axes):
        grad_output = F.pad(grad_output, [n for a in axes[::-1] for n in (a.skip, a.excess)])
    return grad_output


def _arguments(
    x: Tensor, weight: Tensor, view: int, geometry: Geometry, axes: tuple[_Axis, ...], guard: bool
) -> tuple[Tensor, Tensor, list[int], list[int], list[int], int]:
    """What ``conv3d`` is given for one view: (x, kernel, stride, padding, dilation), and the tensor dimension that
    has traded places with dimension 2: 2 itself, unless ``guard`` has to go round the faulty weight gradient."""
    thin = VIEWS[view].thin
    kernel = weight.unsqueeze(2 + thin)
    stride, padding, dilation = (
        [a.stride for a in axes],
        [a.padding for a in axes],
        list(geometry.dilation[view]),
    )
    if not (guard and _weight_gradient_is_faulty(x, kernel, stride)):
        return x, kernel, stride, padding, dilation, 2
    for values in (stride, padding, dilation):
        values[0], values[thin] = values[thin], values[0]
    return x.transpose(2, 2 + thin), kernel.transpose(2, 2 + thin), stride, padding, dilation, 2 + thin


def _safe_dtype(tensor: Tensor, axes: tuple[_Axis, ...]) -> torch.dtype:
    """The dtype in which PyTorch computes the convolution rightly: the tensor's, or float32.

    Seen in torch 2.13 (oneDNN 3.12) on a CPU: bfloat16 convolutions whose output is one voxel wide along an axis return
    garbage, forward and backward.
    """
    if tensor.device.type != "cpu" or tensor.dtype != torch.bfloat16:
        return tensor.dtype
    sizes = (a.last - a.first + a.skip + a.excess for a in axes)
    return torch.float32 if 1 in sizes else torch.bfloat16


def _weight_gradient_is_faulty(input: Tensor, kernel: Tensor, stride: Sequence[int]) -> bool:
    """Whether PyTorch's CPU convolution may return garbage, or crash, for this weight gradient.

    Seen in torch 2.13 (oneDNN 3.12): a kernel of 4 or more along D with stride 2 or more there, and a volume hardly
    deeper than the kernel or a padding of more than half of it. Garbage or a crash in float32 with few input channels,
    a call that never returns in 16 bit. Which sizes are safe is not known, so none is trusted. With the kernel's single
    tap along D the same gradient is right: the thin axis is moved there.
    """
    return (
        input.device.type == "cpu"
        and input.dtype != torch.float64
        and kernel.shape[2] >= 4
        and stride[0] >= 2
    )
