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

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import VIEWS, Geometry, TransposedGeometry
from .pieces import (
    Axis,
    Piece,
    all_pieces,
    channels_of,
    is_whole,
    pieces_of,
    reads_nothing,
    split_pieces,
    view_axes,
    view_pieces,
)
from .torch_faults import safe_dtype, weight_gradient_is_faulty


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
    pieces = pieces_of(weight, split, groups, geometry)
    out = _join([_convolve(input, weight[channels_of(piece)], bias, piece, geometry) for piece in pieces])
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
        pieces = view_pieces(view, 0, kernel.shape[0], kernel.shape[0] // groups, kernel.shape[1])
        part = _join(
            [_convolve(input, kernel[channels_of(piece)], view_bias, piece, geometry) for piece in pieces]
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
        pieces = iter([Piece(0, 0, per_out * groups, 0, weight.shape[0], groups)])
    else:
        pieces = split_pieces(split, per_out, per_in)
    parts = []
    for piece in pieces:
        first = piece.out_begin % per_out
        columns = slice(first, first + (piece.out_end - piece.out_begin) // piece.groups)
        kernel = weight[piece.in_begin : piece.in_end, columns]
        part_bias = None if bias is None else bias[channels_of(piece)]
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
    for piece, kernel in all_pieces(weight, split, groups, geometry):
        share, axes = _input_gradient(
            grad_output[:, channels_of(piece)], kernel, size, piece, geometry, format
        )
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
    for piece, grad_kernel in all_pieces(grad_weight, split, groups, geometry):
        grad_kernel.copy_(
            _weight_gradient(grad_output[:, channels_of(piece)], input, grad_kernel, piece, geometry)
        )
    return grad_weight


def memory_format(tensor: Tensor) -> torch.memory_format:
    """The format an output takes from its input: channels-last only if the input is that and not contiguous too."""
    # Inside torch.func's transforms nothing but "contiguous" can be asked of a tensor.
    if tensor.is_contiguous() or torch._C._are_functorch_transforms_active():
        return torch.contiguous_format
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _slice_input(input: Tensor, piece: Piece, axes: tuple[Axis, ...]) -> Tensor:
    """The view of the input [N, channels of the piece, ...] that the piece's convolution reads."""
    if piece.in_begin != 0 or piece.in_end != input.shape[1]:
        input = input[:, piece.in_begin : piece.in_end]
    if is_whole(axes, input.shape[2:]):
        return input
    d, h, w = (slice(a.begin, a.end, a.step) for a in axes)
    return input[:, :, d, h, w]


def _convolve(input: Tensor, weight: Tensor, bias: Tensor | None, piece: Piece, geometry: Geometry) -> Tensor:
    """Output channels of one piece, [N, channels, D', H', W']; ``bias`` is that of the whole layer."""
    size = geometry.output_size(input.shape[2:])
    axes = view_axes(piece.view, geometry, input.shape[2:], size)
    if bias is not None:
        bias = bias[channels_of(piece)]
    if reads_nothing(axes):
        # Only the bias is left. The empty sums are 0, but keep the result part of the graph.
        zero = input[:, :0].sum(dtype=input.dtype) + weight[:0].sum(dtype=input.dtype)
        out = zero if bias is None else zero + bias[:, None, None, None]
        return out.expand(input.shape[0], weight.shape[0], *size)
    border = any(a.first > 0 or a.last < n for a, n in zip(axes, size))
    guard = torch.is_grad_enabled() and weight.requires_grad
    dtype = safe_dtype(input, axes)
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
    piece: Piece,
    geometry: TransposedGeometry,
    size: Sequence[int],
) -> Tensor:
    """Output channels of one piece, [N, channels, D', H', W']; ``kernel`` and ``bias`` are the piece's own.

    Every slice is convolved once, in its plane; then the thin axis takes those that are nearest.
    """
    thin = VIEWS[piece.view].thin
    # As in safe_dtype: this is the gradient of a convolution whose output the input would be.
    narrow = input.device.type == "cpu" and input.dtype == torch.bfloat16 and 1 in input.shape[2:]
    dtype = torch.float32 if narrow else input.dtype
    x = input[:, piece.in_begin : piece.in_end].to(dtype)
    kernel = kernel.unsqueeze(2 + thin).to(dtype)
    stride = [1 if axis == thin else s for axis, s in enumerate(geometry.stride)]
    padding, dilation = list(geometry.padding[piece.view]), list(geometry.dilation[piece.view])
    extra = [0 if axis == thin else n for axis, n in enumerate(geometry.output_padding)]
    front = 0  # the axis that trades places with D
    if torch.is_grad_enabled() and kernel.requires_grad and weight_gradient_is_faulty(x, kernel, stride):
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
    grad_output: Tensor,
    weight: Tensor,
    size: Sequence[int],
    piece: Piece,
    geometry: Geometry,
    format: torch.memory_format,
) -> tuple[Tensor | None, tuple[Axis, ...]]:
    """The piece's share in the gradient of the input, for the slice that the axes describe; None if there is none."""
    axes = view_axes(piece.view, geometry, size, tuple(grad_output.shape[2:]))
    if reads_nothing(axes):
        return None, axes
    dtype = safe_dtype(grad_output, axes)
    shape = (
        grad_output.shape[0],
        piece.in_end - piece.in_begin,
        *(len(range(a.begin, a.end, a.step)) for a in axes),
    )
    on_cpu = grad_output.device.type == "cpu"
    if on_cpu:
        # Memory that nothing reads or writes. oneDNN would write a smaller tensor out in full, and contiguous.
        x = torch.empty(shape, dtype=dtype, device=grad_output.device, memory_format=format)
    else:
        x = grad_output.new_empty(1, dtype=dtype).expand(shape)
    arguments = _arguments(x, weight.to(dtype), piece.view, geometry, axes, False)
    if not on_cpu:
        # Of two tensors that say which format to compute in, x has none.
        kernel = torch.empty_like(arguments[1], memory_format=format).copy_(arguments[1])
        arguments = (x, kernel, *arguments[2:])
    share = _convolution_backward(
        _of_full_convolution(grad_output, axes).to(dtype), arguments, piece.groups, 0
    )
    return share.to(grad_output.dtype), axes


def _weight_gradient(
    grad_output: Tensor, input: Tensor, like: Tensor, piece: Piece, geometry: Geometry
) -> Tensor:
    """The gradient of the piece's part of the weight, of the shape of ``like``."""
    axes = view_axes(piece.view, geometry, input.shape[2:], tuple(grad_output.shape[2:]))
    if reads_nothing(axes):
        return torch.zeros_like(like)
    dtype = safe_dtype(input, axes)
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


def _of_full_convolution(grad_output: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """From the gradient of a view's output to that of the convolution which computes it: what is dropped has none."""
    d, h, w = (slice(a.first, a.last) for a in axes)
    grad_output = grad_output[:, :, d, h, w]
    if any(a.skip or a.excess for a in axes):
        grad_output = F.pad(grad_output, [n for a in axes[::-1] for n in (a.skip, a.excess)])
    return grad_output


def _arguments(
    x: Tensor, weight: Tensor, view: int, geometry: Geometry, axes: tuple[Axis, ...], guard: bool
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
    if not (guard and weight_gradient_is_faulty(x, kernel, stride)):
        return x, kernel, stride, padding, dilation, 2
    for values in (stride, padding, dilation):
        values[0], values[thin] = values[thin], values[0]
    return x.transpose(2, 2 + thin), kernel.transpose(2, 2 + thin), stride, padding, dilation, 2 + thin
