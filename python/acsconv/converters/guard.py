"""Modules of a converted network: 5D outside, folded inside.

Every module keeps its identity, parameters and hooks; only its class changes, to a subclass made here that bears the
same name. So ``state_dict`` keys stay, ``isinstance`` holds, and a module that is called alone, or looked at by a hook,
speaks [N, C, D, H, W]. Three kinds:

* :class:`Folded`: a 2D module. Called with a volume, it runs its own code inside a fold.
* :class:`Layer`: a 3D layer in the place of a 2D one. Called inside a fold, it is handed the volume, outside of the
  fold.
* :class:`Solid`: any other module that works on volumes, put in by people; likewise.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .fold import ConversionError, Volume, current, map_tensors
from .rules import find_module_rule
from .targets import Target

#: Volumes that a module remembers, for what recomputes a part of the network during backward.
_REMEMBERED = 8


class Converted:
    """What all kinds share."""

    def __setattr__(self, name: str, value: Any) -> None:
        # A module that is put in afterwards is meant for volumes.
        super().__setattr__(name, make_solid(value) if isinstance(value, nn.Module) else value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        super().add_module(name, module if module is None else make_solid(module))

    def register_module(self, name: str, module: nn.Module | None) -> None:
        self.add_module(name, module)

    def __reduce_ex__(self, protocol):
        reduced = super().__reduce_ex__(protocol)
        if reduced[0] is not copyreg.__newobj__:
            return reduced
        state = {key: value for key, value in reduced[2].items() if key != "_acs_volumes"}
        made_from = (self._acs_kind, self._acs_bases, self._acs_target, self._acs_is_root)
        return (_new, made_from, state, *reduced[3:])

    def _remember(self, volume: Volume) -> None:
        if torch.compiler.is_compiling():
            return
        volumes = self.__dict__.setdefault("_acs_volumes", [])
        if volume not in volumes:
            volumes.append(volume)
            del volumes[:-_REMEMBERED]

    def _recall(self, *trees: Any) -> Volume | None:
        """The volume of the forward pass that activation checkpointing repeats during backward, for folded tensors.

        Raises:
            ConversionError: the tensors could belong to two passes, of volumes of different shapes.
        """
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            return None
        maps: list[Tensor] = []
        map_tensors(lambda tensor: maps.append(tensor) if tensor.dim() == 4 else None, trees)
        grids = {volume: [volume.find(m) for m in maps] for volume in self.__dict__.get("_acs_volumes", ())}
        grids = {volume: found for volume, found in grids.items() if maps and None not in found}
        if len({tuple(found) for found in grids.values()}) > 1:
            raise ConversionError(
                f"{type(self).__name__}: recomputed during backward, it cannot tell which of several volumes it is "
                "given; run backward before the next volume of another shape"
            )
        return next(reversed(grids), None)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # A 2D checkpoint has no weights for the views: they stay as they are.
        core = self._parameters.get("soft_w_core")
        if core is not None and prefix + "weight" in state_dict:
            state_dict.setdefault(prefix + "soft_w_core", core.detach())
        super()._load_from_state_dict(state_dict, prefix, *args)


class Folded(Converted):
    """A 2D module of a converted network."""

    def __call__(self, *args, **kwargs):
        volume = current()
        # Stacked branches are 5D inside the fold: hooks see such tensors as they are.
        if volume is None or volume.paused or not _has_hooks(self) or _has_rank(5, args, kwargs):
            return super().__call__(*args, **kwargs)
        with volume.off():
            out = super().__call__(*volume.leave(args), **volume.leave(kwargs))
        return volume.enter(out, known_only=True)

    def _run(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        """A 2D function of this module, its tensors folded if they are volumes."""
        volume = current()
        if volume is not None and not volume.paused:
            return self._run_inside(volume, function, args, kwargs)
        if volume is not None:
            volume.paused = False
            try:
                out = self._run_inside(volume, function, volume.enter(args), volume.enter(kwargs))
            finally:
                volume.paused = True
            return volume.leave(out)
        if not _has_rank(5, args, kwargs):
            return self._run_without_volume(function, args, kwargs)
        volume = Volume(self._acs_target)
        args, kwargs = volume.enter(args), volume.enter(kwargs)
        with volume:
            out = self._run_inside(volume, function, args, kwargs)
        return volume.leave(out, strict=True)

    def _run_inside(self, volume: Volume, function: Callable, args: tuple, kwargs: dict) -> Any:
        self._remember(volume)
        volume.stack.append(self)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if volume.failures == []:  # a trial run: here, innermost, the place is known
                volume.note_failure(error)
            raise
        finally:
            volume.stack.pop()

    def _run_without_volume(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        volume = self._recall(args, kwargs)
        if volume is not None:
            with volume:
                return self._run_inside(volume, function, args, kwargs)
        if self._acs_is_root and _has_rank(4, args, kwargs):
            raise ValueError(
                f"{type(self).__name__}: expected a volume [N, C, D, H, W], got a tensor of 4 dimensions and none of "
                f"5; this network was converted to 3D (to={self._acs_target.name!r})"
            )
        return function(*args, **kwargs)


class Layer(Converted):
    """A 3D layer of a converted network: its first argument is a map."""

    def __call__(self, input, *args, **kwargs):
        volume = current()
        if volume is None and (recalled := self._recall(input)) is not None:
            with recalled:
                return self(input, *args, **kwargs)
        if volume is None or volume.paused or not isinstance(input, Tensor) or input.dim() != 4:
            return super().__call__(input, *args, **kwargs)
        self._remember(volume)
        if volume.find(input) is None and _is_pointwise(self):  # any view of the positions will do
            with volume.off():
                return super().__call__(input.unsqueeze(2), *args, **kwargs).squeeze(2)
        maps = volume.unfold(input, type(self).__name__)
        if getattr(self, "transposed", False) and (args or kwargs):
            args, kwargs = (self._unfold_size(volume, *args, **kwargs),), {}
        with volume.off():
            out = super().__call__(volume.target.from_canonical(maps), *args, **kwargs)
        out = map_tensors(lambda tensor: volume.fold(volume.target.to_canonical(tensor)), out)
        if hasattr(self, "output_size"):  # an adaptive pooling
            volume.pooled.add(volume.grid(out, type(self).__name__))
        return out

    def _unfold_size(self, volume: Volume, output_size=None) -> tuple[int, ...] | None:
        """The ``output_size`` (..., h, w) of a transposed convolution as (D, H, W), in people's order of axes."""
        if output_size is None:
            return None
        grid = volume.resize(output_size[-2:], type(self).__name__)
        with volume.off():
            return tuple(volume.target.from_canonical(torch.empty(1, 1, *grid, device="meta")).shape[2:])


