"""Every wrapper of csrc/common/ptx.cuh, executed by the emulator, against the PTX ISA's definitions."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from kernels.ptx_cases import CASES, WORDS, assert_matches

PROBES = Path(__file__).with_name("ptx_probes.cu")


@pytest.fixture(scope="module")
def run_probe(emulator_builder):
    library = ctypes.CDLL(str(emulator_builder.library(PROBES)))
    library.run_ptx_probe.restype = ctypes.c_char_p
    library.run_ptx_probe.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]

    def run(probe: str, words: np.ndarray) -> np.ndarray:
        output = np.full(WORDS, 0xFFFFFFFF, np.uint32)
        error = library.run_ptx_probe(probe.encode(), words.ctypes.data, output.ctypes.data)
        assert error is None, error.decode()
        return output

    return run


@pytest.mark.parametrize("name", CASES)
def test_wrapper(run_probe, name):
    case = CASES[name]
    assert_matches(case, run_probe(case.probe, case.words))
