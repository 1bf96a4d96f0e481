"""From autograd's nodes to recipes: how the output of a cheap operation follows from its inputs.

A rule reads what its node shows: sizes and numbers as they are, tensors by :func:`~.recompute.stored_by` alone. A leaf
of the graph (a parameter, an input) serves as an operand only where the node itself stores it, which fixes its version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .recompute import RULES, Kept, Remade, is_recomputing, stored_by, stored_tensors

_BIAS = "acsconv.memory.bias"  # in the metadata of a norm's node: a bias without a gradient, or None
_LEAF = "torch::autograd::AccumulateGrad"
_16_BIT = (torch.float16, torch.bfloat16)
_aten = torch.ops.aten

Operand = Callable[[int], Kept | Remade | None]


def note_norm(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
    """A forward hook for norms: says what the graph of its output does not.

    ``F.instance_norm`` gives a view, and what happens to a view in place cannot be followed; and the graph does not
    tell a bias without a gradient from none.
    """
    node = output.grad_fn if not torch.compiler.is_compiling() and is_recomputing() else None
    if node is None:
        return None
    while not hasattr(node, "_raw_saved_result1"):
        if node.name() not in ("ViewBackward0", "UnsafeViewBackward0") or node.next_functions[0][0] is None:
            return None
        node = node.next_functions[0][0]
    bias = getattr(module, "bias", None)
    if bias is None or not bias.requires_grad:
        node.metadata[_BIAS] = None if bias is None else bias.detach()
    return _aten._unsafe_view(output, output.shape) if output._is_view() else None


def rule(*names: str) -> Callable:
    """Registers how the output of nodes of these names follows from their first input: ``function(node, input)``."""

    def register(function: Callable[[Any, Kept | Remade], Kept | Remade | None]) -> Callable:
        def search(node: Any, operand: Operand) -> Kept | Remade | None:
            source = operand(0)
            return None if source is None else function(node, source)

        RULES.update(dict.fromkeys(names, search))
        return function

    return register


# ---- norms --------------------------------------------------------------------------------------------------------


@rule("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")
def _batch_norm(node: Any, source: Kept | Remade) -> Remade | None:
    names = ("result1", "result2") if node._saved_training else ("running_mean", "running_var")
    saved = stored_tensors(node, *names, "weight")
    if saved is None:
        return None
    mean, spread = (_copy(tensor) for tensor in saved[:2])
    affine = _affine(node, saved[2], mean)
    if affine is None:
        return None
    if node._saved_training:
        return _scaled(source, mean, spread.square_().reciprocal_(), 0.0, affine)
    eps = node._saved_epsilon if hasattr(node, "_saved_epsilon") else node._saved_eps
    return _scaled(source, mean, spread, eps, affine)


@rule("NativeGroupNormBackward0")
def _group_norm(node: Any, source: Kept | Remade) -> Remade | None:
    saved = stored_tensors(node, "result1", "result2", "weight")
    if saved is None:
        return None
    batch, channels = node._saved_N, node._saved_C
    per_channel = channels // node._saved_group
    mean, inverse = (_copy(t).repeat_interleave(per_channel, 1).flatten() for t in saved[:2])
    affine = _affine(node, saved[2], mean[:channels])
    if affine is None:
        return None
    affine = tuple(None if t is None else t.repeat(batch) for t in affine)
    return _scaled(source, mean, inverse.square_().reciprocal_(), 0.0, affine)


def _copy(tensor: Tensor) -> Tensor:
    """A copy; in 16 bits neither the square of an inverse deviation nor its reciprocal need be finite."""
    return tensor.to(torch.float32 if tensor.dtype in _16_BIT else tensor.dtype, copy=True)


def _affine(node: Any, weight: Tensor | None, mean: Tensor) -> tuple[Tensor | None, Tensor | None] | None:
    """Copies of a norm's weight and bias, as long as ``mean`` and in its dtype; None if the bias cannot be had."""
    if node.next_functions[2][0] is not None:
        bias = _parameter(node, 2)
        if bias is None:
            return None
    elif _BIAS in node.metadata:
        bias = node.metadata[_BIAS]
    else:  # frozen, or not there
        return None
    if bias is not None:
        if len(mean) % bias.numel():
            return None
        bias = bias.repeat(len(mean) // bias.numel())
    return tuple(None if t is None else t.to(mean.dtype, copy=True) for t in (weight, bias))


def _parameter(node: Any, index: int) -> Tensor | None:
    """The ``index``-th input of a node, where that is a parameter, possibly repeated or cast."""
    following, _ = node.next_functions[index]
    if following is None:
        return None
    if following.name() == _LEAF:
        return following.variable.detach()
    if following.name() in ("RepeatBackward0", "ToCopyBackward0"):
        parameter = _parameter(following, 0)
        if parameter is None or following.name() == "ToCopyBackward0":
            return parameter
        return parameter.repeat(following._saved_repeats)
    return None


def _scaled(source: Kept | Remade, mean: Tensor, variance: Tensor, eps: float, affine: tuple) -> Remade:
    def make(values: list[Tensor], fresh: list[bool]) -> Tensor:
        (value,) = values
        rows = value if value.shape[1] == len(mean) else value.reshape(1, len(mean), *value.shape[2:])
        # Not F.batch_norm, which refuses an eps of 0 in PyTorch 2.11.
        out = torch.batch_norm(rows, *affine, mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled)
        return out.view(value.shape) if rows is not value else out

    return Remade(make, [source])


@rule("NativeLayerNormBackward0")
def _layer_norm(node: Any, source: Kept | Remade) -> Remade | None:
    saved = stored_tensors(node, "result1", "result2", "weight", "bias")
    if saved is None:
        return None
    mean, inverse, weight, bias = (None if tensor is None else tensor.clone() for tensor in saved)

    def make(values: list[Tensor], fresh: list[bool]) -> Tensor:
        out = values[0].sub(mean).mul_(inverse)
        if weight is not None:
            out = out.mul_(weight)
        if bias is not None:
            out = out.add_(bias)
        return out.to(values[0].dtype)

    return Remade(make, [source])


# ---- activations and other functions of one tensor ------------------------------------------------------------------


def _elementwise(function: Callable, in_place: Callable, *names: str) -> Callable:
    """The rule of a function of one tensor; ``names``: the further arguments, by the names that its node gives them."""

    def recipe(node: Any, source: Kept | Remade) -> Remade:
        arguments = [getattr(node, "_saved_" + name) for name in names]

        def make(values: list[Tensor], fresh: list[bool]) -> Tensor:
            return (in_place if fresh[0] else function)(values[0], *arguments)

        return Remade(make, [source])

    return recipe


rule("ReluBackward0")(_elementwise(torch.relu, torch.relu_))
rule("LeakyReluBackward0", "LeakyReluBackward1")(_elementwise(F.leaky_relu, F.leaky_relu_, "negative_slope"))
rule("EluBackward0", "EluBackward1")(_elementwise(_aten.elu, _aten.elu_, "alpha", "scale", "input_scale"))
rule("SiluBackward0")(_elementwise(_aten.silu, _aten.silu_))
rule("GeluBackward0")(
    _elementwise(
        lambda value, kind: _aten.gelu(value, approximate=kind),
        lambda value, kind: _aten.gelu_(value, approximate=kind),
        "approximate",
    )
)
rule("MishBackward0")(_elementwise(_aten.mish, _aten.mish_))
rule("HardswishBackward0")(_elementwise(_aten.hardswish, _aten.hardswish_))
rule("HardtanhBackward0")(_elementwise(_aten.hardtanh, _aten.hardtanh_, "min_val", "max_val"))
rule("SoftplusBackward0")(_elementwise(_aten.softplus, _aten.softplus, "beta", "threshold"))
rule("SigmoidBackward0")(_elementwise(torch.sigmoid, torch.sigmoid_))
rule("TanhBackward0")(_elementwise(torch.tanh, torch.tanh_))


@rule("PreluKernelBackward0")
def _prelu(node: Any, source: Kept | Remade) -> Remade | None:
    saved = stored_tensors(node, "weight")
    if saved is None:
        return None
    weight = saved[0].clone()
    return Remade(lambda values, fresh: torch._prelu_kernel(values[0], weight), [source])


@rule("NativeDropoutBackward0")
def _dropout(node: Any, source: Kept | Remade) -> Remade | None:
    saved, rate = stored_tensors(node, "result1"), node._saved_p
    if saved is None or not node._saved_train or rate in (0, 1):
        return None
    return Remade(lambda values, fresh: values[0].mul(saved[0]).mul_(1 / (1 - rate)), [source])


def _upsampling(function: Callable, *names: str) -> Callable:
    return _elementwise(function, function, *names)


rule("UpsampleTrilinear3DBackward0")(
    _upsampling(
        _aten.upsample_trilinear3d, "output_size", "align_corners", "scales_d", "scales_h", "scales_w"
    )
)
rule("UpsampleNearest3DBackward0")(
    _upsampling(_aten.upsample_nearest3d, "output_size", "scales_d", "scales_h", "scales_w")
)
rule("UpsampleNearestExact3DBackward0")(
    _upsampling(_aten._upsample_nearest_exact3d, "output_size", "scales_d", "scales_h", "scales_w")
)


# ---- functions of several tensors -----------------------------------------------------------------------------------


def _binary(name: str) -> Callable:
    """The rule of a sum or product of two tensors, of which one may be a constant or a leaf that the node stores."""

    def search(node: Any, operand: Operand) -> Remade | None:
        if getattr(node, "_saved_alpha", 1) != 1:
            return None
        operands = []
        for index, saved in enumerate(("self", "other")):
            following = node.next_functions[index][0]
            is_leaf = following is None or following.name() == _LEAF
            operands.append(stored_by(node, saved) if is_leaf else operand(index))
            if operands[-1] is None:
                return None

        def make(values: list[Tensor], fresh: list[bool]) -> Tensor:
            first, second = values
            if first.shape == second.shape and first.dtype == second.dtype:
                if fresh[0]:
                    return getattr(first, name + "_")(second)
                if fresh[1]:
                    return getattr(second, name + "_")(first)
            return getattr(first, name)(second)

        return Remade(make, operands)

    return search


RULES["AddBackward0"] = _binary("add")
RULES["MulBackward0"] = _binary("mul")


def _cat(node: Any, operand: Operand) -> Remade | None:
    dim = _signed(node._saved_dim)
    parts: list[Kept | Remade] = []
    for index in range(len(node.next_functions)):
        part = operand(index)
        if part is None:
            return None
        # A concatenation of a concatenation is one of all their parts.
        is_same = isinstance(part, Remade) and isinstance(part.make, _Cat) and part.make.dim == dim
        parts += part.operands if is_same else [part]
    return Remade(_Cat(dim), parts)


RULES["CatBackward0"] = _cat


class _Cat:
    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, values: list[Tensor], fresh: list[bool]) -> Tensor:
        return torch.cat(values, self.dim)


