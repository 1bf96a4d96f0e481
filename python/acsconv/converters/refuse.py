"""What can be known, before anything is changed, to have no meaning on volumes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .guard import Converted, is_free
from .rules import find_module_rule

#: Names of parameters and buffers that hold one entry for each position of a 2D image, in timm, torchvision and MONAI.
_POSITIONS = frozenset(
    [
        "pos_embed",
        "pos_embedding",
        "position_embedding",
        "position_embeddings",
        "relative_position_bias_table",
        "relative_position_index",
        "attention_biases",
        "attention_bias_idxs",
        "rel_pos_h",
        "rel_pos_w",
        "rel_height",
        "rel_width",
        "height_rel",
        "width_rel",
        "pos_emb",
        "rpe_table",
    ]
)

#: Classes of timm, torchvision and others that cut the plane into windows, tokens or strips in their own code.
_CLASSES = {
    "WindowAttention": "its windows would span slices",
    "ShiftedWindowAttention": "its windows would span slices",
    "HaloAttn": "its blocks would span slices",
    "BottleneckAttn": "its position tables are those of one image size",
    "LambdaLayer": "its position tables are those of one image size",
    "BilinearAttnTransform": "it treats rows and columns separately",
    "CoordAttn": "it pools rows and columns separately",
    "SimpleCoordAttn": "it pools rows and columns separately",
    "StripAttn": "it pools rows and columns separately",
    "DeformConv2d": "its offsets are those of a plane",
    "GlobalFilter": "it multiplies in the Fourier domain of one image size",
}

#: Wrappers whose forward is no Python code of the network, or which copy it.
_WRAPPERS = (
    torch.jit.ScriptModule,
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
)


def problems(model: nn.Module, skipped: set[int]) -> Iterator[tuple[str, str]]:
    """(path, reason) of every module that cannot be converted, whose id is not in ``skipped``."""
    judged: set[int] = set()  # what is inside something converted needs no line of its own
    for path, module in model.named_modules():
        if id(module) in skipped or id(module) in judged:
            continue
        if is_free(module):
            continue
        if isinstance(module, Converted):
            judged.update(map(id, module.modules()))
        reason = _problem(module)
        if reason is not None:
            yield f"{path or 'the network'} ({type(module).__name__})", reason


def _problem(module: nn.Module) -> str | None:
    name = type(module).__name__
    if isinstance(module, Converted):
        return "is converted already"
    if isinstance(module, _WRAPPERS) or name == "OptimizedModule":  # torch.compile's, not imported for this
        return "convert the network before it is compiled, scripted or made parallel"
    if find_module_rule(type(module)) is not None:
        return None
    if name in _CLASSES:
        return _CLASSES[name]
    if isinstance(module, (nn.Unfold, nn.Fold, nn.FractionalMaxPool2d)):
        return "has no counterpart for volumes in PyTorch"
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) and _is_strip(module.output_size):
        return f"pools to strips {module.output_size} of a plane, which have no counterpart in a volume"
    if isinstance(module, nn.RNNBase):
        return "runs along the positions of an image in one order, which a volume does not have"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return f"its parameters {list(module.normalized_shape)} depend on the size of the image"
    own = {**module._parameters, **module._buffers}
    for key, value in own.items():
        if isinstance(value, nn.parameter.UninitializedTensorMixin):
            return f"parameter {key} has no size yet: run the 2D network once"
        if key in _POSITIONS and value is not None:
            return f"{key} {list(value.shape)} depends on the size of the 2D image"
    return None


def _is_strip(size) -> bool:
    return isinstance(size, (tuple, list)) and (size[0] is None) != (size[-1] is None)
