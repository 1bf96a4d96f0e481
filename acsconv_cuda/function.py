"""ACS convolution as a ``torch.autograd.Function``, for code that composes Functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from .functional import acs_conv3d
from .geometry import IntOrTuple, check_split, resolve
from .passes import refuse_complex


class ACSConvFunction(torch.autograd.Function):
    """``ACSConvFunction.apply(input, weight, bias, split, stride, padding, dilation, groups, backend)``.

    The arguments, all positional, and the errors are those of :func:`acsconv_cuda.acs_conv3d`, which does the same and
    is what most code wants. Gradients use the same formulas as the operators and are themselves differentiable.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        split: Sequence[int] | None,
        stride: IntOrTuple,
        padding: IntOrTuple | str,
        dilation: IntOrTuple,
        groups: int,
        backend: str,
    ) -> Tensor:
        if isinstance(input, Tensor):
            refuse_complex(input)
        return acs_conv3d(
            input,
            weight,
            bias,
            split=split,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            backend=backend,
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        input, weight, _, split, stride, padding, dilation, groups, backend = inputs
        geometry = resolve(tuple(weight.shape[2:]), stride, padding, dilation)
        arguments = ops.Arguments(check_split(split, weight.shape[0]), geometry, groups, backend)
        ops.save_for_backward(ctx, input, weight, arguments)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        # Saved as given: without a batch axis perhaps, and in another dtype than autocast computed in.
        unbatched = grad_output.dim() == 4
        saved = [None if t is None else t.to(grad_output.dtype) for t in ctx.saved_tensors]
        if unbatched:
            grad_output = grad_output.unsqueeze(0)
            saved[0] = None if saved[0] is None else saved[0].unsqueeze(0)
        grad_input, grad_weight, grad_bias = ops.gradients(ctx, grad_output, saved)
        if unbatched and grad_input is not None:
            grad_input = grad_input.squeeze(0)
        return grad_input, grad_weight, grad_bias, None, None, None, None, None, None
