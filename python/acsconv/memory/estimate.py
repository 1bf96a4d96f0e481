"""What a training step will need, without running it: parameters, activations per layer, the peak and where it stands.

The step is executed on fake tensors, which have shapes and storages but no data: forward pass, loss, backward pass.
A dispatch mode sees every operation below autograd and follows the storages that it makes from birth to death, so that
views and in-place operations count once and what autograd keeps counts as long as it is kept.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from .tracker import StorageTracker, storage_bytes

#: Optimisers, and how many copies of the parameters they keep from step to step.
OPTIMIZERS = {"none": 0, "sgd": 0, "sgd-momentum": 1, "adam": 2, "adamw": 2}

#: A cube of more voxels than a network will ever get: where the search for the largest one ends.
LARGEST_EDGE = 4096

#: A network that refuses every cube over so many voxels of its edge will refuse the larger ones too.
REFUSED_EDGES = 256

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
        tracker = StorageTracker(device, [*parameters, *buffers, *inputs])
        with tracker.names_of(network), tracker:
            with torch.autocast("cpu", dtype, enabled=mixed):
                output = _run(network, volume)
                value = _loss(output, targets) if loss is None else loss(output)
            del output
            layers = tracker.layers()
            tracker.phase = "backward"
            value.backward()
            tracker.settle()
        gradients = storage_bytes([p.grad for p in parameters if p.grad is not None])
    trained = storage_bytes([p for p in parameters if p.requires_grad])
    state = OPTIMIZERS[optimizer] * trained
    static = storage_bytes(parameters) + storage_bytes(buffers) + storage_bytes(inputs) + state
    peak, phase, layer = static + tracker.peak, tracker.peak_phase, tracker.peak_layer
    stepping = static + gradients + _optimizer_workspace(optimizer, device, parameters)
    if stepping > peak:
        peak, phase, layer = stepping, "optimizer", ""
    return MemoryEstimate(
        size=size,
        batch=batch,
        parameters=storage_bytes(parameters),
        buffers=storage_bytes(buffers),
        gradients=gradients,
        optimizer_state=state,
        inputs=storage_bytes(inputs),
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


def _optimizer_workspace(optimizer: str, device: str, parameters: Sequence[Tensor]) -> int:
    """Of ``torch.optim``: on a GPU all parameters at once, on a CPU two tensors of one."""
    sizes = [storage_bytes([p]) for p in parameters if p.requires_grad]
    if optimizer == "none" or not sizes:
        return 0
    return sum(sizes) if device == "cuda" else 2 * max(sizes)
