"""Forward passes like one that was computed before: from the public function straight to what computes them.

Where other work has emptied the caches, most of a small layer's time goes into checks of its arguments, the choice of
the backend and rounds through the dispatcher, whose outcome is the same for the same shapes and parameters. So it is
remembered, for plain calls on a CPU: nothing records gradients, traces, transforms or intercepts them.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import ops
from .backends import choose, forced

#: More shapes than a network meets; beyond them all are forgotten.
_MOST = 1024

_WEIGHTS = frozenset((Tensor, torch.nn.Parameter))
_BIASES = _WEIGHTS | {type(None)}

#: What computes a call of a shape, dtype and parameters. It returns None where it cannot tell that it may.
_known: dict[tuple, Callable[[Tensor, Tensor, Tensor | None], Tensor | None]] = {}


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, parameters: tuple) -> Tensor | None:
    """The result of a call like one that was remembered; None if there is none, or if the call fails.

    Args:
        parameters: the other arguments of the public function, as given.
    """
    if not _is_plain(input, weight, bias):
        return None
    try:
        known = _known.get(_key(input, weight, parameters))
        return None if known is None else known(input, weight, bias)
    except (ValueError, RuntimeError):  # the long way says why
        return None


def remember(input: Tensor, weight: Tensor, parameters: tuple, arguments: ops.Arguments) -> None:
    """Remembers how a call is computed that has just succeeded; ``arguments`` are what its parameters mean."""
    if _is_plain(input, weight, None) and all(map(_is_builtin, parameters)):
        if len(_known) >= _MOST:
            _known.clear()
        _known[_key(input, weight, parameters)] = _computation(input, arguments)


def _key(input: Tensor, weight: Tensor, parameters: tuple) -> tuple:
    # As equal numbers of different types are not, of which some are to be refused.
    return input.shape, input.dtype, weight.shape, marshal.dumps(parameters, 2)


def _is_builtin(value: object) -> bool:
    if type(value) in (tuple, list):
        return all(type(number) is int for number in value)
    return value is None or type(value) in (int, str)


def _is_plain(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        not torch.compiler.is_compiling()
        and type(input) is Tensor
        and type(weight) in _WEIGHTS
        and type(bias) in _BIASES
        and input.is_cpu
        and not (torch.is_grad_enabled() and torch._C._any_requires_grad(input, weight, bias))
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and forced() is None
    )


def _computation(
    input: Tensor, arguments: ops.Arguments
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor | None]:
    backend = choose("forward", input, arguments)
    if backend == "cpu":
        # This operator refuses whatever does not go with an input of this shape and dtype.
        operator, numbers = torch.ops.acsconv.fused_forward.default, ops.fused_numbers(input, arguments)
        return lambda input, weight, bias: operator(input, weight, bias, *numbers)

    def compute(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        fits = weight.dtype == input.dtype and weight.is_cpu
        if bias is not None:
            fits = fits and bias.dtype == input.dtype and bias.is_cpu and bias.shape == weight.shape[:1]
        return ops.forward_by(backend, input, weight, bias, arguments) if fits else None

    return compute
