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

They exist whether or not the compiled part does. Their implementation, in Python, chooses the backend for the pass at
hand and calls either the reference or the compiled ``acsconv::fused_*`` operators, whose schemas are defined here too;
the shared object only adds implementations to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import pointwise, reference
from .backends import choose
from .geometry import Geometry
from .out_of_memory import explained
from .transforms import (
    AUTOCAST_DEVICES,
    TENSORS,
    autocast_rule,
    autograd_function,
    differentiable,
    needs_gradient,
    vmap_rule,
)

#: The library must stay alive as long as the operators do.
LIBRARY = torch.library.Library("acsconv", "DEF")

_GEOMETRY = "int[] kernel, int[] stride, int[] origin, int[] dilation, int[] shrink, int groups, str backend"
_FUSED = "int[] split, int[] stride, int[] origin, int[] dilation"  # empty split: Soft ACS
_TF32 = "bool allow_tf32=False"  # float32 may be rounded to TF32; only the CUDA kernels can


class Arguments(NamedTuple):
    """What all operators of both families take behind their tensors, in this order (``split`` only ACS)."""

    split: Sequence[int] | None  # None: Soft ACS
    geometry: Geometry
    groups: int
    backend: str

    def flat(self) -> tuple:
        """As the operators take them."""
        g = self.geometry
        numbers = (
            g.kernel,
            g.stride,
            g.flat_origin(),
            g.flat_dilation(),
            g.shrink,
            self.groups,
            self.backend,
        )
        return numbers if self.split is None else (self.split, *numbers)

    @classmethod
    def of(cls, flat: Sequence) -> Arguments:
        """The inverse of :meth:`flat`; a call past the dispatcher hands them on as they are."""
        if len(flat) == 1:
            return flat[0]
        split = flat[0] if len(flat) == 8 else None
        kernel, stride, origin, dilation, shrink, groups, backend = flat[-7:]
        geometry = Geometry(
            tuple(kernel),
            tuple(stride),
            (tuple(origin[:3]), tuple(origin[3:6]), tuple(origin[6:])),
            (tuple(dilation[:3]), tuple(dilation[3:6]), tuple(dilation[6:])),
            tuple(shrink),
        )
        return cls(split, geometry, groups, backend)

    @property
    def name(self) -> str:
        return "soft_acs_conv3d" if self.split is None else "acs_conv3d"


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
    batched = torch._C._functorch.is_legacy_batchedtensor(
        grad_output
    )  # by is_grads_batched; it knows no formats
    if needs_input and needs_weight and not batched and ctx.arguments.geometry.is_one_view():
        grad_output = grad_output.contiguous(memory_format=_format(ctx.channels_last))  # once, not in both
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


# ---- implementations: the backend is chosen for each pass ----------------------------------------------------------


def refuse_complex(input: Tensor) -> None:
    """The adjoints have no conjugates; acs_conv3d and soft_acs_conv3d do not come here with complex tensors."""
    if input.is_complex():
        raise TypeError(
            f"input: expected a real floating-point dtype, got {input.dtype}; acs_conv3d takes complex"
        )


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, *flat) -> Tensor:
    refuse_complex(input)
    arguments = Arguments.of(flat)
    return forward_by(choose("forward", input, arguments), input, weight, bias, arguments)


def forward_by(
    backend: str, input: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments
) -> Tensor:
    """The forward pass by a backend that :func:`choose` chose for it."""
    split, geometry, groups, _ = arguments
    if backend != "cuda":
        weight, bias = _rounded(weight, input), None if bias is None else _rounded(bias, input)
    if backend == "torch":
        if split is None:
            return reference.soft_acs_conv3d(input, weight, bias, geometry, groups)
        if pointwise.serves("forward", input, geometry, groups):
            return pointwise.forward(input, weight, bias, geometry)
        return reference.acs_conv3d(input, weight, bias, split, geometry, groups)
    tf32 = backend == "cuda" and tf32_is_allowed()
    return torch.ops.acsconv.fused_forward(input, weight, bias, *fused_numbers(input, arguments), tf32)


def fused_numbers(input: Tensor, arguments: Arguments) -> tuple:
    """What ``fused_forward`` takes between its tensors and ``allow_tf32``."""
    return *_fused(arguments), arguments.geometry.output_size(input.shape[2:]), arguments.groups


