"""The machine code of the tensor-core kernels has the instructions that are meant, where they are meant."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from kernels import sass
from kernels.test_nvcc import RECORD, reported

# Source, what its kernels' names contain, what they must have in the main loop; cp.async is LDGSTS.
KERNELS = [
    ("mma_backward_weight_bf16", "Lb1E", {"HMMA", "LDSM", "LDGSTS"}),  # copied
    ("mma_backward_weight_bf16", "Lb0E", {"HMMA", "LDSM", "LDG", "STS"}),  # gathered
    ("mma_backward_weight_tf32", "Lb1E", {"HMMA", "LDS", "LDGSTS"}),
    ("mma_backward_weight_tf32", "Lb0E", {"HMMA", "LDS", "LDG", "STS"}),
    ("mma_view_per_warp_bf16", "", {"HMMA", "LDSM"}),
    ("mma_view_per_step_bf16", "", {"HMMA", "LDSM"}),
    ("mma_tap_rows_bf16", "", {"HMMA", "LDSM"}),
    ("mma_shared_walk_bf16", "", {"HMMA", "LDSM", "LDGSTS"}),
    ("mma_resident_views_bf16", "", {"HMMA", "LDSM", "LDGSTS"}),
]


def machine_code(source: str, architecture: str) -> dict[str, list[tuple[int, str, str]]]:
    """Kernels of a source from the last build, as sass.kernels() gives them, or a skipped test."""
    report = reported(source)
    if (tool := sass.missing_tool()) is not None:
        pytest.skip(
            f"{tool} is not installed: it comes with the CUDA toolkit or as the package nvidia-cuda-{tool}"
        )
    if architecture not in json.loads(RECORD.read_text())["cuda"]["architectures"]:
        pytest.skip(f"the compiled part was built without {architecture} (TORCH_CUDA_ARCH_LIST)")
    return sass.kernels(report.with_name(f"{source}.cu.o"), "sm_" + architecture.replace(".", ""))


@pytest.mark.parametrize("architecture", ["8.0", "9.0a"])
@pytest.mark.parametrize(
    "source, part, expected", KERNELS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_main_loop(source, part, expected, architecture, record_property):
    loops = {
        name: (instructions, sass.main_loop(instructions))
        for name, instructions in machine_code(source, architecture).items()
        if part in name and any(opcode.startswith("HMMA") for _, opcode, _ in instructions)
    }
    assert loops
    for name, (instructions, loop) in loops.items():
        print(architecture, sass.describe(name, loop))
        record_property(name, sass.mix(loop))
        assert expected <= set(loop), name
        assert not any(opcode.startswith(("LDL", "STL")) for _, opcode, _ in instructions), name


@pytest.mark.parametrize("source", ["mma_tma_forward_bf16", "mma_tma_view_per_step_bf16"])
def test_tma_fills_the_stages(source):
    """Boxes and bytes whose arrival barriers count; no thread copies."""
    kernels = machine_code(source, "9.0a")
    assert kernels
    for name, instructions in kernels.items():
        opcodes = {opcode.split(".")[0] for _, opcode, _ in instructions}
        assert {"UTMALDG", "UBLKCP", "SYNCS", "HMMA", "LDSM"} <= opcodes, name
        assert not opcodes & {"LDGSTS", "LDL", "STL"}, name


def test_instructions_are_counted_by_kind():
    loop = Counter({"HMMA": 4, "LDGSTS": 2, "LDG": 1, "LDGDEPBAR": 1, "IMAD": 3, "ULOP3": 1, "BRA": 1})
    counts = sass.mix(loop)
    assert (counts["matrix"], counts["LDGSTS"], counts["LDG"]) == (4, 2, 1)
    assert (counts["integer"], counts["other"], counts["all"]) == (4, 2, 13)
