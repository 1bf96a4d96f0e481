"""The conversion itself: looks at every module first, changes them afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..memory import make_memory_efficient
from ..operators.base_acsconv import _ACSConv
from . import refuse
from .fold import ConversionError, Volume, pair, triple
from .guard import guard, is_free, make_layer, make_solid
from .report import Change, Report
from .targets import CubeTarget, CustomTarget, SoftTarget, Target, make_target
from .twins import BatchNorm3d, twin

Skip = str | type | Callable[[str, nn.Module], bool]
Example = Sequence[int] | Tensor | tuple | dict

#: Attributes of every module, which a change of class leaves alone.
_INTERNAL = frozenset(vars(nn.Module()))

#: Modules that take [N, C, D, H, W] in a 2D network, and would take a folded map for an unbatched volume.
_SPEAKS_5D = (
    _ACSConv,
    nn.Conv3d,
    nn.ConvTranspose3d,
    nn.BatchNorm3d,
    nn.InstanceNorm3d,
    nn.MaxPool3d,
    nn.MaxUnpool3d,
    nn.AvgPool3d,
    nn.LPPool3d,
    nn.FractionalMaxPool3d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool3d,
    nn.ZeroPad3d,
    nn.ConstantPad3d,
    nn.ReflectionPad3d,
    nn.ReplicationPad3d,
    nn.CircularPad3d,
)


def convert(
    model: nn.Module,
    to: str | Callable[[nn.Conv2d], nn.Module] = "acs",
    *,
    skip: Skip | Iterable[Skip] = (),
    inplace: bool = False,
    example: Example | None = None,
    report: bool = False,
    unsqueeze_axis: int = -3,
    i3d_repeat_axis: int | None = -3,
    memory_efficient: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """Makes a 3D network of a 2D one, with its weights.

    Args:
        model: a network that takes images [N, C, H, W].
        to: what convolutions become: ``"acs"``, ``"soft"`` (Soft ACS), ``"mean"`` (mean ACS), ``"2.5d"`` (the 2D
            kernels, slice by slice), ``"3d"`` (``nn.Conv3d``, the kernels repeated), or a function from an
            ``nn.Conv2d`` to a layer for volumes, weights included.
        skip: modules that take volumes already, or will be replaced by such: paths (with wildcards), classes, or
            functions ``(path, module) -> bool``. They stay as they are, with all inside them, and are given volumes.
        inplace: change ``model`` itself, not a copy.
        example: the size (N, C, D, H, W) of an input, an input, a tuple of inputs or a dict of keyword arguments, on
            which a copy runs once, in evaluation mode: failures in the network's own code are then found here, all
            at once.
        report: return ``(network, Report)``.
        unsqueeze_axis: for ``"2.5d"``, the axis across which the slices lie: -3 (D), -2 (H) or -1 (W).
        i3d_repeat_axis: for ``"3d"``, the axis along which 2D kernels are repeated and divided by the repetitions; None
            initialises 3D kernels anew.
        memory_efficient: see :func:`acsconv.memory.make_memory_efficient`.

    Returns:
        A module that takes volumes [N, C, D, H, W], has the ``state_dict`` keys of ``model``, and keeps dtype,
        device, mode, ``requires_grad``, hooks and shared modules. See ``docs/converters.md``.

    Raises:
        ConversionError: names every module that cannot be converted; nothing has been changed.
        TypeError, ValueError: another argument is wrong.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    target = make_target(to, unsqueeze_axis, i3d_repeat_axis)
    skipped = _skipped(model, skip)
    failures = list(refuse.problems(model, skipped))
    layers = _layers(model, target, skipped, failures)
    if example is not None and not failures:
        trial, trial_layers = copy.deepcopy((model, layers))
        _change(trial, target, _skipped(trial, skip), trial_layers)
        failures += _try(trial, target, example)
    if failures:
        lines = "".join(f"\n  {path}: {reason}" for path, reason in failures)
        raise ConversionError(
            f"{len(failures)} part{'s' * (len(failures) > 1)} of this network cannot be converted to 3D "
            f"(to={target.name!r}); nothing was changed:{lines}\nskip= leaves modules as they are; "
            "acsconv.converters.rule and module_rule teach the converter."
        )
    if not inplace:
        # In one go: what a layer shares with its model stays shared.
        model, layers = copy.deepcopy((model, layers))
        skipped = _skipped(model, skip)
    done = _change(model, target, skipped, layers)
    if memory_efficient:
        make_memory_efficient(model)
    return (model, done) if report else model


