"""Out of memory in a pass of a layer: the error says which layer it was, what it computed, and what needs less.

Nothing is kept for this from call to call: the layer is looked for among the live modules when memory has run out.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")

#: How an error of PyTorch's arrives that was raised inside the shared object: without its type and its message.
_NAMELESS = "API call failed"

#: What a pass is called, and its two tensors.
_PASSES = {
    "forward": ("forward pass", "input", "weight"),
    "backward_input": ("gradient of the input", "grad_output", "weight"),
    "backward_weight": ("gradient of the weight", "grad_output", "input"),
}

ADVICE = (
    "To need less: memory_efficient=True for a network of acsconv.models or a converter, or "
    "acsconv.memory.make_memory_efficient(network); `python -m acsconv.memory` tells what a training step needs."
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory could not be had, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def explained(operation: str, implementation: Callable, results: Callable) -> Callable:
    """The implementation of a pass, whose errors for want of memory name the layer and what needs less.

    Args:
        operation: "forward", "backward_input" or "backward_weight".
        implementation: (tensor, tensor, ...) -> results.
        results: the same arguments -> results of that size, uninitialised. It is called to have PyTorch raise its own
            error, where the one at hand has neither its type nor its message.

    Raises:
        torch.OutOfMemoryError, RuntimeError: of the type that PyTorch raised.
    """

    @functools.wraps(implementation)
    def run(*args):
        try:
            return implementation(*args)
        except (RuntimeError, MemoryError) as error:
            cause = _named(error, results, args) if _NAMELESS in str(error) else error
            try:
                if is_out_of_memory(cause):
                    kind = (
                        type(cause) if type(cause) in (torch.OutOfMemoryError, MemoryError) else RuntimeError
                    )
                    raise kind(_message(operation, args, cause)) from error
                if cause is error:
                    raise
                raise cause from error
            finally:
                del cause  # which knows this frame: together they would keep the tensors until a collection

    return run


def _named(error: RuntimeError, results: Callable, args: Sequence) -> RuntimeError:
    """What PyTorch says when it is asked for the results' memory, or, if it has that, what else can have failed."""
    try:
        results(*args)
    except RuntimeError as genuine:
        return genuine
    kind = torch.OutOfMemoryError if args[0].is_cuda else RuntimeError
    return kind(f"out of memory for the kernels' own needs: {error}")


def _message(operation: str, args: Sequence, cause: BaseException) -> str:
    what, first, second = _PASSES[operation]
    name = layer_name(args[1] if second == "weight" else None)
    layer = f"layer {name!r}, " if name else ""
    dtype = str(args[0].dtype).removeprefix("torch.")
    return (
        f"out of memory in the {what} of an ACS convolution ({layer}{first} {list(args[0].shape)}, "
        f"{second} {list(args[1].shape)}, {dtype}, {args[0].device}). {ADVICE} PyTorch's message: {cause}"
    )


def layer_name(weight: Tensor | None) -> str | None:
    """The path of the layer at work in its network, as in ``named_modules``; None if it cannot be found.

    Args:
        weight: the kernels that the layer computes with. None, in a backward pass: those that autograd's present node
            gives a gradient to.
    """
    node = torch._C._current_autograd_node()
    parameters = [weight] if weight is not None and weight.is_leaf else []
    if not parameters:
        edges = [] if node is None else [function for function, _ in node.next_functions]
        edges = [weight.grad_fn] if weight is not None else edges
        parameters = [variable for edge in edges if (variable := _leaf_behind(edge)) is not None]
    kernels = [parameter for parameter in parameters if parameter.dim() >= 4]
    if not kernels:
        return None
    # By type: asking a stranger's object for its class may run its code. Without ``_modules`` it is half built.
    modules = [m for m in gc.get_objects() if issubclass(type(m), nn.Module) and hasattr(m, "_modules")]
    wanted = {id(kernel) for kernel in kernels}
    layers = {id(m) for m in modules if any(id(p) in wanted for p in m._parameters.values())}
    paths = [name for module in modules for name, child in module.named_modules() if id(child) in layers]
    return max(paths, key=len, default=None) or None


def _leaf_behind(function: torch.autograd.graph.Node | None) -> Tensor | None:
    """The parameter that a kernel was made of: by casts, or by factors, which come second."""
    while function is not None and not hasattr(function, "variable"):
        function = function.next_functions[0][0] if function.next_functions else None
    return None if function is None else function.variable
