"""Problems for the fused CPU operators, called directly, and their oracle.

The oracle gathers the input of every kernel tap by its formula, in float64, and knows nothing of padding or views but
what the operators' arguments say; the two gradients are PyTorch's derivatives of it.
"""

from __future__ import annotations

import functools
import random
from typing import NamedTuple

import torch
from torch import Tensor

PASSES = ("forward", "backward_input", "backward_weight")
ISAS = ("portable", "avx2", "avx512")  # one that the processor lacks falls back to the best it has
BFLOAT16_ISAS = ("amx", "avx512bf16")  # the kernels of avx512, and for bfloat16 tiles or products of pairs
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "transposed", "expanded", "cut out")
ROW, COLUMN = (1, 0, 0), (2, 2, 1)  # kernel axes of the axial, coronal and sagittal view


class Problem(NamedTuple):
    """The arguments of ``acsconv::fused_forward``; with an empty split, Soft ACS, the weight has an axis of views."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    split: list[int]
    stride: list[int]
    origin: list[int]
    dilation: list[int]
    output_size: list[int]
    groups: int

    def to(self, dtype: torch.dtype) -> Problem:
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._replace(input=self.input.to(dtype), weight=self.weight.to(dtype), bias=bias)

    def apply(self, function) -> Problem:
        """The same with ``function`` of the tensors."""
        bias = None if self.bias is None else function(self.bias)
        return self._replace(input=function(self.input), weight=function(self.weight), bias=bias)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.input.shape[0], self.weight.shape[-4], *self.output_size)

    def grad_output(self) -> Tensor:
        """A gradient of the output, in the dtype and layout of the input, the same at every call."""
        generator = torch.Generator().manual_seed(len(self.output_shape) + sum(self.output_shape))
        grad = values(*self.output_shape, generator=generator).to(self.input.dtype)
        if is_channels_last(self.input):
            grad = grad.contiguous(memory_format=torch.channels_last_3d)
        elif not self.input.is_contiguous() and grad.numel() > 0:  # a view, as the input is one
            grad = torch.stack([grad, grad], -1)[..., 0]
        return grad


def is_channels_last(volume: Tensor) -> bool:
    return volume.is_contiguous(memory_format=torch.channels_last_3d) and not volume.is_contiguous()


def run(
    problem: Problem, operation: str = "forward", grad_output: Tensor | None = None
) -> tuple[Tensor, ...]:
    """What the compiled operator of one pass returns."""
    numbers = (problem.split, problem.stride, problem.origin, problem.dilation)
    operators = torch.ops.acsconv
    if operation == "forward":
        return (operators.fused_forward(*problem),)
    grad_output = problem.grad_output() if grad_output is None else grad_output
    if operation == "backward_input":
        size, last = problem.input.shape[2:], is_channels_last(problem.input)
        return (
            operators.fused_backward_input(grad_output, problem.weight, size, last, *numbers, problem.groups),
        )
    kernel, needs_bias = problem.weight.shape[-2:], problem.bias is not None
    grads = operators.fused_backward_weight(
        grad_output, problem.input, kernel, needs_bias, *numbers, problem.groups
    )
    return tuple(grads) if needs_bias else (grads[0],)


def oracle(problem: Problem, operation: str = "forward") -> list[tuple[Tensor, Tensor]]:
    """For each tensor that :func:`run` returns: its float64 value, and the sum of the magnitudes of its terms."""
    exact = problem.to(torch.float64)
    values = _differentiated(exact, problem.grad_output().double(), operation)
    magnitudes = _differentiated(exact.apply(torch.abs), problem.grad_output().double().abs(), operation)
    return list(zip(values, magnitudes))


def _differentiated(p: Problem, grad_output: Tensor, operation: str) -> list[Tensor]:
    if operation == "forward":
        return [gather(p)]
    if operation == "backward_input":
        wanted = [p.input]
    else:
        wanted = [p.weight] if p.bias is None else [p.weight, p.bias]
    for tensor in wanted:
        tensor.requires_grad_()
    with torch.enable_grad():
        out = gather(p)
    if not out.requires_grad:
        return [torch.zeros_like(tensor) for tensor in wanted]
    grads = torch.autograd.grad(out, wanted, grad_output, allow_unused=True)
    for tensor in wanted:
        tensor.requires_grad_(False)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads)]


def gather(p: Problem) -> Tensor:
    """The output of a problem, tap by tap."""
    if p.split:
        return _gather_views(p)
    views = []
    for view in range(3):
        split = [0, 0, 0]
        split[view] = p.weight.shape[1]
        bias = p.bias if view == 0 else None
        views.append(_gather_views(p._replace(weight=p.weight[view], bias=bias, split=split)))
    return sum(views)


def _gather_views(p: Problem) -> Tensor:
    out_channels, in_per_group, kernel_h, kernel_w = p.weight.shape
    out_per_group = out_channels // p.groups
    size = p.input.shape[2:]
    alike: dict[tuple[int, int], list[int]] = {}  # (view, group) -> output channels
    for channel in range(out_channels):
        view = 0 if channel < p.split[0] else 1 if channel < p.split[0] + p.split[1] else 2
        alike.setdefault((view, channel // out_per_group), []).append(channel)
    parts, order = [], []
    for (view, group), channels in alike.items():
        volume = p.input[:, group * in_per_group : (group + 1) * in_per_group]
        total = torch.zeros(p.input.shape[0], len(channels), *p.output_size, dtype=torch.float64)
        for i in range(kernel_h):
            for j in range(kernel_w):
                taken, any_inside = volume, True
                for axis in range(3):
                    tap = i if axis == ROW[view] else j if axis == COLUMN[view] else 0
                    position = torch.arange(p.output_size[axis]) * p.stride[axis] + p.origin[3 * view + axis]
                    position = position + tap * p.dilation[3 * view + axis]
                    inside = (position >= 0) & (position < size[axis])
                    any_inside = any_inside and bool(inside.any())
                    if not any_inside:
                        break
                    taken = taken.index_select(2 + axis, position.clamp(0, size[axis] - 1))
                    taken = taken * inside.reshape([-1 if a == axis else 1 for a in range(3)])
                if any_inside:
                    kernel = p.weight[channels][:, :, i, j]
                    total = total + torch.einsum("ncdhw,oc->nodhw", taken, kernel)
        parts.append(total)
        order += channels
    out = torch.cat(parts, 1)[:, torch.tensor(order).argsort()]
    return out if p.bias is None else out + p.bias.reshape(-1, 1, 1, 1)


def assert_close(
    problem: Problem, operation: str = "forward", expected: list[tuple[Tensor, Tensor]] | None = None
) -> None:
    """Within a few roundings of the magnitudes that were added up, made in float32 for 16-bit tensors."""
    expected = oracle(problem, operation) if expected is None else expected
    dtype = problem.input.dtype
    computed = torch.promote_types(dtype, torch.float32)
    if operation == "backward_weight":
        terms = (
            problem.input.shape[0] * problem.output_size[0] * problem.output_size[1] * problem.output_size[2]
        )
    else:
        taps = problem.weight.shape[-1] * problem.weight.shape[-2] * (1 if problem.split else 3)
        channels = problem.weight.shape[-4 if operation == "backward_input" else -3]
        terms = taps * channels + 1
    for found, (exact, magnitude) in zip(run(problem, operation), expected, strict=True):
        assert found.shape == exact.shape and found.dtype == dtype
        bound = magnitude * torch.finfo(computed).eps * (2 + terms**0.5)
        if dtype != computed:  # and the result is rounded
            bound = bound + exact.abs() * torch.finfo(dtype).eps / 2 + torch.finfo(dtype).smallest_normal
        worst = ((found.double() - exact).abs() - bound).max() if found.numel() else 0
        assert worst <= 0, f"off by {worst:.3g} more than rounding explains"


def values(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Numbers that every dtype holds exactly."""
    return (torch.randn(*shape, generator=generator) * 16).round() / 16


