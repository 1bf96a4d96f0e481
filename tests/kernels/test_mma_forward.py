"""The forward kernel on tensor cores, and Soft ACS, in the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    LAYOUTS,
    Layer,
    assert_close,
    assert_equal,
    fields,
    forward,
    from_storage,
    integer_data,
    problem,
    real_data,
    to_storage,
    unaligned,
    unwritten,
    with_layout,
)
from kernels.mma_layers import (
    COUNTED,
    MMA_DTYPES,
    SMALL_BLOCKS,
    STEPS,
    VIEW_TILES,
    as_multiplied,
    check_banks,
    check_integers,
    mma_layers,
    plan,
    run_pass,
)


@pytest.mark.parametrize("layer", mma_layers(200, seed=101), ids=str)
def test_bit_equal_on_integers(emulator, layer):
    check_integers(emulator, "forward", layer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("columns, stride", VIEW_TILES)
def test_every_tile(emulator, columns, stride, dtype, layout):
    """Three steps, so that both stages are filled again; odd sizes, and channels that end within a tile."""
    split = (columns, columns - 1, columns - 2)
    layer = Layer(
        24 if dtype == "float32" else 48, sum(split), (3, 9, 9 * stride), split=split, stride=(stride,) * 3,
        dtype=dtype, layout=layout,
    )  # fmt: skip
    text = plan(emulator, "forward", layer)
    assert f"x {columns} channels of a view" in text and "3 steps" in text
    check_integers(emulator, "forward", layer)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("channels", STEPS)
def test_steps(emulator, channels, dtype):
    layer = Layer(channels, 64, (4, 8, 9), dtype=dtype, layout="channels_last")
    check_integers(emulator, "forward", layer)


@pytest.mark.parametrize("layer", mma_layers(30, seed=102, stride=(1, 1, 1), size=(3, 5, 6)), ids=str)
def test_parts_of_the_reduction(emulator, layer):
    """Few tiles on a large GPU: several blocks share a tile's reduction."""
    layer = replace(layer, in_channels=max(layer.in_channels, 70))
    emulator.configure(multiprocessors=200)
    check_integers(emulator, "forward", layer)


def test_parts_are_planned(emulator):
    """8^3 voxels at 320 channels would keep 6 of 132 multiprocessors busy."""
    layer = Layer(320, 320, (8, 8, 8), dtype="bfloat16", layout="channels_last")
    text, workspace = emulator.plan("mma_forward", fields(layer), multiprocessors=132)
    assert "10 parts" in text and workspace <= 64 << 20


@pytest.mark.parametrize("layer", mma_layers(24, seed=103, most_products=2e6), ids=str)
def test_close_on_real_values(emulator, layer):
    """float32 is rounded to TF32, to nearest, before it is multiplied; sums are float32 always."""
    data = real_data(layer)
    output = run_pass(emulator, "forward", layer, data)
    assert_close(output, forward(layer, as_multiplied(layer, data)), data.weight[0].size, layer.dtype)


@pytest.mark.parametrize("layer", mma_layers(12, seed=104, most_products=2e6, dtype="bfloat16"), ids=str)
def test_float32_weight(emulator, layer):
    """Autocast's float32 parameter is rounded while it is packed, as a cast would; the bias is not rounded."""
    data = real_data(replace(layer, dtype="float32"))
    input = with_layout(to_storage(data.input, "bfloat16"), layer.layout)
    output = unwritten(layer.output_shape, "bfloat16", layer.layout)
    bias = None if data.bias is None else data.bias.astype(np.float32)
    tensors = [input, data.weight.astype(np.float32), bias, output]
    emulator.run("mma_forward_float32_weight", problem(layer, input, output), tensors)
    rounded = {
        name: from_storage(to_storage(getattr(data, name), "bfloat16"), "bfloat16")
        for name in ("input", "weight")
    }
    assert_close(output, forward(layer, replace(data, **rounded)), data.weight[0].size, "bfloat16")


RACE_LAYERS = [
    Layer(80, 70, (3, 9, 9), dtype="bfloat16", layout="channels_last"),
    Layer(40, 24, (5, 9, 8), dtype="float32", layout="contiguous"),
    Layer(48, 100, (4, 5, 9), dtype="float16", layout="channels_last"),
    Layer(48, 30, (4, 9, 9), stride=(2, 2, 2), dtype="bfloat16", layout="channels_last"),
]


