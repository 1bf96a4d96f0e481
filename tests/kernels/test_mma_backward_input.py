"""The gradient of the input on tensor cores, of ACS and of Soft ACS, in the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    LAYOUTS,
    Layer,
    assert_close,
    backward_input,
    from_storage,
    integer_data,
    one_view,
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
    STEPS,
    as_multiplied,
    check_banks,
    check_integers,
    mma_layers,
    plan,
    run_pass,
)


@pytest.mark.parametrize("layer", mma_layers(110, seed=111, stride=(1, 1, 1), most_products=4e6), ids=str)
def test_bit_equal_on_integers(emulator, layer):
    check_integers(emulator, "backward_input", layer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("columns", [32, 64])
def test_every_tile(emulator, columns, dtype, layout):
    layer = Layer(columns - 3, 40, (3, 9, 9), dtype=dtype, layout=layout)
    assert f"voxels x {columns} channels" in plan(emulator, "backward_input", layer)
    check_integers(emulator, "backward_input", layer)


@pytest.mark.parametrize("view", range(3))
@pytest.mark.parametrize("channels", STEPS)
def test_steps_of_one_view(emulator, channels, view):
    """1, 2, 3 and 5 steps of one view alone: both stages are filled again."""
    layer = Layer(24, channels, (4, 8, 9), dtype="bfloat16", layout="channels_last")
    layer = replace(layer, split=one_view(layer, view))
    check_integers(emulator, "backward_input", layer)


@pytest.mark.parametrize("split", [(1, 2, 37), (13, 14, 13), (0, 17, 23), (9, 0, 31), (30, 10, 0)])
def test_steps_between_views(emulator, split):
    """Pieces of 16 bytes that hold channels of two or three views: a step counts those of its own."""
    layer = Layer(20, 40, (3, 5, 6), split=split, dtype="float16", layout="channels_last")
    check_integers(emulator, "backward_input", layer)


@pytest.mark.parametrize("layer", mma_layers(16, seed=112, stride=(1, 1, 1), size=(3, 5, 6)), ids=str)
def test_parts_of_the_reduction(emulator, layer):
    layer = replace(layer, out_channels=100, split=None)
    emulator.configure(multiprocessors=200)
    check_integers(emulator, "backward_input", layer)


@pytest.mark.parametrize("layer", mma_layers(16, seed=113, stride=(1, 1, 1), most_products=2e6), ids=str)
def test_close_on_real_values(emulator, layer):
    data = real_data(layer)
    grad_input = run_pass(emulator, "backward_input", layer, data)
    exact = backward_input(layer, as_multiplied(layer, data))
    assert_close(grad_input, exact, 9 * layer.out_channels, layer.dtype)


def test_float32_weight(emulator):
    layer = Layer(20, 40, (3, 5, 6), dtype="bfloat16", layout="channels_last")
    data = real_data(replace(layer, dtype="float32"))
    grad_output = with_layout(to_storage(data.grad_output, "bfloat16"), layer.layout)
    grad_input = unwritten(layer.input_shape, "bfloat16", layer.layout)
    tensors = [grad_output, data.weight.astype(np.float32), grad_input]
    emulator.run("mma_backward_input_float32_weight", problem(layer, grad_input, grad_output), tensors)
    rounded = {
        name: from_storage(to_storage(getattr(data, name), "bfloat16"), "bfloat16")
        for name in ("grad_output", "weight")
    }
    assert_close(grad_input, backward_input(layer, replace(data, **rounded)), 9 * 40, "bfloat16")


@pytest.mark.parametrize("async_copies", ["early", "random"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "layer",
    [
        Layer(60, 70, (3, 9, 9), dtype="bfloat16", layout="channels_last"),
        Layer(20, 30, (5, 9, 8), dtype="float32", layout="contiguous"),
    ],
    ids=str,
)
def test_any_schedule(emulator, layer, seed, async_copies):
    emulator.configure(schedule="random", seed=seed, async_copies=async_copies)
    check_integers(emulator, "backward_input", layer)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unaligned_storage(emulator, dtype, layout):
    layer = Layer(20, 24, (3, 4, 9), dtype=dtype, layout=layout)
    grad_output = unaligned(with_layout(to_storage(integer_data(layer).grad_output, dtype), layout))
    check_integers(emulator, "backward_input", layer, grad_output=grad_output)


@pytest.mark.parametrize(
    "layer", mma_layers(30, seed=115, split=None, stride=(1, 1, 1), most_products=3e6), ids=str
)
def test_soft(emulator, layer):
    check_integers(emulator, "soft_backward_input", layer)


@pytest.mark.parametrize("which", ["backward_input", "soft_backward_input"])
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("columns", [32, 64])
def test_no_bank_conflicts(emulator, columns, dtype, which):
    """ldmatrix and cp.async, from the addresses that the lanes use."""
    layer = Layer(columns, 24, (4, 8, 8), dtype=dtype, layout="channels_last")
    emulator.configure(detect_races=False, count_banks=True)
    check_banks(emulator, lambda: check_integers(emulator, which, layer), *COUNTED)
