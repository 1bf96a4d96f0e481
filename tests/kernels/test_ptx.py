"""Every wrapper of csrc/common/ptx*.cuh, executed by the emulator, against the PTX ISA's definitions."""

from __future__ import annotations

import pytest
from kernels.ptx_cases import CASES, assert_matches


@pytest.mark.parametrize("name", CASES)
def test_wrapper(run_ptx_probe, name):
    assert_matches(CASES[name], run_ptx_probe(CASES[name]))
