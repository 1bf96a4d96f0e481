"""Transposed ACS convolution: its definition written as loops, and its exact properties; bit-equal on integers."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from numerics import VIEW_AXES

from acsconv_cuda import acs_conv_transpose3d
from acsconv_cuda.reference import memory_format


def integers(*shape):
    return torch.randint(-4, 5, shape).double()


def brute_force(input, weight, bias, split, stride, padding, output_padding, dilation, groups):
    """Every tap of every kernel scattered by itself. ``padding`` and ``dilation`` are [view][axis], pairs resolved."""
    per_out, per_in = weight.shape[1], weight.shape[0] // groups
    kernel = weight.shape[2:]
    channels = []
    for channel in range(per_out * groups):
        view = 0 if channel < split[0] else 1 if channel < split[0] + split[1] else 2
        row, column = VIEW_AXES[view]
        size = []
        for axis in range(3):
            # Along the thin axis the size is that of the views which have this axis in their plane: all agree.
            other = view if axis in (row, column) else next(v for v in range(3) if axis in VIEW_AXES[v])
            taps = kernel[VIEW_AXES[other].index(axis)]
            reach = dilation[other][axis] * (taps - 1) - 2 * padding[other][axis]
            size.append((input.shape[2 + axis] - 1) * stride[axis] + reach + output_padding[axis] + 1)
            if axis not in (row, column):
                thin, e = axis, reach
        group = channel // per_out
        own = slice(group * per_in, (group + 1) * per_in)
        out = input.new_zeros(input.shape[0], *size)
        for o in range(size[thin]):
            # Nearest: the SPEC's floor((o + pad - c) / stride), with c = ceil((e + 2 pad - (stride - 1)) / 2).
            centre = -((stride[thin] - 1 - e) // 2)
            taken = min(max((o - centre) // stride[thin], 0), input.shape[2 + thin] - 1)
            image = input[:, own].select(2 + thin, taken)
            target = out.select(1 + thin, o)
            positions = itertools.product(
                range(image.shape[2]), range(image.shape[3]), range(kernel[0]), range(kernel[1])
            )
            for i, j, p, q in positions:
                at_row = i * stride[row] - padding[view][row] + p * dilation[view][row]
                at_column = j * stride[column] - padding[view][column] + q * dilation[view][column]
                if 0 <= at_row < size[row] and 0 <= at_column < size[column]:
                    target[:, at_row, at_column] += image[:, :, i, j] @ weight[own, channel % per_out, p, q]
        channels.append(out if bias is None else out + bias[channel])
    return torch.stack(channels, 1)


def per_view(value):
    """[view][axis] of an int, a triple of the volume's axes or a pair of the kernel's."""
    triple = (value,) * 3 if isinstance(value, int) else value
    if len(triple) == 3:
        return [triple] * 3
    return [[value[axes.index(axis)] if axis in axes else None for axis in range(3)] for axes in VIEW_AXES]


CASES = [
    {"kernel": (2, 2), "stride": 2},
    {"kernel": (4, 4), "stride": 2, "padding": 1},
    {"kernel": (3, 3), "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel": (3, 3), "padding": 1},
    {"kernel": (3, 3)},
    {"kernel": (1, 1)},
    {"kernel": (1, 1), "stride": 2},
    {"kernel": (2, 2), "stride": 3, "output_padding": (0, 1, 2)},
    {"kernel": (3, 3), "stride": (1, 2, 3), "dilation": (1, 2, 1), "padding": (0, 1, 2)},
    {"kernel": (3, 3), "padding": 2, "dilation": 2, "output_padding": 1},
    {"kernel": (3, 5), "stride": 2, "padding": (1, 2)},
    {"kernel": (3, 5), "stride": 2, "padding": (1, 1), "dilation": (2, 1)},
    {"kernel": (3, 3), "stride": 2, "padding": 3, "size": (3, 4, 5)},
]


def random_cases(count):
    choose = random.Random(0)
    cases = []
    for _ in range(count):
        k = choose.randint(1, 4)
        stride = tuple(choose.randint(1, 3) for _ in range(3))
        case = {
            "kernel": (k, k),
            "stride": stride,
            "padding": choose.randint(0, k // 2),
            "dilation": choose.randint(1, 2),
            "output_padding": tuple(choose.randint(0, s - 1) for s in stride),
            "groups": choose.randint(1, 3),
            "per_out": choose.randint(1, 4),
            "per_in": choose.randint(1, 2),
            "size": tuple(choose.randint(2, 4) for _ in range(3)),
        }
        channels = case["groups"] * case["per_out"]
        axial = choose.randint(0, channels)
        coronal = choose.randint(0, channels - axial)
        cases.append({**case, "split": (axial, coronal, channels - axial - coronal)})
    return cases


def problem(case):
    """(input, weight, bias), the keywords of the function, and those of the brute force."""
    options = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1, "split": (3, 2, 2)}
    options.update({k: v for k, v in case.items() if k in options})
    per_out, per_in, groups = case.get("per_out", 7), case.get("per_in", 2), options["groups"]
    tensors = (
        integers(2, per_in * groups, *case.get("size", (2, 3, 4))),
        integers(per_in * groups, per_out, *case["kernel"]),
        integers(per_out * groups),
    )
    loops = {
        **options,
        "stride": per_view(options["stride"])[0],
        "output_padding": per_view(options["output_padding"])[0],
        "padding": per_view(options["padding"]),
        "dilation": per_view(options["dilation"]),
    }
    return tensors, options, loops


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES + random_cases(25), ids=str)
def test_loops(case, channels_last):
    (input, weight, bias), options, loops = problem(case)
    format = torch.channels_last_3d if channels_last else torch.contiguous_format
    input = input.contiguous(memory_format=format)
    out = acs_conv_transpose3d(input, weight, bias, **options)
    torch.testing.assert_close(out, brute_force(input, weight, bias, **loops), rtol=0, atol=0)
    assert out.is_contiguous(memory_format=memory_format(input))


def test_without_bias_and_batch():
    (input, weight, _), options, loops = problem(CASES[1])
    expected = brute_force(input, weight, None, **loops)
    torch.testing.assert_close(acs_conv_transpose3d(input[1], weight, **options), expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("view", range(3))
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if all(isinstance(v, int) for k, v in c.items() if k not in ("kernel", "size"))],
    ids=str,
)
def test_a_repeated_slice_gives_the_2d_layer_in_every_slice(case, view, groups):
    kernel, options = case["kernel"], {k: v for k, v in case.items() if k not in ("kernel", "size")}
    image, weight, bias = integers(2, 4, 4, 5), integers(4, 3, *kernel), integers(3 * groups)
    expected = F.conv_transpose2d(image, weight, bias, groups=groups, **options)
    volume = torch.stack([image] * 6, 2 + view)
    split = [0, 0, 0]
    split[view] = 3 * groups
    out = acs_conv_transpose3d(volume, weight, bias, split=split, groups=groups, **options)
    for one in out.unbind(2 + view):
        torch.testing.assert_close(one, expected, rtol=0, atol=0)


def test_the_kernel_that_doubles_repeats_every_slice():
    volume, weight = integers(1, 2, 3, 4, 5), integers(2, 3, 2, 2)
    out = acs_conv_transpose3d(volume, weight, split=(3, 0, 0), stride=2)
    for position, one in enumerate(out.unbind(2)):
        expected = F.conv_transpose2d(volume[:, :, position // 2], weight, stride=2)
        torch.testing.assert_close(one, expected, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"groups": 2}], ids=str)
def test_one_by_one_kernel_equals_conv_transpose3d(options):
    volume, weight, bias = (
        integers(2, 4, 5, 6, 7),
        integers(4, 3, 1, 1),
        integers(3 * options.get("groups", 1)),
    )
    expected = F.conv_transpose3d(volume, weight[..., None], bias, **options)
    torch.testing.assert_close(
        acs_conv_transpose3d(volume, weight, bias, **options), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex128])
@pytest.mark.parametrize("size", [(2, 3, 4), (1, 3, 4), (3, 3, 1), (1, 1, 1)])
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[2]], ids=str)
def test_dtypes(case, size, dtype):
    """Volumes one voxel wide are where PyTorch's own bfloat16 convolutions are wrong on a CPU."""
    (input, weight, bias), options, loops = problem({**case, "size": size})
    input, weight = input.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    out = acs_conv_transpose3d(input, weight, bias.to(dtype), **options)
    expected = brute_force(input.to(torch.complex128).real, weight.to(torch.complex128).real, bias, **loops)
    assert out.dtype == dtype
    torch.testing.assert_close(out.to(torch.complex128).real, expected.to(dtype).to(torch.complex128).real)
    grads = torch.autograd.grad(out, (input, weight), torch.ones_like(out))
    exact = torch.autograd.grad(expected, (input, weight), torch.ones_like(expected))
    for grad, exact_grad in zip(grads, exact):
        # Three views are added up in the dtype.
        torch.testing.assert_close(grad, exact_grad, rtol=2**-6, atol=0.5)


