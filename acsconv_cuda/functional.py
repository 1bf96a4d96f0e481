"""The public functions: arguments are checked here, once, and handed on to the operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from . import ops, reference, shortcuts
from .backends import check_name
from .geometry import AXES, Geometry, IntOrTuple, as_int, check_split, resolve, resolve_transposed

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def acs_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    split: Sequence[int] | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    backend: str = "auto",
) -> Tensor:
    """ACS (axial-coronal-sagittal) convolution of a volume with a bank of 2D kernels.

    The kernels are split by output channel into three groups, and each group convolves another plane of the volume:
    (H, W), (D, W) and (D, H). Output sizes are those of ``conv3d`` with a cubic kernel.

    Args:
        input: [N, C_in, D, H, W] or [C_in, D, H, W], floating-point or complex, any strides.
        weight: [C_out, C_in / groups, K_h, K_w], of the input's dtype and device: the weight of a 2D layer.
        bias: [C_out] or None.
        split: output channels of the axial, coronal and sagittal group; 0 is allowed. None: a third each, the remainder
            to the axial group first, then the coronal.
        stride: in voxels; an int or one per axis (D, H, W).
        padding: in voxels; an int, one per axis, a pair (p_h, p_w) that belongs to the kernel's axes, ``'same'``
            (stride 1) or ``'valid'``.
        dilation: in voxels; an int, one per axis, or a pair that belongs to the kernel's axes.
        groups: channel groups, as in ``conv3d``; C_in for a depthwise convolution.
        padding_mode: what a position outside the volume reads: ``'zeros'``, ``'reflect'``, ``'replicate'`` or
            ``'circular'``. All but the first pad the input into a copy, as ``nn.Conv3d`` does.
        backend: ``'auto'``, ``'cuda'``, ``'cpu'`` or ``'torch'``; see :mod:`acsconv_cuda.backends`.

    Returns:
        [N, C_out, D', H', W'], without N if the input has none, in the input's memory format.

    Raises:
        TypeError: an argument of a wrong type, or of another dtype than the input.
        ValueError: shapes, split or geometry that do not go together; the message names the argument.
        RuntimeError: the backend asked for cannot compute this problem.

    Under autocast input, weight and bias are cast to autocast's dtype. Differentiable any number of times.

    Source: Yang et al., "Reinventing 2D Convolutions for 3D Images", IEEE JBHI 2021, section III.
    """
    parameters = (split, stride, padding, dilation, groups, padding_mode, backend)
    if (out := shortcuts.forward(input, weight, bias, parameters)) is not None:
        return out
    volume = _check_tensors(input, weight, bias, groups, backend)
    split = check_split(split, weight.shape[0])
    geometry = resolve(tuple(weight.shape[2:]), stride, padding, dilation)
    volume, geometry = _pad(volume, geometry, padding_mode)
    arguments = ops.Arguments(split, geometry, groups, backend)
    out = _convolve(volume, weight, bias, arguments)
    if volume is input:
        shortcuts.remember(input, weight, parameters, arguments)
    return out if input.dim() == 5 else out.squeeze(0)


def soft_acs_conv3d(
    input: Tensor,
    weight: Tensor,
    view_weights: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    backend: str = "auto",
) -> Tensor:
    """Soft ACS convolution: every output channel is a weighted sum of its kernel's three views.

    Args:
        view_weights: [C_out, 3], the factors of the axial, coronal and sagittal view, of the weight's dtype and device:
            a softmax over its rows for Soft ACS, 1/3 everywhere for mean ACS; any values are allowed.

    The other arguments, the result and the errors are those of :func:`acs_conv3d`.

    Source: Yang et al., IEEE JBHI 2021; ``soft_acsconv.py`` of acsconv 0.1.1.
    """
    volume = _check_tensors(input, weight, bias, groups, backend)
    if not isinstance(view_weights, Tensor):
        raise TypeError(f"view_weights: expected a torch.Tensor, got {type(view_weights).__name__}")
    if tuple(view_weights.shape) != (weight.shape[0], 3):
        raise ValueError(
            f"view_weights: expected shape [C_out, 3] = [{weight.shape[0]}, 3], got {list(view_weights.shape)}"
        )
    _check_like("view_weights", view_weights, "weight", weight)
    geometry = resolve(tuple(weight.shape[2:]), stride, padding, dilation)
    volume, geometry = _pad(volume, geometry, padding_mode)
    if geometry.is_one_view():  # one convolution with the sum of the factors, not three
        weight = weight * view_weights.sum(1)[:, None, None, None]
        arguments = ops.Arguments((weight.shape[0], 0, 0), geometry, groups, backend)
    else:
        weight = reference.fold_view_weights(weight, view_weights)
        arguments = ops.Arguments(None, geometry, groups, backend)
    out = _convolve(volume, weight, bias, arguments)
    return out if input.dim() == 5 else out.squeeze(0)


def acs_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    split: Sequence[int] | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    output_padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Transposed ACS convolution of a volume with a bank of 2D kernels.

    The kernels are split by output channel into three groups, and each group does in another plane of the volume what
    ``conv_transpose2d`` does in an image: (H, W), (D, W) and (D, H). Along the third axis, of the same output size, it
    takes the nearest slice (see :func:`acsconv_cuda.geometry.resolve_transposed`): a 2x2 kernel of stride 2 doubles
    every slice, as nearest-neighbour upsampling does.

    Args:
        input: [N, C_in, D, H, W] or [C_in, D, H, W], floating-point or complex, any strides.
        weight: [C_in, C_out / groups, K_h, K_w], of the input's dtype and device: the weight of a transposed 2D layer.
        bias: [C_out] or None.
        split: output channels of the axial, coronal and sagittal group; 0 is allowed. None: a third each, the remainder
            to the axial group first, then the coronal.
        stride: in voxels of the output; an int or one per axis (D, H, W).
        padding: what is cut off both ends of the output; an int, one per axis, or a pair (p_h, p_w) that belongs to the
            kernel's axes.
        output_padding: what the far end of the output gets in addition; an int or one per axis, below the stride or the
            dilation.
        dilation: in voxels; an int, one per axis, or a pair that belongs to the kernel's axes.
        groups: channel groups, as in ``conv_transpose3d``.
        backend: ``'auto'`` or ``'torch'``. There are no fused kernels, so ``ACSCONV_BACKEND`` has nothing to choose.

    Returns:
        [N, C_out, D', H', W'], without N if the input has none, in the input's memory format; each size is
        ``(S - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1``.

    Raises:
        TypeError: an argument of a wrong type, or of another dtype than the input.
        ValueError: shapes, split or geometry that do not go together; the message names the argument.
        RuntimeError: a backend other than those.

    Under autocast input, weight and bias are cast to autocast's dtype. Differentiable any number of times.

    Source: the operator that Yang et al., IEEE JBHI 2021, leave out; the rule of the third axis is this project's.
    """
    volume = _check_tensors(input, weight, bias, groups, backend, transposed=True)
    split = check_split(split, weight.shape[1] * groups)
    geometry = resolve_transposed(tuple(weight.shape[2:]), stride, padding, output_padding, dilation)
    if backend not in ("auto", "torch"):
        raise RuntimeError(
            f"backend={backend!r} cannot compute this: transposed ACS convolution is for 'torch' only"
        )
    for axis, (size, out) in enumerate(zip(volume.shape[2:], geometry.output_size(volume.shape[2:]))):
        # As in nn.ConvTranspose3d, an empty batch may be one of empty volumes.
        if out < 1 or (size == 0 and volume.shape[0] > 0):
            raise ValueError(
                f"input: size {size} along {AXES[axis]} is too small; kernel {geometry.kernel} with this stride, "
                f"padding and dilation would make it {out}"
            )
    if _autocasts(volume):
        device = volume.device.type
        dtype = torch.get_autocast_dtype(device)
        tensors = (t if t is None else t.to(dtype) for t in (volume, weight, bias))
        with torch.autocast(device, enabled=False):
            out = reference.acs_conv_transpose3d(*tensors, split, geometry, groups)
    else:
        out = reference.acs_conv_transpose3d(volume, weight, bias, split, geometry, groups)
    return out if input.dim() == 5 else out.squeeze(0)


def _pad(volume: Tensor, geometry: Geometry, mode: str) -> tuple[Tensor, Geometry]:
    """The volume and geometry that make positions outside the volume read what ``mode`` puts there."""
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode: expected one of {', '.join(map(repr, PADDING_MODES))}, got {mode!r}")
    if mode == "zeros":
        return volume, geometry
    begin, end = geometry.padding_needed()
    for axis, size in enumerate(volume.shape[2:]):
        pad, most = max(begin[axis], end[axis]), {"reflect": size - 1, "circular": size}.get(mode)
        if most is not None and pad > most:
            raise ValueError(
                f"input: size {size} along {AXES[axis]} is too small for padding {pad} with padding_mode={mode!r}, "
                f"which can pad by at most {most}"
            )
    pads = [n for both in zip(begin[::-1], end[::-1]) for n in both]
    return F.pad(volume, pads, mode=mode), geometry.on_padded(begin, end)


def _convolve(volume: Tensor, weight: Tensor, bias: Tensor | None, arguments: ops.Arguments) -> Tensor:
    """The operator on checked arguments: ``volume`` is [N, C_in, D, H, W].

    Raises:
        ValueError: the volume is too small for the geometry.
    """
    geometry = arguments.geometry
    out_size = geometry.output_size(volume.shape[2:])
    for axis, (size, out) in enumerate(zip(volume.shape[2:], out_size, strict=True)):
        # As in nn.Conv3d, an empty batch may be one of empty volumes.
        if out < 1 or (size == 0 and volume.shape[0] > 0):
            raise ValueError(
                f"input: size {size} along {AXES[axis]} is too small; kernel {geometry.kernel} with this padding and "
                f"dilation needs {max(1, geometry.shrink[axis] + 1)} or more"
            )
    if volume.is_complex() or (not torch.compiler.is_compiling() and forward_ad._current_level >= 0):
        return _composed(volume, weight, bias, arguments)
    return ops.convolve(volume, weight, bias, arguments)


def _composed(volume: Tensor, weight: Tensor, bias: Tensor | None, arguments: ops.Arguments) -> Tensor:
    """The reference as a composition of PyTorch's functions: for what the operators do not know, complex numbers and
    forward-mode differentiation."""
    if arguments.backend not in ("auto", "torch"):
        what = volume.dtype if volume.is_complex() else "forward-mode differentiation"
        raise RuntimeError(f"backend={arguments.backend!r} cannot compute this: {what} is for 'torch' only")
    split, geometry, groups, _ = arguments
    if split is None:
        return reference.soft_acs_conv3d(volume, weight, bias, geometry, groups)
    return reference.acs_conv3d(volume, weight, bias, split, geometry, groups)


def _check_tensors(
    input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, backend: str, transposed: bool = False
) -> Tensor:
    """Checks all that does not depend on the geometry; returns the input as [N, C_in, D, H, W]."""
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if input.dim() not in (4, 5):
        raise ValueError(
            f"input: expected [N, C_in, D, H, W] or [C_in, D, H, W], got {input.dim()} dimensions: {list(input.shape)}"
        )
    if weight.dim() != 4:
        channels = "C_in, C_out / groups" if transposed else "C_out, C_in / groups"
        raise ValueError(
            f"weight: expected [{channels}, K_h, K_w], got {weight.dim()} dimensions: {list(weight.shape)}"
        )
    as_int(groups, "groups")
    if groups < 1:
        raise ValueError(f"groups: expected 1 or more, got {groups}")
    if 0 in weight.shape:
        raise ValueError(f"weight: expected no size of 0, got {list(weight.shape)}")
    whole, per_group, *_ = weight.shape
    if whole % groups:
        what = "input" if transposed else "output"
        raise ValueError(f"groups: {groups} does not divide the weight's {whole} {what} channels")
    wanted, out_channels = (whole, per_group * groups) if transposed else (per_group * groups, whole)
    in_channels = input.shape[-4]
    if in_channels != wanted:
        raise ValueError(
            f"input: expected {wanted} channels (weight {list(weight.shape)}, groups {groups}), got "
            f"{in_channels}: {list(input.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise ValueError(f"bias: expected shape [{out_channels}], got {list(bias.shape)}")
    if not (input.is_floating_point() or input.is_complex()):
        raise TypeError(f"input: expected a floating-point or complex dtype, got {input.dtype}")
    _check_like("weight", weight, "input", input)
    if bias is not None:
        _check_like("bias", bias, "input", input)
    check_name(backend)
    return input if input.dim() == 5 else input.unsqueeze(0)


def _check_like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless the two agree in device and, where autocast does not see to it, in dtype."""
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected the {other_name}'s device {other.device}, got {tensor.device}")
    if tensor.dtype != other.dtype and not (_autocasts(tensor) and _autocasts(other)):
        raise TypeError(f"{name}: expected the {other_name}'s dtype {other.dtype}, got {tensor.dtype}")


def _autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on and would cast the tensor; it leaves float64 and complex tensors alone."""
    device_type = tensor.device.type
    # torch.compile cannot trace the question whether there is autocast in PyTorch 2.11.
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(device_type):
        return False
    if not torch.is_autocast_enabled(device_type):
        return False
    return tensor.is_floating_point() and tensor.dtype != torch.float64
