"""The fold: how a volume goes through an unchanged 2D network.

A volume [N, C, D, H, W] enters as the 4D view [N, C, D * H, W]. For whatever treats all positions alike (normalisation,
activations, reductions over the whole map, attention over tokens, ``permute(0, 2, 3, 1)``, ``flatten(2)``, 1x1
kernels) that view is right as it is: "all positions" now means D * H * W. Only functions that mix neighbouring
positions must have (D, H, W) back; :class:`Volume`, a ``TorchFunctionMode``, hands those to the rules of
:mod:`acsconv.converters.rules`.

Which (D, H, W) a 4D tensor stands for is looked up by its last two sizes: the input and every rule's result enter them
into a table. Two volumes that fold to the same sizes are ambiguous, and whoever asks for them is refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from .targets import Target

Grid = tuple[int, int, int]


class ConversionError(RuntimeError):
    """A network, or a part of one, that has no meaning on volumes or no rule yet; says what, where and what to do."""


#: What to do with a torch function inside a fold: ``rule(volume, function, *arguments)``; see :mod:`.rules`.
RULES: dict[Callable, Callable] = {}

POINT: Grid = (1, 1, 1)  # of what is pooled to one position
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_local = threading.local()


def current() -> Volume | None:
    """The volume that this thread's network is running on, if any."""
    return getattr(_local, "volume", None)