class Solid(Converted):
    """A 3D module that was put into a converted network."""

    def __call__(self, *args, **kwargs):
        volume = current()
        if volume is None or volume.paused:
            return super().__call__(*args, **kwargs)
        if _has_rank(5, args, kwargs) and not _has_rank(4, args, kwargs):  # code around it speaks 5D, too
            with volume.off():
                return super().__call__(*args, **kwargs)
        with volume.off():
            out = super().__call__(*volume.leave(args), **volume.leave(kwargs))
        return volume.enter(out)


def guard(module: nn.Module, target: Target, is_root: bool = False) -> None:
    """Makes a 2D module :class:`Folded`, in place."""
    own = module.__dict__.pop("forward", None)
    if own is not None:  # a forward that was put on the instance would bypass the class
        module.__dict__["_acs_forward"] = own
    module.__class__ = _converted_class("folded", (type(module),), target, is_root)


def make_layer(module: nn.Module, is_root: bool = False, planar: tuple[type, ...] = ()) -> None:
    """Makes a 3D layer that has one map as its input a :class:`Layer`, in place.

    ``planar`` is the 2D class that it had, if the network's own code may still ask for it: the VGG encoder of
    segmentation_models_pytorch looks for the instances of ``nn.MaxPool2d`` while it runs.
    """
    module.__class__ = _converted_class("layer", (type(module), *planar), None, is_root)


