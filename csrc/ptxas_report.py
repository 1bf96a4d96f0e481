"""Keeps what ptxas says about the kernels of a source beside the object, and reads it again.

As a command it is nvcc's launcher in csrc/CMakeLists.txt: `python ptxas_report.py nvcc ... -Xptxas=-v ... -o OBJECT`
writes ptxas' lines to OBJECT.ptxas.txt and passes all others on. As a module it is used by build_object.py, which
counts kernels, and by tests/kernels/test_nvcc.py, which looks for spilled registers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".ptxas.txt"


@dataclass(frozen=True)
class Kernel:
    """One kernel instantiation on one architecture."""

    name: str  # mangled
    architecture: str  # "sm_80"
    registers: int  # per thread
    spilled: int  # bytes of spill stores and loads together


def read(report: Path) -> list[Kernel]:
    """The kernels of a report, every architecture's."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(\w+)'\n.*\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers"
    )
    text = report.read_text()
    kernels = [
        Kernel(name, architecture, int(registers), int(stores) + int(loads))
        for name, architecture, stores, loads, registers in re.findall(pattern, text)
    ]
    if len(kernels) != text.count("Compiling entry function"):
        raise ValueError(f"{report} is not in the form of ptxas -v that this module knows")
    return kernels


def main(command: Sequence[str]) -> int:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    about_kernels = re.compile(r"ptxas info +:|\s+\d+ bytes stack frame,")
    lines = done.stderr.splitlines(keepends=True)
    sys.stderr.writelines(line for line in lines if not about_kernels.match(line))
    if done.returncode == 0 and "-c" in command:
        target = Path(command[command.index("-o") + 1])
        target.with_name(target.name + SUFFIX).write_text(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
