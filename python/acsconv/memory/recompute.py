"""Activations that are made again in the backward pass instead of being stored in the forward pass.

A network of convolution, norm and activation stores two tensors per layer: the convolution's output, which the norm
needs, and the activation's, which the next convolution needs. The second follows from the first by a few passes over
memory. While :class:`recomputing` is active, every tensor that autograd wants to store is looked at: if the graph
behind it leads through cheap operations (norms, activations, sums, concatenations, upsampling, views) to tensors that
are stored anyway, a recipe is stored in its place. Nothing else changes: the network's own code runs, the forward pass
is what it was bit for bit, and the backward passes are PyTorch's. What cannot be made again is stored as ever.

Built on ``torch.autograd.graph.saved_tensors_hooks`` and on the attributes in which autograd's nodes show what they
saved. How the output of a node follows from its inputs is said by :mod:`acsconv.memory.rules`; a node without a rule
ends the search.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable, forward_ad

#: The most operations that making one tensor again may take: bounds the way back through a chain of residual blocks.
MOST_OPERATIONS = 8

#: The most nodes of the graph, views among them, on the way from a tensor to one that is stored.
MOST_NODES = 4 * MOST_OPERATIONS

#: By the name of a node: ``rule(node, operand)`` is a recipe for its output; ``operand(index)`` is what stands for the
#: ``index``-th input, or None. :mod:`acsconv.memory.rules` fills it.
RULES: dict[str, Callable[[Any, Callable[[int], Kept | Remade | None]], Kept | Remade | None]] = {}

_KEY = "acsconv.memory"  # in the metadata of a node: weak references to what stands for its outputs
_local = threading.local()


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
        if last.recipe is not None and last.recipe() is self:
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
            last.spent = _storage(value)
        return value


class _Last:
    """The tensor that was made last, until another one is made, the backward pass ends, or its graph is gone.

    No callback tells of a backward pass that has failed.
    """

    def __init__(self) -> None:
        self.recipe: weakref.ref[Remade] | None = None
        self.value: Tensor | None = None
        self.spent = 0  # the storage of what was given to its last saver just now
        self.task = -1

    def hold(self, recipe: Remade, value: Tensor) -> None:
        self.recipe, self.value = weakref.ref(recipe, self._forget), value
        task = torch._C._current_graph_task_id()
        if task != self.task:
            self.task = task
            Variable._execution_engine.queue_callback(self.clear)

    def clear(self) -> None:
        self.recipe = self.value = None
        self.spent = 0

    def _forget(self, recipe: weakref.ref[Remade]) -> None:
        if self.recipe is recipe:
            self.clear()


def _last() -> _Last:
    if not hasattr(_local, "last"):
        _local.last = _Last()
    return _local.last


def is_spent(tensor: Tensor) -> bool:
    """Whether a saved tensor, the last that was asked for, was made for this node alone; it is no longer, then."""
    last = _last()
    spent, last.spent = last.spent, 0
    return _storage(tensor) == spent


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
        #: Outputs that autograd does not store, but that others may be made of, by storage; see :func:`offer`.
        self.offered: dict[int, Kept] = {}

    def __enter__(self) -> recomputing:
        if _may_start():
            _last().clear()
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
        and not torch.jit.is_tracing()
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
        _contexts()[-1].offered[_storage(output)] = kept


def _pack(tensor: Tensor) -> Kept | Remade:
    node = tensor.grad_fn
    found = None if node is None else _Search()(node, tensor.output_nr)
    if found is not None and not _saves(found, tensor):
        for leaf in found.leaves():  # what is offered waits for the end of the forward pass: not in vain
            if leaf.is_offered:
                _contexts()[-1].offered.pop(_storage(leaf.tensor), None)
        found = None
    if found is None:
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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _saves(found: Kept | Remade, tensor: Tensor) -> bool:
    """Whether storing what ``found`` needs, and nobody stores so far, takes less than the tensor itself."""
    return isinstance(found, Kept) or tensor.nbytes > sum(
        leaf.tensor.nbytes for leaf in found.leaves() if leaf.is_offered
    )


def _unpack(stored: Kept | Remade) -> Tensor:
    _last().spent = 0
    return stored.fetch() if isinstance(stored, Remade) else stored.value()


def _find(node: Any, output: int) -> Kept | Remade | None:
    """What already stands for an output of a node, as long as somebody stores it."""
    reference = node.metadata.get(_KEY, {}).get(output)
    found = None if reference is None else reference()
    return found if found is not None and found.is_valid else None


def _remember(node: Any, output: int, stored: Kept | Remade) -> None:
    node.metadata.setdefault(_KEY, {})[output] = weakref.ref(stored)


class _Search:
    """The way back from a tensor: called with a node and the number of its output, gives what stands for that, or a
    recipe for it; None where there is neither. Comes to every node once."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Any, int], Kept | Remade | None] = {}
        self.depth = 0

    def __call__(self, node: Any, output: int) -> Kept | Remade | None:
        found = _find(node, output)
        if found is None and (node, output) not in self.seen:
            self.seen[node, output] = self._apply_rule(node) if output == 0 else None
        return self.seen[node, output] if found is None else found

    def _apply_rule(self, node: Any) -> Kept | Remade | None:
        rule = RULES.get(node.name())
        if rule is None or self.depth == MOST_NODES:
            return None
        self.depth += 1
        found = rule(node, lambda index: self._operand(node, index))
        self.depth -= 1
        return None if found is None or found.operations > MOST_OPERATIONS else found

    def _operand(self, node: Any, index: int) -> Kept | Remade | None:
        """What stands for the ``index``-th input of a node, if it has a gradient and can be had."""
        following, output = node.next_functions[index]
        return None if following is None else self(following, output)


def stored_by(node: Any, name: str) -> Kept | Remade | None:
    """What a node stores as ``name``; None if that is nothing, or not ours.

    Asking the node for the tensor itself would run the hooks of others: a checkpoint's would run all of it again.
    """
    data = _data(node, name)
    if isinstance(data, Tensor) and data.dim() == 0 and _has_no_hooks(node, name):
        return Kept(data)  # a number of Python's, for which autograd calls none
    return data if isinstance(data, (Kept, Remade)) and data.is_valid else None


def stored_tensors(node: Any, *names: str) -> list[Tensor | None] | None:
    """The tensors that a node stores by these names, None for those that it has not; None if others keep them."""
    found: list[Tensor | None] = []
    for name in names:
        stored = stored_by(node, name)
        if not isinstance(stored, Kept) and _data(node, name) is not None:
            return None
        found.append(None if stored is None else stored.tensor)
    return found


def _data(node: Any, name: str) -> Any:
    """What the hooks made of a saved tensor; None if there is no tensor."""
    saved = getattr(node, "_raw_saved_" + name, None)
    return getattr(saved, "data", saved)


def _has_no_hooks(node: Any, name: str) -> bool:
    return getattr(node, "_raw_saved_" + name).unpack_hook is None
