"""The forward kernel for few input channels, in the emulator: any geometry, split, dtype and layout."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from kernels.harness import (
    DTYPES,
    LAYOUTS,
    Layer,
    assert_close,
    assert_equal,
    fields,
    forward,
    generated_layers,
    integer_data,
    real_data,
    run_forward,
    to_storage,
    unaligned,
    unwritten,
    with_layout,
)

LAYERS = [
    Layer(1, 64, (9, 10, 40)),  # first layers: octets of two views, several tiles
    Layer(3, 32, (7, 6, 5), batch=2),
    Layer(3, 24, (13, 12, 11), kernel=(7, 7), padding=(3, 3, 3), stride=(2, 2, 2)),  # a ResNet's stem
    Layer(1, 8, (6, 7, 20), kernel=(7, 7), padding=(3, 3, 3), split=(3, 2, 3)),  # one octet, three views
    Layer(4, 33, (5, 6, 7), stride=(3, 1, 2), dilation=(1, 2, 3), padding=(1, 2, 3), split=(0, 33, 0)),
    Layer(2, 40, (3, 4, 5), split=(1, 0, 39), bias=False),
    Layer(2, 16, (2, 3, 80), kernel=(1, 5), padding=(0, 2)),
    Layer(4, 100, (1, 1, 1), padding=(4, 4, 4), dilation=(4, 4, 4)),  # reads the volume with one tap
    Layer(3, 16, (4, 9, 12), kernel=(2, 2), padding=(0, 0, 0), stride=(2, 2, 2)),
]


def plan_of(emulator, layer: Layer, multiprocessors: int = 132) -> str:
    return emulator.plan("forward", fields(layer), multiprocessors=multiprocessors)[0]


def check(emulator, layer: Layer) -> None:
    text = plan_of(emulator, layer)
    # What a 7x7 kernel reads may be too much in float64, which then is the gather kernel's.
    assert text.startswith("few channels") or (layer.dtype == "float64" and "exceeds 96 KiB" in text), text
    data = integer_data(layer)
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)


@pytest.mark.parametrize(
    "layer",
    [
        replace(layer, dtype=dtype, layout=layout)
        for layer, dtype, layout in itertools.product(LAYERS, DTYPES, LAYOUTS)
    ],
    ids=str,
)
def test_bit_equal_on_integers(emulator, layer):
    check(emulator, layer)


@pytest.mark.parametrize(
    "layer",
    [
        layer
        for channels in (1, 2, 3, 4)
        for layer in generated_layers(12, seed=70 + channels, in_channels=channels, groups=1)
        if layer.out_channels > 1 or channels > 1
    ],
    ids=str,
)
def test_generated(emulator, layer):
    check(emulator, layer)


@pytest.mark.parametrize("layer", LAYERS[:5], ids=str)
def test_slabs(emulator, layer):
    """A machine so large that the octets go to different blocks."""
    emulator.configure(multiprocessors=10**4)
    check(emulator, layer)


def test_large_kernels_cut_the_channels(emulator):
    layer = Layer(4, 80, (3, 4, 5), kernel=(7, 7), padding=(3, 3, 3))
    assert "2 slabs of 40 channels" in plan_of(emulator, layer, multiprocessors=1)
    check(emulator, layer)


@pytest.mark.parametrize("layer", [Layer(1, 24, (8, 9, 33)), Layer(3, 20, (4, 5, 6), kernel=(7, 7), padding=(3, 3, 3))],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("schedule, seed", [("random", 1), ("random", 2), ("reverse", 1)])
def test_any_schedule(emulator, layer, schedule, seed):
    emulator.configure(schedule=schedule, seed=seed)
    check(emulator, layer)


@pytest.mark.parametrize("layer", generated_layers(12, seed=75, in_channels=3, groups=1), ids=str)
def test_close_on_real_values(emulator, layer):
    data = real_data(layer)
    assert_close(run_forward(emulator, layer, data), forward(layer, data), data.weight[0].size, layer.dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_output(emulator, dtype, layout):
    """Where vectors of 16 bytes would be misaligned, elements are stored one by one."""
    layer = Layer(2, 16, (3, 4, 5), dtype=dtype, layout=layout)
    data = integer_data(layer)
    output = unaligned(unwritten(layer.output_shape, dtype, layout))
    input = unaligned(with_layout(to_storage(data.input, dtype), layout))
    run_forward(emulator, layer, data, input=input, output=output)
    assert_equal(output, forward(layer, data), dtype)


def test_tiles_in_turn(emulator):
    """More tiles than blocks: a block keeps its weights and takes further tiles."""
    layer = Layer(1, 9, (20, 30, 40), kernel=(2, 2), padding=(0, 0, 0), split=(3, 3, 3))
    tiles = int(re.search(r"(\d+) in all", plan_of(emulator, layer, multiprocessors=1))[1])
    assert tiles > 12  # four times the blocks that a multiprocessor holds
    check(emulator, layer)


@pytest.mark.parametrize(
    "layer, reason",
    [
        (Layer(5, 6, (5, 5, 5)), "more than 4 input channels"),
        (Layer(4, 6, (5, 5, 5), groups=2), "groups"),
        (Layer(2, 6, (9, 9, 9), kernel=(9, 9), padding=(4, 4, 4)), "more than 64 taps"),
        (
            Layer(2, 6, (200, 200, 200), dilation=(90, 90, 90), padding=(90, 90, 90)),
            "what a tile reads exceeds 96 KiB of shared memory",
        ),
    ],
    ids=str,
)
def test_what_is_left_to_the_gather_kernel(emulator, layer, reason):
    assert f"not few channels: {reason};" in plan_of(emulator, layer)


def test_huge_strides_are_left_to_the_gather_kernel(emulator):
    """Extents of a tile whose product exceeds 64 bits."""
    problem = fields(Layer(1, 6, (3, 3, 3))) | {"stride": (2**27,) * 3, "out_size": (2, 2, 2)}
    assert "exceeds 96 KiB" in emulator.plan("forward", problem)[0]


def test_shared_memory_is_bounded(emulator):
    """No plan asks for more than every GPU from 8.0 on gives to a block."""
    for channels, out, kernel, stride in itertools.product((1, 2, 3, 4), (16, 64, 96), (3, 5, 7), (1, 2)):
        layer = Layer(
            channels,
            out,
            (64, 64, 64),
            kernel=(kernel, kernel),
            stride=(stride,) * 3,
            padding=(kernel // 2,) * 3,
        )
        text = plan_of(emulator, layer)
        if "exceeds 96 KiB" not in text:
            assert int(re.search(r"(\d+) bytes of shared memory", text)[1]) <= 96 << 10
