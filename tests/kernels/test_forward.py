"""The forward kernel in the emulator: bit-equal on integers, close on real values, any geometry."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    DTYPES,
    LAYOUTS,
    Layer,
    assert_close,
    assert_equal,
    backward_input,
    backward_weight,
    forward,
    generated_layers,
    integer_data,
    one_view,
    problem,
    real_data,
    run_backward_input,
    run_forward,
    shapes_in_all_variants,
    soft_kernels,
    to_storage,
    unaligned,
    unwritten,
    with_layout,
)


@pytest.mark.parametrize("layer", [*shapes_in_all_variants(), *generated_layers(240, seed=1)], ids=str)
def test_bit_equal_on_integers(emulator, layer):
    data = integer_data(layer)
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)


@pytest.mark.parametrize("layer", generated_layers(40, seed=4), ids=str)
def test_small_tiles(emulator, layer):
    """The tile for volumes that would leave most of a large GPU idle."""
    emulator.configure(multiprocessors=10**6)
    data = integer_data(layer)
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)


@pytest.mark.parametrize("layer", generated_layers(40, seed=2), ids=str)
def test_close_on_real_values(emulator, layer):
    data = real_data(layer)
    terms = data.weight[0].size
    assert_close(run_forward(emulator, layer, data), forward(layer, data), terms, layer.dtype)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("schedule", ["round-robin", "reverse", "random"])
@pytest.mark.parametrize(
    "layer", [Layer(9, 40, (3, 9, 11)), Layer(9, 20, (3, 5, 6), layout="channels_last")], ids=str
)
def test_any_schedule(emulator, layer, schedule, seed):
    emulator.configure(schedule=schedule, seed=seed)
    data = integer_data(layer)
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)


def test_strided_views(emulator):
    """An input of every other voxel of a larger volume, axes swapped, into a slice of a larger output."""
    layer = Layer(5, 7, (4, 6, 5))
    data = integer_data(layer)
    large = np.full((1, 5, 10, 12, 4), np.nan, np.float32)
    view = large[..., ::2, ::2, :].transpose(0, 1, 4, 3, 2)
    view[...] = data.input
    canvas = np.full((1, 9, *layer.out_size), 123.0, np.float32)
    run_forward(emulator, layer, data, input=view, output=canvas[:, 1:8])
    assert_equal(canvas[:, 1:8], forward(layer, data), layer.dtype)
    assert np.all(canvas[:, (0, 8)] == 123.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_storage(emulator, dtype, layout):
    """Tensors that start one element after a multiple of 16 bytes, rows of an odd number of elements."""
    for layer in (Layer(9, 11, (3, 4, 5)), Layer(5, 5, (3, 4, 5), groups=5), Layer(1, 5, (3, 4, 5))):
        layer = replace(layer, dtype=dtype, layout=layout)
        data = integer_data(layer)
        input = unaligned(with_layout(to_storage(data.input, dtype), layout))
        grad_output = unaligned(with_layout(to_storage(data.grad_output, dtype), layout))
        output = unaligned(unwritten(layer.output_shape, dtype, layout))
        assert all(one.ctypes.data % 16 == one.itemsize for one in (input, grad_output, output))
        run_forward(emulator, layer, data, input=input, output=output)
        assert_equal(output, forward(layer, data), dtype)
        grad_input = run_backward_input(emulator, layer, data, grad_output=grad_output)
        assert_equal(grad_input, backward_input(layer, data), dtype)
        grad_weight = unwritten(layer.weight_shape, dtype)
        fields = problem(layer, input, grad_output)
        emulator.run("simt_backward_weight", fields, [grad_output, input, grad_weight, None])
        assert_equal(grad_weight, backward_weight(layer, data), dtype)


def test_expanded_input(emulator):
    """Stride 0 along the channels: one channel that stands for all."""
    layer = Layer(6, 5, (3, 4, 5), bias=False)
    data = integer_data(layer)
    data.input[...] = data.input[:, :1]
    input = np.broadcast_to(to_storage(data.input[:, :1], "float32"), layer.input_shape)
    assert_equal(run_forward(emulator, layer, data, input=input), forward(layer, data), layer.dtype)


def test_batch_zero(emulator):
    layer = Layer(4, 6, (3, 3, 3), batch=0)
    run_forward(emulator, layer, integer_data(layer))


@pytest.mark.parametrize(
    "field, value, reason",
    [
        ("stride", (1, 1, 2**28), "volume axis longer than 2^28"),
        ("in_size", (3, 2**29, 3), "volume axis longer than 2^28"),
        ("origin", ((0, 0, 2**29), (0, 0, 0), (0, 0, 0)), "padding or dilation beyond 2^28"),
        ("dilation", ((1, 1, 2**27), (1, 1, 1), (1, 1, 1)), "padding or dilation beyond 2^28"),
        ("in_channels", 2**26, "reduction over more than 2^28"),
    ],
)
def test_numbers_beyond_32_bits_are_refused(emulator, field, value, reason):
    layer = Layer(1, 3, (3, 3, 3))
    data = integer_data(layer)
    fields = problem(layer, data.input, data.grad_output) | {field: value}
    with pytest.raises(RuntimeError, match=re.escape(reason)):
        emulator.run("simt_forward", fields, [None, None, None, None])


@pytest.mark.parametrize(
    "layer",
    [
        *generated_layers(45, seed=5, split=(0, 0, 0)),
        *generated_layers(15, seed=55, split=(0, 0, 0), kernel=(3, 3), dtype="float32"),  # folded
        *generated_layers(5, seed=56, split=(0, 0, 0), kernel=(3, 3), dtype="float64"),
        *generated_layers(8, seed=57, split=(0, 0, 0), kernel=(3, 3), dtype="bfloat16"),
    ],
    ids=str,
)
def test_soft(emulator, layer):
    kernels, expected = soft_kernels(layer), 0
    data = integer_data(layer)
    for view, kernel in enumerate(kernels):
        data.weight, whole = kernel, replace(layer, split=one_view(layer, view))
        expected = expected + forward(whole, replace(data, bias=data.bias if view == 0 else None))
    data.weight = kernels
    output = run_forward(emulator, layer, data, launcher="simt_soft_forward")
    assert_equal(output, expected, layer.dtype)
