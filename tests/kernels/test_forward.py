"""The forward kernel in the emulator: bit-equal on integers, close on real values, any geometry."""

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
    forward,
    generated_layers,
    integer_data,
    problem,
    real_data,
    to_storage,
    unwritten,
    with_layout,
)


def run_forward(emulator, layer, data, input=None, output=None):
    if input is None:
        input = with_layout(to_storage(data.input, layer.dtype), layer.layout)
    if output is None:
        output = unwritten(layer.output_shape, layer.dtype, layer.layout)
    weight = to_storage(data.weight, layer.dtype)
    bias = None if data.bias is None else to_storage(data.bias, layer.dtype)
    emulator.run("simt_forward", problem(layer, input, output), [input, weight, bias, output])
    return output


# What small random shapes do not have: several tiles of voxels, wide views, long reductions, tails of each.
SHAPES = [
    Layer(9, 48, (7, 9, 11)),
    Layer(3, 100, (3, 5, 70), split=(70, 21, 9)),
    Layer(17, 21, (1, 1, 300), kernel=(1, 1), padding=(0, 0, 0)),
    Layer(1, 24, (9, 9, 9), kernel=(7, 7), padding=(3, 3, 3), stride=(2, 2, 2)),
    Layer(40, 34, (4, 4, 4), batch=3),
    Layer(24, 48, (6, 6, 6), groups=4, split=(17, 18, 13)),
    Layer(12, 12, (6, 7, 5), groups=12, batch=2),
    Layer(6, 12, (6, 7, 5), groups=6, split=(1, 10, 1)),
    Layer(2, 3, (12, 12, 12), dilation=(3, 2, 1), padding=(3, 2, 1)),
    Layer(5, 9, (8, 8, 8), kernel=(1, 7), padding=(0, 3)),
]


def with_variants(layers):
    return [
        replace(layer, dtype=dtype, layout=layout)
        for layer in layers
        for dtype in DTYPES
        for layout in LAYOUTS
    ]


@pytest.mark.parametrize("layer", [*with_variants(SHAPES), *generated_layers(240, seed=1)], ids=str)
def test_bit_equal_on_integers(emulator, layer):
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
    run_forward(emulator, layer, data, view, canvas[:, 1:8])
    assert_equal(canvas[:, 1:8], forward(layer, data), layer.dtype)
    assert np.all(canvas[:, (0, 8)] == 123.0)


def test_expanded_input(emulator):
    """Stride 0 along the channels: one channel that stands for all."""
    layer = Layer(6, 5, (3, 4, 5), bias=False)
    data = integer_data(layer)
    data.input[...] = data.input[:, :1]
    input = np.broadcast_to(to_storage(data.input[:, :1], "float32"), layer.input_shape)
    assert_equal(run_forward(emulator, layer, data, input), forward(layer, data), layer.dtype)


def test_batch_zero(emulator):
    layer = Layer(4, 6, (3, 3, 3), batch=0)
    run_forward(emulator, layer, integer_data(layer))


def test_positions_beyond_32_bits_are_refused(emulator):
    layer = Layer(1, 3, (3, 3, 3))
    data = integer_data(layer)
    fields = problem(layer, data.input, data.grad_output)
    fields["stride"] = (1, 1, 2**30)
    with pytest.raises(RuntimeError, match="read position beyond"):
        emulator.run("simt_forward", fields, [None, None, None, None])
