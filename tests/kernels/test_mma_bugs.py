"""Bugs planted in the tensor-core kernels of forward and gradient of the input must be found; see test_planted_bugs.py.

Only bfloat16 and one tile of each arrangement are compiled; the other kernels come from the emulator's cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
from kernels.harness import Layer
from kernels.mma_layers import check_integers
from kernels.planting import WRONG, copy_sources, leave_out, replace_once

# Three steps of the reduction, several tiles of voxels, views of odd widths that begin at odd channels.
COPIED = Layer(40, 21, (5, 9, 9), split=(7, 9, 5), dtype="bfloat16", layout="channels_last")
GATHERED = replace(COPIED, in_channels=37, layout="contiguous")
BACKWARD = replace(COPIED, in_channels=20, out_channels=44, split=(5, 20, 19))  # five steps
STRIDED = replace(BACKWARD, stride=(2, 2, 2), padding=(0, 0, 0))
EVEN = replace(STRIDED, dilation=(2, 1, 1), padding=(2, 1, 1))
FIVE = replace(COPIED, kernel=(5, 5), padding=(2, 2, 2))
FIVE_STRIDED = replace(FIVE, stride=(2, 2, 2))
BACKWARD_FIVE = replace(
    BACKWARD, kernel=(5, 5), padding=(2, 2, 2), stride=(2, 2, 2)
)  # several chunks of a view


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    old: str
    new: str
    found_by: str  # in the emulator's report, or WRONG
    run: str = "forward"  # of mma_layers.PASSES
    layer: Layer = COPIED
    multiprocessors: int = 1


WARP, STEP, COPY = "mma_view_per_warp.cuh", "mma_view_per_step.cuh", "mma_copy.cuh"
VIEW, STORE, WORK, PACK = "mma_view.cuh", "mma_store.cuh", "mma_work.cuh", "mma_pack.cu"
FOLD, ROWS, TABLE = "fold_soft.cuh", "mma_tap_rows.cuh", "mma_tap_row_table.cuh"
WAIT = "  ptx::cp_async_wait<kMmaStages - 2>();\n  __syncthreads();\n"
EPILOGUE = "  ptx::cp_async_wait<0>();\n  __syncthreads();\n"
BUGS = [
    *(
        bug
        for file, run, layer, end, after in (
            (WARP, "forward", COPIED, WARP, "  // Derived anew"),
            (STEP, "backward_input", BACKWARD, STORE, "  tile.template store"),
        )
        for bug in (
            Bug(f"wait too weak ({run})", COPY, WAIT, WAIT.replace("- 2", "- 1"), "RACE|uninitialised", run, layer),
            Bug(f"barrier after the wait removed ({run})", COPY, WAIT, WAIT.split("\n")[0], "RACE|uninitialised", run,
                layer),
            Bug(f"stage released early ({run})", COPY, "load(ahead, other)", "load(ahead, stage)",
                "RACE|uninitialised", run, layer),
            Bug(f"barrier before the epilogue removed ({run})", file, EPILOGUE, EPILOGUE.split("\n")[0], "RACE", run,
                layer),
            Bug(f"barrier before the stores removed ({run})", end,
                f"  __syncthreads();\n{after}", after, "RACE|uninitialised", run, layer),
            Bug(f"barrier after the table removed ({run})", file, "  __syncthreads();\n  const auto load",
                "  const auto load", "RACE|uninitialised", run, layer),
        )
    ),
    Bug("gathered stage stored before the barrier", COPY, WAIT, "", "RACE|uninitialised", layer=GATHERED),
    Bug("border not tested", COPY, "inside = inside && position >= 0 &&", "inside = inside &&",
        "device read|" + WRONG),
    Bug("channels past the end gathered", COPY, "bits = i < left ?", "bits = left > 0 ?",
        "device read|" + WRONG, layer=GATHERED),
    Bug("row of another tap", VIEW, "row >= inner && (row - inner)", "row >= inner && m > 0 && (row - inner)", WRONG),
    Bug("taps of the coronal view exchanged", STEP, "HaloOf::voxel(kInner, 0, kOuter)",
        "HaloOf::voxel(kOuter, 0, kInner)", WRONG, "backward_input", BACKWARD),
    Bug("voxels past the end stored", STORE, "inside = inside && at[axis] < work.result_size[axis];", "",
        "device write|RACE between blocks"),
    Bug("last part left out", STORE, "part < work.parts;", "part < work.parts - 1;", WRONG,
        layer=replace(COPIED, in_channels=80), multiprocessors=100),
    Bug("parts share a slot", STORE, "(blockIdx.z * blocks + block) * kSlot", "block * kSlot",
        "RACE between blocks|" + WRONG, layer=replace(COPIED, in_channels=80), multiprocessors=100),
    Bug("residue of the dilation forgotten", WORK, "return place.residue[axis] + ", "return ",
        "RACE between blocks|" + WRONG,
        layer=replace(COPIED, dilation=(2, 2, 2), padding=(2, 2, 2))),
    Bug("slack of odd channels forgotten", PACK, "range.begin - column_slack(range, 8 * pack.tiles)", "range.begin",
        WRONG),
    Bug("channels of another view count", "mma_pack.cuh", "channel < valid.begin ||", "", WRONG, "backward_input",
        BACKWARD),
    Bug("taps not turned round", PACK, "? taps - 1 - forward_tap :", "? forward_tap :", WRONG, "backward_input",
        BACKWARD),
    Bug("weights not folded", FOLD, "if (view == 1 && column == middle) sum += at(2, row, middle);", "", WRONG,
        "soft_forward"),
    Bug("wrong class of stride 2", TABLE, "(place.residue[axis] + work.centre[axis]) & 1", "place.residue[axis] & 1",
        WRONG, "backward_input", STRIDED),
    Bug("outer tap of another class", TABLE,
        "if (outer_parity >= 0) outer = 2 * outer + outer_parity;", "if (outer_parity >= 0) outer = 2 * outer;",
        WRONG, "backward_input", STRIDED),
    Bug("dilation of a class forgotten", TABLE, "work.dilation[axis] * (2 * place.first[axis] + i - middle)",
        "(2 * place.first[axis] + i - middle)", WRONG, "backward_input",
        replace(STRIDED, dilation=(1, 3, 1), padding=(1, 3, 1))),
    Bug("taps of an even dilation taken by parity", TABLE, "(work.dilation[axis] & 1) << axis", "1 << axis",
        WRONG, "backward_input", EVEN),
    Bug("positions that no tap reaches", TABLE, "(block.beside & (~block.by_parity | 1 << view)) == 0",
        "(block.beside & 1 << view) == 0", WRONG, "backward_input", EVEN),
    Bug("inner taps of another class", PACK, "!by_parity ? place :", "", WRONG, layer=FIVE),
    Bug("folded taps read again at stride 2", TABLE, "work.soft && view > 0 &&", "work.soft && view > 1 &&", WRONG,
        "soft_backward_input", STRIDED),
    Bug("folded taps of 5x5 read again", ROWS, "|| !row.without_middle", "|| true", WRONG, "soft_forward", FIVE),
    Bug("middle tap of 5x5 taken for that of 3x3", TABLE, "depth = view == 0 ? middle :", "depth = view == 0 ? 1 :",
        WRONG, "backward_input", FIVE_STRIDED),
    Bug("rows of another chunk", TABLE, "(uint32_t{1} << 31) / count + 1", "(uint32_t{1} << 31) / count",
        "RACE|uninitialised|" + WRONG, "backward_input", BACKWARD_FIVE),
    Bug("taps of a short row", ROWS, "step.row.taps * Config::kTapBytes", "Config::kLeastTaps * Config::kTapBytes",
        "uninitialised|" + WRONG, layer=FIVE_STRIDED),
    Bug("tap beyond a short row", ROWS, "tap >= Config::kLeastTaps && tap >= row.taps",
        "tap > row.taps", "RACE|uninitialised|" + WRONG, layer=FIVE_STRIDED),
    Bug("halo of a row too small along H", ROWS, "kShape.height + (kAlongDepth ? 0 : kTaps - 1)",
        "kShape.height + (kAlongDepth ? 0 : kTaps - 2)", "RACE|uninitialised|" + WRONG, layer=FIVE),
    Bug("halo of a row too small along D", ROWS, "kShape.depth + (kAlongDepth ? kTaps - 1 : 0)",
        "kShape.depth + (kAlongDepth ? kTaps - 2 : 0)", "RACE|uninitialised|" + WRONG, layer=FIVE),
    Bug("border of a row not tested", TABLE, "position < 0 || position >= work.source_size[axis]", "position < 0",
        "device read|" + WRONG, layer=FIVE),
    Bug("barrier after the table removed (rows)", ROWS, "  __syncthreads();\n  const MmaSteps steps",
        "  const MmaSteps steps", "RACE|uninitialised", layer=FIVE),
    Bug("barrier before the epilogue removed (rows)", ROWS, EPILOGUE, EPILOGUE.split("\n")[0], "RACE", layer=FIVE),
]  # fmt: skip


def build_variant(emulator_builder, root, bug: Bug):
    copy_sources(root)
    plan = root / "mma_plan.h"
    text = re.sub(
        r"(kViewPerWarpShapes\[\] = )\{.*?\};", r"\1{{2, 8, 4, 8, 1, 2}};", plan.read_text(), flags=re.S
    )
    text = re.sub(r"(kViewPerStepShapes\[\] = )\{.*?\};", r"\1{{4, 4, 4, 8, 1, 3}};", text, flags=re.S)
    text = re.sub(
        r"(kTapRowShapes\[\] = )\{.*?\};",
        r"\1{{4, 4, 4, 8, 2, 3}, {4, 4, 4, 8, 1, 3, 5}, {4, 4, 4, 8, 2, 3, 7}};",
        text,
        flags=re.S,
    )
    plan.write_text(re.sub(r"static_assert\([^;]*Shapes\[[^;]*;\n", "", text))
    wide_taps = bug.layer.stride != (1, 1, 1) or bug.layer.kernel != (3, 3)
    used = "tap_rows" if wide_taps else "view_per_warp" if bug.run == "forward" else "view_per_step"
    scalars = {"f16": "Float16", "tf32": "float", "bf16": "BFloat16"}
    for kernel, parameters in (("view_per_warp", "int"), ("view_per_step", "int, bool"), ("tap_rows", "int")):
        leave_out(root, kernel, parameters, dict([*scalars.items()][: 2 if kernel == used else 3]))
    leave_out(root, "tma_forward", "int", scalars)
    leave_out(root, "tma_view_per_step", "int, bool", scalars)
    leave_out(root, "shared_walk", "int", scalars, "mma_shared_walk_launch.h", "SharedWalkLauncher")
    leave_out(root, "resident_views", "int", scalars, "mma_resident_views_launch.h", "ResidentViewsLauncher")
    replace_once(root / "kernels" / bug.file, bug.old, bug.new)
    return emulator_builder.variant_module(root)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: re.sub(r"\W+", "-", bug.name))
def test_bug_is_found(emulator_builder, tmp_path, bug):
    module = build_variant(emulator_builder, tmp_path / "csrc", bug)
    module.configure(multiprocessors=bug.multiprocessors)
    with pytest.raises((RuntimeError, AssertionError)) as found:
        check_integers(module, bug.run, bug.layer)
    assert re.search(bug.found_by, str(found.value)), str(found.value)