@pytest.mark.parametrize("async_copies", ["early", "random"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("layer", RACE_LAYERS, ids=str)
def test_any_schedule(emulator, layer, seed, async_copies):
    emulator.configure(schedule="random", seed=seed, async_copies=async_copies)
    check_integers(emulator, "forward", layer)


#: Both walks of the forward pass; test_mma_shared_walk.py has the other tests of the second.
either_walk = pytest.mark.parametrize("launcher", ["mma_forward", "mma_shared_walk"])


@either_walk
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unaligned_storage(emulator, dtype, layout, launcher):
    for layer in (Layer(16, 20, (3, 4, 9)), Layer(9, 32, (3, 5, 5), split=(9, 13, 10))):
        layer = replace(layer, dtype=dtype, layout=layout)
        input = unaligned(with_layout(to_storage(integer_data(layer).input, dtype), layout))
        output = unaligned(unwritten(layer.output_shape, dtype, layout))
        check_integers(emulator, "forward", layer, launcher=launcher, input=input, output=output)


@either_walk
def test_strided_views(emulator, launcher):
    """Every other voxel and some channels of a larger volume, into a slice of the channels of a larger one."""
    layer = Layer(16, 24, (4, 6, 5), dtype="float16")
    data = integer_data(layer)
    large = np.full((1, 8, 12, 10, 20), np.nan, np.float16)
    view = large[:, ::2, ::2, ::2, 2:18].transpose(0, 4, 1, 2, 3)
    view[...] = data.input
    canvas = np.full((1, *layer.out_size, 32), 123.0, np.float16)
    output = canvas[..., 3:27].transpose(0, 4, 1, 2, 3)
    check_integers(emulator, "forward", layer, launcher=launcher, input=view, output=output)
    assert np.all(canvas[..., :3] == 123.0) and np.all(canvas[..., 27:] == 123.0)


def test_expanded_input(emulator):
    """Stride 0 along the channels, and along an axis of the volume."""
    layer = Layer(16, 24, (3, 4, 5), dtype="float16", bias=False)
    data = integer_data(layer)
    data.input[...] = data.input[:, :1, :, :1]
    input = np.broadcast_to(to_storage(data.input[:, :1, :, :1], "float16"), layer.input_shape)
    output = run_pass(emulator, "forward", layer, data, input=input)
    assert_equal(output, forward(layer, data), layer.dtype)


def test_batch_zero(emulator):
    layer = Layer(16, 24, (3, 3, 3), batch=0, dtype="bfloat16")
    check_integers(emulator, "forward", layer)


@pytest.mark.parametrize("layer", mma_layers(50, seed=105, split=None, stride=(1, 1, 1)), ids=str)
def test_soft(emulator, layer):
    check_integers(emulator, "soft_forward", layer)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"dtype": "float64"}, "float64"),
        ({"kernel": (1, 1), "padding": (0, 0, 0)}, "the kernel is not 3 x 3, 5 x 5 or 7 x 7"),
        ({"stride": (1, 2, 1)}, "strides differ between axes"),
        ({"stride": (3, 3, 3)}, "a stride above 2"),
        ({"in_channels": 4}, "4 channels or fewer"),
        (
            {"size": (1, 1, 1), "padding": (1 << 22,) * 3, "dilation": (1 << 22,) * 3},
            "more tiles than a grid has blocks",
        ),
    ],
)
def test_what_is_left_to_cuda_cores(emulator, change, reason):
    layer = replace(Layer(16, 24, (8, 8, 8), dtype="bfloat16"), **change)
    assert plan(emulator, "forward", layer) == f"not on tensor cores: {reason}"


def test_machines(emulator):
    """Older GPUs, float32 without TF32, and less shared memory: a narrower tile, at stride 2 another kernel."""
    layer = Layer(64, 128, (8, 8, 8), dtype="float32")
    strided = replace(layer, stride=(2, 2, 2))
    assert "48 channels of a view" in plan(emulator, "forward", layer)
    assert plan(emulator, "forward", layer, allow_tf32=False).endswith("float32 without TF32")
    emulator.configure(block_shared_bytes=SMALL_BLOCKS)
    text = plan(emulator, "forward", layer)
    assert "24 channels of a view" in text and "2 blocks of channels" in text
    assert "one row of taps per step" in plan(emulator, "forward", strided)
    emulator.configure(block_shared_bytes=16 << 10)
    assert plan(emulator, "forward", strided).endswith("more shared memory than a block has")
    emulator.configure(compute_capability=75)
    assert "older than compute capability 8.0" in plan(emulator, "forward", strided)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("columns, stride", VIEW_TILES)
def test_no_bank_conflicts(emulator, columns, stride, dtype):
    """ldmatrix and cp.async, from the addresses that the lanes use."""
    layer = Layer(
        32, 3 * columns, (4, 8, 8 * stride), stride=(stride,) * 3, dtype=dtype, layout="channels_last"
    )
    emulator.configure(detect_races=False, count_banks=True)
    check_banks(emulator, lambda: check_integers(emulator, "forward", layer), *COUNTED)
