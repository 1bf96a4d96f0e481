"""What can be read off the CUDA sources: no #ifdef in kernels, and no call that a CUDA graph could not capture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNELS = sorted((CSRC / "kernels").iterdir())
COMPILED_BY_NVCC = [*KERNELS, *sorted((CSRC / "common").iterdir()), CSRC / "ops.cpp", CSRC / "operands.h"]

#: Calls of the CUDA runtime that neither wait for the GPU nor allocate: all are allowed while a stream is captured.
ALLOWED = {
    "cudaDeviceGetAttribute",
    "cudaFuncSetAttribute",
    "cudaGetDevice",
    "cudaGetDriverEntryPoint",
    "cudaGetDriverEntryPointByVersion",
    "cudaGetErrorString",
    "cudaGetLastError",
}


def without_comments(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_are_the_same_for_both_compilers(path):
    """Whatever nvcc and g++ spell differently is hidden in csrc/common."""
    assert not re.search(
        r"^\s*#\s*(if|ifdef|ifndef|else|elif)\b|\basm\b|__CUDA", without_comments(path), re.M
    )


@pytest.mark.parametrize("path", COMPILED_BY_NVCC, ids=lambda path: path.name)
def test_nothing_waits_or_allocates(path):
    """Memory is torch's (csrc/ops.cpp), and streams are never waited for."""
    text = without_comments(path)
    assert set(re.findall(r"\b(cuda[A-Z]\w*)\s*\(", text)) <= ALLOWED
    assert not re.search(r"\b(malloc|printf|assert)\s*\(", text) or path.name == "report.h"
