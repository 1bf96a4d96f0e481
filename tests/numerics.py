"""How results are compared: the brute-force definition, integer data for exact comparison, and error measures."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from acsconv_cuda.geometry import Geometry, resolve

# The views, written out once more so that the brute force owes nothing to the package: (row axis, column axis).
VIEW_AXES = ((1, 2), (0, 2), (0, 1))


def brute_force(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    split: tuple[int, int, int],
    geometry: Geometry,
    groups: int,
) -> Tensor:
    """ACS convolution by loops over output channels and taps, differentiable; arguments as the reference's."""
    out_channels, per_group = weight.shape[:2]
    out_size = geometry.output_size(input.shape[2:])
    channels = []
    for channel in range(out_channels):
        view = 0 if channel < split[0] else 1 if channel < split[0] + split[1] else 2
        first_input = channel // (out_channels // groups) * per_group
        own = input[:, first_input : first_input + per_group]
        total = input.new_zeros(input.shape[0], *out_size)
        for row, column in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
            tap = [0, 0, 0]
            tap[VIEW_AXES[view][0]], tap[VIEW_AXES[view][1]] = row, column
            read, inside = own, 1
            for axis, size in enumerate(input.shape[2:]):
                position = (
                    torch.arange(out_size[axis]) * geometry.stride[axis]
                    + geometry.origin[view][axis]
                    + tap[axis] * geometry.dilation[view][axis]
                )
                read = read.index_select(2 + axis, position.clamp(0, size - 1))
                valid = ((position >= 0) & (position < size)).to(input.dtype)
                inside = inside * valid.view([-1 if a == axis else 1 for a in range(3)])
            total = total + inside * torch.einsum("ncdhw,c->ndhw", read, weight[channel, :, row, column])
        channels.append(total if bias is None else total + bias[channel])
    return torch.stack(channels, 1)


def brute_force_soft(
    input: Tensor, kernels: Tensor, bias: Tensor | None, geometry: Geometry, groups: int
) -> Tensor:
    """Soft ACS convolution by the same loops; arguments as the reference's."""
    views = []
    for view in range(3):
        split = [0, 0, 0]
        split[view] = kernels.shape[1]
        views.append(
            brute_force(input, kernels[view], bias if view == 0 else None, tuple(split), geometry, groups)
        )
    return sum(views)


@dataclass(frozen=True)
class Problem:
    """Parameters of one convolution, small enough for the brute force."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    size: tuple[int, int, int]
    split: tuple[int, int, int]
    stride: int | tuple[int, int, int] = 1
    padding: int | str | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    channels_last: bool = False

    @property
    def geometry(self) -> Geometry:
        return resolve(self.kernel, self.stride, self.padding, self.dilation)

    def __str__(self) -> str:
        def join(values) -> str:
            return "x".join(map(str, values)) if isinstance(values, tuple) else str(values)

        return (
            f"c{self.in_channels}-{self.out_channels}_k{join(self.kernel)}_d{join(self.size)}_v{join(self.split)}"
            f"_s{join(self.stride)}_p{join(self.padding)}_l{join(self.dilation)}_g{self.groups}"
            f"{'_cl' if self.channels_last else ''}"
        )

    def tensors(self, dtype: torch.dtype = torch.float64, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
        """Input, weight and bias of small integers, which every order of summation adds up alike."""
        generator = torch.Generator().manual_seed(hash((self.size, self.split, self.kernel)) % 2**31)

        def integers(*shape: int) -> Tensor:
            return torch.randint(-4, 5, shape, generator=generator).to(dtype)

        input = integers(batch, self.in_channels, *self.size)
        if self.channels_last:
            input = input.contiguous(memory_format=torch.channels_last_3d)
        return (
            input,
            integers(self.out_channels, self.in_channels // self.groups, *self.kernel),
            integers(self.out_channels),
        )


def random_problems(count: int, seed: int) -> list[Problem]:
    """Valid problems over the whole range of parameters: odd sizes, borders, empty views, strides, groups."""
    choose = random.Random(seed)

    def triple(low: int, high: int) -> tuple[int, int, int]:
        return tuple(choose.randint(low, high) for _ in range(3))

    problems = []
    while len(problems) < count:
        kernel_h = choose.choice([1, 2, 3, 3, 4, 5])
        groups = choose.choice([1, 1, 2, 3])
        out_channels = groups * choose.randint(1, 3)
        axial = choose.randint(0, out_channels)
        coronal = choose.randint(0, out_channels - axial)
        problem = Problem(
            in_channels=groups * choose.randint(1, 2),
            out_channels=out_channels,
            kernel=(kernel_h, choose.choice([kernel_h, kernel_h, kernel_h, choose.randint(1, 3)])),
            size=triple(1, 6),
            split=(axial, coronal, out_channels - axial - coronal),
            stride=choose.choice([1, 2, 3, triple(1, 3)]),
            padding=choose.choice([0, 1, 2, 3, "same", "valid", triple(0, 2), triple(0, 2)[:2]]),
            dilation=choose.choice([1, 1, 2, triple(1, 2), triple(1, 2)[:2]]),
            groups=groups,
            channels_last=choose.random() < 0.5,
        )
        try:
            sizes = problem.geometry.output_size(problem.size)
        except ValueError:  # padding or views that do not go together: tests/contract/test_errors.py
            continue
        if min(sizes) >= 1:
            problems.append(problem)
    return problems


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute error over the largest absolute value, in float64."""
    scale = expected.double().abs().max().clamp_min(1e-300)
    return float((actual.double() - expected.double()).abs().max() / scale)


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    """Float64 values in (-1, 1) that depend on the shape alone, for outputs that are stored in a file."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.7391 + phase).reshape(shape)


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Gives every parameter and statistic values that depend on its place and shape alone."""
    state = module.state_dict()
    for index, (key, value) in enumerate(state.items()):
        if value.is_floating_point():
            values = wave(*value.shape, phase=index) * (0.1 if value.dim() > 2 else 0.5)
            value.copy_(
                values.abs() + 0.5 if key.endswith(("running_var", "weight")) and value.dim() == 1 else values
            )
    return module
