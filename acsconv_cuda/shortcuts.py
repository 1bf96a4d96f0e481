"""Forward passes like one that was computed before: from the public function straight to what computes them.

Where other work has emptied the caches, most of a small layer's time goes into checks of its arguments, the choice of
the backend and rounds through the dispatcher, whose outcome is the same for the same shapes and parameters. So it is
remembered, for plain calls on a CPU: nothing traces, transforms or intercepts them.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops, passes
from .backends import choose, forced

#: More shapes than a network meets; beyond them all are forgotten.
_MOST = 1024


class _Known(NamedTuple):
    """What computes a call of a shape, dtype and parameters, below autograd."""

    compute: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    arguments: passes.Arguments


_known: dict[tuple, _Known] = {}


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, parameters: tuple) -> Tensor | None:
    """The result of a call like one that was remembered; None if there is none, or if the call fails.

    Args:
        parameters: the other arguments of the public function, as given.
    """
    if not ops.is_plain(input, weight, bias) or forced() is not None:
        return None
    try:
        known = _known.get(_key(input, weight, parameters))
        if known is None:
            return None
        if ops.needs_gradient((input, weight, bias)):
            return _Recorded.apply(input, weight, bias, known)
        return known.compute(input, weight, bias)
    except (ValueError, RuntimeError):  # the long way says why
        return None


def remember(input: Tensor, weight: Tensor, parameters: tuple, arguments: passes.Arguments) -> None:
    """Remembers how a call is computed that has just succeeded; ``arguments`` are what its parameters mean."""
    if ops.is_plain(input, weight, None) and forced() is None and all(map(_is_builtin, parameters)):
        if len(_known) >= _MOST:
            _known.clear()
        _known[_key(input, weight, parameters)] = _Known(_computation(input, arguments), arguments)


class _Recorded(torch.autograd.Function):
    """A known call as autograd records it, with the gradients of the operator."""

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor | None, known: _Known) -> Tensor:
        output = known.compute(input, weight, bias)
        ops.save_for_backward(ctx, input, weight, known.arguments)
        return output

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        return *ops.gradients(ctx, grad_output, list(ctx.saved_tensors)), None


def _key(input: Tensor, weight: Tensor, parameters: tuple) -> tuple:
    # As equal numbers of different types are not, of which some are to be refused.
    return input.shape, input.dtype, weight.shape, marshal.dumps(parameters, 2)


def _is_builtin(value: object) -> bool:
    if type(value) in (tuple, list):
        return all(type(number) is int for number in value)
    return value is None or type(value) in (int, str)


def _computation(
    input: Tensor, arguments: passes.Arguments
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    backend = choose("forward", input, arguments)
    if backend == "cpu":
        # This operator refuses whatever does not go with an input of this shape and dtype.
        operator, numbers = (
            torch.ops.acsconv.fused_forward_packed.default,
            passes.packed_numbers(input, arguments),
        )
        return lambda input, weight, bias: operator(input, weight, bias, numbers)

    def compute(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        fits = weight.dtype == input.dtype and weight.is_cpu
        if bias is not None:
            fits = fits and bias.dtype == input.dtype and bias.is_cpu and bias.shape == weight.shape[:1]
        if not fits:
            raise ValueError
        return passes.forward_by(backend, input, weight, bias, arguments)

    return compute
