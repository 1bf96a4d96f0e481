"""The implementations that are compared, each bound to one case by the same data.

Ours appears once per backend; its ``torch`` backend is the unfused reference, and a fused one is measured as users
get it: ``auto`` leaves most 1x1 kernels to PyTorch. ``nn.Conv3d`` computes something else (a dense cubic kernel)
and is held to its own float64 result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from cases import Case

CONV3D = "nn.Conv3d"
ACSCONV = "acsconv 0.1.1"
COMPILED = "torch.compile(acsconv 0.1.1)"
REFERENCE = "reference"
OURS = "acsconv-cuda"  # followed by the backend, as in "acsconv-cuda cpu"

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


def ours(backend: str) -> str:
    """Name of our implementation on a backend of ``acsconv_cuda.backends()``."""
    return REFERENCE if backend == "torch" else f"{OURS} {backend}"


@dataclass(frozen=True)
class Data:
    """Tensors of one case, drawn once: every implementation is given the same.

    x [N, C_in, D, H, W]; weight [C_out, C_in/groups, K, K]; dense_weight the same with K three times; bias
    [C_out] or None; view_logits [C_out, 3] for soft ACS, else None; grad_output [N, C_out, D', H', W']."""

    x: Tensor
    weight: Tensor
    dense_weight: Tensor
    bias: Tensor | None
    view_logits: Tensor | None
    grad_output: Tensor

    def to_float64(self) -> Data:
        """The same values, after rounding to the dtype measured, in float64."""
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return Data(*(None if value is None else value.detach().double() for value in values))


def draw(case: Case, device: torch.device, dtype: torch.dtype, layout: str, seed: int = 0) -> Data:
    """Standard normal inputs and weights of variance 1 / fan-in, so that outputs are of size one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device=device, dtype=dtype)

    fan_in = (case.in_channels // case.groups) * case.taps
    return Data(
        x=normal(*case.input_shape).contiguous(memory_format=LAYOUTS[layout]),
        weight=normal(*case.weight_shape, scale=fan_in**-0.5),
        dense_weight=normal(*case.weight_shape, case.kernel_size, scale=fan_in**-0.5).contiguous(
            memory_format=LAYOUTS[layout]
        ),
        bias=normal(case.out_channels) if case.bias else None,
        view_logits=normal(case.out_channels, 3) if case.kind == "soft" else None,
        grad_output=normal(*case.output_shape).contiguous(memory_format=LAYOUTS[layout]),
    )


@dataclass(frozen=True)
class Layer:
    """A layer ready to run: ``call(x)``, and its parameters by the name of their gradient."""

    call: Callable[[Tensor], Tensor]
    parameters: dict[str, Tensor]


@dataclass(frozen=True)
class Implementation:
    name: str
    build: Callable[[Case, Data], Layer]
    dense: bool = False  # computes nn.Conv3d's function, not that of ACS


def _leaf(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().requires_grad_()


def _named(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _asked_for(backend: str, case: Case, dtype: torch.dtype) -> str:
    """What to ask for to get a backend as users get it: ``auto`` only where it gives work to PyTorch on purpose (1x1
    kernels; bfloat16 on CPUs with AMX), since it would as well for want of a kernel.
    """
    on_purpose = case.kernel_size == 1 or (backend == "cpu" and dtype == torch.bfloat16)
    return "auto" if on_purpose and backend != "torch" else backend


def _build_ours(name: str) -> Callable[[Case, Data], Layer]:
    def build(case: Case, data: Data) -> Layer:
        from acsconv_cuda import acs_conv3d, soft_acs_conv3d

        backend = _asked_for(name, case, data.x.dtype)
        weight, bias, logits = _leaf(data.weight), _leaf(data.bias), _leaf(data.view_logits)
        options = {
            "stride": case.stride,
            "padding": case.padding,
            "dilation": case.dilation,
            "groups": case.groups,
        }
        if case.kind == "acs":

            def call(x: Tensor) -> Tensor:
                return acs_conv3d(x, weight, bias, split=case.split, backend=backend, **options)

        elif case.kind == "soft":

            def call(x: Tensor) -> Tensor:
                return soft_acs_conv3d(x, weight, logits.softmax(-1), bias, backend=backend, **options)

        else:
            third = weight.new_full((case.out_channels, 3), 1 / 3)

            def call(x: Tensor) -> Tensor:
                return soft_acs_conv3d(x, weight, third, bias, backend=backend, **options)

        return Layer(call, _named(grad_weight=weight, grad_bias=bias, grad_view_logits=logits))

    return build


def _build_conv3d(case: Case, data: Data) -> Layer:
    weight, bias = _leaf(data.dense_weight), _leaf(data.bias)

    def call(x: Tensor) -> Tensor:
        return F.conv3d(x, weight, bias, case.stride, case.padding, case.dilation, case.groups)

    return Layer(call, _named(grad_weight=weight, grad_bias=bias))


def _acsconv_module(peer: ModuleType, case: Case, data: Data) -> nn.Module:
    geometry = (
        case.in_channels,
        case.out_channels,
        case.kernel_size,
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
    )
    if case.kind == "acs":
        module = peer.operators.ACSConv(*geometry, acs_kernel_split=case.split, bias=case.bias)
    else:
        module = peer.operators.SoftACSConv(*geometry, mean=case.kind == "mean", bias=case.bias)
    module.weight = nn.Parameter(data.weight.detach())
    if case.bias:
        module.bias = nn.Parameter(data.bias.detach())
    if case.kind == "soft":
        module.soft_w_core = nn.Parameter(data.view_logits.detach())
    return module


def _build_acsconv(peer: ModuleType, compiled: bool) -> Callable[[Case, Data], Layer]:
    def build(case: Case, data: Data) -> Layer:
        module = _acsconv_module(peer, case, data)
        parameters = _named(
            grad_weight=module.weight,
            grad_bias=module.bias,
            grad_view_logits=getattr(module, "soft_w_core", None),
        )
        if compiled:
            # All cases share one forward; past the recompile limit torch would silently run it eagerly.
            torch.compiler.reset()
            return Layer(torch.compile(module), parameters)
        return Layer(module, parameters)

    return build


def available(device: torch.device, peer: ModuleType | None, backends: list[str]) -> list[Implementation]:
    """Implementations for a device, ours (in the order of ``backends``) first. ``peer``: acsconv 0.1.1, if
    there.
    """
    found = [Implementation(ours(backend), _build_ours(backend)) for backend in backends]
    found.append(Implementation(CONV3D, _build_conv3d, dense=True))
    if peer is not None:
        found.append(Implementation(ACSCONV, _build_acsconv(peer, compiled=False)))
        if device.type == "cuda":
            found.append(Implementation(COMPILED, _build_acsconv(peer, compiled=True)))
    return found


ORACLE = Implementation("float64 reference", _build_ours("torch"))
DENSE_ORACLE = Implementation("float64 nn.Conv3d", _build_conv3d, dense=True)


def run_forward(layer: Layer, data: Data) -> dict[str, Tensor]:
    """The forward pass without autograd, as in inference."""
    with torch.no_grad():
        return {"output": layer.call(data.x)}


def run_training(layer: Layer, data: Data, input_gradient: bool) -> dict[str, Tensor]:
    """Forward and backward pass: the output and the gradients of the parameters and, if asked for, of the
    input.
    """
    x = data.x.detach().requires_grad_(input_gradient)
    wanted = dict(layer.parameters, **({"grad_input": x} if input_gradient else {}))
    output = layer.call(x)
    gradients = torch.autograd.grad(output, list(wanted.values()), data.grad_output)
    return {"output": output.detach(), **dict(zip(wanted, gradients, strict=True))}


def error_terms(case: Case, implementation: Implementation) -> dict[str, int]:
    """How many products each result of a pass sums up, for ``harness.error_limit``."""
    taps = case.kernel_size**3 if implementation.dense else case.taps
    voxels = case.batch * case.output_size[0] * case.output_size[1] * case.output_size[2]
    return {
        "output": taps * case.in_channels // case.groups,
        "grad_input": taps * case.out_channels // case.groups,
        "grad_weight": voxels,
        "grad_bias": voxels,
        "grad_view_logits": voxels * taps * case.in_channels // case.groups,
    }
