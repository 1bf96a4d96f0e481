"""The gradient of the input in the emulator: one launch for all views, any stride and dilation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    Layer,
    assert_close,
    assert_equal,
    backward_input,
    generated_layers,
    integer_data,
    one_view,
    real_data,
    run_backward_input,
    shapes_in_all_variants,
    soft_kernels,
    to_storage,
)


@pytest.mark.parametrize("layer", [*shapes_in_all_variants(), *generated_layers(160, seed=11)], ids=str)
def test_bit_equal_on_integers(emulator, layer):
    data = integer_data(layer)
    assert_equal(run_backward_input(emulator, layer, data), backward_input(layer, data), layer.dtype)


@pytest.mark.parametrize("layer", generated_layers(30, seed=14), ids=str)
def test_small_tiles(emulator, layer):
    emulator.configure(multiprocessors=10**6)
    data = integer_data(layer)
    assert_equal(run_backward_input(emulator, layer, data), backward_input(layer, data), layer.dtype)


@pytest.mark.parametrize("layer", generated_layers(30, seed=12), ids=str)
def test_close_on_real_values(emulator, layer):
    data = real_data(layer)
    terms = layer.out_channels * layer.kernel[0] * layer.kernel[1]
    assert_close(run_backward_input(emulator, layer, data), backward_input(layer, data), terms, layer.dtype)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_schedule(emulator, seed):
    emulator.configure(schedule="random", seed=seed)
    layer = Layer(20, 30, (5, 6, 7), stride=(2, 1, 2))
    data = integer_data(layer)
    assert_equal(run_backward_input(emulator, layer, data), backward_input(layer, data), layer.dtype)


def test_expanded_gradient(emulator):
    """The gradient of sum() arrives with stride 0 on every axis."""
    layer = Layer(4, 7, (4, 5, 6), bias=False)
    data = integer_data(layer)
    data.grad_output[...] = 1
    grad_output = np.broadcast_to(to_storage(np.ones((1, 1, 1, 1, 1)), "float32"), layer.output_shape)
    actual = run_backward_input(emulator, layer, data, grad_output=grad_output)
    assert_equal(actual, backward_input(layer, data), layer.dtype)


@pytest.mark.parametrize(
    "layer",
    [
        *generated_layers(35, seed=13, split=(0, 0, 0)),
        *generated_layers(15, seed=63, split=(0, 0, 0), kernel=(3, 3), dtype="float32"),  # folded
        *generated_layers(5, seed=64, split=(0, 0, 0), kernel=(3, 3), dtype="float64"),
        *generated_layers(8, seed=65, split=(0, 0, 0), kernel=(3, 3), dtype="float16"),
    ],
    ids=str,
)
def test_soft(emulator, layer):
    data, kernels = integer_data(layer), soft_kernels(layer)
    expected = sum(
        backward_input(replace(layer, split=one_view(layer, view)), replace(data, weight=kernel))
        for view, kernel in enumerate(kernels)
    )
    actual = run_backward_input(
        emulator, layer, replace(data, weight=kernels), launcher="simt_soft_backward_input"
    )
    assert_equal(actual, expected, layer.dtype)
