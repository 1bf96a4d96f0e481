"""The operators ``torch.ops.acsconv.*``: schemas, implementations, fake kernels, gradients, registration.

Two families, alike in all but their weight:

=========================  =====================================  ==============================================
operator                   weight                                 out[:, o]
=========================  =====================================  ==============================================
``acs_conv3d``             [C_out, C_in / groups, K_h, K_w]       the view that ``split`` gives channel o
``soft_acs_conv3d``        [3, C_out, C_in / groups, K_h, K_w]    the sum of the three views, each with its kernel
=========================  =====================================  ==============================================

Both are bilinear in (input, weight), so each has two adjoints, ``<name>_backward_input`` and
``<name>_backward_weight``, and every derivative of any order is made of these three.

They exist whether or not the compiled part does: :mod:`acsconv_cuda.passes` computes each of them on the backend
chosen. The schemas of the compiled ``acsconv::fused_*`` operators are defined here too; the shared object only adds
implementations to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import passes, reference
from .out_of_memory import explained
from .passes import Arguments, format_of, gradient_dtype
from .transforms import (
    AUTOCAST_DEVICES,
    TENSORS,
    autocast_rule,
    autograd_function,
    differentiable,
    is_plain,
    needs_gradient,
    vmap_rule,
)

#: The library must stay alive as long as the operators do.
LIBRARY = torch.library.Library("acsconv", "DEF")

_GEOMETRY = "int[] kernel, int[] stride, int[] origin, int[] dilation, int[] shrink, int groups, str backend"
_FUSED = "int[] split, int[] stride, int[] origin, int[] dilation"  # empty split: Soft ACS
_TF32 = "bool allow_tf32=False"  # float32 may be rounded to TF32; only the CUDA kernels can


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """Calls the forward operator that the arguments belong to."""
    return _call(arguments.name, arguments, input, weight, bias)


def backward_input(
    grad_output: Tensor, weight: Tensor, size: Sequence[int], channels_last: bool, arguments: Arguments
) -> Tensor:
    """The gradient of an input whose (D, H, W) is ``size``."""
    name = arguments.name + "_backward_input"
    return _call(name, arguments, grad_output, weight, size, channels_last)


def backward_weight(
    grad_output: Tensor, input: Tensor, needs_bias: bool, arguments: Arguments, float32: bool = False
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias; the second is empty unless ``needs_bias``.

    Both have the dtype of the volumes, or with ``float32`` that one beside volumes of 16 bits. The fused kernels then
    write their sums as they are; the others round to 16 bits first.
    """
    name = arguments.name + "_backward_weight"
    return _call(name, arguments, grad_output, input, needs_bias, float32)


def _call(name: str, arguments: Arguments, *args):
    """Calls an operator.

    Inside ``torch.func``'s transforms as a Function, which they need to differentiate it. Otherwise past autograd's
    kernel, which does the same after one more round through the dispatcher; but not past what stands above that. Past
    the dispatcher where it would do nothing but call the implementation.
    """
    if is_plain(*args[:TENSORS]) and not needs_gradient(args):
        return _EXPLAINED[name](*args, arguments)
    args += arguments.flat()
    if torch.compiler.is_compiling():
        return _OPERATORS[name](*args)
    if torch._C._are_functorch_transforms_active():
        return _FUNCTIONS[name].apply(*args)
    if not needs_gradient(args):
        with torch._C._AutoDispatchBelowAutograd():
            return _OPERATORS[name](*args)
    if torch._C._is_any_autocast_enabled() or torch._C._is_tracing():
        return _OPERATORS[name](*args)
    return _DIFFERENTIABLE[name].apply(*args[:TENSORS], args[TENSORS:], None)


# ---- gradients: one set of formulas for the operators and for ACSConvFunction --------------------------------------


def save_for_backward(ctx, input: Tensor, weight: Tensor, arguments: Arguments) -> None:
    """Keeps what :func:`gradients` needs for the gradients that are wanted, and nothing else."""
    ctx.save_for_backward(
        input if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
    )
    ctx.size = input.shape[-3:]
    ctx.channels_last = input.dim() == 5 and reference.memory_format(input) is torch.channels_last_3d
    ctx.arguments = arguments
    ctx.float32_weight = weight.dtype == torch.float32


