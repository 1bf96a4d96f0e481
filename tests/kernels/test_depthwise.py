"""Depthwise layers in the emulator: the kernel for them, forward and gradient of the input."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kernels.harness import (
    DTYPES,
    LAYOUTS,
    Layer,
    assert_close,
    assert_equal,
    backward_input,
    forward,
    integer_data,
    problem,
    real_data,
    run_backward_input,
    run_forward,
)

LAYERS = [
    Layer(37, 37, (4, 9, 8), kernel=(7, 7), padding=(3, 3, 3), groups=37),  # ConvNeXt's
    Layer(100, 100, (3, 4, 5), groups=100, batch=2, split=(50, 1, 49)),
    Layer(6, 6, (9, 11, 12), groups=6, stride=(2, 3, 1), split=(0, 2, 4)),
    Layer(7, 7, (5, 6, 10), groups=7, stride=(2, 2, 2), dilation=(1, 2, 3), padding=(1, 2, 3), bias=False),
    Layer(5, 5, (6, 5, 4), kernel=(1, 3), padding=(0, 1), groups=5),
    Layer(3, 3, (5, 5, 5), kernel=(2, 2), padding=(0, 0, 0), groups=3),
]
VARIANTS = [
    replace(layer, dtype=dtype, layout=layout) for layer in LAYERS for dtype in DTYPES for layout in LAYOUTS
]


@pytest.mark.parametrize("layer", VARIANTS, ids=str)
def test_bit_equal_on_integers(emulator, layer):
    data = integer_data(layer)
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)
    assert_equal(run_backward_input(emulator, layer, data), backward_input(layer, data), layer.dtype)


@pytest.mark.parametrize("layer", VARIANTS[::3], ids=str)
def test_close_on_real_values(emulator, layer):
    data, taps = real_data(layer), layer.kernel[0] * layer.kernel[1]
    assert_close(run_forward(emulator, layer, data), forward(layer, data), taps, layer.dtype)
    assert_close(run_backward_input(emulator, layer, data), backward_input(layer, data), taps, layer.dtype)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("layer", VARIANTS[2:16:8] + VARIANTS[3:16:8], ids=str)
def test_any_schedule(emulator, layer, seed):
    emulator.configure(schedule="random", seed=seed)
    data = integer_data(layer)
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)


@pytest.mark.parametrize("step", ["forward", "backward_input"])
def test_plan_takes_the_depthwise_kernel(emulator, step):
    for layer, name in [(LAYERS[0], "depthwise:"), (replace(LAYERS[0], groups=1), "gather:")]:
        data = integer_data(layer)
        text, _ = emulator.plan(step, problem(layer, data.input, data.grad_output))
        assert text.startswith(name)


def test_large_kernels_fall_to_the_gather_kernel(emulator):
    layer = Layer(2, 2, (4, 12, 13), kernel=(13, 13), padding=(6, 6, 6), groups=2)
    data = integer_data(layer)
    text, _ = emulator.plan("forward", problem(layer, data.input, data.grad_output))
    assert text.startswith("gather:")
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)
