"""Reads the machine code of the built kernels: which instructions a kernel has, and those of its main loop.

Needs cuobjdump and nvdisasm, of the CUDA toolkit or of the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path


def search_path() -> str:
    """PATH, and where pip puts the two tools."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    return os.pathsep.join([os.environ.get("PATH", ""), *map(str, packages.glob("*/bin"))])


def missing_tool() -> str | None:
    """The tool that is not installed, or None."""
    tools = ("cuobjdump", "nvdisasm")
    return next((tool for tool in tools if shutil.which(tool, path=search_path()) is None), None)


def kernels(object_file: Path, architecture: str) -> dict[str, list[tuple[int, str, str]]]:
    """Mangled name -> instructions (address, opcode with its modifiers, operands) of every kernel for "sm_80" etc."""
    text = subprocess.run(
        [shutil.which("cuobjdump", path=search_path()), "-sass", "-arch", architecture, str(object_file)],
        capture_output=True, text=True, check=True, env=os.environ | {"PATH": search_path()},
    ).stdout  # fmt: skip
    found = {}
    for function in text.split("Function : ")[1:]:
        lines = re.findall(r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", function)
        found[function.split()[0]] = [(int(at, 16), opcode, operands) for at, opcode, operands in lines]
    return found


def main_loop(instructions: list[tuple[int, str, str]]) -> Counter[str]:
    """How often each opcode, without modifiers, stands in the longest loop that multiplies matrices."""
    best: Counter[str] = Counter()
    for at, opcode, operands in instructions:
        target = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
        if target is None or int(target[1], 16) >= at:
            continue
        body = Counter(o.split(".")[0] for a, o, _ in instructions if int(target[1], 16) <= a <= at)
        if body["HMMA"] and body.total() > best.total():
            best = body
    return best
