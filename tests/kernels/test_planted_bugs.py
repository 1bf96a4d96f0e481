"""Bugs planted in the kernels must be found: this guards the tests and the emulator's detectors themselves.

Each bug is one replacement in a copy of the sources, the layer that shows it, and what finds it: wrong values, or
a report of the emulator. Only float32 and two tiles of the gather kernel are compiled, to save time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from kernels.harness import (
    Data,
    Layer,
    assert_equal,
    backward_input,
    backward_weight,
    forward,
    integer_data,
    one_view,
    run_backward_input,
    run_backward_weight,
    run_forward,
    soft_kernels,
)
from kernels.planting import WRONG, copy_sources, replace_once

# Several slices of the reduction, several tiles of voxels, a part of a tile of channels.
PLAIN = Layer(9, 20, (5, 9, 11))
CHANNELS_LAST = Layer(9, 20, (5, 9, 11), layout="channels_last")
STRIDED = Layer(5, 12, (7, 8, 9), stride=(2, 3, 2), dilation=(1, 2, 1), padding=(1, 2, 1))


def check_forward(emulator, layer: Layer, data: Data) -> None:
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)


def check_backward_input(emulator, layer: Layer, data: Data) -> None:
    assert_equal(run_backward_input(emulator, layer, data), backward_input(layer, data), layer.dtype)


def check_backward_weight(emulator, layer: Layer, data: Data) -> None:
    assert_equal(run_backward_weight(emulator, layer, data)[0], backward_weight(layer, data), layer.dtype)


def check_soft(emulator, layer: Layer, data: Data) -> None:
    kernels = soft_kernels(layer)
    expected = sum(
        forward(replace(layer, split=one_view(layer, view)), replace(data, weight=kernel, bias=None))
        for view, kernel in enumerate(kernels)
    )
    data = replace(data, weight=kernels, bias=None)
    assert_equal(run_forward(emulator, layer, data, launcher="simt_soft_forward"), expected, layer.dtype)


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    old: str
    new: str
    found_by: str  # in the report, or WRONG
    check: Callable = check_forward
    layer: Layer = PLAIN
    multiprocessors: int = 1
    few_blocks: bool = False  # three blocks that take all tiles in turn


GATHER, WALK, WEIGHT = "simt_gather.cuh", "gather_walk.cuh", "simt_backward_weight.cuh"
DEPTHWISE, FEW = "simt_depthwise_weight.cuh", "simt_few_channels.cuh"
# Two outputs of every input channel, some of them of two views.
MULTIPLIED = Layer(5, 10, (4, 5, 6), groups=5, split=(3, 3, 4), layout="channels_last")
FIRST = Layer(2, 20, (5, 9, 40), batch=2)  # a first layer: several tiles, octets of two views
LINES = Layer(5, 5, (11, 12, 13), groups=5, kernel=(5, 5), padding=(2, 2, 2))
BUGS = [
    Bug("no bounds check along columns", GATHER,
        "static_cast<unsigned>(column) < static_cast<unsigned>(loop.column_size)", "true", "device read|" + WRONG),
    Bug("no bounds check along rows", GATHER,
        "static_cast<unsigned>(row) < static_cast<unsigned>(loop.row_size)", "row > kOutside / 2",
        "device read"),
    Bug("bounds of the thin axis forgotten", GATHER,
        "inside = inside && position >= 0 && position < segment.thin_size;", "continue;",
        "device read|" + WRONG, layer=Layer(9, 20, (3, 4, 5), padding=(2, 2, 2))),
    Bug("voxels past the tile's end are stored", GATHER, "if (offset >= 0) destination", "destination",
        "device write|RACE between blocks"),
    Bug("voxels past the tile's end are stored, channels-last", GATHER, "if (offset >= 0 && exists)", "if (exists)",
        "device write|RACE between blocks", layer=CHANNELS_LAST),
    Bug("channels past the tile's end are stored, channels-last", GATHER, "if (offset >= 0 && exists)",
        "if (offset >= 0)", "device write|RACE between blocks|" + WRONG, layer=CHANNELS_LAST),
    Bug("warps share their part of the stages", GATHER, "(shared.stage) + warp * 32 * kPitch", "(shared.stage)", "RACE",
        layer=replace(CHANNELS_LAST, out_channels=40, split=None)),
    Bug("values stored before all lanes have given theirs", GATHER, "= sum[i][j];\n    __syncwarp();",
        "= sum[i][j];", "RACE|uninitialised|" + WRONG, layer=CHANNELS_LAST),
    Bug("store into the stage being multiplied", GATHER, "if (more) store(other);", "if (more) store(stage);",
        "RACE|uninitialised"),
    Bug("barrier of the slices removed", GATHER, "    if (more) store(other);\n    __syncthreads();",
        "    if (more) store(other);", "RACE|uninitialised"),
    Bug("barrier after the tables removed", GATHER,
        "      describe_sources<Config>(shared.segment[view], shared);\n      __syncthreads();",
        "      describe_sources<Config>(shared.segment[view], shared);", "RACE|uninitialised",
        layer=CHANNELS_LAST),
    Bug("barrier in a branch", GATHER, "    if (thread < Config::kSlice) shared.stage[0].shift[thread] = own_shift();\n"
        "    __syncthreads();",
        "    if (thread < Config::kSlice) {\n"
        "      shared.stage[0].shift[thread] = own_shift();\n      __syncthreads();\n    }",
        "divergent barrier|DEADLOCK|uninitialised|RACE"),
    Bug("shifts of the next slice not written", GATHER,
        "if (!Config::kChannelsInner && thread < Config::kSlice) later.shift[thread] = own_shift();", "",
        "uninitialised|" + WRONG),
    Bug("items past the tile's end are loaded", GATHER, "inside && item < loop.items", "inside", "device read"),
    Bug("tail of the reduction is loaded", GATHER, "inside && item < loop.items", "item < loop.items",
        "device read|" + WRONG),
    Bug("bias of another channel", GATHER, "bias ? widen(bias[item])", "bias ? widen(bias[item - tile.begin])", WRONG),
    Bug("next tile described too early", GATHER, "    __syncthreads();  // the next tile rewrites",
        "    // the next tile rewrites", "RACE", few_blocks=True),
    Bug("group forgotten in the first input channel", WALK, "s.source_channel = tile.group * channels_in;",
        "s.source_channel = 0;", WRONG, layer=Layer(6, 12, (3, 4, 5), groups=3)),
    Bug("taps of a residue class start at 0", WALK, "++first;\n", "break;\n", WRONG, check_backward_input, STRIDED),
    Bug("views overlap in the gradient", WALK, "if (end > view_end) end = view_end;", "", "device read|" + WRONG,
        check_backward_input),
    Bug("bounds of a part forgotten", WEIGHT, "if (index >= tile.end_voxel) voxel.gradient = -1;", "",
        "device read|" + WRONG, check_backward_weight, multiprocessors=10**4, layer=Layer(3, 9, (9, 12, 13))),
    Bug("parts share a slab", WEIGHT, "(tile.part * slabs + slab + item)", "(slab + item)", "RACE between blocks",
        check_backward_weight, multiprocessors=10**4, layer=Layer(3, 9, (9, 12, 13))),
    Bug("last part left out", "add_parts.cu", "for (int64_t part = 0; part < parts; ++part)",
        "for (int64_t part = 0; part < parts - 1; ++part)", WRONG, check_backward_weight, multiprocessors=10**4,
        layer=Layer(3, 9, (9, 12, 13))),
    Bug("carry into the next row forgotten", WEIGHT, "if (++at[1] < tile.out_size[1]) continue;", "continue;",
        "device read|" + WRONG, check_backward_weight),
    Bug("narrow tiles read the neighbour's columns", WEIGHT, "x[i] = stage.column[v][lane + 32 * i];",
        "x[i] = stage.column[v][lane ^ 1];", WRONG, check_backward_weight, Layer(1, 9, (4, 5, 6))),
    Bug("folded taps read again", WALK, "work.folded && view > axis", "work.folded && view > axis + 1", WRONG,
        check_soft, Layer(3, 5, (4, 5, 6))),
    Bug("carry of a tile's rows forgotten", GATHER, "tile.first[1] + column / tile.extent[2];", "tile.first[1];",
        "RACE|" + WRONG),
    Bug("outputs of a line are not kept", DEPTHWISE, "g[r] = g[r - 1];", "g[r] = g[0];", WRONG,
        check_backward_weight, LINES),
    Bug("line ends with its last output", DEPTHWISE, "const int steps = outputs + taps.rows - 1;",
        "const int steps = outputs;", WRONG, check_backward_weight, LINES),
    Bug("gradient read past the line", DEPTHWISE, "step < outputs ? widen(grad_output[gradient]) : Sum(0)",
        "widen(grad_output[gradient])", "device read|" + WRONG, check_backward_weight, LINES),
    Bug("rows of a line not checked", DEPTHWISE, "row >= 0 && row < row_size;", "true;", "device read|" + WRONG,
        check_backward_weight, LINES),
    Bug("barrier of the tree removed", DEPTHWISE, "      }\n    }\n    __syncthreads();\n  }",
        "      }\n    }\n  }", "RACE", check_backward_weight, LINES),
    Bug("lines of another part", DEPTHWISE, "tile.first_line + part_lines < lines ?", "true ?",
        "device read|" + WRONG, check_backward_weight, LINES, multiprocessors=10**4),
    Bug("tap step of a stride forgotten", DEPTHWISE, "tile.tap_step = stride / divisor;", "tile.tap_step = 1;",
        "device read|" + WRONG, check_backward_weight,
        replace(LINES, stride=(2, 2, 2))),
    Bug("input channel of another output", "simt_depthwise.cuh", "forward ? output / multiplier : output", "output",
        "device read|" + WRONG, layer=MULTIPLIED),
    Bug("second output of an input channel left out", "simt_depthwise.cuh", "terms = forward ? 1 : multiplier;",
        "terms = 1;", "device read|" + WRONG, check_backward_input, MULTIPLIED),
    Bug("every view adds every channel", "simt_depthwise.cuh",
        "if (item < end && output >= view_begin && output < view_end)", "if (item < end)", "device read|" + WRONG,
        layer=MULTIPLIED),
    Bug("weights of the next output written too early", "simt_depthwise.cuh", "if (term > 0) __syncthreads();", "",
        "RACE", check_backward_input, MULTIPLIED),
    Bug("input channel of another output in the weight", DEPTHWISE, "channel / (p.out_channels / p.groups)", "channel",
        "device read|" + WRONG, check_backward_weight, MULTIPLIED),
    Bug("box of the next view loaded too early", FEW, "if (loaded) __syncthreads();", "", "RACE", layer=FIRST),
    Bug("next tile's voxels described too early", FEW, "    __syncthreads();  // tables, weights", "    // tables",
        "RACE|uninitialised", layer=FIRST),
    Bug("rows of the box not checked", FEW, "h >= 0 && h < p.in_size[1]", "true", "device read|" + WRONG,
        layer=FIRST),
    Bug("rows of the box skipped", FEW, "if (++plane == v.extent[0]) plane = 0, ++channel;",
        "if (++plane == v.extent[0] - 1) plane = 0, ++channel;", "uninitialised|" + WRONG, layer=FIRST),
    Bug("octet stored by its first view", FEW, "if (more) continue;", "", WRONG, layer=FIRST),
    Bug("sums of the last octet kept", FEW, "sum[i][j] = 0;", "sum[i][j] += 0;", WRONG, layer=FIRST),
    Bug("weights of the other view's channels", FEW, "channel >= begin && channel < end ?",
        "channel < p.out_channels ?", WRONG, layer=FIRST),
    Bug("voxels past the volume are stored", FEW, "if (destination >= 0) {", "{", "device write|RACE", layer=FIRST),
    Bug("vectors where they are not aligned", "simt_few_channels.cu", "p.out_channels % kFewOctet == 0 &&", "",
        "misaligned|device write|RACE", layer=replace(FIRST, layout="channels_last")),
]  # fmt: skip


def build_variant(emulator_builder, root: Path, bug: Bug | None, few_blocks: bool):
    """The emulator with a copy of the kernels: float32 and few tiles, a bug, few blocks."""
    copy_sources(root)
    for other in ("double", "Float16", "BFloat16"):
        replace_once(
            root / "common" / "scalar.cuh", f"return function({other}{{}});", "return function(float{});"
        )
    replace_once(root / "plan.h", "kGatherShapeCount = 6", "kGatherShapeCount = 2")
    if few_blocks:
        replace_once(root / "kernels" / "report.h", "kLargestGrid = 2147483647", "kLargestGrid = 3")
    if bug is not None:
        replace_once(root / "kernels" / bug.file, bug.old, bug.new)
    return emulator_builder.variant_module(root)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_bug_is_found(emulator_builder, tmp_path, bug):
    module = build_variant(emulator_builder, tmp_path / "csrc", bug, bug.few_blocks)
    module.configure(multiprocessors=bug.multiprocessors)
    with pytest.raises((RuntimeError, AssertionError)) as found:
        bug.check(module, bug.layer, integer_data(bug.layer))
    assert re.search(bug.found_by, str(found.value))


@pytest.mark.parametrize("check", [check_forward, check_backward_input, check_backward_weight])
@pytest.mark.parametrize(
    "layer",
    [
        PLAIN,
        STRIDED,
        replace(LINES, in_channels=33, out_channels=33, groups=33, size=(3, 4, 5), split=(11, 11, 11)),
    ],
    ids=str,
)
def test_blocks_take_tiles_in_turn(emulator_builder, tmp_path, check, layer):
    """What happens where there are more tiles than a grid may have blocks."""
    module = build_variant(emulator_builder, tmp_path / "csrc", None, few_blocks=True)
    module.configure()
    check(module, layer, integer_data(layer))
