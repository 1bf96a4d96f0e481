"""What autograd, vmap, autocast and ``torch.func`` make of an operator; :mod:`acsconv_cuda.ops` registers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

#: Device types whose autocast casts our operators' inputs, as it does those of the built-in convolutions.
AUTOCAST_DEVICES = ("cpu", "cuda", "xpu")


def vmap_rule(operator: Callable, folds: Callable[[tuple], bool]) -> Callable:
    """The batching rule of an operator: a batch of inputs joins N, a batch of weights is a loop.

    ``folds`` tells, by which arguments are batched, whether N can take them in.
    """

    def rule(info, in_dims, *args):
        batched = tuple(isinstance(dim, int) for dim in in_dims)  # a list argument has a list of Nones
        if folds(batched):
            moved = [a.movedim(dim, 0) if b else a for a, dim, b in zip(args, in_dims, batched)]
            joined = [a.flatten(0, 1) if b else a for a, b in zip(moved, batched)]
            return operator(*joined).unflatten(0, moved[0].shape[:2]), 0
        if info.batch_size == 0:
            raise ValueError(
                "vmap over an empty axis is supported for batched inputs alone, not for batched weights"
            )
        each = [
            operator(*(a.select(dim, i) if b else a for a, dim, b in zip(args, in_dims, batched)))
            for i in range(info.batch_size)
        ]
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        return tuple(torch.stack(results) for results in zip(*each)), (0,) * len(each[0])

    return rule


def autocast_rule(operator: Callable, device_type: str, key) -> Callable:
    """What autocast makes of an operator: as of the built-in convolutions, in the dtype that the user chose.

    float32 weights, which parameters are, go to the operator as they are and are rounded there.
    """

    def rule(*args):
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            input, weight, bias, *rest = args
            input = _cast(input, device_type, dtype)
            if input.dtype != dtype or any(
                t is not None and t.dtype != torch.float32 for t in (weight, bias)
            ):
                weight, bias = (_cast(t, device_type, dtype) for t in (weight, bias))
            return operator(input, weight, bias, *rest)

    return rule


def _cast(value, device_type: str, dtype: torch.dtype):
    """As autocast casts: floating-point tensors of this device, float64 excepted."""
    if not isinstance(value, Tensor) or value.device.type != device_type:
        return value
    return value.to(dtype) if value.is_floating_point() and value.dtype != torch.float64 else value


#: So many arguments of an operator can be tensors, and they come first.
TENSORS = 3


def differentiable(
    name: str, operator: torch._ops.OpOverload, setup: Callable, backward: Callable
) -> tuple[type[torch.autograd.Function], Callable]:
    """An operator as an autograd Function, and the operator's autograd kernel, which applies that.

    The Function takes the first :data:`TENSORS` arguments, the others as one tuple, and the dispatch keys that are
    left, or None to dispatch anew. The kernel is what ``torch.library.register_autograd`` would register, except that
    it does not look for default values, which these operators have not, in the schema: in every call that takes longer
    than all that we do in Python.
    """

    def compute(args: Sequence, keys: torch._C.DispatchKeySet | None):
        with torch._C._AutoDispatchBelowAutograd():
            if keys is None:
                return operator(*args)
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *args)

    def forward(ctx, *args):
        *tensors, rest, keys = args
        args = (*tensors, *rest)
        output = compute(args, keys)
        setup(ctx, args, output)
        return output

    def gradients(ctx, *grad_outputs):
        return (*backward(ctx, *grad_outputs)[:TENSORS], None, None)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
    function = type(name, (torch.autograd.Function,), methods)

    def kernel(keys, *args):
        if needs_gradient(args):
            return function.apply(*args[:TENSORS], args[TENSORS:], keys)
        return compute(args, keys)

    return function, kernel


def needs_gradient(args: Sequence) -> bool:
    """Whether autograd records an operator that is called with these arguments."""
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*args[:TENSORS])


def autograd_function(
    name: str, operator: Callable, setup: Callable, backward: Callable
) -> type[torch.autograd.Function]:
    """An operator as an autograd Function, which ``torch.func``'s transforms can see through."""
    methods = {
        "forward": staticmethod(lambda *args: operator(*args)),
        "setup_context": staticmethod(setup),
        "backward": staticmethod(backward),
        "generate_vmap_rule": True,
    }
    return type(name, (torch.autograd.Function,), methods)


_TENSORS = frozenset((Tensor, torch.nn.Parameter))


def is_plain(volume: Tensor, other: Tensor, third: object) -> bool:
    """Whether nothing traces, transforms or intercepts what is done with these tensors, on a CPU.

    The third may be no tensor.
    """
    return (
        not torch.compiler.is_compiling()
        and type(volume) is Tensor
        and type(other) in _TENSORS
        and (type(third) in _TENSORS or not isinstance(third, Tensor))
        and volume.is_cpu
        and not torch._C._functorch.is_legacy_batchedtensor(volume)  # by is_grads_batched
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
    )
