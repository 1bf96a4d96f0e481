"""Activations that are made again in the backward pass instead of being stored in the forward pass.

A network of convolution, norm and activation stores two tensors per layer: the convolution's output, which the norm
needs, and the activation's, which the next convolution needs. The second follows from the first by a few passes over
memory. While :class:`recomputing` is active, every tensor that autograd wants to store is looked at: if the graph
behind it leads through cheap operations (norms, activations, sums, concatenations, upsampling, views) to tensors that
are stored anyway, a recipe is stored in its place. Nothing else changes: the network's own code runs, the forward pass
is what it was bit for bit, and the backward passes are PyTorch's. What cannot be made again is stored as ever.

Built on ``torch.autograd.graph.saved_tensors_hooks`` and on the attributes in which autograd's nodes show what they
saved; a node that is not in :data:`_RULES` ends the search.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable, forward_ad
from torch.nn import functional as F

#: The most operations that making one tensor again may take: bounds the way back through a chain of residual blocks.
MOST_OPERATIONS = 8

_KEY = "acsconv.memory"  # in the metadata of a node: weak references to what stands for its outputs
_BIAS = "acsconv.memory.bias"  # of a norm's node, where autograd has no use for it
_local = threading.local()
_aten = torch.ops.aten


class Kept:
    """A tensor that is stored.

    Attributes:
        is_offered: nobody stores it yet; see :func:`offer`.
    """

    __slots__ = ("__weakref__", "is_offered", "tensor", "version")
    operations = 0

    def __init__(self, tensor: Tensor, is_offered: bool = False) -> None:
        self.tensor = tensor.detach()  # the tensor itself would keep its own graph alive
        self.version = self.tensor._version
        self.is_offered = is_offered

    @property
    def is_valid(self) -> bool:
        return self.tensor._version == self.version

    def leaves(self) -> Iterator[Kept]:
        yield self

    def value(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: it has been modified in place since.
        """
        if not self.is_valid:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"{self.tensor.dtype} {list(self.tensor.shape)} is at version {self.tensor._version}; expected "
                f"version {self.version}"
            )
        return self.tensor


class Remade:
    """A tensor that is made again from others when it is asked for.

    Attributes:
        make: a function of the operands' values and, for each, whether it may be overwritten.
        operands: what it is made of.
        operations: how many operations that takes.
        savers: how many nodes asked to store it.
    """

    __slots__ = ("__weakref__", "make", "operands", "operations", "savers", "uses")
    is_valid = True

    def __init__(self, make: Callable, operands: Sequence[Kept | Remade], operations: int = 1) -> None:
        self.make, self.operands = make, tuple(operands)
        self.operations = operations + sum(operand.operations for operand in operands)
        self.savers = self.uses = 0

    def leaves(self) -> Iterator[Kept]:
        """The stored tensors that it is made of in the end."""
        for operand in self.operands:
            yield from operand.leaves()

    def value(self) -> Tensor:
        values: list[Tensor | None] = [None] * len(self.operands)
        # The longest way first: no more than two intermediate tensors are alive at any time.
        for index in sorted(range(len(values)), key=lambda i: -self.operands[i].operations):
            values[index] = self.operands[index].value()
        fresh = [isinstance(operand, Remade) for operand in self.operands]
        return self.make(values, fresh)

    def fetch(self) -> Tensor:
        """The value for one of the savers; held for the next one, which in a backward pass comes at once."""
        last: _Last = _last()
        if last.recipe is self:
            value = last.value
        else:
            last.clear()  # before the next one is made
            with torch.no_grad(), _no_autocast():
                value = self.value()
        self.uses += 1
        if self.uses % max(1, self.savers) and torch._C._current_graph_task_id() != -1:
            last.hold(self, value)
        else:
            last.clear()
            last.spent = value.untyped_storage()._cdata
        return value


class _Last:
    """The tensor that was made last, until another one is made or the backward pass ends."""

    def __init__(self) -> None:
        self.recipe: Remade | None = None
        self.value: Tensor | None = None
        self.spent = 0  # the storage of what was given to its last saver just now
        self.task = -1

    def hold(self, recipe: Remade, value: Tensor) -> None:
        self.recipe, self.value = recipe, value
        task = torch._C._current_graph_task_id()
        if task != self.task:
            self.task = task
            Variable._execution_engine.queue_callback(self.clear)

    def clear(self) -> None:
        self.recipe = self.value = None
        self.spent = 0


