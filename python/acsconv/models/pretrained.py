"""Weights from elsewhere into the native networks: a name, a file or a state_dict, of 2D or 3D networks.

torchvision, timm and segmentation_models_pytorch are imported only where one of their names is asked for; it is they
who download.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

#: What ``pretrained`` takes; see :func:`load_pretrained`.
Pretrained = bool | str | os.PathLike | Mapping[str, Tensor] | None

# What torch.load raises for files that end early or hold something else.
_DAMAGED = (EOFError, LookupError, OSError, RuntimeError, ValueError, pickle.UnpicklingError)

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def load_pretrained(
    model: nn.Module,
    source: Pretrained,
    name: str,
    *,
    heads: Sequence[str] = (),
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    input_weights: str = "sum",
) -> None:
    """Loads ``source`` into a network of this package, all of it but classification heads of another shape.

    Args:
        model: the network; its first convolution is the one whose input channels may differ.
        source: None or False: nothing is loaded. True: torchvision's first ImageNet weights of ``name``, as in acsconv
            0.1.1. A path: a file of ``torch.save``. ``'torchvision:resnet50'``,
            ``'torchvision:ResNet50_Weights.IMAGENET1K_V1'``, ``'timm:resnet50.a1_in1k'``, ``'smp:resnet50'`` or
            ``'smp:resnet50:swsl'``: that library's weights; without the prefix, those of the first library that knows
            the name. A mapping: a state_dict.
            Checkpoints that hold a state_dict under a key of their own, names that begin with ``module.``, and
            backbones inside larger networks (``backbone.``, ``encoder.``) are understood.
        name: the network's name in torchvision.
        heads: beginnings of the names of classification heads. They are loaded where they fit, else left out.
        rename: from the names of torchvision and timm to those of ``model``.
        input_weights: see :func:`adapt_input_channels`.

    2D kernels are loaded as they are into ACS layers, into one plane of 2.5D layers, and into ``nn.Conv3d`` repeated
    along D and divided by their number (I3D: Carreira and Zisserman, CVPR 2017). 3D kernels fit ``nn.Conv3d`` alone.

    Raises:
        ValueError: what there is, and what the network needs, do not go together: the message lists every name. Or
            the file is damaged. The network is unchanged.
    """
    _check_input_weights(input_weights)
    if source is None or source is False:
        return
    found = unwrap(_fetch(source, name))
    if rename is not None:
        found = rename(found)
    target = model.state_dict()
    stem = next(key for key, value in target.items() if value.dim() >= 4)
    loaded, problems = {}, []
    for key, value in found.items():
        is_head = key.startswith(tuple(heads))
        if key not in target:
            if not is_head:
                problems.append(f"unknown: {key} {list(value.shape)}")
            continue
        wanted = target[key]
        if key == stem and value.dim() >= 4 and value.shape[1] != wanted.shape[1]:
            value = adapt_input_channels(value, wanted.shape[1], input_weights)
        fitting = _fit(value, wanted)
        if fitting is not None:
            loaded[key] = fitting
        elif not is_head:
            problems.append(f"other shape: {key} is {list(value.shape)}, needed {list(wanted.shape)}")
    known = {*loaded, *found}
    for key, value in target.items():
        counts = key.endswith(("num_batches_tracked", "soft_w_core"))
        if key not in known and not counts and not key.startswith(tuple(heads)):
            problems.append(f"missing: {key} {list(value.shape)}")
    if problems:
        listed = "\n  ".join(problems[:20] + (["..."] if len(problems) > 20 else []))
        raise ValueError(
            f"pretrained: {len(problems)} of {len(target)} entries do not fit {type(model).__name__}; 3D kernels need "
            f"conv='3d', files of shortcut type A need shortcut='A':\n  {listed}"
        )
    model.load_state_dict(loaded, strict=False)


def adapt_input_channels(weight: Tensor, in_channels: int, how: str = "sum") -> Tensor:
    """The first layer's weight for another number of input channels.

    Args:
        weight: [C_out, C_in, ...].
        how: ``'sum'``: the new channels share the sum of the old ones evenly, so that a volume which is the same in all
            channels gives what it gave before. ``'mean'``: each new channel has their mean.

    Returns:
        [C_out, in_channels, ...].

    Raises:
        ValueError: another ``how``.
    """
    _check_input_weights(how)
    share = weight.sum(1, keepdim=True) / in_channels if how == "sum" else weight.mean(1, keepdim=True)
    return share.repeat_interleave(in_channels, 1)


def _check_input_weights(how: str) -> None:
    if how not in ("sum", "mean"):
        raise ValueError(f"input_weights: expected 'sum' or 'mean', got {how!r}")


def unwrap(checkpoint: Mapping) -> dict[str, Tensor]:
    """The state_dict of a backbone, from what training scripts save; see :func:`load_pretrained`.

    Raises:
        ValueError: there is none.
    """
    state = checkpoint
    while isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
        state = next((state[key] for key in _WRAPPERS if key in state), None)
    if not isinstance(state, Mapping):
        raise ValueError(
            f"pretrained: expected a state_dict, or a mapping with one as {', '.join(_WRAPPERS)}"
        )
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    for prefix in ("backbone.", "encoder."):
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = inner or state
    return state


def _fit(value: Tensor, wanted: Tensor) -> Tensor | None:
    """``value`` in the shape of ``wanted``, None if it does not fit."""
    if value.shape == wanted.shape:
        return value
    if [n for n in value.shape if n != 1] == [n for n in wanted.shape if n != 1]:
        return value.reshape(wanted.shape)
    if value.dim() == 4 and wanted.dim() == 5 and value.shape == wanted.shape[:2] + wanted.shape[3:]:
        return value.unsqueeze(2).expand_as(wanted) / wanted.shape[2]
    return None


def _fetch(source: Pretrained, name: str) -> Mapping:
    if source is True:
        return _torchvision(name, "IMAGENET1K_V1")
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"pretrained: expected a bool, a name, a path or a state_dict, got {type(source).__name__}"
        )
    if os.path.isfile(source):
        try:
            return torch.load(source, map_location="cpu", weights_only=True)
        except _DAMAGED as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"pretrained: {source} is damaged or no checkpoint ({first})") from error
    library, _, wanted = str(source).partition(":")
    if library in _LIBRARIES:
        return _LIBRARIES[library](wanted)
    reasons = []
    for load in _LIBRARIES.values():
        try:
            return load(str(source))
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(f"pretrained: {str(source)!r} is no file, and no library's name: {'; '.join(reasons)}")


def _import(module: str):
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise ValueError(f"{module} cannot be imported ({error})") from error


def _torchvision(name: str, weights: str = "DEFAULT") -> Mapping:
    models = _import("torchvision.models")
    try:
        entry = models.get_weight(name) if "_Weights" in name else models.get_model_weights(name)[weights]
    except (ValueError, KeyError) as error:
        raise ValueError(f"torchvision has no weights {name!r}") from error
    return entry.get_state_dict(progress=False)


def _timm(name: str) -> Mapping:
    timm = _import("timm")
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}")
    return timm.create_model(name, pretrained=True).state_dict()


def _smp(name: str) -> Mapping:
    encoders = _import("segmentation_models_pytorch").encoders
    encoder, _, weights = name.partition(":")
    if encoder not in encoders.get_encoder_names():
        raise ValueError(f"segmentation_models_pytorch has no encoder {encoder!r}")
    return encoders.get_encoder(encoder, weights=weights or "imagenet").state_dict()


_LIBRARIES: dict[str, Callable[[str], Mapping]] = {"torchvision": _torchvision, "timm": _timm, "smp": _smp}
