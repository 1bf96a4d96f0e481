"""Loads the compiled part, ``libacsconv.so``, and keeps the reason where it cannot.

Nothing here raises, and nothing initialises CUDA: what has to be known of the GPU before PyTorch has touched it is
asked of the driver's management library, which leaves the process free to fork.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent
_OBJECT = _FOLDER / "libacsconv.so"
_RECORD = _FOLDER / "_build.json"
_REBUILD = "pip install --no-build-isolation ."
_OLDEST_TORCH = (2, 10)

_state: dict[str, str | None] | None = None  # after load(): {"failure": sentence or None}


def load() -> None:
    """Loads the shared object, once. The schemas of its operators must have been defined."""
    global _state
    if _state is None:
        _state = {"failure": _try_to_load()}


def loaded() -> bool:
    """Whether the compiled operators are there."""
    return _state is not None and _state["failure"] is None


def failure() -> str | None:
    """Why the compiled operators are not there, in one sentence; None if they are."""
    return "the compiled part has not been loaded" if _state is None else _state["failure"]


@functools.cache
def build_info() -> dict | None:
    """What the build recorded: versions, mode, commit, GPU architectures; None if nothing was built."""
    try:
        return json.loads(_RECORD.read_text())
    except (OSError, ValueError):
        return None


def has_cuda_kernels() -> bool:
    """Whether the loaded object was built with CUDA kernels."""
    return loaded() and "cuda" in (build_info() or {})


def cpu_instruction_sets() -> tuple[str, ...]:
    """Those that the CPU kernels were built for, whatever the processor has; empty if nothing was built."""
    return tuple((build_info() or {}).get("cpu", ()))


def why_no_cuda(device: int | None = None) -> str | None:
    """Why the CUDA kernels cannot run, in one sentence; None if they can.

    Args:
        device: index of a CUDA device that PyTorch already uses. Without it the answer is for the machine: None if
            any of its GPUs will do.
    """
    if not loaded():
        return failure()
    if not has_cuda_kernels():
        reason = (build_info() or {}).get("reason")
        return "the compiled part was built without CUDA kernels" + (f": {reason}" if reason else "")
    if device is not None:
        return _why_not_capability(torch.cuda.get_device_capability(device))
    return _why_not_machine()


def check_acsconv_package() -> str | None:
    """Whether ``import acsconv`` gives this distribution's package; otherwise one sentence that says how to mend it.

    The old distribution ``acsconv`` installs the same import package, and pip lets each overwrite the other's files.
    The file that would be imported is found and read, not imported.
    """
    mend = "run `pip uninstall -y acsconv acsconv-cuda` and install acsconv-cuda again"
    try:
        spec = importlib.util.find_spec("acsconv")
    except (ImportError, ValueError):
        spec = None
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    if origin is None or not origin.is_file():
        return f"the package acsconv, a part of acsconv-cuda, was not found (or lost files to pip uninstall): {mend}."
    try:
        old = importlib.metadata.distribution("acsconv")
    except importlib.metadata.PackageNotFoundError:
        old = None
    marker = re.search(
        r"^__distribution__ = ['\"]acsconv-cuda['\"]", origin.read_text(errors="replace"), re.M
    )
    if marker is None:
        owner = f"the old distribution acsconv {old.version}" if old else "another distribution"
        return f"the package acsconv in {origin.parent} belongs to {owner}, not to acsconv-cuda: {mend}."
    if old is not None and Path(str(old.locate_file("acsconv/__init__.py"))).resolve() == origin.resolve():
        return (
            f"the folder {origin.parent} mixes files of acsconv-cuda and of the old distribution acsconv "
            f"{old.version}: {mend}."
        )
    return None


def _try_to_load() -> str | None:
    record = build_info()
    if not _OBJECT.exists():
        if record is None:
            return f"the compiled part is not built: run `{_REBUILD}` in the sources"
        return f"the compiled part is not built: {record['reason']}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST_TORCH:
        return f"the compiled part needs PyTorch >= 2.10, and {torch.__version__} is installed"
    try:
        torch.ops.load_library(str(_OBJECT))
    except OSError as error:
        built = (
            f"built with PyTorch {record['torch']}" if record and record.get("torch") else "of unknown origin"
        )
        return (
            f"the compiled part, {built}, does not load into PyTorch {torch.__version__}: {error}; "
            f"rebuild it with `{_REBUILD}`"
        )
    return None


@functools.cache
def _why_not_machine() -> str | None:
    runtime = build_info()["cuda"]["version"]
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} was built without CUDA"
    driver, capabilities = _ask_driver()
    if driver is None and torch.cuda.device_count() == 0:
        return "no NVIDIA driver was found"
    if driver is not None and driver[0] < int(runtime.split(".")[0]):
        return (
            f"the NVIDIA driver supports CUDA {driver[0]}.{driver[1]}, older than the CUDA runtime {runtime} of the "
            "kernels: update the driver, or build with an older nvcc"
        )
    if torch.cuda.device_count() == 0:
        return "PyTorch sees no CUDA device"
    refusals = [_why_not_capability(capability) for capability in capabilities]
    return refusals[0] if refusals and None not in refusals else None


@functools.cache
def _why_not_capability(capability: tuple[int, int]) -> str | None:
    """Machine code runs on its own major version from its minor version on ("a": there alone), PTX on all later."""
    cuda = build_info()["cuda"]
    for arch in cuda["architectures"]:
        major, minor, suffix = re.fullmatch(r"(\d+)\.(\d)(\w?)", arch).groups()
        exact = suffix == "a"
        if capability[0] == int(major) and (
            capability[1] == int(minor) if exact else capability[1] >= int(minor)
        ):
            return None
    if any(
        tuple(int(n) for n in arch.split(".")) <= capability for arch in cuda["ptx"] if arch[-1].isdigit()
    ):
        return None
    return (
        f"no kernel for this GPU: its compute capability is {capability[0]}.{capability[1]}, and the kernels were "
        f"compiled for {', '.join(cuda['architectures'])} and as PTX for {', '.join(cuda['ptx']) or 'none'}; rebuild "
        f'with TORCH_CUDA_ARCH_LIST="{capability[0]}.{capability[1]}"'
    )


def _ask_driver() -> tuple[tuple[int, int] | None, list[tuple[int, int]]]:
    """The CUDA version that the driver supports, and the machine's compute capabilities, through NVML.

    (None, []) without a driver. CUDA itself is not touched.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None, []
    if nvml.nvmlInit_v2() != 0:
        return None, []
    try:
        number, count = ctypes.c_int(), ctypes.c_uint()
        if nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(number)) != 0:
            return None, []
        capabilities = []
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for index in range(count.value):
            handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
                nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
                capabilities.append((major.value, minor.value))
        return (number.value // 1000, number.value % 1000 // 10), capabilities
    finally:
        nvml.nvmlShutdown()