def _last() -> _Last:
    if not hasattr(_local, "last"):
        _local.last = _Last()
    return _local.last


def is_spent(tensor: Tensor) -> bool:
    """Whether a saved tensor, the last that was asked for, was made for this node alone; it is no longer, then."""
    last = _last()
    spent, last.spent = last.spent, 0
    return tensor.untyped_storage()._cdata == spent


class _no_autocast:
    """Context: recipes say what dtypes they work in."""

    def __enter__(self) -> None:
        self.devices = [d for d in ("cpu", "cuda", "xpu") if torch.is_autocast_enabled(d)]
        for device in self.devices:
            torch.set_autocast_enabled(device, False)

    def __exit__(self, *exception) -> None:
        for device in self.devices:
            torch.set_autocast_enabled(device, True)


class recomputing:
    """Context, for forward passes: what follows cheaply from stored tensors is not stored.

    Args:
        watch: called with what stands for each tensor that autograd stores.

    Without effect while ``torch.compile`` traces, within ``torch.func``'s transforms and forward-mode differentiation,
    and inside other users of saved-tensor hooks, such as activation checkpointing: they do what they do without it.
    May be nested.
    """

    def __init__(self, watch: Callable[[Kept | Remade], None] | None = None) -> None:
        self._hooks: torch.autograd.graph.saved_tensors_hooks | None = None
        self.watch = watch
        #: Outputs that autograd does not store, but that others may be made of; see :func:`offer`.
        self.offered: list[Kept] = []

    def __enter__(self) -> recomputing:
        if _may_start():
            self._hooks = torch.autograd.graph.saved_tensors_hooks(_pack, _unpack)
            self._hooks.__enter__()
            _local.contexts = [*_contexts(), self]
        return self

    def __exit__(self, *exception) -> None:
        if self._hooks is not None:
            hooks, self._hooks = self._hooks, None
            hooks.__exit__(*exception)
            _local.contexts = _contexts()[:-1]
            self.offered.clear()


def _contexts() -> list[recomputing]:
    return getattr(_local, "contexts", [])


def _may_start() -> bool:
    return (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def is_recomputing() -> bool:
    """Whether tensors stored now go through :class:`recomputing`."""
    if not _contexts():
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0] is _pack


def offer(output: Tensor) -> None:
    """Lets recipes use ``output``, which nobody may be storing: a convolution's, that goes into a concatenation."""
    if torch.compiler.is_compiling() or not isinstance(output, Tensor):
        return
    if output.grad_fn is not None and is_recomputing() and _find(output.grad_fn, output.output_nr) is None:
        kept = Kept(output, is_offered=True)
        _remember(output.grad_fn, output.output_nr, kept)
        _contexts()[-1].offered.append(kept)


def _pack(tensor: Tensor) -> Kept | Remade:
    node = tensor.grad_fn
    found = None if node is None else _search(node, tensor.output_nr)
    if found is None or found.operations > MOST_OPERATIONS or not _saves(found, tensor):
        found = Kept(tensor)
    for leaf in found.leaves():
        leaf.is_offered = False
    if node is not None:
        _remember(node, tensor.output_nr, found)
    if isinstance(found, Remade):
        found.savers += 1
    watch = _contexts()[-1].watch
    if watch is not None:
        watch(found)
    return found


def _saves(found: Kept | Remade, tensor: Tensor) -> bool:
    """Whether storing what ``found`` needs, and nobody stores so far, takes less than the tensor itself."""
    return isinstance(found, Kept) or tensor.nbytes > sum(
        leaf.tensor.nbytes for leaf in found.leaves() if leaf.is_offered
    )


def _unpack(stored: Kept | Remade) -> Tensor:
    _last().spent = 0
    return stored.fetch() if isinstance(stored, Remade) else stored.value()


# ---- from the graph to recipes ------------------------------------------------------------------------------------


