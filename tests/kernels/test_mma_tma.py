"""The forward kernel whose stages the Tensor Memory Accelerator fills, in the emulator."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from kernels.harness import (
    Data,
    Layer,
    integer_data,
    real_data,
    run_forward,
    to_storage,
    unaligned,
    with_layout,
)
from kernels.mma_layers import MMA_DTYPES, VIEW_TILES, check_banks, check_integers, mma_layers
from kernels.planting import WRONG, copy_sources, leave_out, replace_once

GRANULE = {"bfloat16": 8, "float16": 8, "float32": 4}  # channels in 16 bytes


def run(emulator, layer: Layer, data: Data, **options) -> np.ndarray:
    return run_forward(emulator, layer, data, launcher="mma_tma_forward", **options)


def check(emulator, layer: Layer, **options: np.ndarray) -> None:
    check_integers(emulator, "forward", layer, launcher="mma_tma_forward", **options)


def channels_last(*arguments, **fields) -> Layer:
    return Layer(*arguments, **{"dtype": "bfloat16", "layout": "channels_last", **fields})


def drawn_layers(count: int, seed: int, **fixed) -> list[Layer]:
    layers = mma_layers(
        3 * count, seed, 3e6, stride=(1, 1, 1), dilation=(1, 1, 1), layout="channels_last", **fixed
    )
    return [layer for layer in layers if layer.in_channels % GRANULE[layer.dtype] == 0][:count]


@pytest.mark.parametrize("layer", drawn_layers(40, seed=401), ids=str)
def test_bit_equal_on_integers(emulator, layer):
    check(emulator, layer)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("columns", [columns for columns, stride in VIEW_TILES if stride == 1])
def test_every_tile(emulator, columns, dtype):
    """Borders on all sides, several tiles and samples, channels that end within a tile and a step."""
    split = (columns, columns - 1, columns - 2)
    layer = channels_last(
        5 * GRANULE[dtype], sum(split), (3, 9, 9), split=split, batch=2, padding=(2, 1, 2), dtype=dtype
    )
    check(emulator, layer)


# The producer is a warp of its own, or one of the threads that multiply.
PRODUCERS = {"warp": (16, 14, 15), "thread": (24, 21, 22)}


@pytest.mark.parametrize("split", PRODUCERS.values(), ids=list(PRODUCERS))
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_steps(emulator, steps, split):
    """A reduction shorter than the stages, and stages that are filled up to five times."""
    layer = channels_last(16 * steps, sum(split), (4, 8, 9), split=split)
    check(emulator, layer)


@pytest.mark.parametrize("layer", drawn_layers(8, seed=402, size=(3, 5, 6), in_channels=72), ids=str)
def test_parts_of_the_reduction(emulator, layer):
    emulator.configure(multiprocessors=200)
    check(emulator, layer)


@pytest.mark.parametrize("layer", drawn_layers(8, seed=403), ids=str)
def test_bits_of_the_copied_form(emulator, layer):
    """On real values too: the same products in the same order."""
    data = real_data(layer)
    copied = run_forward(emulator, layer, data, launcher="mma_forward")
    np.testing.assert_array_equal(run(emulator, layer, data), copied)


@pytest.mark.parametrize("async_copies", ["early", "random"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("split", PRODUCERS.values(), ids=list(PRODUCERS))
def test_any_schedule(emulator, split, seed, async_copies):
    emulator.configure(schedule="random", seed=seed, async_copies=async_copies)
    layer = channels_last(112, sum(split), (5, 9, 8), split=split)
    check(emulator, layer)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
def test_slices_of_a_larger_volume(emulator, dtype):
    """Channels end within 16 bytes, and voxels within a row: what follows in memory is NaN, and is not read."""
    channels = 3 * GRANULE[dtype]
    layer = channels_last(channels - 2, 20, (3, 4, 9), dtype=dtype)
    data = integer_data(layer)
    large = to_storage(np.full((1, 3, 6, 12, channels), np.nan), dtype)
    view = large[:, :, 1:5, 2:11, : layer.in_channels].transpose(0, 4, 1, 2, 3)
    view[...] = to_storage(data.input, dtype)
    check(emulator, layer, input=view)


def test_axes_of_one_position(emulator):
    """Their strides mean nothing, and may be such as no tensor map takes."""
    layer = channels_last(16, 20, (3, 1, 9), dtype="float16")
    data = integer_data(layer)
    input = with_layout(to_storage(data.input, "float16"), layer.layout)
    bytes_of = list(input.strides)
    bytes_of[0] = bytes_of[3] = 2
    input = np.lib.stride_tricks.as_strided(input, input.shape, bytes_of)
    check(emulator, layer, input=input)


def test_no_bank_conflicts(emulator):
    emulator.configure(detect_races=False, count_banks=True)
    check_banks(emulator, lambda: check(emulator, channels_last(32, 64, (4, 8, 8))), "ldmatrix")


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"layout": "contiguous"}, "the channels of a voxel are not neighbours in memory"),
        ({"stride": (2, 2, 2)}, "a stride"),
        ({"dilation": (1, 2, 1), "padding": (1, 2, 1)}, "a dilation"),
        ({"in_channels": 20}, "strides must be multiples of 16 bytes"),
        ({"dtype": "float64"}, "float64"),
    ],
)
def test_what_is_copied_instead(emulator, change, reason):
    layer = replace(channels_last(16, 24, (4, 4, 8)), **change)
    with pytest.raises(RuntimeError, match=reason):
        run(emulator, layer, integer_data(layer))


def test_what_is_copied_instead_of_unusual_volumes(emulator):
    layer = channels_last(16, 24, (4, 6, 8))
    data = integer_data(layer)
    input = with_layout(to_storage(data.input, "bfloat16"), "channels_last")
    for volume, reason in (
        (unaligned(input), "aligned to 16 bytes"),
        (np.ascontiguousarray(input.transpose(0, 3, 2, 4, 1)).transpose(0, 4, 2, 1, 3), "of one another"),
        (np.broadcast_to(input[:, :, :1], input.shape), "above 0"),
    ):
        with pytest.raises(RuntimeError, match=reason):
            run(emulator, layer, data, input=volume)
    emulator.configure(compute_capability=80)
    with pytest.raises(RuntimeError, match=r"not of compute capability 9\.0"):
        run(emulator, layer, data)


@dataclass(frozen=True)
class Bug:
    name: str
    old: str
    new: str
    found_by: str
    producer: str = "warp"
    removed: str = ""  # what goes with it


WAIT = "      ptx::mbarrier_wait(ptx::shared_address(shared) + Config::full(turn), Config::phase(turn));\n"
ARRIVE = (
    "      if (ptx::thread_x() % 32 == 0) "
    "ptx::mbarrier_arrive(ptx::shared_address(shared) + Config::empty(turn));\n"
)
RELEASE = "      __syncwarp();\n" + ARRIVE
READ_EARLY = "RACE|uninitialised|shared byte"
BUGS = [
    Bug("too few bytes expected", "(full, Config::kStageBytes)", "(full, Config::kStageBytes - 16)", "DEADLOCK"),
    Bug("full stage not waited for", WAIT, "", READ_EARLY),
    Bug("wrong phase of full stages", WAIT, WAIT.replace("phase(turn)", "phase(turn) ^ 1"), READ_EARLY + "|DEADLOCK"),
    Bug("wrong phase of empty stages", "Config::phase(turn) ^ 1);", "Config::phase(turn));", "DEADLOCK"),
    *(
        Bug(f"empty stage not waited for ({producer})",
            "  ptx::mbarrier_wait(address + Config::empty(turn), Config::phase(turn) ^ 1);\n", "",
            "RACE|more arrivals", producer)
        for producer in PRODUCERS
    ),
    Bug("stage released before it is read", WAIT, WAIT + ARRIVE, "RACE", removed=RELEASE),
    Bug("lanes not waited for", "      __syncwarp();\n", "", "RACE", "thread"),
    Bug("phase beyond 1", "return turn / kStages % 2;", "return turn / kStages;", "RACE|DEADLOCK", "thread"),
    Bug("barrier before the epilogue removed", "  __syncthreads();\n\n  unsigned char* const staged",
        "  unsigned char* const staged", "RACE"),
    Bug("halo begins at the tile", "source_position(work, place, 1, axis, 1, 0)",
        "source_position(work, place, 1, axis, 0, 0)", WRONG),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: re.sub(r"\W+", "-", bug.name))
def test_bug_is_found(emulator_builder, tmp_path, bug):
    root = tmp_path / "csrc"
    copy_sources(root)
    kernel = root / "kernels" / "mma_tma_forward.cuh"
    split = PRODUCERS[bug.producer]
    replace_once(kernel, "if constexpr (kViewPerWarpShapes[kIndex].stride == 1)",
                 f"if constexpr (kIndex == {split[0] // 8 - 1})")  # fmt: skip
    leave_out(root, "tma_forward", "int", {"f16": "Float16", "tf32": "float"})
    if bug.removed:
        replace_once(kernel, bug.removed, "")
    replace_once(kernel, bug.old, bug.new)
    layer = channels_last(112, sum(split), (5, 9, 8), split=split)
    with pytest.raises((RuntimeError, AssertionError)) as found:
        check(emulator_builder.variant_module(root), layer)
    assert re.search(bug.found_by, str(found.value)), str(found.value)
