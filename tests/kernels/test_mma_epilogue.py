"""Bank conflicts of the 16-bit results that the tensor-core kernels stage in shared memory (mma_store.cuh)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kernels.harness import (
    LAYOUTS,
    Layer,
    assert_equal,
    backward_input,
    forward,
    integer_data,
    run_backward_input,
    run_forward,
)

FILE = "in mma_store.cuh"
# Whole groups of 8 channels in every view, so that all lanes of a warp store and none counts for another.
LAYERS = [
    Layer(8, 24, (4, 8, 8), dtype="bfloat16"),  # 3 groups of 8 channels in a row
    Layer(8, 72, (4, 8, 8), dtype="bfloat16"),
    Layer(24, 48, (4, 8, 8), dtype="bfloat16"),
]


def groups_in_a_row(layer: Layer, operation: str) -> int:
    return (layer.out_channels if operation == "forward" else layer.in_channels) // 8


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", ["forward", "backward_input"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer.in_channels}to{layer.out_channels}")
def test_staged_results(emulator, layer, operation, layout):
    """Pitches are odd multiples of 16 bytes, for the sake of the stores: these have no conflict in either order.

    The pieces of 16 bytes that leave have none if rows are voxels, or channels in an odd number of groups. An even
    number is one less than the pitch: then 8 threads read two rows or more, of which two pieces meet.
    """
    emulator.configure(detect_races=False, count_banks=True)
    emulator.take_bank_report(plain=True)
    layer = replace(layer, layout=layout)
    data = integer_data(layer)
    if operation == "forward":
        assert_equal(
            run_forward(emulator, layer, data, launcher="mma_forward"), forward(layer, data), layer.dtype
        )
    else:
        result = run_backward_input(emulator, layer, data, launcher="mma_backward_input")
        assert_equal(result, backward_input(layer, data), layer.dtype)
    report = emulator.take_bank_report(plain=True)
    stores = f"store of {4 if layout == 'channels_last' else 2} bytes {FILE}"
    executions, wavefronts, least = report[stores]
    assert executions > 0
    assert wavefronts == least
    executions, wavefronts, least = report[f"load of 16 bytes {FILE}"]
    assert executions > 0
    is_even = layout == "channels_last" and groups_in_a_row(layer, operation) % 2 == 0
    print(f"{operation} {layout}: {wavefronts} wavefronts to read back, {least} without conflicts")
    assert wavefronts == least * (2 if is_even else 1)
