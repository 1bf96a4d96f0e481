"""Which implementation computes a problem, and why not another one.

``cuda`` and ``cpu`` are the fused kernels of the compiled part; ``torch`` is :mod:`acsconv_cuda.reference` and
supports everything. The sentence that an explicit ``backend="cuda"`` raises is the one that ``auto`` warns with when it
falls back on a GPU.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _loader

if TYPE_CHECKING:
    from .passes import Arguments

#: In the order of ``auto``.
BACKENDS = ("cuda", "cpu", "torch")

PASSES = ("forward", "backward_input", "backward_weight")
FAMILIES = ("acs", "soft")

#: What the fused kernels cover: (pass, family), and dtypes.
FUSED_PASSES = {
    name: {(operation, family) for operation in PASSES for family in FAMILIES} for name in ("cuda", "cpu")
}
FUSED_DTYPES = dict.fromkeys(("cuda", "cpu"), (torch.float64, torch.float32, torch.float16, torch.bfloat16))

#: Forces a backend. os.environ makes and catches an exception for what is not in it, which takes a tenth of a small
#: layer's time, so the dictionary behind it is asked first.
_VARIABLE = "ACSCONV_BACKEND"
_ENVIRONMENT = getattr(os.environ, "_data", os.environ)
_ENCODED = _VARIABLE if _ENVIRONMENT is os.environ else os.environ.encodekey(_VARIABLE)

_warned: set[str] = set()


def backends() -> dict[str, bool]:
    """The backends by name, and whether each can be used on this machine. Never raises, never initialises CUDA."""
    return {name: is_available(name) for name in BACKENDS}


def is_available(backend: str = "cuda") -> bool:
    """Whether the backend can be used on this machine. Never raises, never initialises CUDA."""
    return why_unavailable(backend) is None


def why_unavailable(backend: str = "cuda") -> str | None:
    """One sentence why the backend cannot be used on this machine; None if it can.

    Never raises, never initialises CUDA: what only the device itself can tell (whether a kernel was built for it) is
    checked when a problem is run there.
    """
    if backend == "torch":
        return None
    if backend == "cpu":
        return _loader.failure()
    if backend == "cuda":
        return _loader.why_no_cuda()
    return f"backend: expected one of 'cuda', 'cpu', 'torch', got {backend!r}"


def check_name(backend: str, name: str = "backend") -> str:
    """``backend`` if it is 'auto' or one of :data:`BACKENDS`; a ValueError otherwise."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"{name}: expected 'auto', 'cuda', 'cpu' or 'torch', got {backend!r}")
    return backend


def forced() -> str | None:
    """The backend that the environment asks for, now; None if it asks for none."""
    return os.environ[_VARIABLE] or None if _ENCODED in _ENVIRONMENT else None


def choose(operation: str, tensor: Tensor, arguments: Arguments) -> str:
    """The backend that computes one pass ("forward", "backward_input" or "backward_weight").

    Args:
        tensor: any volume of the problem. Its device, dtype and shape count; in the forward pass its strides must not,
            for :mod:`acsconv_cuda.shortcuts` remembers that choice.
        arguments: with the backend that was asked for.

    Raises:
        RuntimeError: the backend asked for cannot compute the forward pass. A gradient that it has no kernel for is
            computed by ``torch``.
        ValueError: no backend of that name.
    """
    requested, asked_by = check_name(arguments.backend), "backend"
    if requested == "auto":
        asked_by = _VARIABLE
        requested = check_name(forced() or "auto", asked_by)
    if requested == "torch":
        return "torch"
    if requested != "auto":
        reason = why_not(requested, operation, tensor, arguments)
        if reason is None:
            return requested
        if operation == "forward":
            raise RuntimeError(f"{asked_by}={requested!r} cannot compute this: {reason}")
        return "torch"
    fused = _device_type(tensor)
    if fused not in FUSED_PASSES or _is_better_left_to_torch(operation, fused, tensor, arguments):
        return "torch"
    reason = why_not(fused, operation, tensor, arguments)
    if reason is None:
        return fused
    if fused == "cuda" and reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"acsconv_cuda computes with plain PyTorch: {reason}", RuntimeWarning, stacklevel=2)
    return "torch"


def _device_type(tensor: Tensor) -> str:
    # PyTorch makes the object and its string anew, every time.
    return "cpu" if tensor.is_cpu else tensor.device.type


def _is_better_left_to_torch(operation: str, fused: str, tensor: Tensor, arguments: Arguments) -> bool:
    """Problems that a fused backend could compute, and that ``auto`` gives to PyTorch because it is faster there.

    A 1x1 kernel is a plain matrix product, which PyTorch computes faster where it is large. On processors with AMX,
    PyTorch multiplies bfloat16 with it in layers wide enough to fill it; ours do so where the compiler knew AMX.
    """
    if arguments.geometry.is_one_view():
        if fused != "cpu":
            return True
        dense = arguments.split is not None and arguments.groups == 1
        if dense and tensor.dtype in (torch.float32, torch.float64) and _matrix_products_are_half_as_wide():
            return False
        return not _waits_for_memory(operation, tensor, arguments)
    wide = tensor.shape[1] // arguments.groups >= 64
    if fused != "cpu" or tensor.dtype != torch.bfloat16 or not wide or not torch.cpu._is_amx_tile_supported():
        return False
    return "amx" not in _loader.cpu_instruction_sets()


@functools.cache
def _matrix_products_are_half_as_wide() -> bool:
    """Whether PyTorch's matrix products of float32 and float64 use half of the processor's vectors.

    They are MKL's, which takes AVX-512 on Intel's processors alone.
    """
    if not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _waits_for_memory(operation: str, tensor: Tensor, arguments: Arguments) -> bool:
    """Whether a 1x1 layer spends so much on its volumes, or on what a stride picks out, that products do not decide."""
    split, geometry, groups, _ = arguments
    if split is None or groups != 1 or tensor.dtype == torch.float64:
        return False
    is_strided = geometry.stride != (1, 1, 1)
    if operation == "forward":
        is_single = tensor.dtype == torch.float32
        if min(tensor.shape[1], sum(split)) <= (32 if is_single else 64):
            return True
        voxels = math.prod(geometry.output_size(tensor.shape[2:]))
        return voxels >= (1728 if is_strided else 4096) and (is_single or is_strided)
    if tensor.dtype != torch.float32 or math.prod(tensor.shape[2:]) < 4096:
        return False
    if operation == "backward_input":
        return not is_strided and tensor.shape[1] <= (96 if tensor.is_contiguous() else 16)
    return is_strided


def why_not(backend: str, operation: str, tensor: Tensor, arguments: Arguments) -> str | None:
    """One sentence why a fused backend does not compute this pass of this problem; None if it does."""
    device_type = _device_type(tensor)
    if device_type != backend:
        return f"the input is on {device_type}"
    reason = _loader.why_no_cuda(tensor.device.index) if backend == "cuda" else why_unavailable(backend)
    if reason is not None:
        return reason
    family = "soft" if arguments.split is None else "acs"
    if (operation, family) not in FUSED_PASSES[backend]:
        what = {"acs": "ACS", "soft": "Soft ACS"}[family]
        return f"the fused {backend} kernels do not compute the pass {operation} of {what} convolution"
    if tensor.dtype not in FUSED_DTYPES[backend]:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in FUSED_DTYPES[backend])
        return f"the fused {backend} kernels take {supported}, not {str(tensor.dtype).removeprefix('torch.')}"
    return None
