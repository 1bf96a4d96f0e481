"""What the numbers were measured on: versions, machine, commit, memory policy, and known faults of the
peers.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def _command(*arguments: str) -> str | None:
    try:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_model() -> str:
    """Name of the processor as /proc/cpuinfo gives it, else what ``platform`` knows."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def onednn_version() -> str | None:
    """Version of the oneDNN (formerly MKL-DNN) that torch was built with."""
    found = re.search(r"MKL-DNN v(\S+)", torch.__config__.show())
    return found.group(1) if found else None


def huge_pages() -> str:
    """Page policy of large allocations: fresh outputs cost page faults, which weigh on memory-bound
    layers.
    """
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        kernel = re.search(r"\[(\w+)\]", text).group(1)
    except (OSError, AttributeError):
        kernel = "unknown"
    return f"kernel {kernel}, THP_MEM_ALLOC_ENABLE={os.environ.get('THP_MEM_ALLOC_ENABLE', 'unset')}"


def collect(device: torch.device) -> dict:
    """Everything that a result must be read with, as plain JSON values."""
    on_gpu = device.type == "cuda"
    record = {
        "device": device.type,
        "machine": torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "huge_pages": huge_pages(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "onednn": onednn_version(),
        "commit": _command("git", "rev-parse", "HEAD"),
        "dirty": None,
    }
    changes = _command("git", "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    if changes is not None:
        record["dirty"] = bool(changes)
    if on_gpu:
        major, minor = torch.cuda.get_device_capability(device)
        driver = _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        record["compute_capability"] = f"{major}.{minor}"
        record["driver"] = driver.splitlines()[0] if driver else None
    return record


def conv3d_warnings(torch_version: str, cudnn_version: int | None, device_type: str) -> list[str]:
    """Known faults of ``nn.Conv3d`` in these versions, one sentence each.

    ``cudnn_version`` is the integer of ``torch.backends.cudnn.version()``, e.g. 91002 for 9.10.2.
    Sources: pytorch#163539, #166122, #166480, #167024.
    """
    if device_type != "cuda":
        return []
    warnings = []
    if re.match(r"2\.9\.", torch_version):
        warnings.append(
            f"torch {torch_version}: 2.9.0 bypasses cuDNN for 16-bit Conv3d with kernels other than "
            "1x1x1, which is several times slower and flatters whatever is compared with it (pytorch#166122)."
        )
    if cudnn_version is not None and 90800 <= cudnn_version < 91500:
        name = f"{cudnn_version // 10000}.{cudnn_version // 100 % 100}.{cudnn_version % 100}"
        warnings.append(
            f"cuDNN {name}: versions 9.8 to 9.14 can return wrong 16-bit Conv3d results (pytorch#163539); "
            "use 9.15 or newer to compare with nn.Conv3d."
        )
    return warnings


def thread_warnings(threads: int, cores: int, device_type: str) -> list[str]:
    """A sentence where ``threads`` take turns on the ``cores`` that the process may use (``taskset``, a container)."""
    if device_type != "cpu" or threads <= cores:
        return []
    return [f"{threads} threads have {cores} core{'' if cores == 1 else 's'}: they wait for one another."]


def lines(record: dict) -> list[str]:
    """The record for people, one line a topic."""
    commit = record["commit"]
    state = {True: " with uncommitted changes", False: "", None: ""}[record["dirty"]]
    gpu = ""
    if record["device"] == "cuda":
        gpu = (
            f", compute capability {record['compute_capability']}, CUDA {record['cuda']}, "
            f"cuDNN {record['cudnn']}, driver {record['driver']}"
        )
    return [
        f"{record['machine']}{gpu}",
        f"{record['cores']} cores, {record['threads']} threads, {record['cpu_capability']}; "
        f"pages: {record['huge_pages']}"
        + (", freed memory is kept" if record.get("freed_memory_kept") else ""),
        f"torch {record['torch']}, oneDNN {record['onednn']}, Python {record['python']}, {record['system']}",
        f"commit {commit[:10] + state if commit else 'unknown'}",
    ]


def result_path(record: dict, created: str) -> Path:
    """benchmarks/results/<machine model>/<date>-<commit>.json"""
    model = re.sub(r"\((R|TM)\)", "", record["machine"])
    folder = re.sub(r"[^A-Za-z0-9]+", "-", model).strip("-")
    if record["device"] == "cpu":
        folder += f"-{record['cores']}-cores"
    commit = (record["commit"] or "unknown")[:10] + ("-dirty" if record["dirty"] else "")
    return ROOT / "benchmarks" / "results" / folder / f"{created[:10]}-{commit}.json"
