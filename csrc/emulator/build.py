"""Builds the emulator with g++: the runtime and instrumented kernels, as a Python module or a plain library.

Used by tests/kernels/conftest.py. Object files are kept in a cache folder under a hash of everything that
went into them, so a second build of unchanged sources takes no time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent
RUNTIME = ("async_copy", "banks", "bulk_copy", "fault", "fiber", "hooks", "memory", "scheduler", "shadow", "sync",
           "warp_matrix")  # fmt: skip
FLAGS = ("-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-march=x86-64-v3",
         "-fno-optimize-sibling-calls", "-Wall", "-Wno-unknown-pragmas")  # fmt: skip
# The compiler's instrumentation without its runtimes: csrc/emulator/hooks.cpp takes the calls.
CHECK_ALIGNMENT = ("-fsanitize=alignment",)
INSTRUMENT = ("-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0", *CHECK_ALIGNMENT)
JOBS = 2


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def _object(cache: Path, source: Path, flags: Sequence[str]) -> Path:
    """Compiles ``source``, or finds it compiled: objects are named by a hash of what goes into them."""
    compile = [compiler(), *FLAGS, *flags, "-x", "c++", str(source)]
    foreign = any(flag.startswith(("-I", "-isystem")) for flag in flags)
    text = _run([*compile, "-E", "-P"]) if foreign else _with_includes(source)
    digest = hashlib.sha256(repr((_version(), FLAGS, tuple(flags), text)).encode()).hexdigest()[:20]
    target = cache / f"{source.stem}-{digest}.o"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}.o")
        _run([*compile, "-c", "-o", str(partial)])
        partial.rename(target)
    return target


def _with_includes(source: Path) -> list[str]:
    """The texts of a source and of the project's headers that it includes: found faster than by preprocessing."""
    texts: dict[Path, str] = {}
    pending = [source]
    while pending:
        path = pending.pop().resolve()
        if path in texts or not path.exists():
            continue
        texts[path] = path.read_text()
        pending += [
            path.parent / name for name in re.findall(r'^\s*#\s*include\s+"(.+?)"', texts[path], re.M)
        ]
    return list(texts.values())


@functools.cache
def _version() -> str:
    return _run([compiler(), "--version"])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _link(cache: Path, name: str, objects: Sequence[Path], libraries: Sequence[str] = ()) -> Path:
    digest = hashlib.sha256("".join([*(o.name for o in objects), *libraries]).encode()).hexdigest()[:20]
    target = cache / digest / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        _run([compiler(), "-shared", *map(str, objects), "-o", str(partial), "-ldl", *libraries])
        partial.rename(target)
    return target


def _objects(cache: Path, jobs: Sequence[tuple[Path, Sequence[str]]]) -> list[Path]:
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda job: _object(cache, *job), jobs))


def build_module(cache: Path, includes: Sequence[str], root: Path = CSRC) -> Path:
    """The Python module `acsconv_emulator` with the kernels of the tree `root`; returns its path.

    `includes`: folders of the pybind11 headers (torch ships them).
    """
    flags = [f"-I{path}" for path in (*includes, sysconfig.get_path("include"))]
    jobs = [(CSRC / "emulator" / "bindings.cpp", flags)]
    jobs += [(kernel, INSTRUMENT) for kernel in sorted((root / "kernels").glob("*.cu"))]
    jobs += [(CSRC / "emulator" / f"{name}.cpp", ()) for name in RUNTIME]
    return _link(cache, "acsconv_emulator" + sysconfig.get_config_var("EXT_SUFFIX"), _objects(cache, jobs))


def build_library(cache: Path, source: Path) -> Path:
    """A plain shared library of the runtime and one instrumented source, for ctypes; returns its path."""
    jobs: list[tuple[Path, Sequence[str]]] = [(source, (*INSTRUMENT, f"-I{CSRC}"))]
    jobs += [(CSRC / "emulator" / f"{name}.cpp", ()) for name in RUNTIME]
    return _link(cache, f"{source.stem}.so", _objects(cache, jobs))


def build_operators(cache: Path, torch: Path) -> Path:
    """csrc/ops.cpp with the CUDA kernels run by the emulator, as a library that torch loads; returns its path.

    The operators are registered for CPU tensors. The kernels are not instrumented, since the tensors are not the
    emulator's buffers: this is for what lies between Python and the kernels. `torch`: folder of the package.
    """
    flags = ("-DACSCONV_WITH_CUDA", "-DACSCONV_CUDA_KEY=CPU", "-DTORCH_TARGET_VERSION=0x020a000000000000")
    jobs: list[tuple[Path, Sequence[str]]] = [(CSRC / "ops.cpp", (*flags, "-isystem", f"{torch}/include"))]
    jobs += [(kernel, CHECK_ALIGNMENT) for kernel in sorted((CSRC / "kernels").glob("*.cu"))]
    jobs += [(CSRC / "emulator" / f"{name}.cpp", ()) for name in RUNTIME]
    libraries = [f"{torch}/lib/libtorch_cpu.so", f"{torch}/lib/libtorch.so"]
    return _link(cache, "libacsconv_emulated.so", _objects(cache, jobs), libraries)
