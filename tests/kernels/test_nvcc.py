"""No kernel spills registers to memory, and nvcc warns of nothing, on any architecture: read in the build's reports.

The build keeps what ptxas said beside every object (csrc/ptxas_report.py), so nothing is compiled here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
sys.path.insert(0, str(CSRC))
import build_object  # noqa: E402
import ptxas_report  # noqa: E402

RECORD = ROOT / "acsconv_cuda" / build_object.RECORD_NAME
REPORTS = build_object.ptxas_reports(ROOT / "build" / "cmake-cuda")


def reported(source: str) -> Path:
    """The report of a source from the last build, or a skipped test."""
    if not RECORD.exists() or json.loads(RECORD.read_text())["mode"] != "cuda":
        pytest.skip("the compiled part was built without CUDA, or not at all")
    report = REPORTS[source]
    if not report.exists():
        pytest.skip(
            f"the build folder has no report for {source}.cu: built elsewhere, or before it was written"
        )
    return report


# What uses the Tensor Memory Accelerator is compiled for compute capability 9.0 alone.
COMPILED = [
    (source, architecture)
    for source in REPORTS
    for architecture in build_object.DEFAULT_ARCHITECTURES
    if architecture == "9.0a" or not source.startswith("mma_tma_")
]


@pytest.mark.parametrize("source, architecture", COMPILED)
def test_no_spills(source, architecture):
    report = reported(source)
    if architecture not in json.loads(RECORD.read_text())["cuda"]["architectures"]:
        pytest.skip(f"the compiled part was built without {architecture} (TORCH_CUDA_ARCH_LIST)")
    code = "sm_" + architecture.replace(".", "")
    everywhere = ptxas_report.read(report)  # nothing for a source that only chooses among kernels
    kernels = [kernel for kernel in everywhere if kernel.architecture == code]
    assert {kernel.name for kernel in kernels} == {kernel.name for kernel in everywhere}
    assert not [(kernel.name, kernel.spilled) for kernel in kernels if kernel.spilled]


def test_there_are_kernels():
    assert ptxas_report.read(reported("simt_gather"))


@pytest.mark.parametrize("source", REPORTS)
def test_no_warnings(source):
    assert "warning" not in reported(source).read_text()


REPORT = """\
ptxas info    : Compiling entry function '_Z1av' for 'sm_90a'
ptxas info    : Function properties for _Z1av
    136 bytes stack frame, {spills}
ptxas info    : Used 168 registers, used 1 barriers, 136 bytes cumulative stack size
"""


def test_spills_are_read(tmp_path):
    report = tmp_path / "report.txt"
    report.write_text(REPORT.format(spills="8 bytes spill stores, 12 bytes spill loads"))
    assert ptxas_report.read(report) == [ptxas_report.Kernel("_Z1av", "sm_90a", 168, 20)]
    report.write_text(REPORT.format(spills="of another form"))
    with pytest.raises(ValueError, match="not in the form"):
        ptxas_report.read(report)
