"""The CPU implementation of ``acsconv::fused_forward``, called directly: any geometry, every instruction set.

The oracle gathers the input of every kernel tap by its formula, in float64, and knows nothing of padding or views but
what the operator's arguments say.
"""

from __future__ import annotations

import functools
import random
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import acsconv_cuda  # noqa: F401  (defines and loads the operators)
from acsconv_cuda import _loader

pytestmark = pytest.mark.skipif(not _loader.loaded(), reason=f"no compiled part: {_loader.failure()}")

ISAS = ("portable", "avx2", "avx512")  # one that the processor lacks falls back to the best it has
ROW, COLUMN = (1, 0, 0), (2, 2, 1)  # kernel axes of the axial, coronal and sagittal view


class Problem(NamedTuple):
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


def run(problem: Problem) -> Tensor:
    return torch.ops.acsconv.fused_forward(*problem)


def oracle(problem: Problem) -> tuple[Tensor, Tensor]:
    """The output in float64, and the sum of the magnitudes of what was added up."""
    exact = problem.to(torch.float64)
    return _gather(exact), _gather(
        exact._replace(
            input=exact.input.abs(),
            weight=exact.weight.abs(),
            bias=None if exact.bias is None else exact.bias.abs(),
        )
    )


def _gather(p: Problem) -> Tensor:
    out_channels, in_per_group, kernel_h, kernel_w = p.weight.shape
    out_per_group = out_channels // p.groups
    size = p.input.shape[2:]
    out = torch.zeros(p.input.shape[0], out_channels, *p.output_size, dtype=torch.float64)
    alike: dict[tuple[int, int], list[int]] = {}  # (view, group) -> output channels
    for channel in range(out_channels):
        view = 0 if channel < p.split[0] else 1 if channel < p.split[0] + p.split[1] else 2
        alike.setdefault((view, channel // out_per_group), []).append(channel)
    for (view, group), channels in alike.items():
        volume = p.input[:, group * in_per_group : (group + 1) * in_per_group]
        for i in range(kernel_h):
            for j in range(kernel_w):
                taken = volume
                for axis in range(3):
                    tap = i if axis == ROW[view] else j if axis == COLUMN[view] else 0
                    position = torch.arange(p.output_size[axis]) * p.stride[axis] + p.origin[3 * view + axis]
                    position = position + tap * p.dilation[3 * view + axis]
                    inside = (position >= 0) & (position < size[axis])
                    taken = taken.index_select(2 + axis, position.clamp(0, size[axis] - 1))
                    taken = taken * inside.reshape([-1 if a == axis else 1 for a in range(3)])
                out[:, channels] += torch.einsum("ncdhw,oc->nodhw", taken, p.weight[channels, :, i, j])
    return out if p.bias is None else out + p.bias.reshape(-1, 1, 1, 1)


def assert_close(problem: Problem, expected: tuple[Tensor, Tensor] | None = None) -> None:
    """Within a few roundings of the magnitudes that were added up."""
    exact, magnitude = oracle(problem) if expected is None else expected
    found = run(problem)
    assert found.shape == exact.shape
    terms = problem.weight[0].numel() + 1
    bound = magnitude * torch.finfo(problem.input.dtype).eps * (2 + terms**0.5)
    worst = ((found.double() - exact).abs() - bound).max()
    assert worst <= 0, f"off by {worst:.3g} more than rounding explains"


def arrange(shape: list[int], layout: str) -> Tensor:
    n, c, d, h, w = shape
    if layout == "channels_last":
        return torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    if layout == "transposed":
        return torch.randn(n, c, w, h, d).transpose(2, 4)
    if layout == "expanded":
        return torch.randn(n, c, 1, 1, 1).expand(shape)
    if layout == "cut out":
        return torch.randn(n, 2 * c, d + 1, h + 1, w + 1)[:, ::2, 1:, 1:, 1:]
    return torch.randn(shape)


LAYOUTS = ("contiguous", "channels_last", "transposed", "expanded", "cut out")


@functools.cache
def random_problem(seed: int, layout: str) -> Problem:
    """Anything that the operator takes: also origins and output sizes that no layer has."""
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
    return Problem(
        input=arrange([choose.choice([1, 2, 3]), groups * in_per_group, *size], layout),
        weight=torch.randn(
            out_channels, in_per_group, choose.choice([1, 2, 3, 3, 5]), choose.choice([1, 2, 3, 3, 4])
        ),
        bias=torch.randn(out_channels) if choose.random() < 0.7 else None,
        split=[axial, coronal, out_channels - axial - coronal],
        stride=stride,
        origin=[choose.randint(-4, 3) for _ in range(9)],
        dilation=[1 if view == axis else dilation[axis] for view in range(3) for axis in range(3)],
        output_size=[max(1, (s - choose.randint(-3, 3)) // t) for s, t in zip(size, stride)],
        groups=groups,
    )


@functools.cache
def random_oracle(seed: int, layout: str) -> tuple[Tensor, Tensor]:
    return oracle(random_problem(seed, layout))


def layer(
    channels: int, out_channels: int, size: tuple[int, int, int], kernel: int = 3, stride: int = 1
) -> Problem:
    """A layer with "same" padding, axes cut in thirds."""
    torch.manual_seed(0)
    padding, third = kernel // 2, out_channels // 3
    return Problem(
        input=torch.randn(1, channels, *size),
        weight=torch.randn(out_channels, channels, kernel, kernel),
        bias=torch.randn(out_channels),
        split=[out_channels - 2 * third, third, third],
        stride=[stride] * 3,
        origin=[0 if view == axis else -padding for view in range(3) for axis in range(3)],
        dilation=[1] * 9,
        output_size=[(s - 1) // stride + 1 for s in size],
        groups=1,
    )


@functools.cache
def layer_oracle(*arguments) -> tuple[Tensor, Tensor]:
    return oracle(layer(*arguments))


# --- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("isa", ISAS)
def test_random_problems(monkeypatch, isa, layout, dtype):
    monkeypatch.setenv("ACSCONV_CPU_ISA", isa)
    for seed in range(12):
        assert_close(random_problem(seed, layout).to(dtype), random_oracle(seed, layout))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("channels", "out_channels", "size", "kernel", "stride"),
    [
        (40, 31, (6, 40, 70), 3, 1),  # several strips of rows, two slices of the reduction
        (36, 13, (8, 20, 21), 5, 1),
        (33, 64, (9, 33, 34), 3, 2),  # four phases
        (3, 20, (12, 30, 37), 7, 2),
        (100, 44, (4, 4, 4), 3, 1),  # rows far shorter than a vector
        (20, 10, (30, 9, 3), 1, 1),
    ],
)
def test_layers(monkeypatch, isa, channels, out_channels, size, kernel, stride):
    monkeypatch.setenv("ACSCONV_CPU_ISA", isa)
    problem = layer(channels, out_channels, size, kernel, stride)
    expected = layer_oracle(channels, out_channels, size, kernel, stride)
    assert_close(problem, expected)
    last = problem.input.contiguous(memory_format=torch.channels_last_3d)
    assert_close(problem._replace(input=last), expected)


def test_positions_far_outside_read_zero():
    problem = layer(4, 6, (5, 6, 7))
    far = problem._replace(origin=[2**29] * 9)
    assert torch.equal(run(far), problem.bias.reshape(1, -1, 1, 1, 1).expand(1, 6, 5, 6, 7))
    wide = problem._replace(dilation=[2**20 if number == -1 else 1 for number in problem.origin])
    assert_close(wide)


@pytest.mark.parametrize("shape", [(0, 4, 5, 6, 7), (2, 0, 5, 6, 7), (2, 4, 0, 6, 7)])
def test_empty_inputs(shape):
    problem = layer(shape[1], 6, (5, 6, 7))._replace(input=torch.empty(shape))
    assert torch.equal(run(problem), problem.bias.reshape(1, -1, 1, 1, 1).expand(shape[0], 6, 5, 6, 7))
    assert run(problem._replace(output_size=[0, 6, 7])).shape == (shape[0], 6, 0, 6, 7)


# --- the same, whoever computes it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_threads_do_not_change_the_result(monkeypatch, isa):
    monkeypatch.setenv("ACSCONV_CPU_ISA", isa)
    before = torch.get_num_threads()
    try:
        for problem in [
            layer(40, 31, (6, 40, 70)),
            layer(64, 64, (5, 5, 5)),
            random_problem(3, "contiguous"),
        ]:
            results = []
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                results.append(run(problem))
            assert all(torch.equal(results[0], other) for other in results[1:])
    finally:
        torch.set_num_threads(before)


def test_layout_does_not_change_the_result_and_is_kept():
    problem = layer(20, 18, (6, 7, 40))
    last = problem._replace(input=problem.input.contiguous(memory_format=torch.channels_last_3d))
    plain, other = run(problem), run(last)
    assert plain.is_contiguous()
    assert other.is_contiguous(memory_format=torch.channels_last_3d) and not other.is_contiguous()
    assert torch.equal(plain, other)


def test_an_input_in_both_formats_gives_contiguous():
    problem = layer(1, 6, (5, 6, 7))
    assert run(
        problem._replace(input=problem.input.contiguous(memory_format=torch.channels_last_3d))
    ).is_contiguous()


def test_weight_and_bias_may_be_views():
    problem = layer(4, 6, (5, 6, 7))
    weight = problem.weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    bias = problem.bias.repeat_interleave(2)[::2]
    assert torch.equal(run(problem._replace(weight=weight, bias=bias)), run(problem))


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(4, 5, 6, 7)}, "input must have 5 dimensions, got 4"),
        ({"input": torch.zeros(1, 4, 5, 6, 7, dtype=torch.int32)}, "weight must have the dtype of input"),
        ({"weight": torch.zeros(6, 4, 3)}, "weight must have 4 dimensions, got 3"),
        ({"weight": torch.zeros(6, 5, 3, 3)}, "weight must have 4 input channels per group, got 5"),
        ({"bias": torch.zeros(5)}, "bias must have 6 elements"),
        ({"bias": torch.zeros(6, dtype=torch.float64)}, "bias must have the dtype of input"),
        ({"split": [2, 2]}, "split needs 3 numbers, got 2"),
        ({"split": [2, 2, 3]}, "split must sum to the 6 output channels"),
        ({"split": [7, -1, 0]}, "split must lie in [0, 2^30], got -1"),
        ({"stride": [1, 0, 1]}, "stride must lie in [1, 2^30], got 0"),
        ({"origin": [0] * 8}, "origin needs 9 numbers, got 8"),
        ({"origin": [-(2**40)] * 9}, "origin must lie in"),
        ({"dilation": [0] * 9}, "dilation must lie in [1, 2^30], got 0"),
        ({"output_size": [1, -1, 1]}, "output_size must lie in [0, 2^30], got -1"),
        ({"groups": 4}, "groups = 4 must divide the 4 input and 6 output channels"),
        ({"groups": 0}, "groups = 0 must divide"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(RuntimeError) as error:
        run(layer(4, 6, (5, 6, 7))._replace(**change))
    assert f"acsconv: {message}" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(RuntimeError, match=r"float16|bfloat16|float64"):
        run(layer(4, 6, (5, 6, 7)).to(dtype))
