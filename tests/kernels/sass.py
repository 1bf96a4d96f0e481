"""Reads the machine code of the built kernels: which instructions a kernel has, and those of its main loop.

As a command, `python tests/kernels/sass.py [SOURCE ...]` prints the mix of the main loop of every tensor-core kernel in
the build folder, or of those sources' alone (mma_view_per_warp_bf16, ...), on compute capability 8.0 and 9.0.

Needs cuobjdump and nvdisasm, of the CUDA toolkit or of the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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


#: Kinds of instructions by their opcodes, in the order in which they are printed.
KINDS = {
    "matrix": ("HMMA", "HGMMA"),
    "LDSM": ("LDSM",),
    "LDS": ("LDS",),
    "STS": ("STS",),
    "LDGSTS": ("LDGSTS",),
    "LDG": ("LDG",),
    "float": ("FSETP", "FADD", "FSEL", "F2F", "F2FP"),
}
INTEGER = re.compile(
    r"U?(IADD|IMAD|ISETP|ISCADD|IABS|I?MNMX|VIADD|VIMNMX|LEA|LOP|PLOP|SHF|SEL|MOV|PRMT)|R2UR"
)


def mix(loop: Counter[str]) -> dict[str, int]:
    """How many instructions of a loop are of each kind, and in all: {"matrix": 216, ..., "all": 631}."""
    counts = dict.fromkeys([*KINDS, "integer", "other"], 0)
    for opcode, count in loop.items():
        rest = "integer" if INTEGER.match(opcode) else "other"
        counts[next((kind for kind, opcodes in KINDS.items() if opcode in opcodes), rest)] += count
    return counts | {"all": loop.total()}


def readable(name: str) -> str:
    """A mangled name as in the source, without namespaces and parameters, if the tool for that is there."""
    tool = shutil.which("c++filt")
    if tool is None:
        return name
    text = subprocess.run([tool, name], capture_output=True, text=True, check=True).stdout
    return text.partition("(")[0].removeprefix("void ").replace("acsconv::", "").strip()


def describe(name: str, loop: Counter[str]) -> str:
    """One line for a kernel: its name and the mix of its main loop."""
    return f"{readable(name)}: " + ", ".join(f"{kind} {n}" for kind, n in mix(loop).items() if n)


def main(sources: list[str]) -> None:
    folder = Path(__file__).resolve().parents[2] / "build/cmake-cuda/CMakeFiles/kernels.dir/kernels"
    sources = sources or sorted(path.name.removesuffix(".cu.o") for path in folder.glob("mma_*.cu.o"))
    for architecture in ("sm_80", "sm_90a"):
        for source in sources:
            for name, instructions in sorted(kernels(folder / f"{source}.cu.o", architecture).items()):
                if loop := main_loop(instructions):
                    print(architecture, describe(name, loop))


if __name__ == "__main__":
    main(sys.argv[1:])