def is_free(module: nn.Module) -> bool:
    """Whether a converted module is part of no network: a 2D one without state, such as the ReLU of a default argument,
    which all networks made by that code share."""
    return (
        isinstance(module, Folded)
        and not module._acs_is_root
        and not (module._parameters or module._buffers or module._modules)
    )


def make_solid(module: nn.Module, is_root: bool = False) -> nn.Module:
    """Makes a 3D module :class:`Solid`, in place, unless it is converted already; returns it."""
    if isinstance(module, Converted):
        return module
    if isinstance(
        module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    ):  # the network may call what is in them
        for child in module.children():
            make_solid(child)
    if type(module) is not nn.Identity:
        module.__class__ = _converted_class("solid", (type(module),), None, is_root)
    return module


def _new(kind: str, bases: tuple[type, ...], target: Target | None, is_root: bool) -> nn.Module:
    """An empty instance, for pickle and deepcopy."""
    cls = _converted_class(kind, bases, target, is_root)
    return cls.__new__(cls)


@functools.cache
def _converted_class(kind: str, bases: tuple[type, ...], target: Target | None, is_root: bool) -> type:
    """The subclass of ``bases``, named after the first, that :func:`guard` or :func:`make_solid` gives a module."""
    base = bases[0]
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_acs_kind": kind,
        "_acs_bases": bases,
        "_acs_target": target,
        "_acs_is_root": is_root,
    }
    if kind == "folded":
        for name in _public_methods(base):
            namespace[name] = _folded_method(base, name)
    if issubclass(base, (nn.ModuleList, nn.Sequential)):
        namespace["insert"] = _insert
    if is_root and not hasattr(base, "model"):
        namespace["model"] = property(_model, doc="The converted network, as in acsconv 0.1.1.")
    return type(base.__name__, ({"folded": Folded, "layer": Layer, "solid": Solid}[kind], *bases), namespace)


def _insert(self: nn.Module, index: int, module: nn.Module) -> Any:
    """``insert`` of containers, which goes past ``__setattr__`` and ``add_module``."""
    return self._acs_bases[0].insert(self, index, make_solid(module))


def _model(self: nn.Module) -> nn.Module:
    return self._modules.get("model", self.__dict__.get("model", self))


def _public_methods(base: type) -> set[str]:
    """``forward`` and the methods that networks add to ``nn.Module``, such as timm's ``forward_features``."""
    names = {"forward"}
    for cls in base.__mro__:
        if cls is nn.Module:
            break
        names |= {name for name, value in vars(cls).items() if _is_function(value) and name[0] != "_"}
    return {name for name in names if name == "forward" or not hasattr(nn.Module, name)}


def _is_function(value: Any) -> bool:
    return isinstance(value, type(_is_function))


def _folded_method(base: type, name: str) -> Callable:
    method = getattr(base, name)

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        function = functools.partial(method, self)
        if name == "forward":
            function = self.__dict__.get("_acs_forward", function)
            rule = find_module_rule(base)
            if rule is not None:
                function = functools.partial(_apply_module_rule, rule, self, function)
        return self._run(function, args, kwargs)

    return run


def _apply_module_rule(rule: Callable, module: nn.Module, function: Callable, *args, **kwargs) -> Any:
    volume = current()
    return function(*args, **kwargs) if volume is None else rule(volume, module, function, *args, **kwargs)


def _is_pointwise(module: nn.Module) -> bool:
    """Whether each output position reads the one input position of the same place."""
    kernel, stride = getattr(module, "kernel_size", ()), getattr(module, "stride", ())
    return (
        isinstance(kernel, tuple)
        and set(kernel) == {1}
        and set(stride) == {1}
        and getattr(module, "padding", None) in ("same", "valid", (0, 0, 0))
        and not getattr(module, "transposed", True)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _has_rank(rank: int, *trees: Any) -> bool:
    found = []
    map_tensors(lambda tensor: found.append(tensor.dim() == rank), trees)
    return any(found)