def packed_numbers(input: Tensor, arguments: Arguments) -> Tensor:
    """The same as ``fused_forward_packed`` takes them; ACS, not Soft ACS."""
    *lists, groups = fused_numbers(input, arguments)
    return torch.tensor([*itertools.chain(*lists), groups])


def _backward_input(
    grad_output: Tensor, weight: Tensor, size: Sequence[int], channels_last: bool, *flat
) -> Tensor:
    arguments = Arguments.of(flat)
    split, geometry, groups, _ = arguments
    backend = choose("backward_input", grad_output, arguments)
    if backend != "cuda":
        weight = _rounded(weight, grad_output)
    if backend == "torch":
        format = _format(channels_last)
        if split is not None and pointwise.serves("backward_input", grad_output, geometry, groups):
            return pointwise.backward_input(grad_output, weight, size, geometry, format)
        return reference.backward_input(grad_output, weight, size, split, geometry, groups, format)
    return torch.ops.acsconv.fused_backward_input(
        grad_output,
        weight,
        size,
        channels_last,
        *_fused(arguments),
        groups,
        backend == "cuda" and tf32_is_allowed(),
    )


def _backward_weight(
    grad_output: Tensor, input: Tensor, needs_bias: bool, float32: bool, *flat
) -> tuple[Tensor, Tensor]:
    arguments = Arguments.of(flat)
    split, geometry, groups, _ = arguments
    backend = choose("backward_weight", grad_output, arguments)
    if backend == "torch":
        if split is not None and pointwise.serves("backward_weight", grad_output, geometry, groups):
            grad_weight = pointwise.backward_weight(grad_output, input, geometry)
        else:
            grad_weight = reference.backward_weight(grad_output, input, split, geometry, groups)
        grad_bias = grad_output.sum((0, 2, 3, 4)) if needs_bias else grad_output.new_empty(0)
        dtype = _gradient_dtype(grad_output, float32)
        return grad_weight.to(dtype), grad_bias.to(dtype)
    return torch.ops.acsconv.fused_backward_weight(
        grad_output,
        input,
        geometry.kernel,
        needs_bias,
        *_fused(arguments),
        groups,
        backend == "cuda" and tf32_is_allowed(),
        float32,
    )


def _gradient_dtype(volume: Tensor, float32: bool) -> torch.dtype:
    return torch.float32 if float32 and volume.dtype.itemsize == 2 else volume.dtype


def _rounded(weight: Tensor, volume: Tensor) -> Tensor:
    """A float32 weight in the dtype of a 16-bit volume; the CUDA kernels round it while they pack it."""
    return weight if weight.dtype == volume.dtype else weight.to(volume.dtype)


def tf32_is_allowed() -> bool:
    """Whether PyTorch's settings let convolutions round float32 to TF32 on a GPU, as its own do by default.

    ``torch.backends.cudnn.conv.fp32_precision`` ("tf32" or "ieee"; "none" leaves it to the settings above it), where
    PyTorch has it, else ``torch.backends.cudnn.allow_tf32``. Read at every call.
    """
    conv = getattr(torch.backends.cudnn, "conv", None)
    precision = getattr(conv, "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if precision is None else precision == "tf32"


def _fused(arguments: Arguments) -> tuple:
    """Split and geometry as the compiled operators take them."""
    geometry = arguments.geometry
    return arguments.split or (), geometry.stride, geometry.flat_origin(), geometry.flat_dilation()


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
        shape, dtype=grad_output.dtype, device=grad_output.device, memory_format=_format(channels_last)
    )


def _backward_weight_fake(
    grad_output: Tensor, input: Tensor, needs_bias: bool, float32: bool, *flat
) -> tuple[Tensor, Tensor]:
    split, geometry, groups, _ = Arguments.of(flat)
    dtype = _gradient_dtype(grad_output, float32)
    shape = (grad_output.shape[1], input.shape[1] // groups, *geometry.kernel)
    grad_weight = grad_output.new_empty(shape if split is not None else (3, *shape), dtype=dtype)
    return grad_weight, grad_output.new_empty(grad_output.shape[1] if needs_bias else 0, dtype=dtype)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last_3d if channels_last else torch.contiguous_format


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
        ("", _forward, _forward_fake, _forward_setup, _forward_backward, lambda b: b[0] and not any(b[1:])),
        (
            "_backward_input",
            _backward_input,
            _backward_input_fake,
            _backward_input_setup,
            _backward_input_backward,
            lambda b: b[0] and not any(b[1:]),
        ),
        (
            "_backward_weight",
            _backward_weight,
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
