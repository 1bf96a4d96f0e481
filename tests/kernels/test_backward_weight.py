"""The gradients of weight and bias in the emulator: any geometry, split over voxels, deterministic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    Layer,
    assert_close,
    assert_equal,
    backward_bias,
    backward_weight,
    generated_layers,
    integer_data,
    one_view,
    real_data,
    run_backward_weight,
    shapes_in_all_variants,
)

# Tells the planner of a machine so large that it cuts the voxels into as many parts as it may.
LARGE = 10**4


@pytest.mark.parametrize("layer", [*shapes_in_all_variants(), *generated_layers(160, seed=21)], ids=str)
def test_bit_equal_on_integers(emulator, layer):
    data = integer_data(layer)
    weight, bias = run_backward_weight(emulator, layer, data)
    assert_equal(weight, backward_weight(layer, data), layer.dtype)
    assert_equal(bias, backward_bias(layer, data), layer.dtype)


PARTS = [
    Layer(3, 12, (9, 12, 13), batch=2),
    Layer(9, 25, (10, 11, 12), layout="channels_last"),
    Layer(8, 20, (5, 20, 31), stride=(1, 2, 1), dtype="float64"),
    Layer(2, 4, (11, 11, 11), groups=2, dtype="bfloat16"),
]


@pytest.mark.parametrize("layer", PARTS, ids=str)
def test_parts(emulator, layer):
    """Several parts through the workspace; the last one is shorter."""
    emulator.configure(multiprocessors=LARGE)
    data = integer_data(layer)
    weight, bias = run_backward_weight(emulator, layer, data)
    assert_equal(weight, backward_weight(layer, data), layer.dtype)
    assert_equal(bias, backward_bias(layer, data), layer.dtype)


def test_deterministic(emulator):
    """The same bits whatever the order in which threads run."""
    layer = replace(PARTS[0], size=(9, 11, 12))
    data = real_data(layer)
    results = []
    for schedule, seed in [("warp-first", 1), ("random", 1), ("random", 2), ("reverse", 1)]:
        emulator.configure(schedule=schedule, seed=seed, multiprocessors=LARGE)
        results.append(run_backward_weight(emulator, layer, data))
    for weight, bias in results[1:]:
        np.testing.assert_array_equal(weight, results[0][0])
        np.testing.assert_array_equal(bias, results[0][1])


@pytest.mark.parametrize("layer", generated_layers(30, seed=22), ids=str)
def test_close_on_real_values(emulator, layer):
    data = real_data(layer)
    terms = layer.batch * int(np.prod(layer.out_size))
    weight, bias = run_backward_weight(emulator, layer, data)
    assert_close(weight, backward_weight(layer, data), terms, layer.dtype)
    assert_close(bias, backward_bias(layer, data), terms, layer.dtype)


@pytest.mark.parametrize("wanted", ["weight", "bias"])
@pytest.mark.parametrize("layer", generated_layers(10, seed=23), ids=str)
def test_only_what_is_wanted(emulator, layer, wanted):
    data = integer_data(layer)
    weight, bias = run_backward_weight(
        emulator, layer, data, weight=wanted == "weight", bias=wanted == "bias"
    )
    if wanted == "weight":
        assert_equal(weight, backward_weight(layer, data), layer.dtype)
    else:
        assert_equal(bias, backward_bias(layer, data), layer.dtype)


@pytest.mark.parametrize("machine", [1, LARGE])
@pytest.mark.parametrize("layer", generated_layers(25, seed=24, split=(0, 0, 0)), ids=str)
def test_soft(emulator, layer, machine):
    emulator.configure(multiprocessors=machine)
    data = integer_data(layer)
    kernels, bias = run_backward_weight(emulator, layer, data, launcher="simt_soft_backward_weight")
    for view in range(3):
        expected = backward_weight(replace(layer, split=one_view(layer, view)), data)
        assert_equal(kernels[view], expected, layer.dtype)
    assert_equal(bias, backward_bias(layer, data), layer.dtype)


def test_batch_zero_gives_zeros(emulator):
    layer = Layer(4, 6, (3, 3, 3), batch=0)
    weight, bias = run_backward_weight(emulator, layer, integer_data(layer))
    assert not weight.any()
    assert not bias.any()
