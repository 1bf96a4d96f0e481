"""csrc/ops.cpp on its CUDA side: the operators as torch calls them, with the kernels run by the emulator.

A process of its own loads the emulator's build of ops.cpp, which registers what the CUDA build registers, but for CPU
tensors, and tells acsconv_cuda that the fused kernels for the CPU compute what those for CUDA do. Then the public
functions must agree with the reference, forward and backward, on integers bit for bit.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("emulated_operators.py")


@pytest.fixture(scope="module")
def run(emulator_builder):
    library = emulator_builder.operators()

    def run(part: str) -> None:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(library), part], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    "part",
    [
        "acs",
        "soft",
        "dtypes",
        "float32_weights",
        "tma",
        "layouts",
        "empty",
        "gradients",
        "transforms",
        "far_apart",
        "distributed",
        "refusals",
        "settings",
        "unknown_walk",
        "unknown_tma",
        "float32_gradients",
        "tf32",
    ],
)
def test_operators(run, part):
    run(part)
