"""What the operators do: the backend is chosen for the pass at hand, and computes it.

The torch backend computes in terms of PyTorch's operators (:mod:`acsconv_cuda.reference`), the others by the compiled
``acsconv::fused_*`` operators. :mod:`acsconv_cuda.ops` registers these functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import pointwise, reference
from .backends import choose
from .geometry import Geometry


class Arguments(NamedTuple):
    """What all operators of both families take behind their tensors, in this order (``split`` only ACS)."""

    split: Sequence[int] | None  # None: Soft ACS
    geometry: Geometry
    groups: int
    backend: str

    def flat(self) -> tuple:
        """As the operators take them."""
        g = self.geometry
        numbers = (
            g.kernel,
            g.stride,
            g.flat_origin(),
            g.flat_dilation(),
            g.shrink,
            self.groups,
            self.backend,
        )
        return numbers if self.split is None else (self.split, *numbers)

    @classmethod
    def of(cls, flat: Sequence) -> Arguments:
        """The inverse of :meth:`flat`; a call past the dispatcher hands them on as they are."""
        if len(flat) == 1:
            return flat[0]
        split = flat[0] if len(flat) == 8 else None
        kernel, stride, origin, dilation, shrink, groups, backend = flat[-7:]
        geometry = Geometry(
            tuple(kernel),
            tuple(stride),
            (tuple(origin[:3]), tuple(origin[3:6]), tuple(origin[6:])),
            (tuple(dilation[:3]), tuple(dilation[3:6]), tuple(dilation[6:])),
            tuple(shrink),
        )
        return cls(split, geometry, groups, backend)

    @property
    def name(self) -> str:
        return "soft_acs_conv3d" if self.split is None else "acs_conv3d"


def refuse_complex(input: Tensor) -> None:
    """The adjoints have no conjugates; acs_conv3d and soft_acs_conv3d do not come here with complex tensors."""
    if input.is_complex():
        raise TypeError(
            f"input: expected a real floating-point dtype, got {input.dtype}; acs_conv3d takes complex"
        )


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, *flat) -> Tensor:
    refuse_complex(input)
    arguments = Arguments.of(flat)
    return forward_by(choose("forward", input, arguments), input, weight, bias, arguments)


def forward_by(
    backend: str, input: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments
) -> Tensor:
    """The forward pass by a backend that :func:`choose` chose for it."""
    split, geometry, groups, _ = arguments
    if backend != "cuda":
        weight, bias = _rounded(weight, input), None if bias is None else _rounded(bias, input)
    if backend == "torch":
        if split is None:
            return reference.soft_acs_conv3d(input, weight, bias, geometry, groups)
        if pointwise.serves("forward", input, geometry, groups):
            return pointwise.forward(input, weight, bias, geometry)
        return reference.acs_conv3d(input, weight, bias, split, geometry, groups)
    tf32 = backend == "cuda" and tf32_is_allowed()
    return torch.ops.acsconv.fused_forward(input, weight, bias, *fused_numbers(input, arguments), tf32)


def fused_numbers(input: Tensor, arguments: Arguments) -> tuple:
    """What ``fused_forward`` takes between its tensors and ``allow_tf32``."""
    return *_fused(arguments), arguments.geometry.output_size(input.shape[2:]), arguments.groups


def packed_numbers(input: Tensor, arguments: Arguments) -> Tensor:
    """The same as ``fused_forward_packed`` takes them; ACS, not Soft ACS."""
    *lists, groups = fused_numbers(input, arguments)
    return torch.tensor([*itertools.chain(*lists), groups])


def backward_input(
    grad_output: Tensor, weight: Tensor, size: Sequence[int], channels_last: bool, *flat
) -> Tensor:
    arguments = Arguments.of(flat)
    split, geometry, groups, _ = arguments
    backend = choose("backward_input", grad_output, arguments)
    if backend != "cuda":
        weight = _rounded(weight, grad_output)
    if backend == "torch":
        format = format_of(channels_last)
        if split is not None and pointwise.serves("backward_input", grad_output, geometry, groups):
            return pointwise.backward_input(grad_output, weight, size, geometry, format)
        return reference.backward_input(grad_output, weight, size, split, geometry, groups, format)
    return torch.ops.acsconv.fused_backward_input(
        grad_output,
        weight,
        size,
        channels_last,
        *_fused(arguments),
        groups,
        backend == "cuda" and tf32_is_allowed(),
    )


def backward_weight(
    grad_output: Tensor, input: Tensor, needs_bias: bool, float32: bool, *flat
) -> tuple[Tensor, Tensor]:
    arguments = Arguments.of(flat)
    split, geometry, groups, _ = arguments
    backend = choose("backward_weight", grad_output, arguments)
    if backend == "torch":
        if split is not None and pointwise.serves("backward_weight", grad_output, geometry, groups):
            grad_weight = pointwise.backward_weight(grad_output, input, geometry)
        else:
            grad_weight = reference.backward_weight(grad_output, input, split, geometry, groups)
        grad_bias = grad_output.sum((0, 2, 3, 4)) if needs_bias else grad_output.new_empty(0)
        dtype = gradient_dtype(grad_output, float32)
        return grad_weight.to(dtype), grad_bias.to(dtype)
    return torch.ops.acsconv.fused_backward_weight(
        grad_output,
        input,
        geometry.kernel,
        needs_bias,
        *_fused(arguments),
        groups,
        backend == "cuda" and tf32_is_allowed(),
        float32,
    )


def gradient_dtype(volume: Tensor, float32: bool) -> torch.dtype:
    return torch.float32 if float32 and volume.dtype.itemsize == 2 else volume.dtype


def _rounded(weight: Tensor, volume: Tensor) -> Tensor:
    """A float32 weight in the dtype of a 16-bit volume; the CUDA kernels round it while they pack it."""
    return weight if weight.dtype == volume.dtype else weight.to(volume.dtype)


def tf32_is_allowed() -> bool:
    """Whether PyTorch's settings let convolutions round float32 to TF32 on a GPU, as its own do by default.

    ``torch.backends.cudnn.conv.fp32_precision`` ("tf32" or "ieee"; "none" leaves it to the settings above it), where
    PyTorch has it, else ``torch.backends.cudnn.allow_tf32``. Read at every call.
    """
    conv = getattr(torch.backends.cudnn, "conv", None)
    precision = getattr(conv, "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if precision is None else precision == "tf32"


def _fused(arguments: Arguments) -> tuple:
    """Split and geometry as the compiled operators take them."""
    geometry = arguments.geometry
    return arguments.split or (), geometry.stride, geometry.flat_origin(), geometry.flat_dilation()


def format_of(channels_last: bool) -> torch.memory_format:
    return torch.channels_last_3d if channels_last else torch.contiguous_format