WIDE = """
import itertools, sys, torch
sys.path[:0] = {paths!r}
from acsconv_cuda import acs_conv_transpose3d
sizes = ((3, 5, 13), (4, 4, 4), (2, 3, 2))
for channels, size, padding in itertools.product((1, 3), sizes, (0, {kernel} // 2)):
    torch.manual_seed(0)
    shapes = ((2, channels, *size), (channels, 3, {kernel}, {kernel}))
    exact = [torch.randint(-4, 5, shape).double() for shape in shapes]
    results = []
    for tensors in (exact, [t.float() for t in exact]):
        input, weight = (t.requires_grad_() for t in tensors)
        out = acs_conv_transpose3d(input, weight, stride={stride}, padding=padding)
        grads = torch.autograd.grad(out, (input, weight), torch.ones_like(out))
        results.append([t.double() for t in (out, *grads)])
    assert all(torch.equal(a, b) for a, b in zip(*results)), (channels, size, padding)
"""


@pytest.mark.parametrize("kernel,stride", [(4, 2), (7, 2), (9, 3)])
def test_gradients_of_wide_kernels_on_toy_volumes(kernel, stride):
    """Float32 on CPU, where PyTorch's own weight gradient is wrong or crashes: so in a process of its own."""
    script = WIDE.format(kernel=kernel, stride=stride, paths=[str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
