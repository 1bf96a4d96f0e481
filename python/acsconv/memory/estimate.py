"""What a training step will need, without running it: parameters, activations per layer, the peak and where it stands.

The step is executed on fake tensors, which have shapes and storages but no data: forward pass, loss, backward pass.
A dispatch mode sees every operation below autograd and follows the storages that it makes from birth to death, so that
views and in-place operations count once and what autograd keeps counts as long as it is kept.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acsconv_cuda import ops
from acsconv_cuda.backends import choose

from .workspace import workspace

#: Optimisers, and how many copies of the parameters they keep from step to step.
OPTIMIZERS = {"none": 0, "sgd": 0, "sgd-momentum": 1, "adam": 2, "adamw": 2}

#: A cube of more voxels than a network will ever get: where the search for the largest one ends.
LARGEST_EDGE = 4096

#: A network that refuses every cube over so many voxels of its edge will refuse the larger ones too.
REFUSED_EDGES = 256

#: What stands for a layer's name where the loss is computed.
LOSS = "(the loss)"

_UNITS = {"": 1, "b": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS |= {f"{unit}b": factor for unit, factor in _UNITS.items() if unit and unit != "b"}
_UNITS |= {f"{unit}ib": 1024.0**power for power, unit in enumerate("kmgt", 1)}


class _Refused(ValueError):
    """The network raised an error at a volume."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training step needs; ``str()`` of it is a table.

    Attributes:
        size: (D, H, W) of the volumes.
        batch: volumes per step.
        parameters: all parameters.
        buffers: running statistics and the like.
        gradients: of the parameters.
        optimizer_state: what the optimiser keeps from step to step.
        inputs: the batch of volumes and its targets.
        activations: what is alive between forward and backward pass, beyond all of the above.
        layers: the activations by the layer that made them, in the order of execution.
        workspace: the most that an operation needs for itself.
        peak: the most that is in use at any time, all of the above included.
        phase: when: ``'forward'``, ``'backward'`` or ``'optimizer'``.
        layer: in which layer; empty for the network itself, :data:`LOSS` for the loss.
    """

    size: tuple[int, int, int]
    batch: int
    parameters: int
    buffers: int
    gradients: int
    optimizer_state: int
    inputs: int
    activations: int
    layers: tuple[tuple[str, int], ...]
    workspace: int
    peak: int
    phase: str
    layer: str

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, most: int = 12) -> list[str]:
        """The table, with up to ``most`` layers that keep most, and at least a hundredth of all."""
        shown = sorted(self.layers, key=lambda layer: -layer[1])[:most]
        shown = [layer for layer in self.layers if layer in shown and layer[1] >= self.activations / 100]
        rest = self.activations - sum(count for _, count in shown)
        where = f" in {self.layer}" if self.layer else ""
        volume = " x ".join(map(str, self.size))
        table = [
            ("parameters", self.parameters),
            ("buffers", self.buffers),
            ("gradients", self.gradients),
            ("optimiser state", self.optimizer_state),
            ("volumes and targets", self.inputs),
            ("activations", self.activations),
            *((f"  {name or '(the network)'}", count) for name, count in shown),
            *([("  other layers", rest)] if rest > 0 else []),
            ("workspace, at most", self.workspace),
            (f"peak ({self.phase}{where})", self.peak),
        ]
        width = max(len(name) for name, _ in table)
        return [
            f"training step, batch {self.batch}, {volume} voxels",
            *(f"{name:{width}}  {format_bytes(count):>10}" for name, count in table),
        ]


def estimate(
    model: nn.Module,
    size: int | Sequence[int],
    *,
    batch: int = 1,
    channels: int | None = None,
    optimizer: str = "adam",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    loss: Callable[[object], Tensor] | None = None,
) -> MemoryEstimate:
    """What one training step of a network needs in memory; nothing of that size is allocated.

    Args:
        model: [N, C, D, H, W] -> tensors; on any device, also ``meta``. It is left as it is.
        size: (D, H, W), or the edge of a cube.
        batch: volumes per step.
        channels: C; default: those of the network's first layer with ``in_channels``.
        optimizer: a key of :data:`OPTIMIZERS`.
        dtype: float32 or float64; float16 or bfloat16: autocast to it, with float32 parameters.
        device: ``'cpu'`` or ``'cuda'``: whose kernels compute, and with which workspace.
        loss: the network's output -> a scalar. Default: cross entropy over the channels of an output that is one
            tensor [N, 2 or more, ...], else the mean of all tensors of the output.

    Not counted are what a process needs once, whatever the volume (libraries; CUDA's context, some hundred MB; what the
    fused CPU kernels keep, about 15 MB a thread), memory that an allocator cannot use because it lies in pieces, and
    cuDNN's workspaces.

    Raises:
        ValueError: an argument of no such value, or a volume that the network refuses.
    """
    size = (size,) * 3 if isinstance(size, int) else tuple(size)
    for name, value, known in (("optimizer", optimizer, OPTIMIZERS), ("device", device, ("cpu", "cuda"))):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"size: expected the edge of a cube or (D, H, W), got {size}")
    if batch < 1:
        raise ValueError(f"batch: expected 1 or more, got {batch}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point dtype, got {dtype}")
    if channels is None:
        channels = next((m.in_channels for m in model.modules() if hasattr(m, "in_channels")), None)
        if channels is None:
            raise ValueError("channels: the network has no layer with in_channels that could tell")
    mixed = dtype in (torch.float16, torch.bfloat16)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    network = _fake_copy(model, fake, torch.float32 if mixed else dtype).train()
    with fake:
        volume = torch.empty(batch, channels, *size, dtype=torch.float32 if mixed else dtype)
        targets = _targets(network, volume) if loss is None else None
        parameters, buffers = list(network.parameters()), list(network.buffers())
        inputs = [volume] if targets is None else [volume, targets]
        tracker = _Tracker(device, [*parameters, *buffers, *inputs])
        with tracker.names_of(network), tracker:
            with torch.autocast("cpu", dtype, enabled=mixed):
                output = _run(network, volume)
                value = _loss(output, targets) if loss is None else loss(output)
            del output
            layers = tracker.layers()
            tracker.phase = "backward"
            value.backward()
            tracker.settle()
        gradients = _bytes([p.grad for p in parameters if p.grad is not None])
    trained = _bytes([p for p in parameters if p.requires_grad])
    state = OPTIMIZERS[optimizer] * trained
    static = _bytes(parameters) + _bytes(buffers) + _bytes(inputs) + state
    peak, phase, layer = static + tracker.peak, tracker.peak_phase, tracker.peak_layer
    stepping = static + gradients + _optimizer_workspace(optimizer, device, parameters)
    if stepping > peak:
        peak, phase, layer = stepping, "optimizer", ""
    return MemoryEstimate(
        size=size,
        batch=batch,
        parameters=_bytes(parameters),
        buffers=_bytes(buffers),
        gradients=gradients,
        optimizer_state=state,
        inputs=_bytes(inputs),
        activations=sum(layers.values()),
        layers=tuple(layers.items()),
        workspace=tracker.workspace,
        peak=peak,
        phase=phase,
        layer=layer,
    )


def largest_cube(model: nn.Module, limit: int, *, multiple: int = 16, **options) -> MemoryEstimate | None:
    """The estimate of the largest cube whose training step fits into ``limit`` bytes.

    Args:
        multiple: edges are multiples of it. Those that the network refuses are passed over.
        options: those of :func:`estimate`.

    Returns:
        None if not even the smallest cube fits that the network takes.

    Raises:
        ValueError: an option of no such value, or a network that refuses every cube.
    """
    if multiple < 1:
        raise ValueError(f"multiple: expected 1 or more, got {multiple}")

    def first_taken(start: int, end: int) -> tuple[int, MemoryEstimate] | None:
        """The first of ``start`` ... ``end - 1`` times ``multiple`` voxels that the network takes."""
        for count in range(start, min(end, start + max(REFUSED_EDGES // multiple, 1))):
            with contextlib.suppress(_Refused):
                return count, estimate(model, count * multiple, **options)
        return None

    best, low, high = None, 0, max(LARGEST_EDGE // multiple, 1) + 1
    while high - low > 1:  # `low` fits, `high` does not
        middle = max(min(2 * low, (low + high) // 2), 1)
        found = first_taken(middle, high)
        if found is None and best is None:
            estimate(model, multiple, **options)  # raises what the network says
        if found is not None and found[1].peak <= limit:
            low, best = found
        else:
            high = middle
    return best


def format_bytes(count: float) -> str:
    """``1.23 GB``: three digits, and units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def parse_bytes(text: str) -> int:
    """``'16GB'`` -> 16 000 000 000, ``'16GiB'`` -> 16 * 2**30; ValueError for anything else."""
    number = text.strip().rstrip("bBkKmMgGtTiI").strip()
    unit = text.strip()[len(number) :].strip().lower()
    if unit not in _UNITS:
        raise ValueError(f"expected a number of bytes as 16GB or 16GiB, got {text!r}")
    try:
        count = int(float(number) * _UNITS[unit])
    except ValueError:
        raise ValueError(f"expected a number of bytes as 16GB or 16GiB, got {text!r}") from None
    return count


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


