"""Memory that an operation needs for itself, beyond its inputs and results, while it runs: upper bounds, by formula."""

from __future__ import annotations

import torch
from torch import Tensor

MIB = 1 << 20

#: Partial sums of the gradient of a weight: how many at most, and their bytes at most. csrc/DESIGN.md and
#: csrc/cpu/DESIGN.md say why.
_PARTS = {"cpu": (16, 16 * MIB), "cuda": (512, 64 * MIB)}

#: Dtypes whose convolutions PyTorch gives to oneDNN on a CPU.
_ONEDNN = (torch.float32, torch.bfloat16, torch.float16)


def workspace(func: torch._ops.OpOverload, args: tuple, out: object, device: str) -> int:
    """Bytes that the operation ``out = func(*args)`` needs for itself on ``device`` (``'cpu'`` or ``'cuda'``).

    The fused kernels pack their weights, or have partial sums of the weight's gradient. oneDNN, which computes
    PyTorch's convolutions on a CPU, copies a contiguous volume into blocks of channels, what it reads as well as what
    it writes. cuDNN's choice is not known beforehand, and not counted.
    """
    if func.namespace == "acsconv":
        if func._schema.name.endswith("_backward_weight"):
            count, most = _PARTS[device]
            return min(most, count * out[0].numel() * 4)
        return _size(args[1])
    if device == "cpu" and func is torch.ops.aten.convolution.default:
        return _blocks(args[0], out, args[1])
    if device == "cpu" and func is torch.ops.aten.convolution_backward.default:
        return _blocks(args[0], args[1], args[2])
    return 0


def _blocks(volume: Tensor, other: Tensor, weight: Tensor) -> int:
    channels_last = volume.dim() == 5 and volume.is_contiguous(memory_format=torch.channels_last_3d)
    if volume.dtype not in _ONEDNN or (channels_last and not volume.is_contiguous()):
        return 0
    return _size(volume) + _size(other) + _size(weight)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
