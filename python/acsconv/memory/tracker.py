"""A dispatch mode that follows storages from birth to death, and knows which layer made each.

:func:`acsconv.memory.estimate` runs a training step under it, on tensors without data.
"""

from __future__ import annotations

import bisect
import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acsconv_cuda import ops
from acsconv_cuda.backends import choose

from .workspace import workspace

#: What stands for a layer's name where the loss is computed.
LOSS = "(the loss)"


@dataclass
class _Storage:
    """A storage that is alive: its size, and the layer that made it."""

    reference: weakref.ref
    bytes: int
    layer: str


@dataclass
class _Names:
    """Which layer is at work: forward by the modules that were entered, backward by the numbers of autograd's nodes."""

    stack: list[str] = field(default_factory=list)
    #: From this sequence number on, autograd's nodes belong to this layer. Both in ascending order.
    numbers: list[int] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    last: str = ""

    def enter(self, name: str) -> None:
        self.stack.append(name)
        self._mark(name)

    def leave(self) -> None:
        self.stack.pop()
        self._mark(self.stack[-1] if self.stack else LOSS)

    def _mark(self, name: str) -> None:
        self.numbers.append(torch._C._autograd._get_sequence_nr())
        self.owners.append(name)

    def current(self) -> str:
        node = torch._C._current_autograd_node()
        if self.stack:
            self.last = self.stack[-1]
        elif node is None:
            self.last = LOSS
        elif node._sequence_nr() < 2**63:  # else a node that adds up a parameter's gradient
            place = bisect.bisect_right(self.numbers, node._sequence_nr()) - 1
            self.last = self.owners[place] if place >= 0 else ""
        return self.last


class StorageTracker(TorchDispatchMode):
    """Follows the storages that operations make, and their sum.

    Args:
        device: whose workspaces are added.
        given: tensors that are there before; their storages are not counted.
    """

    def __init__(self, device: str, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.device = device
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.storages: dict[int, _Storage] = {}
        self.names = _Names()
        self.phase = "forward"
        self.live = self.peak = self.workspace = 0
        self.peak_phase, self.peak_layer = "forward", ""
        self._sum: tuple[weakref.ref, int] | None = None

    @contextlib.contextmanager
    def names_of(self, network: nn.Module) -> Iterator[None]:
        """Inside, the modules of ``network`` say when they are at work."""
        handles = []
        for name, module in network.named_modules():
            handles.append(
                module.register_forward_pre_hook(lambda *_, name=name: self.names.enter(name), prepend=True)
            )
            # Always: what recomputes a checkpoint leaves a module by an exception.
            handles.append(module.register_forward_hook(lambda *_: self.names.leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def layers(self) -> dict[str, int]:
        """Bytes alive now by the layer that made them, in the order of making."""
        found: dict[str, int] = {}
        for storage in self.storages.values():
            found[storage.layer] = found.get(storage.layer, 0) + storage.bytes
        return found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        self.settle()
        composed = self._composed(func, args)
        if composed is not None:
            with self:
                return composed(*args)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        if self.phase == "backward" and func is torch.ops.aten.add.Tensor and _is_whole(args[0]):
            self._sum = weakref.ref(args[0].untyped_storage()), self.live
        else:
            self._look(self.live, workspace(func, args, out, self.device))
        return out

    def settle(self) -> None:
        """Looks at the last sum of gradients.

        Autograd adds the gradients that meet in place if nobody else holds the first, but not under a dispatch mode.
        Which would have been done shows when the sum has returned: the first is gone, or not.
        """
        if self._sum is not None:
            first, live = self._sum
            self._sum = None
            if first() is not None:
                self._look(live, 0)

    def _composed(self, func, args: tuple) -> Callable | None:
        """What computes one of our operators in terms of PyTorch's, if that is what will be done on the device."""
        if func.namespace != "acsconv":
            return None
        name = func._schema.name.removeprefix("acsconv::")
        family, _, operation = name.partition("conv3d")
        arguments = ops.Arguments.of(args[-7 if family.startswith("soft") else -8 :])
        if self.device == "cuda":
            torch_computes = arguments.geometry.is_one_view()
        else:
            torch_computes = choose(operation.removeprefix("_") or "forward", args[0], arguments) == "torch"
        return ops.IMPLEMENTATIONS[name] if torch_computes else None

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.given or key in self.storages or not storage.nbytes():
            return

        def free(_, key=key) -> None:
            self.live -= self.storages.pop(key).bytes

        self.storages[key] = _Storage(weakref.ref(storage, free), storage.nbytes(), self.names.current())
        self.live += storage.nbytes()

    def _look(self, live: int, extra: int) -> None:
        self.workspace = max(self.workspace, extra)
        if live + extra > self.peak:
            self.peak = live + extra
            self.peak_phase, self.peak_layer = self.phase, self.names.current()


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Of all storages, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _is_whole(tensor: Tensor) -> bool:
    """Whether the tensor is all of its storage, in a row."""
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return whole and torch._debug_has_internal_overlap(tensor) == 0
