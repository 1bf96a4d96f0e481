"""Faults of PyTorch's own convolutions that the reference goes round, each with where it was seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .pieces import Axis


def safe_dtype(tensor: Tensor, axes: tuple[Axis, ...]) -> torch.dtype:
    """The dtype in which PyTorch computes the convolution rightly: the tensor's, or float32.

    Seen in torch 2.13 (oneDNN 3.12) on a CPU: bfloat16 convolutions whose output is one voxel wide along an axis return
    garbage, forward and backward.
    """
    if tensor.device.type != "cpu" or tensor.dtype != torch.bfloat16:
        return tensor.dtype
    sizes = (a.last - a.first + a.skip + a.excess for a in axes)
    return torch.float32 if 1 in sizes else torch.bfloat16


def weight_gradient_is_faulty(input: Tensor, kernel: Tensor, stride: Sequence[int]) -> bool:
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