def _skipped(model: nn.Module, skip: Skip | Iterable[Skip]) -> set[int]:
    """The ids of the modules that ``skip`` names, and of all inside them.

    Raises:
        TypeError: not what ``skip`` takes.
        ValueError: a path that no module has.
    """
    wanted = [skip] if isinstance(skip, (str, type)) or callable(skip) else skip
    if not isinstance(wanted, Iterable) or not all(
        isinstance(want, str) or callable(want) for want in wanted
    ):
        raise TypeError(f"skip: expected paths, classes or functions (path, module) -> bool, got {skip!r}")
    found: set[int] = set()
    for want in wanted:
        hits = [module for path, module in model.named_modules() if _matches(want, path, module)]
        if not hits and isinstance(want, str):
            raise ValueError(f"skip: no module of this network is called {want!r}")
        found.update(id(inner) for module in hits for inner in module.modules())
    return found


def _matches(want: Skip, path: str, module: nn.Module) -> bool:
    if isinstance(want, str):
        return fnmatchcase(path, want)
    if isinstance(want, type):
        return isinstance(module, want)
    return bool(want(path, module))


def _is_plain_conv(module: nn.Module) -> bool:
    """Whether a 3D layer can take the module's place: its code is PyTorch's, and its weight is a parameter."""
    if type(module) not in (nn.Conv2d, nn.ConvTranspose2d) or "forward" in vars(module):
        return False
    return module._parameters.get("weight") is not None


def _layers(
    model: nn.Module, target: Target, skipped: set[int], failures: list[tuple[str, str]]
) -> dict[str, nn.Module]:
    """The layer for each convolution, by its path; those that cannot be made go to ``failures``."""
    layers = {}
    for path, module in model.named_modules():
        if id(module) in skipped or not _is_plain_conv(module):
            continue
        try:
            if type(module) is nn.ConvTranspose2d:
                layers[path] = target.transposed_layer(module)
            else:
                layers[path] = target.layer(module)
            if not path and isinstance(target, CustomTarget):
                raise ValueError("is itself the layer to be replaced: call the function that makes it")
        except Exception as error:
            failures.append((f"{path or 'the network'} ({type(module).__name__})", str(error)))
        else:
            if not isinstance(layers[path], nn.Module):
                made = type(layers[path]).__name__
                raise TypeError(f"to: {target.name} returned no torch.nn.Module for {path}, but {made}")
    return layers


def _try(trial: nn.Module, target: Target, example: Example) -> list[tuple[str, str]]:
    """What a converted copy cannot do with ``example``."""
    args, kwargs = _inputs(trial, example)
    volume = Volume(target)
    volume.failures = []
    trial.eval()
    try:
        with torch.no_grad(), volume:
            volume.leave(trial(*volume.enter(args), **volume.enter(kwargs)), strict=True)
    except Exception as error:
        if not volume.failures:
            volume.note_failure(error)
    return volume.failures


def _inputs(model: nn.Module, example: Example) -> tuple[tuple, dict]:
    if isinstance(example, dict):
        return (), example
    if isinstance(example, Tensor):
        return (example,), {}
    if not isinstance(example, Sequence) or isinstance(example, str):
        raise TypeError(f"example: expected a size, a tensor, a tuple of inputs or a dict, got {example!r}")
    if all(isinstance(n, int) for n in example):
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        return (torch.randn(*example, dtype=like.dtype, device=like.device),), {}
    return tuple(example), {}


