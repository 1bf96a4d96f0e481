"""Every CUDA source compiles for every architecture of the wheel, and no kernel spills registers to memory.

Two architectures by default; all six, some minutes of nvcc, with ACSCONV_TEST_ARCHITECTURES=all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = sorted((CSRC / "kernels").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
BY_DEFAULT = ("sm_80", "sm_90a")


def compile_report(source: Path, architecture: str, cache: Path) -> str:
    """What ptxas says about the kernels of a source; kept in the cache until a source changes."""
    digest = hashlib.sha256(subprocess.run(["nvcc", "--version"], capture_output=True).stdout)
    for path in sorted(p for p in CSRC.rglob("*") if p.suffix in {".cu", ".cuh", ".h"}):
        digest.update(path.read_bytes())
    report = cache / f"{source.stem}-{architecture}-{digest.hexdigest()[:20]}.txt"
    if not report.exists():
        command = ["nvcc", "-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas=-v", "-cubin"]
        done = subprocess.run(
            [*command, "-o", str(report.with_suffix(".cubin")), str(source)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        report.with_suffix(".cubin").unlink()
        report.write_text(done.stderr)
    return report.read_text()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills(request, source, architecture):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    if architecture not in BY_DEFAULT and os.environ.get("ACSCONV_TEST_ARCHITECTURES") != "all":
        pytest.skip("compiled only with ACSCONV_TEST_ARCHITECTURES=all")
    report = compile_report(source, architecture, Path(request.config.cache.mkdir("nvcc")))
    kernels = re.findall(r"Compiling entry function '(\w+)'", report)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert kernels
    assert len(spills) >= len(kernels)
    spilling = [
        kernel
        for kernel, (stores, loads) in zip(kernels, spills, strict=False)
        if stores != "0" or loads != "0"
    ]
    assert not spilling, f"{len(spilling)} of {len(kernels)} kernels spill: {spilling}"
    assert "warning" not in report
