"""Depthwise layers in the emulator: the kernels for them, forward and all gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    DTYPES,
    LAYOUTS,
    Layer,
    assert_close,
    assert_equal,
    backward_bias,
    backward_input,
    backward_weight,
    forward,
    integer_data,
    problem,
    real_data,
    run_backward_input,
    run_backward_weight,
    run_forward,
    with_layout,
)

LAYERS = [
    Layer(37, 37, (4, 9, 8), kernel=(7, 7), padding=(3, 3, 3), groups=37),  # ConvNeXt's
    Layer(100, 100, (3, 4, 5), groups=100, batch=2, split=(50, 1, 49)),
    Layer(6, 6, (9, 11, 12), groups=6, stride=(2, 3, 1), split=(0, 2, 4)),
    Layer(7, 7, (5, 6, 10), groups=7, stride=(2, 2, 2), dilation=(1, 2, 3), padding=(1, 2, 3), bias=False),
    Layer(5, 5, (6, 5, 4), kernel=(1, 3), padding=(0, 1), groups=5),
    Layer(3, 3, (5, 5, 5), kernel=(2, 2), padding=(0, 0, 0), groups=3),
    # Several outputs of an input channel, of one view or of two.
    Layer(35, 70, (3, 4, 5), groups=35, split=(33, 20, 17)),
    Layer(
        5, 15, (5, 6, 7), groups=5, stride=(2, 1, 2), dilation=(1, 2, 1), padding=(1, 2, 1), split=(4, 4, 7)
    ),
    Layer(4, 16, (4, 5, 6), kernel=(5, 5), padding=(2, 2, 2), groups=4, split=(0, 15, 1), batch=2),
]
VARIANTS = [
    replace(layer, dtype=dtype, layout=layout) for layer in LAYERS for dtype in DTYPES for layout in LAYOUTS
]


#: Tells the planner of a machine so large that it cuts the lines into as many parts as it may.
LARGE = 10**4


def check_weight(emulator, layer: Layer) -> None:
    data = integer_data(layer)
    weight, bias = run_backward_weight(emulator, layer, data)
    assert_equal(weight, backward_weight(layer, data), layer.dtype)
    assert_equal(bias, backward_bias(layer, data), layer.dtype)


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


# Taps and outputs that share no rows, more taps than a thread sums at once, lines that miss the volume.
WALKS = [
    Layer(5, 5, (13, 12, 5), groups=5, stride=(4, 3, 2), dilation=(2, 3, 1), padding=(2, 3, 1)),
    Layer(4, 4, (7, 9, 8), groups=4, dilation=(3, 2, 3), padding=(3, 2, 3), batch=2),
    Layer(3, 3, (9, 10, 11), kernel=(8, 8), groups=3, padding=(4, 4, 4), stride=(1, 2, 1)),
    Layer(3, 3, (6, 12, 12), kernel=(11, 11), groups=3, padding=(5, 5, 5)),
    Layer(6, 6, (3, 4, 6), kernel=(1, 7), padding=(0, 3), groups=6),
    Layer(3, 3, (2, 3, 2), groups=3, padding=(4, 4, 4), dilation=(4, 4, 4)),
    Layer(34, 34, (2, 1, 1), groups=34, split=(0, 33, 1)),
    Layer(1, 1, (5, 6, 7), kernel=(1, 1), padding=(0, 0, 0)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", [*LAYERS, *WALKS], ids=str)
def test_weight_bit_equal_on_integers(emulator, layer, layout):
    for dtype in DTYPES:
        check_weight(emulator, replace(layer, layout=layout, dtype=dtype))


# Enough lines for several parts, of which the last is shorter.
PARTS = [
    Layer(5, 5, (11, 13, 13), groups=5, kernel=(7, 7), padding=(3, 3, 3)),
    Layer(33, 33, (3, 4, 5), groups=33, batch=2, split=(32, 1, 0), layout="channels_last"),
    Layer(4, 4, (9, 22, 17), groups=4, stride=(1, 2, 1), dtype="bfloat16"),
]


@pytest.mark.parametrize("layer", PARTS, ids=str)
def test_weight_in_parts(emulator, layer):
    emulator.configure(multiprocessors=LARGE)
    data = integer_data(layer)
    volumes = (with_layout(volume, layer.layout) for volume in (data.input, data.grad_output))
    text, workspace = emulator.plan("backward_weight", problem(layer, *volumes), multiprocessors=LARGE)
    assert workspace > 0, text
    check_weight(emulator, layer)


def test_weight_is_deterministic(emulator):
    layer = PARTS[0]
    data = real_data(layer)
    results = []
    for schedule, seed in [("warp-first", 1), ("random", 1), ("reverse", 1)]:
        emulator.configure(schedule=schedule, seed=seed, multiprocessors=LARGE)
        results.append(run_backward_weight(emulator, layer, data))
    for weight, bias in results[1:]:
        np.testing.assert_array_equal(weight, results[0][0])
        np.testing.assert_array_equal(bias, results[0][1])


@pytest.mark.parametrize("layer", VARIANTS[::5], ids=str)
def test_weight_close_on_real_values(emulator, layer):
    data, terms = real_data(layer), layer.batch * int(np.prod(layer.out_size))
    weight, bias = run_backward_weight(emulator, layer, data)
    assert_close(weight, backward_weight(layer, data), terms, layer.dtype)
    assert_close(bias, backward_bias(layer, data), terms, layer.dtype)


@pytest.mark.parametrize("machine", [1, LARGE])
@pytest.mark.parametrize("layer", [PARTS[0], PARTS[1], WALKS[3]], ids=str)
def test_only_what_is_wanted(emulator, layer, machine):
    emulator.configure(multiprocessors=machine)
    data = integer_data(layer)
    weight, _ = run_backward_weight(emulator, layer, data, bias=False)
    assert_equal(weight, backward_weight(layer, data), layer.dtype)
    _, bias = run_backward_weight(emulator, layer, data, weight=False)
    assert_equal(bias, backward_bias(layer, data), layer.dtype)


def test_batch_zero_gives_zeros(emulator):
    layer = replace(LAYERS[0], batch=0)
    weight, bias = run_backward_weight(emulator, layer, integer_data(layer))
    assert not weight.any()
    assert not bias.any()


@pytest.mark.parametrize("step", ["forward", "backward_input", "backward_weight"])
def test_plan_takes_the_depthwise_kernel(emulator, step):
    for layer, reason in [
        (LAYERS[0], None),
        (LAYERS[-1], None),
        (replace(LAYERS[0], groups=1), "channels share a group"),
        (Layer(2, 10, (3, 3, 3), groups=2), "more than 4 output channels of an input channel"),
        (Layer(1, 2, (3, 3, 3), kernel=(9, 9), padding=(4, 4, 4)), "a single input channel"),
    ]:
        data = integer_data(layer)
        text, _ = emulator.plan(step, problem(layer, data.input, data.grad_output))
        assert text.startswith("depthwise") == (reason is None)
        assert text.endswith(f"not depthwise: {reason}") == (reason is not None)


def test_large_kernels_fall_to_the_gather_kernel(emulator):
    layer = Layer(2, 2, (4, 12, 13), kernel=(13, 13), padding=(6, 6, 6), groups=2)
    data = integer_data(layer)
    text, _ = emulator.plan("forward", problem(layer, data.input, data.grad_output))
    assert text.startswith("gather:")
    assert text.endswith("not depthwise: more than 128 taps")
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)
    check_weight(emulator, layer)
