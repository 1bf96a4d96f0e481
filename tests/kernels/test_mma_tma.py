"""The tensor-core kernels whose stages the Tensor Memory Accelerator fills, in the emulator."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from kernels.harness import (
    Data,
    Layer,
    integer_data,
    one_view,
    real_data,
    soft_kernels,
    to_storage,
    unaligned,
    with_layout,
)
from kernels.mma_layers import (
    MMA_DTYPES,
    PASSES,
    STEPS,
    VIEW_TILES,
    check_banks,
    check_integers,
    mma_layers,
    plan,
    run_pass,
)
from kernels.planting import WRONG, copy_sources, leave_out, replace_once

GRANULE = {"bfloat16": 8, "float16": 8, "float32": 4}  # channels in 16 bytes


def run(emulator, layer: Layer, data: Data, which: str = "forward", **options) -> np.ndarray:
    return run_pass(emulator, which, layer, data, launcher=f"mma_tma_{which}", **options)


def check(emulator, layer: Layer, which: str = "forward", **options: np.ndarray) -> None:
    check_integers(emulator, which, layer, launcher=f"mma_tma_{which}", **options)


def channels_last(*arguments, **fields) -> Layer:
    return Layer(*arguments, **{"dtype": "bfloat16", "layout": "channels_last", **fields})


def drawn_layers(count: int, seed: int, which: str = "forward", **fixed) -> list[Layer]:
    layers = mma_layers(
        3 * count, seed, 3e6, stride=(1, 1, 1), dilation=(1, 1, 1), layout="channels_last", **fixed
    )
    reduced = "in_channels" if which.endswith("forward") else "out_channels"
    return [layer for layer in layers if getattr(layer, reduced) % GRANULE[layer.dtype] == 0][:count]


def drawn_in_passes(seed: int, **counts: int):
    """Parameters ``which`` and ``layer``: so many layers of every pass."""
    drawn = [
        pytest.param(which, layer, id=f"{which}-{layer}")
        for which, count in counts.items()
        for layer in drawn_layers(count, seed, which)
    ]
    return pytest.mark.parametrize("which, layer", drawn)


@drawn_in_passes(401, forward=40, backward_input=40, soft_forward=12, soft_backward_input=12)
def test_bit_equal_on_integers(emulator, which, layer):
    check(emulator, layer, which)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("columns", [columns for columns, stride in VIEW_TILES if stride == 1])
def test_every_tile(emulator, columns, dtype):
    """Borders on all sides, several tiles and samples, channels that end within a tile and a step."""
    split = (columns, columns - 1, columns - 2)
    layer = channels_last(
        5 * GRANULE[dtype], sum(split), (3, 9, 9), split=split, batch=2, padding=(2, 1, 2), dtype=dtype
    )
    check(emulator, layer)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("columns", [32, 64])
@pytest.mark.parametrize("which", ["backward_input", "soft_backward_input"])
def test_every_tile_of_one_view_per_step(emulator, which, columns, dtype):
    """As above; a step that holds channels of two views, and one of all three."""
    channels = 3 * GRANULE[dtype]
    split = (1, 2, channels - 3) if columns == 32 else None
    layer = channels_last(
        columns - 3, channels, (3, 9, 9), split=split, batch=2, padding=(2, 1, 2), dtype=dtype
    )
    assert f"voxels x {columns} channels" in plan(emulator, which, layer)
    check(emulator, layer, which)


@pytest.mark.parametrize("view", range(3))
@pytest.mark.parametrize("channels", STEPS)
def test_steps_of_one_view(emulator, channels, view):
    """1, 2, 3 and 5 steps of one view alone, so that both stages are filled again."""
    layer = channels_last(24, channels, (4, 8, 9))
    check(emulator, replace(layer, split=one_view(layer, view)), "backward_input")


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


@pytest.mark.parametrize("which", ["backward_input", "soft_forward"])
def test_parts_of_steps_of_one_view(emulator, which):
    layer = channels_last(72, 104, (3, 5, 6))
    emulator.configure(multiprocessors=200)
    check(emulator, layer, which)


@drawn_in_passes(403, forward=8, backward_input=6, soft_forward=2, soft_backward_input=2)
def test_bits_of_the_copied_form(emulator, which, layer):
    """On real values too: the same products in the same order."""
    data = real_data(layer)
    if which.startswith("soft"):
        data.weight = soft_kernels(layer)
    np.testing.assert_array_equal(run(emulator, layer, data, which), run_pass(emulator, which, layer, data))


@pytest.mark.parametrize("async_copies", ["early", "random"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("split", PRODUCERS.values(), ids=list(PRODUCERS))
def test_any_schedule(emulator, split, seed, async_copies):
    emulator.configure(schedule="random", seed=seed, async_copies=async_copies)
    layer = channels_last(112, sum(split), (5, 9, 8), split=split)
    check(emulator, layer)


@pytest.mark.parametrize("async_copies", ["early", "random"])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_schedule_of_steps_of_one_view(emulator, seed, async_copies):
    emulator.configure(schedule="random", seed=seed, async_copies=async_copies)
    check(emulator, channels_last(33, 72, (3, 9, 8)), "backward_input")


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("which, name", [("forward", "input"), ("backward_input", "grad_output")])
def test_slices_of_a_larger_volume(emulator, which, name, dtype):
    """Channels end within 16 bytes, and voxels within a row: what follows in memory is NaN, and is not read."""
    channels = 3 * GRANULE[dtype]
    layer = channels_last(channels - 2, channels - 2, (3, 4, 9), dtype=dtype)
    large = to_storage(np.full((1, 3, 6, 12, channels), np.nan), dtype)
    view = large[:, :, 1:5, 2:11, : channels - 2].transpose(0, 4, 1, 2, 3)
    view[...] = to_storage(getattr(integer_data(layer), name), dtype)
    check(emulator, layer, which, **{name: view})


def test_axes_of_one_position(emulator):
    """Their strides mean nothing, and may be such as no tensor map takes."""
    layer = channels_last(16, 20, (3, 1, 9), dtype="float16")
    data = integer_data(layer)
    input = with_layout(to_storage(data.input, "float16"), layer.layout)
    bytes_of = list(input.strides)
    bytes_of[0] = bytes_of[3] = 2
    input = np.lib.stride_tricks.as_strided(input, input.shape, bytes_of)
    check(emulator, layer, input=input)


@pytest.mark.parametrize("which", PASSES)
def test_no_bank_conflicts(emulator, which):
    emulator.configure(detect_races=False, count_banks=True)
    check_banks(emulator, lambda: check(emulator, channels_last(32, 64, (4, 8, 8)), which), "ldmatrix")


@pytest.mark.parametrize("which", ["forward", "backward_input"])
@pytest.mark.parametrize(
    "change, reason",
    [
        ({"layout": "contiguous"}, "the channels of a voxel are not neighbours in memory"),
        ({"stride": (2, 2, 2)}, "a stride"),
        ({"dilation": (1, 2, 1), "padding": (1, 2, 1)}, "a dilation"),
        ({"kernel": (5, 5), "padding": (2, 2, 2)}, "a kernel larger than 3 x 3"),
        ({"in_channels": 20, "out_channels": 20, "split": None}, "strides must be multiples of 16 bytes"),
        ({"dtype": "float64"}, "float64"),
    ],
)
def test_what_is_copied_instead(emulator, which, change, reason):
    layer = replace(channels_last(16, 24, (4, 4, 8)), **change)
    with pytest.raises(RuntimeError, match=reason):
        run(emulator, layer, integer_data(layer), which)


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
    producer: str = "warp"  # or "step": the gradient of the input
    removed: str = ""  # what goes with it
    file: str = "mma_tma_kernel.cuh"


WAIT = "      ptx::mbarrier_wait(ptx::shared_address(shared) + Config::full(turn), Config::phase(turn));\n"
ARRIVE = (
    "      if (ptx::thread_x() % 32 == 0) "
    "ptx::mbarrier_arrive(ptx::shared_address(shared) + Config::empty(turn));\n"
)
RELEASE = "      __syncwarp();\n" + ARRIVE
READ_EARLY = "RACE|uninitialised|shared byte"
FORWARD, STEP = "mma_tma_forward.cuh", "mma_tma_view_per_step.cuh"
BUGS = [
    Bug("too few bytes expected", "+ copies.weights);", "+ copies.weights - 16);", "DEADLOCK"),
    *(
        Bug(f"full stage not waited for ({producer})", WAIT, "", READ_EARLY, producer)
        for producer in ("warp", "step")
    ),
    Bug("wrong phase of full stages", WAIT, WAIT.replace("phase(turn)", "phase(turn) ^ 1"), READ_EARLY + "|DEADLOCK"),
    Bug("wrong phase of empty stages", "Config::phase(turn) ^ 1);", "Config::phase(turn));", "DEADLOCK"),
    *(
        Bug(f"empty stage not waited for ({producer})",
            "  ptx::mbarrier_wait(address + Config::empty(turn), Config::phase(turn) ^ 1);\n", "",
            "RACE|more arrivals", producer)
        for producer in (*PRODUCERS, "step")
    ),
    Bug("stage released before it is read", WAIT, WAIT + ARRIVE, "RACE", removed=RELEASE),
    Bug("lanes not waited for", "      __syncwarp();\n", "", "RACE", "thread"),
    Bug("phase beyond 1", "return turn / kStages % 2;", "return turn / kStages;", "RACE|DEADLOCK", "thread"),
    Bug("barrier before the epilogue removed", "  __syncthreads();\n\n  Config::finish", "  Config::finish", "RACE"),
    Bug("barrier before the stores removed", "    __syncthreads();\n    // Derived anew", "    // Derived anew",
        "RACE|uninitialised", file=FORWARD),
    Bug("halo begins at the tile", "source_position(work, place, 1, axis, 1, 0)",
        "source_position(work, place, 1, axis, 0, 0)", WRONG),
    Bug("halo of a thin axis begins before the tile", "(thin == 1)", "(thin == 3)", WRONG, "step"),
    Bug("box of another view", "source.map[copies.map]", "source.map[1]", "RACE", "step"),
    Bug("planes overlap", "HaloOf<kView>::kPlane, kTaps", "HaloOf<0>::kPlane, kTaps", "RACE", "step",
        file=STEP),
    Bug("too few weights", "tap_index(kSoft, kView, 3, 0)", "tap_index(true, kView, 3, 0)", WRONG, "step", file=STEP),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: re.sub(r"\W+", "-", bug.name))
def test_bug_is_found(emulator_builder, tmp_path, bug):
    root = tmp_path / "csrc"
    copy_sources(root)
    kernels = root / "kernels"
    scalars = {"f16": "Float16", "tf32": "float", "bf16": "BFloat16"}
    by_step = bug.producer == "step"
    # One tile of one arrangement in bfloat16 is compiled; the rest is left out.
    for kernel, parameters, used in (
        ("forward", "int", not by_step),
        ("view_per_step", "int, bool", by_step),
    ):
        leave_out(root, f"tma_{kernel}", parameters, dict([*scalars.items()][: 2 if used else 3]))
    if by_step:
        which, layer = "backward_input", channels_last(21, 112, (5, 9, 8))
        replace_once(kernels / STEP, "kIndex + 1 < shape_count(kViewPerStepShapes)", "false")
        replace_once(kernels / STEP, "soft ? launch_tma<TmaViewPerStep<T, kIndex, true>> : ", "")
    else:
        split = PRODUCERS[bug.producer]
        which, layer = "forward", channels_last(112, sum(split), (5, 9, 8), split=split)
        replace_once(kernels / FORWARD, "if constexpr (kViewPerWarpShapes[kIndex].stride == 1)",
                     f"if constexpr (kIndex == {split[0] // 8 - 1})")  # fmt: skip
    if bug.removed:
        replace_once(kernels / bug.file, bug.removed, "")
    replace_once(kernels / bug.file, bug.old, bug.new)
    with pytest.raises((RuntimeError, AssertionError)) as found:
        check(emulator_builder.variant_module(root), layer, which)
    assert re.search(bug.found_by, str(found.value)), str(found.value)