def arrange(shape: list[int], layout: str) -> Tensor:
    n, c, d, h, w = shape
    if layout == "channels_last":
        return values(*shape).contiguous(memory_format=torch.channels_last_3d)
    if layout == "transposed":
        return values(n, c, w, h, d).transpose(2, 4)
    if layout == "expanded":
        return values(n, c, 1, 1, 1).expand(shape)
    if layout == "cut out":
        return values(n, 2 * c, d + 1, h + 1, w + 1)[:, ::2, 1:, 1:, 1:]
    return values(*shape)


@functools.cache
def random_problem(seed: int, layout: str) -> Problem:
    """Anything that the operators take: also origins and output sizes that no layer has."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    groups = choose.choice([1, 1, 1, 2, 3, 6])
    in_per_group, out_per_group = choose.choice([1, 2, 3, 5, 16, 17, 33]), choose.choice([1, 2, 3, 5, 8, 11])
    out_channels = groups * out_per_group
    axial = choose.randint(0, out_channels)
    coronal = choose.randint(0, out_channels - axial)
    size = [choose.randint(1, 14) for _ in range(3)]
    if choose.random() < 0.3:
        size[2] = choose.randint(20, 50)
    stride = [choose.choice([1, 1, 2, 3]) for _ in range(3)]
    dilation = [choose.choice([1, 1, 2, 3]) for _ in range(3)]
    soft = seed % 3 == 2
    kernel = (choose.choice([1, 2, 3, 3, 5]), choose.choice([1, 2, 3, 3, 4]))
    return Problem(
        input=arrange([choose.choice([1, 2, 3]), groups * in_per_group, *size], layout),
        weight=values(*(3,) * soft, out_channels, in_per_group, *kernel),
        bias=values(out_channels) if choose.random() < 0.7 else None,
        split=[] if soft else [axial, coronal, out_channels - axial - coronal],
        stride=stride,
        origin=[choose.randint(-4, 3) for _ in range(9)],
        dilation=[1 if view == axis else dilation[axis] for view in range(3) for axis in range(3)],
        output_size=[max(1, (s - choose.randint(-3, 3)) // t) for s, t in zip(size, stride)],
        groups=groups,
    )


@functools.cache
def depthwise_problem(seed: int, layout: str) -> Problem:
    """One channel per group, stride and dilation 1, any origin and output size."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    channels, kernel = choose.choice([2, 5, 17, 38]), (3, 5, 7)[seed % 3]
    size = [choose.randint(1, 12), choose.randint(1, 12), choose.randint(1, 20)]
    axial = choose.randint(0, channels)
    coronal = choose.randint(0, channels - axial)
    return Problem(
        input=arrange([2, channels, *size], layout),
        weight=values(channels, 1, kernel, kernel),
        bias=values(channels),
        split=[axial, coronal, channels - axial - coronal],
        stride=[1] * 3,
        origin=[choose.randint(-kernel, 2) for _ in range(9)],
        dilation=[1] * 9,
        output_size=[max(1, s + choose.randint(-2, 3)) for s in size],
        groups=channels,
    )


