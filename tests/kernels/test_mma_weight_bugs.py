"""Bugs planted in the gradient of the weight on tensor cores must be found; see test_planted_bugs.py.

Only one shape of block is compiled, and the other kernels come from the emulator's cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
from kernels.harness import Layer
from kernels.mma_layers import check_weight_integers
from kernels.planting import WRONG, copy_sources, replace_once
from kernels.test_mma_backward_weight import LARGE

# Three tiles in a part, a part of a unit and of a block of input channels, all three views.
COPIED = Layer(24, 20, (4, 5, 19), dtype="bfloat16", layout="channels_last")
GATHERED = replace(COPIED, layout="contiguous")
GROUPED = replace(COPIED, out_channels=24, groups=3, split=(0, 24, 0))
TF32, TF32_GATHERED, TF32_SHAPE = replace(COPIED, dtype="float32"), replace(GATHERED, dtype="float32"), 8
HALVED, HALVED_SHAPE = (
    Layer(24, 20, (7, 9, 35), stride=(2, 2, 2), dtype="bfloat16", layout="channels_last"),
    5,
)
SEVEN, SEVEN_SHAPE = replace(HALVED, kernel=(7, 7), padding=(3, 3, 3), dtype="float32"), 17


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    old: str
    new: str
    found_by: str  # in the emulator's report, or WRONG
    layer: Layer = COPIED
    multiprocessors: int = 1
    shape: int = 0  # of the block that the layer takes


KERNEL, TILES, PARTS = "mma_backward_weight.cuh", "mma_weight_tiles.cuh", "mma_weight_parts.cuh"
FRAGMENTS = "mma_weight_fragments.cuh"
WAIT = "    ptx::cp_async_wait<0>();\n    __syncthreads();\n    load_next(tile + 1, stage ^ 1);"
BUGS = [
    Bug("wait too weak", KERNEL, WAIT, WAIT.replace("wait<0>", "wait<1>"), "RACE"),
    Bug("barrier after the wait removed", KERNEL, WAIT, WAIT.replace("    __syncthreads();\n", ""),
        "RACE|uninitialised"),
    Bug("stage released early", KERNEL, "load_next(tile + 1, stage ^ 1);", "load_next(tile + 1, stage);",
        "RACE|uninitialised"),
    Bug("stage loaded before the barrier", KERNEL, WAIT,
        "    load_next(tile + 1, stage ^ 1);\n    ptx::cp_async_wait<1>();\n    __syncthreads();", "RACE"),
    Bug("stage stored before the barrier", KERNEL, WAIT,
        "    load_next(tile + 1, stage ^ 1);\n    ptx::cp_async_wait<1>();\n    __syncthreads();", "RACE", GATHERED),
    Bug("barrier after the tables removed", KERNEL,
        "  __syncthreads();\n\n  const int lane = threadIdx.x % 32", "\n  const int lane = threadIdx.x % 32",
        "RACE|uninitialised"),
    Bug("barrier after the geometry removed", KERNEL,
        "geometry);\n  }\n  __syncthreads();\n  const int view", "geometry);\n  }\n  const int view",
        "RACE|uninitialised"),
    Bug("shares meet without a barrier", KERNEL, "        __syncthreads();\n      }\n      if (share == 0) {",
        "      }\n      if (share == 0) {", "RACE"),
    Bug("shares meet in a stage that is read", KERNEL, "        __syncthreads();\n        if (share > 0) {",
        "        if (share > 0) {", "RACE"),
    Bug("second share forgotten", KERNEL, "total.x += more.x, total.y += more.y,", "total.x += more.x,", WRONG),
    Bug("row of another tap", KERNEL, "const int meets = (row - tap) / Config::kStride;",
        "const int meets = (row - tap + 1) / Config::kStride;", WRONG),
    Bug("outer tap forgotten", KERNEL, "Config::kXPlane + outer_step;", "Config::kXPlane;", WRONG),
    Bug("second row of a pair", KERNEL, "lane_byte<Config>(lane, 0, bit_3 * kGPair)",
        "lane_byte<Config>(lane, 0, 0)", WRONG),
    Bug("bias of one lane", KERNEL, "total += __shfl_xor_sync(0xffffffffu, total, 2);", "", WRONG),
    Bug("border not tested", TILES, "exists && (entry[i].y & box.outside) == 0", "exists",
        "device read|" + WRONG),
    Bug("channels past the end copied", TILES, "exists && (entry[i].y & box.outside) == 0",
        "(entry[i].y & box.outside) == 0", "device read|" + WRONG),
    Bug("border not tested by the gather", TILES,
        "(entry.y & box.outside) == 0 ? box.channels - channel : 0", "box.channels - channel",
        "device read|" + WRONG, GATHERED),
    Bug("channels past the end gathered", TILES, "i < channels ?", "0 < channels ?", "device read|" + WRONG,
        replace(GATHERED, in_channels=9)),
    Bug("end of the output forgotten", TILES, "to.output_size[i] = static_cast<int>(p.out_size[axis]);",
        "to.output_size[i] = (static_cast<int>(p.out_size[axis]) + 7) / 8 * 8;", "device read|" + WRONG),
    Bug("carry of the tiles forgotten", TILES, "    tile.at[i] = 0;\n", "    tile.at[i] = 0;\n    return;\n",
        WRONG, replace(COPIED, size=(4, 9, 17))),
    Bug("neighbour's columns written", PARTS, "if (!unit.contain(at_column) || at_channel >= in_channels) return;",
        "if (at_column >= work.problem.out_channels || at_channel >= in_channels) return;",
        "RACE between blocks|" + WRONG),
    Bug("last part left out", PARTS, "part < parts * (warp + 1) / kAddWarps",
        "part < (parts - 1) * (warp + 1) / kAddWarps", WRONG, multiprocessors=LARGE),
    Bug("parts share their sums", KERNEL,
        "((slot * work.units + unit) * work.channel_blocks + channel_block) * Config::kSums",
        "(unit * work.channel_blocks + channel_block) * Config::kSums", "RACE between blocks", multiprocessors=LARGE),
    Bug("groups share their sums", KERNEL, "ptx::block_y() * work.parts + part", "part", "RACE between blocks",
        GROUPED),
    Bug("input channels of another group", TILES, "group * p.in_channels + channel_block", "channel_block", WRONG,
        GROUPED),
    Bug("even positions not first", TILES, "evens == 0 ? column", "true ? column", WRONG, HALVED, shape=HALVED_SHAPE),
    Bug("odd tap among the even positions", KERNEL, "outer % 2 * geometry.evens", "0 * geometry.evens", WRONG, HALVED,
        shape=HALVED_SHAPE),
    Bug("thin axis read without a stride", TILES, "is_thin ? shape.stride - 1 : 0", "0", "device read|" + WRONG, HALVED,
        shape=HALVED_SHAPE),
    Bug("tiles read without a stride", KERNEL, "tile.at[i] * Config::kStride + geometry.origin[i]",
        "tile.at[i] + geometry.origin[i]", WRONG, HALVED, shape=HALVED_SHAPE),
    Bug("wait too weak for words", KERNEL, WAIT, WAIT.replace("wait<0>", "wait<1>"), "RACE", TF32, shape=TF32_SHAPE),
    Bug("later voxels of a fragment", FRAGMENTS, "Config::kXPlane + i / 2 * 4 * Config::kVoxelBytes",
        "Config::kXPlane + i / 2 * 3 * Config::kVoxelBytes", WRONG, TF32, shape=TF32_SHAPE),
    Bug("lanes of a fragment mixed up", FRAGMENTS, "lane % 4 * Config::kVoxelBytes + lane / 4 * 4",
        "lane / 8 * Config::kVoxelBytes + lane % 8 * 4", WRONG, TF32, shape=TF32_SHAPE),
    Bug("third share forgotten", KERNEL, "other < Config::kShares - 1", "other < 1", WRONG, TF32, shape=TF32_SHAPE),
    Bug("shares meet in one place", KERNEL, "? 0 : (share - 1) * Config::kExchange;", "? 0 : 0;",
        "RACE|uninitialised", TF32, shape=TF32_SHAPE),
    Bug("next tile along the pair axis", TILES, "shape.inner : shape.pair;", "shape.inner : 2 * shape.pair;",
        "RACE|shared byte|" + WRONG, SEVEN, shape=SEVEN_SHAPE),
    Bug("half of a voxel gathered twice", TILES, "plane * 8 + half * 4;", "plane * 8;", WRONG, TF32_GATHERED,
        shape=TF32_SHAPE),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_bug_is_found(emulator_builder, tmp_path, bug):
    root = tmp_path / "csrc"
    copy_sources(root)
    is_of_type = "if constexpr (kMmaWeightShapes[kShape].bytes == sizeof(Scalar)"
    replace_once(
        root / "kernels" / KERNEL,
        is_of_type,
        f"{is_of_type} && kShape == {bug.shape} && !std::is_same_v<Scalar, Float16>",
    )
    replace_once(root / "kernels" / bug.file, bug.old, bug.new)
    module = emulator_builder.variant_module(root)
    module.configure(multiprocessors=bug.multiprocessors, block_shared_bytes=100 << 10)
    with pytest.raises((RuntimeError, AssertionError)) as found:
        check_weight_integers(module, bug.layer)
    assert re.search(bug.found_by, str(found.value)), str(found.value)
