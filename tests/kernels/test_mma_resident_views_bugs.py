"""Bugs planted in the forward kernel of small layers with resident weights must be found; see test_planted_bugs.py.

Only bfloat16 and the last tile are compiled; the other kernels come from the emulator's cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from kernels.harness import Layer
from kernels.mma_layers import AMPERE, check_integers
from kernels.planting import WRONG, copy_sources, leave_out, replace_once

# The last tile: three steps of the reduction, eight tiles of voxels for one block, views of odd widths.
LAYER = Layer(40, 59, (7, 9, 9), split=(19, 23, 17), dtype="bfloat16", layout="channels_last")


@dataclass(frozen=True)
class Bug:
    name: str
    old: str
    new: str
    found_by: str  # in the emulator's report, or WRONG
    file: str = "mma_resident.cuh"


ADVANCE = "advance_pipeline({0, work.steps + more}, step, stage, load);"
RACE = "RACE|uninitialised"
VIEWS = "mma_resident_views.cuh"
BUGS = [
    Bug("weights not waited for", "  __syncthreads();\n  begin_pipeline({0, work.steps}, load);",
        "  __syncthreads();\n  begin_pipeline({0, work.steps}, load);\n"
        "  for (int i = threadIdx.x * 16; i < work.steps * Config::kStepBytes; i += Config::kThreads * 16) {\n"
        "    ptx::cp_async<16>(ptx::shared_address(shared) + static_cast<uint32_t>(kMemory.weights) + i,\n"
        "                      packed + i, 16);\n  }", RACE),
    Bug("weights of the last step not copied", "i < work.steps * Config::kStepBytes;",
        "i < (work.steps - 1) * Config::kStepBytes;", RACE),
    Bug("no barrier between results and the next tile's stage", ADVANCE,
        "if (step > 0) {\n" + ADVANCE + "\n} else {\n"
        "ptx::cp_async_wait<0>();\nload(1, stage ^ 1);\nptx::cp_async_commit();\n}", RACE),
    Bug("stage released early", "kMemory.stage_at(stage), of_next", "kMemory.stage_at(stage ^ 1), of_next", RACE),
    Bug("trailing barrier missing", "    if constexpr (sizeof(T) == 2) __syncthreads();\n    put(sum, tile);",
        "    put(sum, tile);", RACE),
    Bug("weights of the step before", "multiply_step<Config>(sum, work, stage, weights);",
        "multiply_step<Config>(sum, work, stage, weights - Config::kStepBytes);", RACE + "|" + WRONG, VIEWS),
]  # fmt: skip


def build_variant(emulator_builder, root, bug: Bug):
    copy_sources(root)
    header, launcher = "mma_resident_views_launch.h", "ResidentViewsLauncher"
    leave_out(root, "resident_views", "int", {"f16": "Float16", "tf32": "float"}, header, launcher)
    scalars = {"bf16": "BFloat16", "f16": "Float16", "tf32": "float"}
    leave_out(root, "shared_walk", "int", scalars, "mma_shared_walk_launch.h", "SharedWalkLauncher")
    (root / "kernels" / "mma_resident_views_bf16.cu").write_text(
        '#include "mma_resident_views.cuh"\nnamespace acsconv {\ntemplate <>\n'
        "ResidentViewsLauncher resident_views_instance<BFloat16>(int shape) {\n"
        "  return resident_views_from<BFloat16, shape_count(kResidentViewsShapes) - 1>(shape);\n}\n}\n"
    )
    replace_once(root / "kernels" / bug.file, bug.old, bug.new)
    return emulator_builder.variant_module(root)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: re.sub(r"\W+", "-", bug.name))
def test_bug_is_found(emulator_builder, tmp_path, bug):
    module = build_variant(emulator_builder, tmp_path / "csrc", bug)
    module.configure(block_shared_bytes=AMPERE)
    with pytest.raises((RuntimeError, AssertionError)) as found:
        check_integers(module, "forward", LAYER, launcher="mma_resident_views")
    assert re.search(bug.found_by, str(found.value)), str(found.value)
