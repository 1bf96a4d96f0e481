"""The reference against the definition written as loops: bit-equal on integers, outputs and gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from numerics import Problem, brute_force, brute_force_soft, random_problems

from acsconv_cuda import reference

NAMED = [
    Problem(3, 7, (3, 3), (4, 5, 6), (3, 2, 2), padding=1),
    Problem(3, 7, (3, 3), (4, 5, 6), (0, 5, 2), padding=1, channels_last=True),
    Problem(2, 3, (3, 3), (4, 5, 6), (0, 0, 3), padding=1, stride=2),
    Problem(2, 6, (3, 5), (6, 5, 7), (2, 2, 2), padding=(1, 2)),  # rectangular
    Problem(2, 6, (2, 4), (5, 5, 5), (2, 2, 2), padding="same"),  # asymmetric padding
    Problem(6, 6, (3, 3), (4, 4, 4), (2, 2, 2), padding=1, groups=6),  # depthwise
    Problem(4, 12, (3, 3), (4, 4, 4), (5, 4, 3), padding=1, groups=2),  # views that cut through groups
    Problem(2, 3, (1, 1), (1, 1, 1), (1, 1, 1), stride=3, padding=1),  # reads nothing but padding
    Problem(2, 3, (3, 3), (1, 1, 1), (1, 1, 1), stride=4, padding=3),  # a thin axis that reads only padding
    Problem(2, 3, (7, 7), (5, 6, 7), (1, 1, 1), stride=2, padding=3),  # a stem larger than its volume
]
PROBLEMS = NAMED + random_problems(150, seed=0)


def _gradients(out, tensors, grad_output):
    grads = torch.autograd.grad(out, tensors, grad_output, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors, strict=True)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_acs(problem):
    input, weight, bias = (t.requires_grad_() for t in problem.tensors())
    expected = brute_force(input, weight, bias, problem.split, problem.geometry, problem.groups)
    out = reference.acs_conv3d(input, weight, bias, problem.split, problem.geometry, problem.groups)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)

    grad_output = torch.randint(-4, 5, out.shape).double()
    expected_grads = _gradients(expected, (input, weight, bias), grad_output)
    for grad, expected_grad in zip(
        _gradients(out, (input, weight, bias), grad_output), expected_grads, strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=0)
    with torch.no_grad():
        format = reference.memory_format(input)
        grad_input = reference.backward_input(
            grad_output, weight, problem.size, problem.split, problem.geometry, problem.groups, format
        )
        grad_weight = reference.backward_weight(
            grad_output, input, problem.split, problem.geometry, problem.groups
        )
    torch.testing.assert_close(grad_input, expected_grads[0], rtol=0, atol=0)
    torch.testing.assert_close(grad_weight, expected_grads[1], rtol=0, atol=0)
    assert grad_input.is_contiguous(memory_format=format)


@pytest.mark.parametrize("problem", NAMED + PROBLEMS[len(NAMED) :: 5], ids=str)
def test_soft(problem):
    input, weight, bias = (t.requires_grad_() for t in problem.tensors())
    kernels = torch.randint(-4, 5, (3, *weight.shape)).double().requires_grad_()
    expected = brute_force_soft(input, kernels, bias, problem.geometry, problem.groups)
    out = reference.soft_acs_conv3d(input, kernels, bias, problem.geometry, problem.groups)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)

    grad_output = torch.randint(-4, 5, out.shape).double()
    expected_grads = _gradients(expected, (input, kernels, bias), grad_output)
    for grad, expected_grad in zip(
        _gradients(out, (input, kernels, bias), grad_output), expected_grads, strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=0)
    with torch.no_grad():
        grad_input = reference.backward_input(
            grad_output,
            kernels,
            problem.size,
            None,
            problem.geometry,
            problem.groups,
            torch.contiguous_format,
        )
        grad_kernels = reference.backward_weight(grad_output, input, None, problem.geometry, problem.groups)
    torch.testing.assert_close(grad_input, expected_grads[0], rtol=0, atol=0)
    torch.testing.assert_close(grad_kernels, expected_grads[1], rtol=0, atol=0)


def test_fold_view_weights():
    weight, view_weights = torch.randn(5, 2, 3, 3), torch.rand(5, 3)
    kernels = reference.fold_view_weights(weight, view_weights)
    for view in range(3):
        for channel in range(5):
            torch.testing.assert_close(kernels[view, channel], weight[channel] * view_weights[channel, view])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_dtypes_and_memory_format(dtype, channels_last):
    problem = Problem(4, 7, (3, 3), (5, 6, 7), (3, 2, 2), padding=1, channels_last=channels_last)
    input, weight, bias = problem.tensors(dtype)
    out = reference.acs_conv3d(input, weight, bias, problem.split, problem.geometry)
    expected = brute_force(*problem.tensors(), problem.split, problem.geometry, 1)
    assert out.dtype == dtype
    # Integers below 2^8: sums are exact in every dtype but for the last rounding of the 16-bit ones.
    torch.testing.assert_close(
        out.to(torch.complex128).real, expected.to(dtype).to(torch.complex128).real, rtol=0, atol=0
    )
    expected_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    assert out.is_contiguous(memory_format=expected_format)


STEMS = """
import itertools, sys, torch
sys.path[:0] = {paths!r}
from numerics import Problem
from acsconv_cuda import reference
kernel, stride = {kernel}, {stride}
cases = itertools.product((3, 5, 8), range(kernel // 2, kernel + 1), (1, 3))
for depth, padding, channels in cases:
    problem = Problem(channels, 6, (kernel, kernel), (depth, 6, 13), (2, 2, 2), stride=stride, padding=padding)
    size = problem.geometry.output_size(problem.size)
    if min(size) < 1:
        continue
    input, weight, _ = problem.tensors(torch.float32)
    grad_output = torch.randint(-4, 5, (2, 6, *size)).float()
    exact = reference.backward_weight(grad_output.double(), input.double(), problem.split, problem.geometry, 1)
    grad = reference.backward_weight(grad_output, input, problem.split, problem.geometry, 1)
    assert torch.equal(grad.double(), exact), problem
    weight.requires_grad_()
    out = reference.acs_conv3d(input, weight, None, problem.split, problem.geometry)
    assert torch.equal(torch.autograd.grad(out, weight, grad_output)[0].double(), exact), problem
"""


@pytest.mark.parametrize(
    "kernel,stride", [(3, 2), (4, 2), (4, 3), (5, 2), (5, 3), (6, 2), (7, 2), (8, 3), (9, 3)]
)
def test_weight_gradient_of_stems_on_toy_volumes(kernel, stride):
    """Float32 on CPU, where PyTorch's own weight gradient of these is wrong or crashes: so in a process of its own."""
    tests = Path(__file__).parents[1]
    script = STEMS.format(kernel=kernel, stride=stride, paths=[str(tests), str(tests.parent)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [(1, 16, 13), (16, 16, 3), (9, 8, 1), (1, 3, 5), (8, 6, 3)], ids=str)
@pytest.mark.parametrize("kernel,stride", [(2, 2), (3, 1), (3, 2), (7, 3)])
def test_bfloat16_where_an_output_is_one_voxel_wide(size, kernel, stride):
    """On a CPU, where PyTorch's own bfloat16 convolutions are wrong."""
    problem = Problem(3, 6, (kernel, kernel), size, (2, 2, 2), stride=stride, padding=kernel // 2)
    input, weight, bias = problem.tensors(torch.bfloat16)
    geometry, split = problem.geometry, problem.split
    grad_output = torch.randint(-4, 5, (2, 6, *geometry.output_size(size))).to(torch.bfloat16)
    exact_input, exact_weight, exact_bias, exact_grad = (
        t.double() for t in (input, weight, bias, grad_output)
    )
    out = reference.acs_conv3d(input, weight, bias, split, geometry)
    exact = reference.acs_conv3d(exact_input, exact_weight, exact_bias, split, geometry)
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=0)
    grad_weight = reference.backward_weight(grad_output, input, split, geometry, 1)
    exact = reference.backward_weight(exact_grad, exact_input, split, geometry, 1)
    torch.testing.assert_close(grad_weight.double(), exact, rtol=2**-8, atol=0)
    arguments = (size, split, geometry, 1, torch.contiguous_format)
    grad_input = reference.backward_input(grad_output, weight, *arguments)
    exact = reference.backward_input(exact_grad, exact_weight, *arguments)
    # Three views are added up in bfloat16.
    torch.testing.assert_close(grad_input.double(), exact, rtol=2**-6, atol=2)