@functools.cache
def wide_problem(seed: int, layout: str) -> Problem:
    """Long sums and short rows: the gather kernel's vectors run over channels."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    size = [choose.randint(1, 4), choose.randint(1, 6), choose.choice([3, 5, 7, 9, 11, 13])]
    stride = [choose.choice([1, 1, 2]) for _ in range(3)]
    return Problem(
        input=arrange([2, 40, *size], layout),
        weight=values(96, 40, 3, 3),
        bias=values(96),
        split=[31, 17, 48],
        stride=stride,
        origin=[0 if view == axis else -1 for view in range(3) for axis in range(3)],
        dilation=[1] * 9,
        output_size=[(s - 1) // t + 1 for s, t in zip(size, stride)],
        groups=1,
    )


@functools.cache
def pointwise_problem(seed: int, layout: str) -> Problem:
    """A 1x1 layer, with and without a stride: few and many channels, some panels of voxels and a part of one."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    channels, out_channels = choose.choice([1, 3, 16, 37, 70, 130]), choose.choice([1, 4, 21, 32, 48, 65])
    if seed % 10 == 6:  # channels-last, which the kernel streams where one number of channels is this small
        channels, out_channels = (16, 80)[seed // 10 % 2], (2, 4)[seed // 10 % 2]
    size = [choose.randint(1, 5), choose.randint(2, 12), choose.choice([3, 8, 23, 40])]
    stride = [1] * 3 if choose.random() < 0.4 else [choose.choice([1, 2, 3]) for _ in range(3)]
    axial = choose.randint(0, out_channels)
    return Problem(
        input=arrange([choose.choice([1, 3]), channels, *size], layout),
        weight=values(out_channels, channels, 1, 1),
        bias=values(out_channels) if choose.random() < 0.7 else None,
        split=[axial, 0, out_channels - axial],
        stride=stride,
        origin=[0] * 9,
        dilation=[1] * 9,
        output_size=[(s - 1) // t + 1 for s, t in zip(size, stride)],
        groups=1,
    )


@functools.cache
def random_oracle(seed: int, layout: str, operation: str) -> list[tuple[Tensor, Tensor]]:
    return oracle(random_problem(seed, layout), operation)


@functools.cache
def layer(
    channels: int,
    out_channels: int,
    size: tuple[int, int, int],
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    soft: bool = False,
) -> Problem:
    """A layer with "same" padding, its channels cut in thirds."""
    torch.manual_seed(0)
    padding, third = kernel // 2, out_channels // 3
    return Problem(
        input=values(1, channels, *size),
        weight=values(*(3,) * soft, out_channels, channels // groups, kernel, kernel),
        bias=values(out_channels),
        split=[] if soft else [out_channels - 2 * third, third, third],
        stride=[stride] * 3,
        origin=[0 if view == axis else -padding for view in range(3) for axis in range(3)],
        dilation=[1] * 9,
        output_size=[(s - 1) // stride + 1 for s in size],
        groups=groups,
    )


@functools.cache
def layer_oracle(arguments: tuple, operation: str) -> list[tuple[Tensor, Tensor]]:
    return oracle(layer(*arguments), operation)
