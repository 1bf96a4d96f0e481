"""Records what the PTX wrappers of csrc/common do on the GPU present, and compares it with what the emulator assumes.

    python tests/gpu/golden.py RESULT.json

Compiles tests/kernels/ptx_probes.cu with nvcc and runs every case of tests/kernels/ptx_cases.py. The JSON holds the
words that the GPU wrote: {"device", "capability", "words": {case: [uint32, ...]}}. A copy in tests/kernels/golden is
compared with the emulator from then on (tests/kernels/test_golden.py). Exits 1 if the GPU contradicts a case; without
a GPU it says so.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from kernels.ptx_cases import CASES, WORDS, assert_matches  # noqa: E402


def build(folder: Path, capability: tuple[int, int]) -> Path:
    """The probes as a shared library for a GPU of this compute capability."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    architecture = f"sm_{capability[0]}{capability[1]}" + ("a" if capability[0] >= 9 else "")
    target = folder / "ptx_probes.so"
    subprocess.run(
        [nvcc, "-std=c++17", "-O3", f"-arch={architecture}", "-shared", "-Xcompiler=-fPIC", f"-I{ROOT / 'csrc'}",
         "-o", str(target), str(ROOT / "tests" / "kernels" / "ptx_probes.cu")],
        check=True,
    )  # fmt: skip
    return target


def record(library: ctypes.CDLL, probe: str, words: np.ndarray) -> np.ndarray:
    """What a probe makes of its input words on the GPU: uint32 [WORDS]."""
    source = torch.from_numpy(words.view(np.int32)).cuda()
    output = torch.full((WORDS,), -1, dtype=torch.int32, device="cuda")
    torch.cuda.synchronize()
    error = library.run_ptx_probe(
        probe.encode(), ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(output.data_ptr())
    )
    if error is not None:
        raise RuntimeError(f"{probe}: {error.decode()}")
    torch.cuda.synchronize()
    return output.cpu().numpy().view(np.uint32)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    if not torch.cuda.is_available():
        print(f"No GPU: PyTorch {torch.__version__} finds no CUDA device here, so nothing was recorded.")
        return 0
    capability, recorded, contradicted = torch.cuda.get_device_capability(), {}, []
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(str(build(Path(folder), capability)))
        library.run_ptx_probe.restype = ctypes.c_char_p
        for name, case in CASES.items():
            if capability[0] < case.needs_capability:
                continue
            words = record(library, case.probe, case.words)[: case.expected.size]
            recorded[name] = words.tolist()
            try:
                assert_matches(case, words)
            except AssertionError as error:
                contradicted.append(name)
                print(f"{name}: the GPU does otherwise\n{error}")
    result = {
        "device": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, capability)),
        "words": recorded,
    }
    Path(sys.argv[1]).write_text(json.dumps(result) + "\n")
    print(
        f"{len(recorded)} cases recorded on {result['device']}, {len(contradicted)} contradicted: {contradicted}"
    )
    return int(bool(contradicted))


if __name__ == "__main__":
    sys.exit(main())