def _change(model: nn.Module, target: Target, skipped: set[int], layers: dict[str, nn.Module]) -> Report:
    """Converts the network in place; whatever could fail has been tried before."""
    report = Report(target.name)
    flat = _poolings_before_linear(model)
    weights: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    replaced: dict[int, nn.Module] = {}
    modules = list(model.named_modules())
    for path, module in modules:
        if id(module) in skipped:
            if not _inside_skipped(path, modules, skipped):
                make_solid(module)
                report.changes.append(Change(path, type(module).__name__, type(module).__name__, "skipped"))
            continue
        if is_free(module):
            report.kept += 1
            continue
        before = type(module).__name__
        note = ""
        if path in layers:
            layer = layers[path]
            if isinstance(target, CustomTarget) and type(module) is nn.Conv2d:
                replaced[id(module)] = layer
                report.changes.append(Change(path, before, type(layer).__name__))
                continue
            note = _become(module, layer, target, weights)
            make_layer(module, is_root=module is model)
        elif (found := twin(module, target.planar)) is not None:
            cls, attributes = found
            if id(module) in flat:
                attributes = {"output_size": (1, *pair(module.output_size))}
                note = "what follows has weights for one slice"
            planar = (type(module),)
            module.__class__ = cls
            vars(module).update(attributes)
            if cls is BatchNorm3d:
                guard(module, target, module is model)
            else:
                make_layer(module, module is model, planar)
        elif isinstance(module, _SPEAKS_5D):
            make_solid(module, is_root=module is model)
            note = "takes volumes already"
        else:
            note = _prepare(module, target)
            guard(module, target, is_root=module is model)
            if not note:
                report.kept += 1
                continue
        report.changes.append(Change(path, before, type(module).__name__, note))
    _replace(model, replaced)
    return report


def _inside_skipped(path: str, modules: list[tuple[str, nn.Module]], skipped: set[int]) -> bool:
    parent = path.rpartition(".")[0]
    return bool(path) and any(name == parent and id(module) in skipped for name, module in modules)


def _become(
    module: nn.Module,
    layer: nn.Module,
    target: Target,
    weights: dict[int, tuple[nn.Parameter, nn.Parameter]],
) -> str:
    """Gives a 2D convolution the class and attributes of ``layer``, and the weight that it needs; returns a note.

    ``weights`` holds, by the id of each 2D weight, that weight and its successor: layers that shared one still do.
    """
    weight = target.weight(module, layer)
    for name in set(vars(type(module)(1, 1, 1, device="meta"))) - _INTERNAL:
        vars(module).pop(name, None)
    vars(module).update({name: value for name, value in vars(layer).items() if name not in _INTERNAL})
    module.__class__ = type(layer)
    if "soft_w_core" in layer._parameters:
        _add_view_weights(module, module.out_channels)
    if weight is None:
        return ""
    old = module.weight
    if id(old) not in weights:
        weights[id(old)] = old, nn.Parameter(weight.detach().clone(), requires_grad=old.requires_grad)
    module.weight = weights[id(old)][1]
    if isinstance(target, CubeTarget):
        return (
            "new weights"
            if target.repeat_axis is None
            else f"kernels repeated along axis {target.repeat_axis}"
        )
    return ""


def _prepare(module: nn.Module, target: Target) -> str:
    """What is left to do for a module that stays 2D; returns a note for the report."""
    if type(module) in (nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d):
        if isinstance(module.size, int):
            module.size = (module.size,) * 3
        elif module.size is not None:
            module.size = triple(module.size)
        module.mode = "trilinear" if module.mode == "bilinear" else module.mode
        return f"mode {module.mode}"
    if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return ""
    if isinstance(target, SoftTarget) and not target.mean and isinstance(module, nn.Conv2d):
        _add_view_weights(module, module.out_channels)
    return f"its own code runs; its convolution is computed as {target.name}"


def _add_view_weights(module: nn.Module, channels: int) -> None:
    weight = module.weight
    core = torch.rand(channels, 3, dtype=weight.dtype, device=weight.device)
    module.soft_w_core = nn.Parameter(core, requires_grad=weight.requires_grad)


def _replace(model: nn.Module, replaced: dict[int, nn.Module]) -> None:
    """Puts new layers where the old modules were, wherever they were."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if id(child) in replaced:
                setattr(module, name, replaced[id(child)])


def _poolings_before_linear(model: nn.Module) -> set[int]:
    """Ids of adaptive poolings to a fixed (h, w) whose result goes, flattened, into a Linear: as in VGG and AlexNet.

    Seen from the sizes: the next layer with weights is a Linear of channels * h * w inputs.
    """
    found: set[int] = set()
    channels, pooling = None, None
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            channels, pooling = module.out_channels, None
        elif type(module) in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
            pooling = module
        elif isinstance(module, nn.Linear) and pooling is not None:
            size = pooling.output_size
            size = (size, size) if isinstance(size, int) else size
            if size is not None and None not in size and channels is not None:
                wanted = channels * size[0] * size[1]
                if size != (1, 1) and module.in_features == wanted:
                    found.add(id(pooling))
            pooling = None
    return found
