"""ReLU and LeakyReLU whose backward pass takes no memory of its own.

PyTorch's holds three tensors at once: the activation, the gradient that comes and the gradient that goes. Where the
activation was made again for this pass alone, the last is written over it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .forward import Forward
from .recompute import Kept, Remade, is_recomputing, is_spent
from .rules import rule

_aten = torch.ops.aten


class _Rectify(torch.autograd.Function):
    """max(x, slope * x) with slope >= 0, in place or not; its own result tells its derivative."""

    @staticmethod
    def forward(ctx, input: Tensor, slope: float, in_place: bool) -> Tensor:
        if in_place:
            ctx.mark_dirty(input)
        out = _rectified(input, slope, in_place)
        ctx.save_for_backward(out)
        ctx.slope = slope
        return out

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (out,) = ctx.saved_tensors
        is_free = is_spent(out) and not torch.is_grad_enabled() and out.dtype == grad_output.dtype
        is_free = is_free and not _is_batched(grad_output)
        arguments = (grad_output, out, 0) if ctx.slope == 0 else (grad_output, out, ctx.slope, True)
        operator = _aten.threshold_backward if ctx.slope == 0 else _aten.leaky_relu_backward
        if is_free:
            return operator.grad_input(*arguments, grad_input=out), None, None
        return operator(*arguments), None, None


def _is_batched(tensor: Tensor) -> bool:
    """Whether several gradients come at once, as in ``torch.autograd.functional.jacobian(vectorize=True)``."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor) or torch._C._functorch.is_batchedtensor(tensor)


def _rectified(input: Tensor, slope: float, in_place: bool) -> Tensor:
    if slope == 0:
        return torch.relu_(input) if in_place else torch.relu(input)
    return F.leaky_relu(input, slope, in_place)


@rule("_RectifyBackward")
def _remake(node: Any, source: Kept | Remade) -> Remade:
    slope = node.slope
    return Remade(lambda values, fresh: _rectified(values[0], slope, fresh[0]), [source])


class Rectifier(Forward):
    """The forward of an ``nn.ReLU`` or ``nn.LeakyReLU`` module.

    PyTorch's LeakyReLU stores its output only where it works in place: the network may change the output otherwise.
    """

    def __call__(self, input: Tensor) -> Tensor:
        module = self.module()
        slope = getattr(module, "negative_slope", 0.0)
        usable = not torch.compiler.is_compiling() and is_recomputing() and slope >= 0
        usable = usable and (module.inplace or not isinstance(module, nn.LeakyReLU))
        if not usable or not input.requires_grad or (module.inplace and input._is_view()):
            return self.plain()(input)
        return _Rectify.apply(input, slope, module.inplace)
