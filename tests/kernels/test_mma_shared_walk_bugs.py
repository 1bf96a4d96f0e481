"""Bugs planted in the forward kernel of narrow layers on tensor cores must be found; see test_planted_bugs.py.

Only bfloat16 and the last tile are compiled; the other kernels come from the emulator's cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from kernels.harness import Layer
from kernels.mma_layers import check_integers
from kernels.planting import WRONG, copy_sources, leave_out, replace_once

# The last tile: three steps of the reduction, eight tiles of voxels for two blocks, every view with mixed columns.
LAYER = Layer(40, 32, (7, 9, 9), split=(11, 11, 10), dtype="bfloat16", layout="channels_last")


@dataclass(frozen=True)
class Bug:
    name: str
    old: str
    new: str
    found_by: str  # in the emulator's report, or WRONG
    file: str = "kernels/mma_shared_walk.cuh"


ADVANCE = "advance_pipeline({0, work.steps + more}, step, stage, load);"
RACE = "RACE|uninitialised"
RESIDENT = "kernels/mma_resident.cuh"
LAUNCH = "mma_shared_walk_launch.h"
BUGS = [
    Bug("no barrier between results and the next tile's stage", ADVANCE,
        "if (step > 0) {\n" + ADVANCE + "\n} else {\n"
        "ptx::cp_async_wait<0>();\nload(1, stage ^ 1);\nptx::cp_async_commit();\n}", RACE, RESIDENT),
    Bug("stage released early", "kMemory.stage_at(stage), of_next", "kMemory.stage_at(stage ^ 1), of_next", RACE,
        RESIDENT),
    Bug("results staged over the stage being filled", "kMemory.staged_at(stage ^ 1)", "kMemory.staged_at(stage)", RACE,
        RESIDENT),
    Bug("barrier before the epilogue removed",
        "    if constexpr (sizeof(T) == 2) __syncthreads();\n    put(sum", "    put(sum", RACE, RESIDENT),
    Bug("barrier before the stores removed",
        "    if constexpr (sizeof(T) == 2) __syncthreads();\n    if (sizeof", "    if (sizeof", RACE, RESIDENT),
    Bug("barrier after the first table removed", "  __syncthreads();\n  begin_pipeline", "  begin_pipeline", RACE,
        RESIDENT),
    Bug("one table for two tiles", "place, table(parity ^ 1), ptx", "place, table(parity), ptx", RACE,
        RESIDENT),
    Bug("next tile read where this one is", "    from = next;\n", "", WRONG, RESIDENT),
    Bug("voxels past the end stored", "|| at_w >= work.result_size[2]) return;", ") return;",
        "device write|RACE between blocks|" + WRONG, RESIDENT),
    Bug("row of another shift", "multiply_shift<Config, kD, 2, kW>", "multiply_shift<Config, kD, 1, kW>", WRONG),
    Bug("weights of the wrong view in mixed columns",
        "column.channel >= 0 && shift_in_view(column.view, unit.d, unit.h, unit.w)",
        "column.channel >= 0 && shift_in_view(unit.tile % kViews, unit.d, unit.h, unit.w)", WRONG,
        "kernels/mma_shared_walk.cu"),
    Bug("first mixed channel of an odd view forgotten", "v.begin + mixed : v.first + own + mixed - before",
        "v.begin + mixed : v.first + own + mixed", RACE, "mma_shared_walk_plan.h"),
    Bug("no room for results between the stages", "staged > m.stage ? staged - m.stage : 0", "0", RACE + "|" + WRONG,
        "mma_resident_plan.h"),
]  # fmt: skip


def build_variant(emulator_builder, root, bug: Bug):
    copy_sources(root)
    leave_out(root, "shared_walk", "int", {"f16": "Float16", "tf32": "float"}, LAUNCH, "SharedWalkLauncher")
    (root / "kernels" / "mma_shared_walk_bf16.cu").write_text(
        '#include "mma_shared_walk.cuh"\nnamespace acsconv {\ntemplate <>\n'
        "SharedWalkLauncher shared_walk_instance<BFloat16>(int shape) {\n"
        "  return shared_walk_from<BFloat16, kSharedWalkShapeCount - 1>(shape);\n}\n}\n"
    )
    replace_once(root / bug.file, bug.old, bug.new)
    return emulator_builder.variant_module(root)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: re.sub(r"\W+", "-", bug.name))
def test_bug_is_found(emulator_builder, tmp_path, bug):
    module = build_variant(emulator_builder, tmp_path / "csrc", bug)
    module.configure()
    with pytest.raises((RuntimeError, AssertionError)) as found:
        check_integers(module, "forward", LAYER, launcher="mma_shared_walk")
    assert re.search(bug.found_by, str(found.value)), str(found.value)