def gradients(
    ctx, grad_output: Tensor, saved: list[Tensor | None]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias, where ``ctx`` asks for them; ``saved``: input and weight as saved.

    The input is taken out of ``saved`` when it has been used: saved-tensor hooks may have made it for this pass alone,
    and then it is gone before its gradient needs as much memory.
    """
    needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_input = grad_weight = grad_bias = None
    # By is_grads_batched, which knows no formats.
    batched = torch._C._functorch.is_legacy_batchedtensor(grad_output)
    if needs_input and needs_weight and not batched and ctx.arguments.geometry.is_one_view():
        grad_output = grad_output.contiguous(memory_format=format_of(ctx.channels_last))  # once, not in both
    if needs_weight:
        grad_weight, grad_bias = backward_weight(
            grad_output, saved[0], needs_bias, ctx.arguments, ctx.float32_weight
        )
    elif needs_bias:
        grad_bias = grad_output.sum((0, 2, 3, 4))
    saved[0] = None
    if needs_input:
        grad_input = backward_input(grad_output, saved[1], ctx.size, ctx.channels_last, ctx.arguments)
    return grad_input, grad_weight, grad_bias if needs_bias else None


def _forward_setup(ctx, inputs, output) -> None:
    input, weight, _, *flat = inputs
    save_for_backward(ctx, input, weight, Arguments.of(flat))


def _forward_backward(ctx, grad_output):
    return (*gradients(ctx, grad_output, list(ctx.saved_tensors)), *(None,) * len(ctx.arguments.flat()))


def _backward_input_setup(ctx, inputs, output) -> None:
    grad_output, weight, _, _, *flat = inputs
    ctx.save_for_backward(
        grad_output if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
    )
    ctx.arguments = Arguments.of(flat)
    ctx.float32_weight = weight.dtype == torch.float32


def _backward_input_backward(ctx, grad_grad_input):
    grad_output, weight = ctx.saved_tensors
    needs_grad_output, needs_weight = ctx.needs_input_grad[:2]
    return (
        convolve(grad_grad_input, weight, None, ctx.arguments) if needs_grad_output else None,
        backward_weight(grad_output, grad_grad_input, False, ctx.arguments, ctx.float32_weight)[0]
        if needs_weight
        else None,
        *(None,) * (2 + len(ctx.arguments.flat())),
    )


def _backward_weight_setup(ctx, inputs, output) -> None:
    grad_output, input, needs_bias, _, *flat = inputs
    ctx.save_for_backward(
        grad_output if ctx.needs_input_grad[1] else None, input if ctx.needs_input_grad[0] else None
    )
    ctx.size = input.shape[2:]
    ctx.channels_last = reference.memory_format(input) is torch.channels_last_3d
    ctx.needs_bias = needs_bias
    ctx.arguments = Arguments.of(flat)


def _backward_weight_backward(ctx, grad_grad_weight, grad_grad_bias):
    grad_output, input = ctx.saved_tensors
    needs_grad_output, needs_input = ctx.needs_input_grad[:2]
    bias = grad_grad_bias if ctx.needs_bias else None
    grad_input = None
    if needs_input:
        grad_input = backward_input(grad_output, grad_grad_weight, ctx.size, ctx.channels_last, ctx.arguments)
    return (
        convolve(input, grad_grad_weight, bias, ctx.arguments) if needs_grad_output else None,
        grad_input,
        *(None,) * (2 + len(ctx.arguments.flat())),
    )


# ---- fake kernels: shapes and strides without data -----------------------------------------------------------------


def _forward_fake(input: Tensor, weight: Tensor, bias: Tensor | None, *flat) -> Tensor:
    size = Arguments.of(flat).geometry.output_size(input.shape[2:])
    shape = (input.shape[0], weight.shape[-4], *size)
    return torch.empty(
        shape, dtype=input.dtype, device=input.device, memory_format=reference.memory_format(input)
    )


def _backward_input_fake(
    grad_output: Tensor, weight: Tensor, size: Sequence[int], channels_last: bool, *flat
) -> Tensor:
    shape = (grad_output.shape[0], weight.shape[-3] * Arguments.of(flat).groups, *size)
    return torch.empty(
        shape, dtype=grad_output.dtype, device=grad_output.device, memory_format=format_of(channels_last)
    )


def _backward_weight_fake(
    grad_output: Tensor, input: Tensor, needs_bias: bool, float32: bool, *flat
) -> tuple[Tensor, Tensor]:
    split, geometry, groups, _ = Arguments.of(flat)
    dtype = gradient_dtype(grad_output, float32)
    shape = (grad_output.shape[1], input.shape[1] // groups, *geometry.kernel)
    grad_weight = grad_output.new_empty(shape if split is not None else (3, *shape), dtype=dtype)
    return grad_weight, grad_output.new_empty(grad_output.shape[1] if needs_bias else 0, dtype=dtype)


# ---- registration --------------------------------------------------------------------------------------------------

#: The operators by name.
_OPERATORS: dict[str, torch._ops.OpOverload] = {}

#: The operators as autograd Functions, by name.
_DIFFERENTIABLE: dict[str, type[torch.autograd.Function]] = {}

#: The operators as autograd Functions, for ``torch.func``: by name, the same formulas.
_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}

#: What computes an operator, by its name: in terms of PyTorch's operators where the backend chosen is ``torch``.
IMPLEMENTATIONS: dict[str, Callable] = {}

#: The same, whose errors name the layer.
_EXPLAINED: dict[str, Callable] = {}


def _register(name: str, split: str) -> None:
    rest = f"{split}{_GEOMETRY}"
    LIBRARY.define(f"{name}(Tensor input, Tensor weight, Tensor? bias, {rest}) -> Tensor")
    LIBRARY.define(
        f"{name}_backward_input(Tensor grad_output, Tensor weight, SymInt[] size, bool channels_last, {rest}) -> Tensor"
    )
    LIBRARY.define(
        f"{name}_backward_weight(Tensor grad_output, Tensor input, bool needs_bias, bool float32, {rest}) "
        "-> (Tensor, Tensor)"
    )
    for suffix, implementation, fake, setup, backward, folds in (
        (
            "",
            passes.forward,
            _forward_fake,
            _forward_setup,
            _forward_backward,
            lambda b: b[0] and not any(b[1:]),
        ),
        (
            "_backward_input",
            passes.backward_input,
            _backward_input_fake,
            _backward_input_setup,
            _backward_input_backward,
            lambda b: b[0] and not any(b[1:]),
        ),
        (
            "_backward_weight",
            passes.backward_weight,
            _backward_weight_fake,
            _backward_weight_setup,
            _backward_weight_backward,
            lambda b: False,
        ),
    ):
        qualified = f"acsconv::{name}{suffix}"
        IMPLEMENTATIONS[name + suffix] = implementation
        operation = suffix.removeprefix("_") or "forward"
        _EXPLAINED[name + suffix] = explained(operation, implementation, fake)
        LIBRARY.impl(name + suffix, _EXPLAINED[name + suffix], "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, fake, lib=LIBRARY)
        operator = getattr(torch.ops.acsconv, name + suffix).default
        _DIFFERENTIABLE[name + suffix], kernel = differentiable(name + suffix, operator, setup, backward)
        LIBRARY.impl(name + suffix, kernel, "Autograd", with_keyset=True)
        torch.library.register_vmap(qualified, vmap_rule(operator, folds), lib=LIBRARY)
        _OPERATORS[name + suffix] = operator
        _FUNCTIONS[name + suffix] = autograd_function(name + suffix, operator, setup, backward)
    operator = _OPERATORS[name]
    for device_type in AUTOCAST_DEVICES:
        key = "Autocast" + torch._C._dispatch_key_for_device(device_type)
        LIBRARY.impl(name, autocast_rule(operator, device_type, getattr(torch._C.DispatchKey, key)), key)


_register("acs_conv3d", "int[] split, ")
_register("soft_acs_conv3d", "")

# Implemented by the shared object alone; csrc/ops.cpp says what they take.
LIBRARY.define(
    f"fused_forward(Tensor input, Tensor weight, Tensor? bias, {_FUSED}, int[] output_size, int groups, "
    f"{_TF32}) -> Tensor"
)
LIBRARY.define("fused_forward_packed(Tensor input, Tensor weight, Tensor? bias, Tensor numbers) -> Tensor")
LIBRARY.define(
    f"fused_backward_input(Tensor grad_output, Tensor weight, int[] input_size, bool channels_last, {_FUSED}, "
    f"int groups, {_TF32}) -> Tensor"
)
LIBRARY.define(
    f"fused_backward_weight(Tensor grad_output, Tensor input, int[] kernel, bool needs_bias, {_FUSED}, "
    f"int groups, {_TF32}, bool float32=False) -> (Tensor, Tensor)"
)
