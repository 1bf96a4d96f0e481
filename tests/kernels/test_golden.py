"""The emulator's PTX instructions against what GPUs gave, as `make gpu STAGE=test` records it (tests/gpu/golden.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernels.ptx_cases import CASES, assert_matches

RECORDS = sorted(Path(__file__).with_name("golden").glob("*.json"))


@pytest.mark.parametrize("record", RECORDS or [None], ids=lambda path: path.stem if path else "none")
def test_emulator_agrees(run_ptx_probe, record):
    if record is None:
        pytest.skip(
            "no GPU has recorded golden vectors yet; `make gpu STAGE=test` does, for tests/kernels/golden"
        )
    words = json.loads(record.read_text())["words"]
    assert words
    for name, recorded in words.items():
        case = replace(CASES[name], expected=np.array(recorded, np.uint32))
        assert_matches(case, run_ptx_probe(case))