def note_norm(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
    """A forward hook for norms: says what the graph of its output does not.

    ``F.instance_norm`` gives a view, and what happens to a view in place cannot be followed; and biases without a
    gradient are not in the graph.
    """
    node = output.grad_fn if not torch.compiler.is_compiling() and is_recomputing() else None
    if node is None:
        return None
    while not hasattr(node, "_saved_result1"):
        if node.name() not in ("ViewBackward0", "UnsafeViewBackward0") or node.next_functions[0][0] is None:
            return None
        node = node.next_functions[0][0]
    bias = getattr(module, "bias", None)
    if bias is not None and not bias.requires_grad:
        node.metadata[_BIAS] = bias.detach()
    return _aten._unsafe_view(output, output.shape) if output._is_view() else None


def _find(node: Any, output: int) -> Kept | Remade | None:
    """What already stands for an output of a node, as long as somebody stores it."""
    reference = node.metadata.get(_KEY, {}).get(output)
    found = None if reference is None else reference()
    return found if found is not None and found.is_valid else None


def _remember(node: Any, output: int, stored: Kept | Remade) -> None:
    node.metadata.setdefault(_KEY, {})[output] = weakref.ref(stored)


def _search(node: Any, output: int) -> Kept | Remade | None:
    """What stands for an output of a node, or a recipe for it; None where there is neither."""
    found = _find(node, output)
    if found is not None:
        return found
    rule = _RULES.get(node.name())
    return rule(node) if rule is not None and output == 0 else None


def _operand(node: Any, index: int) -> Kept | Remade | None:
    """The ``index``-th input of a node, if it has a gradient and can be had."""
    following, output = node.next_functions[index]
    return None if following is None else _search(following, output)


def rule(name: str) -> Callable:
    """Registers how the output of nodes of this name follows from their first input: ``function(node, input)``."""

    def register(function: Callable[[Any, Kept | Remade], Kept | Remade]) -> Callable:
        def search(node: Any) -> Kept | Remade | None:
            source = _operand(node, 0)
            return None if source is None else function(node, source)

        _RULES[name] = search
        return function

    return register


def _parameter(node: Any, index: int) -> Tensor | None:
    """The ``index``-th input of a node, where that is a parameter, possibly repeated or cast."""
    following, _ = node.next_functions[index]
    if following is None:
        return None
    if following.name() == "torch::autograd::AccumulateGrad":
        return following.variable.detach()
    if following.name() in ("RepeatBackward0", "ToCopyBackward0"):
        parameter = _parameter(following, 0)
        if parameter is None or following.name() == "ToCopyBackward0":
            return parameter
        return parameter.repeat(following._saved_repeats)
    return None


def _affine(node: Any, like: Tensor) -> tuple[Tensor | None, Tensor | None] | None:
    """Copies of a norm's weight and bias in the dtype of its statistics; None where the bias cannot be had."""
    weight = node._saved_weight
    if weight is None:
        return None, None
    bias = _parameter(node, 2)
    if bias is None:  # frozen: the graph does not know it, note_norm does
        bias = node.metadata.get(_BIAS)
        if bias is None or weight.numel() % bias.numel():
            return None
        bias = bias.repeat(weight.numel() // bias.numel())
    return tuple(tensor.detach().to(like.dtype, copy=True) for tensor in (weight, bias))


def _scaled(source: Kept | Remade, mean: Tensor, variance: Tensor, eps: float, affine: tuple) -> Remade:
    def make(values: list[Tensor], fresh: list[bool]) -> Tensor:
        (value,) = values
        rows = value if value.shape[1] == len(mean) else value.reshape(1, len(mean), *value.shape[2:])
        out = F.batch_norm(rows, mean, variance, *affine, training=False, eps=eps)
        return out.view(value.shape) if rows is not value else out

    return Remade(make, [source])


def _batch_norm(node: Any) -> Remade | None:
    source = _operand(node, 0)
    if source is None:
        return None
    if node._saved_training:
        mean, inverse = node._saved_result1, node._saved_result2
        variance, eps = inverse.square().reciprocal_(), 0.0
    else:
        mean, variance = node._saved_running_mean.clone(), node._saved_running_var.clone()
        eps = node._saved_epsilon if hasattr(node, "_saved_epsilon") else node._saved_eps
    affine = _affine(node, mean)
    return None if affine is None else _scaled(source, mean, variance, eps, affine)


def _group_norm(node: Any) -> Remade | None:
    source = _operand(node, 0)
    mean, inverse = node._saved_result1, node._saved_result2
    affine = _affine(node, mean)
    if source is None or affine is None:
        return None
    batch, channels = node._saved_N, node._saved_C
    per_channel = channels // node._saved_group
    mean, inverse = (t.repeat_interleave(per_channel, 1).flatten() for t in (mean, inverse))
    affine = tuple(None if t is None else t.repeat(batch) for t in affine)
    return _scaled(source, mean, inverse.square().reciprocal_(), 0.0, affine)


def _layer_norm(node: Any) -> Remade | None:
    source = _operand(node, 0)
    if source is None:
        return None
    mean, inverse, weight, bias = (
        None if tensor is None else tensor.clone()
        for tensor in (node._saved_result1, node._saved_result2, node._saved_weight, node._saved_bias)
    )

    def make(values: list[Tensor], fresh: list[bool]) -> Tensor:
        out = values[0].sub(mean).mul_(inverse)
        if weight is not None:
            out = out.mul_(weight)
        if bias is not None:
            out = out.add_(bias)
        return out.to(values[0].dtype)

    return Remade(make, [source])


def _elementwise(function: Callable, in_place: Callable, *names: str) -> Callable:
    """The rule of a function of one tensor; ``names``: the further arguments, by the names that its node gives them."""

    def rule(node: Any) -> Remade | None:
        source = _operand(node, 0)
        if source is None:
            return None
        arguments = [getattr(node, "_saved_" + name) for name in names]

        def make(values: list[Tensor], fresh: list[bool]) -> Tensor:
            return (in_place if fresh[0] else function)(values[0], *arguments)

        return Remade(make, [source])

    return rule


def _prelu(node: Any) -> Remade | None:
    source = _operand(node, 0)
    if source is None:
        return None
    weight = node._saved_weight.clone()
    return Remade(lambda values, fresh: torch._prelu_kernel(values[0], weight), [source])


def _binary(name: str) -> Callable:
    """The rule of a sum or product of two tensors, of which one may be a constant that the node stores."""

    def rule(node: Any) -> Remade | None:
        if getattr(node, "_saved_alpha", 1) != 1:
            return None
        operands = []
        for index, saved in enumerate(("_saved_self", "_saved_other")):
            if node.next_functions[index][0] is not None:
                operands.append(_operand(node, index))
            else:
                constant = getattr(node, saved, None)
                operands.append(Kept(constant) if isinstance(constant, Tensor) else None)
        if None in operands:
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

    return rule


def _dropout(node: Any) -> Remade | None:
    source, mask, rate = _operand(node, 0), node._saved_result1, node._saved_p
    if source is None or not node._saved_train or rate in (0, 1):
        return None
    return Remade(lambda values, fresh: values[0].mul(mask).mul_(1 / (1 - rate)), [source])


def _cat(node: Any) -> Remade | None:
    dim = _signed(node._saved_dim)
    parts: list[Kept | Remade] = []
    for index in range(len(node.next_functions)):
        part = _operand(node, index)
        if part is None:
            return None
        # A concatenation of a concatenation is one of all their parts.
        is_same = isinstance(part, Remade) and isinstance(part.make, _Cat) and part.make.dim == dim
        parts += part.operands if is_same else [part]
    return Remade(_Cat(dim), parts)


class _Cat:
    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, values: list[Tensor], fresh: list[bool]) -> Tensor:
        return torch.cat(values, self.dim)


def _upsampling(function: Callable, *names: str) -> Callable:
    def rule(node: Any) -> Remade | None:
        source = _operand(node, 0)
        if source is None:
            return None
        arguments = [getattr(node, "_saved_" + name) for name in names]
        return Remade(lambda values, fresh: function(values[0], *arguments), [source])

    return rule


def _reshaped(node: Any) -> Remade | None:
    source, shape = _operand(node, 0), tuple(node._input_metadata[0].shape)
    return None if source is None else _view(source, lambda value: value.reshape(shape))


def _permuted(node: Any) -> Remade | None:
    source = _operand(node, 0)
    if source is None:
        return None
    if hasattr(node, "_saved_dims"):
        dims = [_signed(dim) for dim in node._saved_dims]
        return _view(source, lambda value: value.permute(dims))
    dims = _signed(node._saved_dim0), _signed(node._saved_dim1)
    return _view(source, lambda value: value.transpose(*dims))


def _cast(node: Any) -> Remade | None:
    source, like = _operand(node, 0), node._input_metadata[0]
    return (
        None
        if source is None
        else _view(source, lambda value: value.to(like.device, like.dtype, copy=True), 1)
    )


def _contiguous(node: Any) -> Remade | None:
    source = _operand(node, 0)
    return (
        None if source is None else _view(source, lambda v: v.clone(memory_format=torch.contiguous_format), 1)
    )


def _view(source: Kept | Remade, function: Callable[[Tensor], Tensor], operations: int = 0) -> Kept | Remade:
    """A view (no operation) or a copy (one)."""
    if isinstance(source, Kept) and operations == 0:  # not overwritten, as what it views
        return Kept(function(source.tensor), source.is_offered)
    return Remade(lambda values, fresh: function(values[0]), [source], operations)


def _signed(number: int) -> int:
    """Nodes show negative numbers as unsigned."""
    return number - 2**64 if number >= 2**63 else number


_RULES: dict[str, Callable[[Any], Kept | Remade | None]] = {
    "NativeBatchNormBackward0": _batch_norm,
    "CudnnBatchNormBackward0": _batch_norm,
    "MiopenBatchNormBackward0": _batch_norm,
    "NativeGroupNormBackward0": _group_norm,
    "NativeLayerNormBackward0": _layer_norm,
    "ReluBackward0": _elementwise(torch.relu, torch.relu_),
    "LeakyReluBackward0": _elementwise(F.leaky_relu, F.leaky_relu_, "negative_slope"),
    "LeakyReluBackward1": _elementwise(F.leaky_relu, F.leaky_relu_, "negative_slope"),
    "EluBackward0": _elementwise(_aten.elu, _aten.elu_, "alpha", "scale", "input_scale"),
    "EluBackward1": _elementwise(_aten.elu, _aten.elu_, "alpha", "scale", "input_scale"),
    "SiluBackward0": _elementwise(_aten.silu, _aten.silu_),
    "GeluBackward0": _elementwise(
        lambda value, kind: _aten.gelu(value, approximate=kind),
        lambda value, kind: _aten.gelu_(value, approximate=kind),
        "approximate",
    ),
    "MishBackward0": _elementwise(_aten.mish, _aten.mish_),
    "HardswishBackward0": _elementwise(_aten.hardswish, _aten.hardswish_),
    "HardtanhBackward0": _elementwise(_aten.hardtanh, _aten.hardtanh_, "min_val", "max_val"),
    "SoftplusBackward0": _elementwise(_aten.softplus, _aten.softplus, "beta", "threshold"),
    "SigmoidBackward0": _elementwise(torch.sigmoid, torch.sigmoid_),
    "TanhBackward0": _elementwise(torch.tanh, torch.tanh_),
    "PreluKernelBackward0": _prelu,
    "torch::autograd::AccumulateGrad": lambda node: Kept(node.variable),
    "AddBackward0": _binary("add"),
    "MulBackward0": _binary("mul"),
    "NativeDropoutBackward0": _dropout,
    "CatBackward0": _cat,
    "UpsampleTrilinear3DBackward0": _upsampling(
        _aten.upsample_trilinear3d, "output_size", "align_corners", "scales_d", "scales_h", "scales_w"
    ),
    "UpsampleNearest3DBackward0": _upsampling(
        _aten.upsample_nearest3d, "output_size", "scales_d", "scales_h", "scales_w"
    ),
    "UpsampleNearestExact3DBackward0": _upsampling(
        _aten._upsample_nearest_exact3d, "output_size", "scales_d", "scales_h", "scales_w"
    ),
    "ViewBackward0": _reshaped,
    "UnsafeViewBackward0": _reshaped,
    "ReshapeAliasBackward0": _reshaped,
    "UnsqueezeBackward0": _reshaped,
    "SqueezeBackward1": _reshaped,
    "PermuteBackward0": _permuted,
    "TransposeBackward0": _permuted,
    "ToCopyBackward0": _cast,
    "CloneBackward0": _contiguous,
}
