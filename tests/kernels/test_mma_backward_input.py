"""The gradient of the input on tensor cores, of ACS and of Soft ACS, in the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    LAYOUTS,
    Data,
    Layer,
    assert_close,
    assert_equal,
    backward_input,
    from_storage,
    integer_data,
    one_view,
    problem,
    real_data,
    round_to_tf32,
    run_backward_input,
    soft_kernels,
    to_storage,
    unaligned,
    unwritten,
    with_layout,
)
from kernels.mma_layers import MMA_DTYPES, STEPS, mma_layers


def run(emulator, layer: Layer, data: Data, **options) -> np.ndarray:
    return run_backward_input(emulator, layer, data, launcher="mma_backward_input", **options)


@pytest.mark.parametrize("layer", mma_layers(110, seed=111, stride=(1, 1, 1), most_products=4e6), ids=str)
def test_bit_equal_on_integers(emulator, layer):
    data = integer_data(layer)
    assert_equal(run(emulator, layer, data), backward_input(layer, data), layer.dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("columns", [32, 64])
def test_every_tile(emulator, columns, dtype, layout):
    layer = Layer(columns - 3, 40, (3, 9, 9), dtype=dtype, layout=layout)
    volume = unwritten(layer.input_shape, dtype), unwritten(layer.output_shape, dtype)
    assert f"voxels x {columns} channels" in emulator.plan("mma_backward_input", problem(layer, *volume))[0]
    data = integer_data(layer)
    assert_equal(run(emulator, layer, data), backward_input(layer, data), dtype)


@pytest.mark.parametrize("view", range(3))
@pytest.mark.parametrize("channels", STEPS)
def test_steps_of_one_view(emulator, channels, view):
    """1, 2, 3 and 5 steps of one view alone: both stages are filled again."""
    layer = Layer(24, channels, (4, 8, 9), dtype="bfloat16", layout="channels_last")
    layer = replace(layer, split=one_view(layer, view))
    data = integer_data(layer)
    assert_equal(run(emulator, layer, data), backward_input(layer, data), layer.dtype)


@pytest.mark.parametrize("split", [(1, 2, 37), (13, 14, 13), (0, 17, 23), (9, 0, 31), (30, 10, 0)])
def test_steps_between_views(emulator, split):
    """Pieces of 16 bytes that hold channels of two or three views: a step counts those of its own."""
    layer = Layer(20, 40, (3, 5, 6), split=split, dtype="float16", layout="channels_last")
    data = integer_data(layer)
    assert_equal(run(emulator, layer, data), backward_input(layer, data), layer.dtype)


@pytest.mark.parametrize("layer", mma_layers(16, seed=112, stride=(1, 1, 1), size=(3, 5, 6)), ids=str)
def test_parts_of_the_reduction(emulator, layer):
    layer = replace(layer, out_channels=100, split=None)
    emulator.configure(multiprocessors=200)
    data = integer_data(layer)
    assert_equal(run(emulator, layer, data), backward_input(layer, data), layer.dtype)


@pytest.mark.parametrize("layer", mma_layers(16, seed=113, stride=(1, 1, 1), most_products=2e6), ids=str)
def test_close_on_real_values(emulator, layer):
    data = real_data(layer)
    rounded = data
    if layer.dtype == "float32":
        rounded = replace(
            data, grad_output=round_to_tf32(data.grad_output), weight=round_to_tf32(data.weight)
        )
    terms = 9 * layer.out_channels
    assert_close(run(emulator, layer, data), backward_input(layer, rounded), terms, layer.dtype)


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
    data = integer_data(layer)
    assert_equal(run(emulator, layer, data), backward_input(layer, data), layer.dtype)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unaligned_storage(emulator, dtype, layout):
    layer = Layer(20, 24, (3, 4, 9), dtype=dtype, layout=layout)
    data = integer_data(layer)
    grad_output = unaligned(with_layout(to_storage(data.grad_output, dtype), layout))
    grad_input = run(emulator, layer, data, grad_output=grad_output)
    assert_equal(grad_input, backward_input(layer, data), dtype)


@pytest.mark.parametrize(
    "layer", mma_layers(30, seed=115, split=None, stride=(1, 1, 1), most_products=3e6), ids=str
)
def test_soft(emulator, layer):
    kernels, data = soft_kernels(layer), integer_data(layer)
    expected = sum(
        backward_input(replace(layer, split=one_view(layer, view)), replace(data, weight=kernel))
        for view, kernel in enumerate(kernels)
    )
    data = replace(data, weight=kernels)
    grad_input = run_backward_input(emulator, layer, data, launcher="mma_soft_backward_input")
    assert_equal(grad_input, expected, layer.dtype)


@pytest.mark.parametrize("launcher", ["mma_backward_input", "mma_soft_backward_input"])
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("columns", [32, 64])
def test_no_bank_conflicts(emulator, columns, dtype, launcher):
    """ldmatrix and cp.async, from the addresses that the lanes use."""
    layer = Layer(columns, 24, (4, 8, 8), dtype=dtype, layout="channels_last")
    data = integer_data(layer)
    if "soft" in launcher:
        data.weight = soft_kernels(layer)
    emulator.configure(detect_races=False, count_banks=True)
    emulator.take_bank_report()
    run_backward_input(emulator, layer, data, launcher=launcher)
    report = emulator.take_bank_report()
    assert set(report) == {"ldmatrix", "cp.async of 16 bytes"}
    for instruction, (executed, wavefronts, least) in report.items():
        assert executed > 0
        assert wavefronts == least, f"{instruction}: {wavefronts} wavefronts, {least} without conflicts"