class Volume(TorchFunctionMode):
    """One volume on its way through a 2D network, as a context in which torch functions follow the rules.

    Attributes:
        target: what convolutions become; also says in which order the volume's axes are taken.
        grids: (D * H, W) -> (D, H, W) of all feature maps so far; None where two of them clash.
        pooled: grids that an adaptive pooling to a fixed size has made.
        batch: N of the input.
        stack: the modules now running, outermost first.
        paused: True while code that speaks 5D runs inside (hooks, 3D modules): no rule applies.
        failures: None, or where a trial run collects what it could not do, as (path, message).
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.grids: dict[tuple[int, int], Grid | None] = {(1, 1): POINT}
        self.pooled: set[Grid] = set()
        self.batch: int | None = None
        self.stack: list[nn.Module] = []
        self.paused = False
        self.failures: list[tuple[str, str]] | None = None
        self._outer: list[Volume | None] = []

    def __enter__(self):
        self._outer.append(current())
        _local.volume = self
        return super().__enter__()

    def __exit__(self, *exception):
        _local.volume = self._outer.pop()
        return super().__exit__(*exception)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rule = None if self.paused else RULES.get(function)
        if rule is None:
            if isinstance(function, _OPERATORS) and not self.paused and not torch.compiler.is_compiling():
                self._check_operator(function, args, kwargs)
            return function(*args, **kwargs)
        if torch.compiler.is_compiling():
            return rule(self, function, *args, **kwargs)
        try:
            return rule(self, function, *args, **kwargs)
        except ConversionError as error:
            if self.failures is None:
                raise ConversionError(f"{self.path()}: {error}") from error
            self.note_failure(error)
            return self._as_one_slice(function, *args, **kwargs)

    def _check_operator(self, function: Callable, args: tuple, kwargs: dict) -> None:
        """Refuses operators of other packages: what they do with a folded map is not known."""
        if str(function).partition(".")[0] in ("aten", "prim", "prims", "acsconv"):
            return
        grids = []
        map_tensors(lambda tensor: grids.append(self.find(tensor)), (args, kwargs))
        if any(grid not in (None, POINT) for grid in grids):
            error = ConversionError(
                f"torch.ops.{function}: an operator that is none of PyTorch's got a feature map; register a rule for "
                "it with acsconv.converters.rule or acsconv.converters.module_rule"
            )
            if self.failures is None:
                raise ConversionError(f"{self.path()}: {error}")
            self.note_failure(error)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """A context without rules, for module rules and for code that speaks 5D."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    # --- between a volume and its 4D view; here volumes are [N, C, D, H, W] in the target's order of axes -------------

    def fold(self, volume: Tensor) -> Tensor:
        """[N, C, D, H, W] as [N, C, D * H, W], remembered."""
        depth, height, width = (int(size) for size in volume.shape[-3:])
        grid, key = (depth, height, width), (depth * height, width)
        if self.grids.setdefault(key, grid) != grid:
            self.grids[key] = None
        return volume.flatten(-3, -2)

    def unfold(self, folded: Tensor, what: str) -> Tensor:
        """[N, C, D * H, W] as [N, C, D, H, W]; ``what`` asks, for the message.

        Raises:
            ConversionError: its sizes are not those of one known volume.
        """
        return split(folded, 2, self.grid(folded, what)[:2])

    def find(self, folded: Any) -> Grid | None:
        """(D, H, W) that a 4D tensor stands for, or None."""
        if not isinstance(folded, Tensor) or folded.dim() != 4:
            return None
        return self.grids.get((int(folded.shape[-2]), int(folded.shape[-1])))

    def grid(self, folded: Tensor, what: str) -> Grid:
        """(D, H, W) that a 4D tensor stands for; raises as :meth:`unfold`."""
        grid = self.find(folded)
        if grid is None:
            raise ConversionError(f"{what}: {self._why_unknown(tuple(folded.shape))}")
        return grid

    def resize(self, size: Sequence[int], what: str) -> Grid:
        """(D, H, W) for a size (h, w) that 2D code computed from the folded sizes: that of a known volume, or one and
        the same factor on both of them.

        Raises:
            ConversionError: there is no such volume, or more than one. Nothing is guessed.
        """
        height, width = (int(n) for n in size)
        known = self.grids.get((height, width))
        if known is not None:
            return known
        found = set()
        for grid in self.grids.values():
            if grid is None or grid == POINT:
                continue
            depth_height = grid[0] * grid[1]
            # depth * height scales with the factor where the code scaled the folded height once.
            whole = all(n * width % grid[2] == 0 for n in grid)
            if whole and height * grid[2] == width * depth_height:
                found.add(tuple(n * width // grid[2] for n in grid))
        if len(found) != 1:
            raise ConversionError(
                f"{what}: size {(height, width)} is not that of one known feature map ({self._known()})"
            )
        return found.pop()

    # --- between people's tensors and the fold ------------------------------------------------------------------------

    def enter(self, tree: Any, known_only: bool = False) -> Any:
        """Tensors [N, C, D, H, W], or [N, D, H, W, C] of known sizes, in a structure of tuples, lists and dicts,
        folded.

        ``known_only`` leaves tensors alone whose sizes are not those of a known feature map.
        """

        def enter(tensor: Tensor) -> Tensor:
            if tensor.dim() != 5:
                return tensor
            volume = self.target.to_canonical(tensor)
            if not self._is_known(volume):
                channels_first = self.target.to_canonical(tensor.movedim(-1, 1))
                if self._is_known(channels_first):
                    return self.fold(channels_first).movedim(1, -1)
                if known_only:
                    return tensor
            if self.batch is None:
                self.batch = int(tensor.shape[0])
            return self.fold(volume)

        return map_tensors(enter, tree)

    def _is_known(self, volume: Tensor) -> bool:
        depth, height, width = (int(size) for size in volume.shape[-3:])
        grid = self.grids.get((depth * height, width))
        return grid == (depth, height, width)

    def leave(self, tree: Any, strict: bool = False) -> Any:
        """Folded feature maps in a structure as volumes again: [N, C, D, H, W], or [N, D, H, W, C] where channels are
        last.

        ``strict`` is for what the network returns: a map of labels [N, D * H, W] becomes [N, D, H, W].

        Raises:
            ConversionError: ``strict``, and a 4D tensor is of no known size.
        """

        def leave(tensor: Tensor) -> Tensor:
            if strict and tensor.dim() == 3:
                grid = self.grids.get(tuple(int(n) for n in tensor.shape[1:]))
                if grid is not None and grid != POINT:
                    volume = split(tensor, 1, grid[:2]).unsqueeze(1)
                    return self.target.from_canonical(volume).squeeze(1)
            if tensor.dim() != 4:
                return tensor
            grid = self.find(tensor)
            if grid is not None:
                return self.target.from_canonical(split(tensor, 2, grid[:2]))
            channels_last = self.grids.get((int(tensor.shape[1]), int(tensor.shape[2])))
            if channels_last is not None and channels_last != POINT:
                volume = split(tensor, 1, channels_last[:2]).movedim(-1, 1)
                return self.target.from_canonical(volume).movedim(1, -1)
            if strict:
                raise ConversionError(f"output: {self._why_unknown(tuple(tensor.shape))}")
            return tensor

        return map_tensors(leave, tree)

    # --- messages -----------------------------------------------------------------------------------------------------

    def path(self) -> str:
        """Where in the network the code is that runs now, as a dotted path and the class."""
        if not self.stack:
            return "the network"
        root, inner = self.stack[0], self.stack[-1]
        name = next((name for name, module in root.named_modules() if module is inner), "")
        return f"{name or 'the network'} ({type(inner).__name__})"

    def _why_unknown(self, shape: tuple[int, ...]) -> str:
        if self.grids.get(tuple(shape[-2:]), POINT) is None:
            return f"two volumes of this run fold to the sizes of {shape}; take another input size"
        return f"no feature map is known to have the shape {shape} ({self._known()})"

    def _known(self) -> str:
        maps = ", ".join(
            f"{grid[0]}x{grid[1]}x{grid[2]} as {key}"
            for key, grid in self.grids.items()
            if grid not in (None, POINT)
        )
        return f"known: {maps or 'none'}"

    def note_failure(self, error: Exception) -> None:
        """Remembers a failure of a trial run, with the place."""
        failure = (self.path(), str(error))
        if failure not in self.failures:
            self.failures.append(failure)

    def _as_one_slice(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """The 2D function itself, its result taken for a volume of depth 1, so that a trial run can go on."""
        out = function(*args, **kwargs)

        def remember(tensor: Tensor) -> None:
            if tensor.dim() == 4 and tuple(tensor.shape[2:]) not in self.grids:
                self.fold(tensor.unsqueeze(2))

        map_tensors(remember, out)
        return out


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """``function`` of every tensor in a structure of tuples, named tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        items = {key: map_tensors(function, value) for key, value in tree.items()}
        return items if type(tree) is dict else type(tree)(items)
    if isinstance(tree, (list, tuple)):
        values = [map_tensors(function, value) for value in tree]
        if hasattr(tree, "_fields"):
            return type(tree)(*values)
        return type(tree)(values) if type(tree) in (list, tuple) else tree
    return tree


def split(tensor: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """A view in which one axis has become several. (``Tensor.unflatten``, but torch.compile traces it everywhere.)"""
    return tensor.view(*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :])


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """(h, w) from an int, one number in a sequence, or two."""
    if isinstance(value, (int, float)) or not isinstance(value, Sequence):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else tuple(value)


def triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    """(d, h, w) from what a 2D layer says of (h, w): along the depth as along the height."""
    height, width = pair(value)
    return height, height, width


def take_slices(volume: Tensor, offset: int, step: int, count: int) -> Tensor:
    """``count`` slices of [N, C, D, H, W] at ``offset``, ``offset + step``, ...; the nearest for those outside."""
    depth = volume.shape[2]
    if (offset, step, count) == (0, 1, depth):
        return volume
    index = torch.arange(count, device=volume.device) * step + offset
    return volume.index_select(2, index.clamp(0, depth - 1))


def per_slice(function: Callable[[Tensor], Tensor], *volumes: Tensor) -> Tensor | tuple[Tensor, ...]:
    """A function of 2D maps [N, C, H, W] on every slice of volumes [N, C, D, H, W]."""
    batch, depth = volumes[0].shape[0], volumes[0].shape[2]
    out = function(*(volume.transpose(1, 2).flatten(0, 1) for volume in volumes))
    return map_tensors(lambda maps: split(maps, 0, (batch, depth)).transpose(1, 2), out)
