"""The emulator, built once per test run and cached under pytest's cache folder."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from kernels.ptx_cases import WORDS, Case

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class EmulatorBuilder:
    """Builds emulator modules and probe libraries from source trees; see csrc/emulator/build.py."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.build = _load("acsconv_emulator_build", CSRC / "emulator" / "build.py")
        self.pybind11 = str(Path(torch.__file__).parent / "include")  # torch carries the headers
        self.variant: ModuleType | None = None

    def module(self, root: Path = CSRC) -> ModuleType:
        path = self.build.build_module(self.cache, [self.pybind11], root)
        return _load(f"{path.parent.name}.acsconv_emulator", path)  # pybind11 keeps one module per full name

    def variant_module(self, root: Path) -> ModuleType:
        """The module of changed sources. It serves one test: what it holds is given back when the next one comes."""
        if self.variant is not None:
            self.variant.release_memory()
        self.variant = self.module(root)
        return self.variant

    def library(self, source: Path) -> Path:
        return self.build.build_library(self.cache, source)

    def operators(self) -> Path:
        return self.build.build_operators(self.cache, Path(torch.__file__).parent)


@pytest.fixture(scope="session")
def emulator_builder(request: pytest.FixtureRequest) -> EmulatorBuilder:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the emulator runs on x86-64 Linux")
    builder = EmulatorBuilder(Path(request.config.cache.mkdir("emulator")))
    if shutil.which(builder.build.compiler()) is None:
        pytest.skip(f"no C++ compiler: {builder.build.compiler()} not found")
    return builder


@pytest.fixture(scope="session")
def emulator_module(emulator_builder: EmulatorBuilder) -> ModuleType:
    return emulator_builder.module()


@pytest.fixture
def emulator(emulator_module: ModuleType) -> ModuleType:
    """The kernels of csrc/kernels on the CPU, with default settings: all checks on, warp-first schedule."""
    emulator_module.configure()
    return emulator_module


@pytest.fixture(scope="session")
def run_ptx_probe(emulator_builder: EmulatorBuilder) -> Callable[[Case], np.ndarray]:
    """Runs the probe of a case in the emulator and returns what it wrote: uint32 [WORDS]."""
    library = ctypes.CDLL(str(emulator_builder.library(Path(__file__).with_name("ptx_probes.cu"))))
    library.run_ptx_probe.restype = ctypes.c_char_p
    library.run_ptx_probe.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]

    def run(case: Case) -> np.ndarray:
        output = np.full(WORDS, 0xFFFFFFFF, np.uint32)
        error = library.run_ptx_probe(case.probe.encode(), case.words.ctypes.data, output.ctypes.data)
        assert error is None, error.decode()
        return output

    return run