class _Tracker(TorchDispatchMode):
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


def _fake_copy(model: nn.Module, fake: FakeTensorMode, dtype: torch.dtype) -> nn.Module:
    """A copy of the network whose parameters, buffers and other tensors are fake, on the CPU."""
    memo: dict[int, object] = {}
    held = [leaf for module in model.modules() for leaf in tree_leaves(vars(module))]
    with fake:
        for tensor in (leaf for leaf in held if isinstance(leaf, Tensor)):
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            twin = torch.empty_like(tensor, dtype=kind, device="cpu", requires_grad=False)
            if isinstance(tensor, nn.Parameter):
                twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = twin
    return copy.deepcopy(model, memo)


def _run(network: nn.Module, volume: Tensor) -> object:
    try:
        return network(volume)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _Refused(f"the network refuses volumes {list(volume.shape)}: {error}") from error


def _targets(network: nn.Module, volume: Tensor) -> Tensor | None:
    """Labels [N, ...] for an output [N, channels, ...] of classes; None for any other output."""
    with torch.no_grad():
        output = _run(network, volume)
    if isinstance(output, Tensor) and output.dim() >= 2 and output.shape[1] > 1:
        return torch.zeros(output.shape[0], *output.shape[2:], dtype=torch.long)
    return None


def _loss(output: object, targets: Tensor | None) -> Tensor:
    if targets is not None:
        return F.cross_entropy(output.float() if output.dtype.itemsize == 2 else output, targets)
    return sum(t.mean() for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad)


def _is_whole(tensor: Tensor) -> bool:
    """Whether the tensor is all of its storage, in a row."""
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return whole and torch._debug_has_internal_overlap(tensor) == 0


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Of all storages, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _optimizer_workspace(optimizer: str, device: str, parameters: Sequence[Tensor]) -> int:
    """Of ``torch.optim``: on a GPU all parameters at once, on a CPU two tensors of one."""
    sizes = [_bytes([p]) for p in parameters if p.requires_grad]
    if optimizer == "none" or not sizes:
        return 0
    return sum(sizes) if device == "cuda" else 2 * max(sizes)