# ---- views and copies -----------------------------------------------------------------------------------------------


@rule(
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward1",
)
def _reshaped(node: Any, source: Kept | Remade) -> Kept | Remade:
    shape = tuple(node._input_metadata[0].shape)
    return _view(source, lambda value: value.reshape(shape))


@rule("PermuteBackward0", "TransposeBackward0")
def _permuted(node: Any, source: Kept | Remade) -> Kept | Remade:
    if hasattr(node, "_saved_dims"):
        dims = [_signed(dim) for dim in node._saved_dims]
        return _view(source, lambda value: value.permute(dims))
    dims = _signed(node._saved_dim0), _signed(node._saved_dim1)
    return _view(source, lambda value: value.transpose(*dims))


@rule("ToCopyBackward0")
def _cast(node: Any, source: Kept | Remade) -> Remade:
    like = node._input_metadata[0]
    return _view(source, lambda value: value.to(like.device, like.dtype, copy=True), 1)


@rule("CloneBackward0")
def _contiguous(node: Any, source: Kept | Remade) -> Remade:
    return _view(source, lambda value: value.clone(memory_format=torch.contiguous_format), 1)


def _view(source: Kept | Remade, function: Callable[[Tensor], Tensor], operations: int = 0) -> Kept | Remade:
    """A view (no operation) or a copy (one)."""
    if isinstance(source, Kept) and operations == 0:  # not overwritten, as what it views
        return Kept(function(source.tensor), source.is_offered)
    return Remade(lambda values, fresh: function(values[0]), [source], operations)


def _signed(number: int) -> int:
    """Nodes show negative numbers as unsigned."""
    return number - 2**64 if number >= 2**63 else number
