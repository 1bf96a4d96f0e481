"""The operators in terms of PyTorch's own: for exporters that know only those, such as ONNX's.

program = torch.export.export(model, (volume,)).run_decompositions(decompositions())
torch.onnx.export(program, dynamo=True).save("model.onnx")
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import reference
from .passes import Arguments


def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """A table for ``ExportedProgram.run_decompositions``: forward operators to the reference's PyTorch functions."""
    return {
        torch.ops.acsconv.acs_conv3d.default: _acs_conv3d,
        torch.ops.acsconv.soft_acs_conv3d.default: _soft_acs_conv3d,
    }


def _acs_conv3d(input: Tensor, weight: Tensor, bias: Tensor | None, *flat) -> Tensor:
    split, geometry, groups, _ = Arguments.of(flat)
    return reference.acs_conv3d(input, weight, bias, split, geometry, groups)


def _soft_acs_conv3d(input: Tensor, kernels: Tensor, bias: Tensor | None, *flat) -> Tensor:
    _, geometry, groups, _ = Arguments.of(flat)
    return reference.soft_acs_conv3d(input, kernels, bias, geometry, groups)
