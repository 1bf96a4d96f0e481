"""The geometry rule, and that Python and C++ define the same views."""

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from acsconv_cuda.geometry import VIEWS, default_split, resolve

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.mark.parametrize(
    "out_channels,split",
    [
        (1, (1, 0, 0)),
        (2, (1, 1, 0)),
        (3, (1, 1, 1)),
        (32, (11, 11, 10)),
        (64, (22, 21, 21)),
        (320, (107, 107, 106)),
    ],
)
def test_default_split(out_channels, split):
    assert default_split(out_channels) == split


GRID = list(itertools.product([1, 2, 3, 4, 5, 7], [1, 2, 3], [0, 1, 2, 3], [1, 2, 3]))


@pytest.mark.parametrize("kernel,stride,padding,dilation", GRID)
def test_output_size_is_that_of_conv3d(kernel, stride, padding, dilation):
    geometry = resolve((kernel, kernel), stride, padding, dilation)
    conv = torch.nn.Conv3d(1, 1, kernel, stride, padding, dilation, device="meta")
    for size in (7, 8, 19):
        if size + 2 * padding >= dilation * (kernel - 1) + 1:
            expected = conv(torch.empty(1, 1, size, size, size, device="meta")).shape[2:]
            assert geometry.output_size((size,) * 3) == tuple(expected)


@pytest.mark.parametrize(
    "kernel,stride,padding,dilation,offset",
    [
        (3, 1, 1, 1, 0),  # "same": the centre
        (3, 2, 1, 1, 0),
        (7, 2, 3, 1, 0),
        (3, 1, 2, 2, 0),
        (2, 2, 0, 1, 0),  # even kernels that halve
        (4, 2, 1, 1, 0),
        (2, 1, 0, 1, 1),  # e = 1, but stride 1
        (4, 4, 1, 1, 1),
        (3, 1, 0, 1, 1),
        (3, 1, 0, 2, 2),
        (3, 1, 2, 1, -1),
        (5, 3, 1, 1, 1),
        (1, 3, 1, 1, -1),
    ],
)
def test_thin_position(kernel, stride, padding, dilation, offset):
    geometry = resolve((kernel, kernel), stride, padding, dilation)
    for v, view in enumerate(VIEWS):
        assert geometry.origin[v][view.thin] == offset
        assert geometry.origin[v][view.row] == geometry.origin[v][view.column] == -padding
        assert geometry.dilation[v][view.thin] == 1


@pytest.mark.parametrize(
    "kernel,padding,dilation,offset",
    [
        ((3, 5), (1, 2), 1, 0),
        ((3, 5), (0, 1), 1, 1),  # -p_h + dil_h * (K_h // 2), on every thin axis
        ((5, 3), (1, 0), 1, 1),
        ((5, 3), (3, 2), 1, -1),
        ((2, 5), (0, 1), (2, 1), 2),
        ((7, 1), (3, 0), 1, 0),
    ],
)
def test_thin_position_of_rectangular_kernels(kernel, padding, dilation, offset):
    geometry = resolve(kernel, 1, padding, dilation)
    assert [geometry.origin[v][view.thin] for v, view in enumerate(VIEWS)] == [offset] * 3
    for v, view in enumerate(VIEWS):
        assert (geometry.origin[v][view.row], geometry.origin[v][view.column]) == (-padding[0], -padding[1])


def test_the_rule_is_per_axis():
    geometry = resolve((3, 3), (1, 2, 1), (1, 0, 2), (1, 1, 2))
    assert [geometry.origin[v][v] for v in range(3)] == [0, 1, 0]
    assert geometry.shrink == (0, 2, 0)


def test_numbers_of_other_libraries():
    assert resolve((np.int64(3), 3), np.int32(1), torch.Size([1, 1, 1]), [1, 1, 1]) == resolve(
        (3, 3), 1, 1, 1
    )


def test_views_are_those_of_the_cpp_header(tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler found")
    program = tmp_path / "views.cpp"
    program.write_text(
        '#include <cstdio>\n#include "view.h"\nusing namespace acsconv;\nint main() {\n'
        "  for (int v = 0; v < kViews; ++v) {\n"
        '    std::printf("%d %d %d", thin_axis(v), row_axis(v), column_axis(v));\n'
        '    for (int a = 0; a < 3; ++a) std::printf(" %d", int(kernel_extent(v, a, 5, 7)));\n'
        '    std::printf("\\n");\n  }\n}\n'
    )
    binary = tmp_path / "views"
    subprocess.run([compiler, "-std=c++17", f"-I{CSRC}", str(program), "-o", str(binary)], check=True)
    lines = subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout.split("\n")
    for view, line in zip(VIEWS, lines, strict=False):
        assert tuple(map(int, line.split())) == (view.thin, view.row, view.column, *view.kernel3d((5, 7)))
