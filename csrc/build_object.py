"""Builds the shared object acsconv_cuda/libacsconv.so: finds the tools, decides what to build, runs CMake.

Called by setup.py. In a checkout it also runs by itself, needing neither setuptools nor an installation:

    python csrc/build_object.py

What is built is decided by the tools that are found, never by a visible GPU:

    nvcc and a C++ compiler -> CUDA and CPU kernels
    a C++ compiler          -> CPU kernels
    neither                 -> pure Python, with a warning

Environment variables:
    ACSCONV_BUILD=auto|cuda|cpu|none   what to build; anything but auto fails rather than build less
    FORCE_CUDA=1                       the same as ACSCONV_BUILD=cuda (0: as cpu, where there is a compiler)
    TORCH_CUDA_ARCH_LIST               GPU architectures, e.g. "8.0 9.0a 12.0+PTX"
    CUDA_HOME, CXX                     which CUDA toolkit and which C++ compiler
    MAX_JOBS                           parallel compilations; default: as many as cores and memory allow

CMake works in build/cmake-*, which is kept, so that building again is quick.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path

import ptxas_report

SOURCES = Path(__file__).resolve().parent
ROOT = SOURCES.parent
PACKAGE = ROOT / "acsconv_cuda"
OBJECT_NAME = "libacsconv.so"
RECORD_NAME = "_build.json"
MINIMUM_TORCH = (2, 10)
DEFAULT_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")
MEMORY_PER_JOB = 2 << 30  # bytes; what nvcc was seen to need, with room to spare


class BuildError(SystemExit):
    """Ends the build with a message instead of a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\nacsconv-cuda: {message}\n")


# --- what the machine has -----------------------------------------------------------------------------------


def find_tool(name: str) -> str | None:
    """Finds a program beside the running interpreter, whose environment may not be activated, or on PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def find_compiler() -> str | None:
    wanted = os.environ.get("CXX")
    candidates = [wanted] if wanted else ["c++", "g++", "clang++"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def output_of(*command: str) -> str:
    """Standard output of a command, empty when it fails."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    return ""


def nvcc_version(nvcc: str) -> str:
    found = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))
    if not found:
        raise BuildError(f"{nvcc} does not tell its version; is it the CUDA compiler?")
    return found[1]


@dataclass(frozen=True)
class Torch:
    """The installed PyTorch, found without importing it."""

    folder: Path
    version: str
    cuda: str | None  # CUDA version that it was built with


def find_torch() -> Torch:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError(
            f"PyTorch was not found by {sys.executable}. Install it first (pip install torch), then build "
            "with `pip install --no-build-isolation .`, so that the build sees it. Without PyTorch only "
            "ACSCONV_BUILD=none works."
        )
    folder = Path(spec.origin).parent
    facts = runpy.run_path(str(folder / "version.py"))
    torch = Torch(folder, str(facts["__version__"]), facts.get("cuda"))
    if tuple(int(part) for part in torch.version.split(".")[:2]) < MINIMUM_TORCH:
        raise BuildError(
            f"the compiled part needs PyTorch >= 2.10, and {torch.version} is installed. Update PyTorch, or "
            "set ACSCONV_BUILD=none for the pure Python package."
        )
    return torch


def job_count() -> int:
    wanted = os.environ.get("MAX_JOBS", "")
    if wanted:
        if not wanted.isdigit() or int(wanted) < 1:
            raise BuildError(f"MAX_JOBS must be a positive number, and is {wanted!r}")
        return int(wanted)
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError, AttributeError):
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        jobs = min(jobs, pages // MEMORY_PER_JOB)
    return max(1, jobs)


# --- what to build ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is built, and why no more than that."""

    mode: str  # "cuda", "cpu" or "none"
    compiler: str | None = None
    nvcc: str | None = None
    reason: str | None = None  # why the build is less than "cuda"


def requested_mode() -> str:
    mode = os.environ.get("ACSCONV_BUILD", "auto").lower()
    if mode not in ("auto", "cuda", "cpu", "none"):
        raise BuildError(f"ACSCONV_BUILD must be auto, cuda, cpu or none, and is {mode!r}")
    force = os.environ.get("FORCE_CUDA")
    if force == "1":
        if mode in ("cpu", "none"):
            raise BuildError(f"FORCE_CUDA=1 and ACSCONV_BUILD={mode} contradict each other")
        return "cuda"
    return "auto-cpu" if force == "0" and mode == "auto" else mode


def make_plan() -> Plan:
    mode = requested_mode()
    if mode == "none":
        return Plan("none", reason="ACSCONV_BUILD=none was set")
    compiler, nvcc = find_compiler(), find_nvcc()
    missing = None
    if not sys.platform.startswith("linux"):
        missing = f"the compiled part is for Linux, and this is {sys.platform}"
    elif compiler is None:
        missing = f"no C++ compiler was found (CXX={os.environ.get('CXX', '')!r}, c++, g++, clang++)"
    elif find_tool("cmake") is None:
        missing = "CMake was not found (pip install cmake ninja)"
    elif find_tool("ninja") is None and shutil.which("make") is None:
        missing = "neither ninja nor make was found (pip install ninja)"
    if missing:
        if mode in ("cuda", "cpu"):
            raise BuildError(f"ACSCONV_BUILD={mode} cannot be done: {missing}")
        return Plan("none", reason=missing)
    if mode in ("cpu", "auto-cpu"):
        return Plan("cpu", compiler, reason="CUDA kernels were declined (ACSCONV_BUILD=cpu or FORCE_CUDA=0)")
    if nvcc is None:
        where = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        reason = (
            f"no nvcc was found (looked in {where + '/bin' if where else 'PATH and /usr/local/cuda/bin'})"
        )
        if mode == "cuda":
            raise BuildError(f"ACSCONV_BUILD=cuda cannot be done: {reason}")
        return Plan("cpu", compiler, reason=reason)
    return Plan("cuda", compiler, nvcc)


@dataclass(frozen=True)
class Architectures:
    """GPU architectures to compile for, as in TORCH_CUDA_ARCH_LIST: machine code, and PTX for later GPUs.

    The machine code of most sources is made from the PTX of the oldest architecture, because the kernels use no
    instruction that came later: nvcc compiles to PTX once and only assembles for each, in 40 % of the time. The
    tensor-core kernels, which fill the registers, are compiled natively: without, one of them spills on 10.0.
    """

    cubin: tuple[str, ...]
    with_ptx: bool  # whether the object carries the PTX, for GPUs later than all of `cubin`

    @property
    def oldest(self) -> str:
        return min((arch.rstrip("af") for arch in self.cubin), key=lambda arch: [*map(int, arch.split("."))])

    @property
    def ptx(self) -> tuple[str, ...]:
        return (self.oldest,) if self.with_ptx else ()

    def __str__(self) -> str:
        return f"architectures {' '.join(self.cubin)}, PTX {' '.join(self.ptx) or 'none'}"

    def gencode(self, native: bool) -> list[str]:
        options = [(arch if native else self.oldest, f"sm_{arch}") for arch in self.cubin]
        options += [(arch, f"compute_{arch}") for arch in self.ptx]
        return [f"-gencode=arch=compute_{arch},code={code}".replace(".", "") for arch, code in options]


def architectures(nvcc: str) -> Architectures:
    known = set(re.findall(r"compute_(\d+)", output_of(nvcc, "--list-gpu-arch")))

    def supported(arch: str) -> bool:
        return re.sub(r"\D", "", arch) in known

    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    entries = [entry for entry in re.split(r"[\s,;]+", wanted) if entry]
    with_ptx = not entries or any(entry.endswith("+PTX") for entry in entries)
    cubin = []
    if not entries:
        entries = [arch for arch in DEFAULT_ARCHITECTURES if supported(arch)]
        if not entries:
            raise BuildError(f"{nvcc} (CUDA {nvcc_version(nvcc)}) is too old: it knows no GPU from 8.0 on")
    for entry in entries:
        arch = entry.removesuffix("+PTX")
        if not re.fullmatch(r"\d+\.\d[af]?", arch):
            raise BuildError(
                f'TORCH_CUDA_ARCH_LIST: {entry!r} is not of the form "8.0", "9.0a" or "12.0+PTX"'
            )
        if not supported(arch):
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: {nvcc} (CUDA {nvcc_version(nvcc)}) cannot compile for {arch}"
            )
        cubin.append(arch)
    return Architectures(tuple(dict.fromkeys(cubin)), with_ptx)


def check_cuda_versions(torch: Torch, nvcc: str) -> None:
    """The same major version is required: the driver that torch needs must also run our kernels."""
    ours = nvcc_version(nvcc)
    if torch.cuda and torch.cuda.split(".")[0] != ours.split(".")[0]:
        raise BuildError(
            f"{nvcc} is of CUDA {ours}, and PyTorch {torch.version} was built with CUDA {torch.cuda}; the "
            "major versions must be the same. Point CUDA_HOME to a matching toolkit, or build without CUDA "
            "kernels: ACSCONV_BUILD=cpu."
        )


# --- building -----------------------------------------------------------------------------------------------


def compile_object(plan: Plan, torch: Torch, archs: Architectures | None) -> Path:
    """Runs CMake and returns the shared object. Nothing is compiled that has not changed."""
    folder = ROOT / "build" / f"cmake-{plan.mode}"
    cmake = find_tool("cmake")
    ninja = find_tool("ninja")
    configure = [
        f"{cmake}",
        f"-S{SOURCES}",
        f"-B{folder}",
        *(["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else ["-GUnix Makefiles"]),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CXX_COMPILER={plan.compiler}",
        f"-DACSCONV_TORCH={torch.folder}",
    ]
    if archs is not None:
        configure += [
            f"-DCMAKE_CUDA_COMPILER={plan.nvcc}",
            f"-DCMAKE_CUDA_HOST_COMPILER={plan.compiler}",
            f"-DACSCONV_GENCODE={';'.join(archs.gencode(native=False))}",
            f"-DACSCONV_NATIVE_GENCODE={';'.join(archs.gencode(native=True))}",
            f"-DACSCONV_PYTHON={sys.executable}",
        ]
    # CMake cannot change its tools in a folder that exists, and need not run at all when nothing changed.
    tools = json.dumps([configure, torch.version, output_of(f"{cmake}", "--version")])
    fingerprint = folder / "configured-with.json"
    if not fingerprint.exists() or fingerprint.read_text() != tools:
        shutil.rmtree(folder, ignore_errors=True)
        run("configure", configure)
        fingerprint.write_text(tools)
    run("compile", [f"{cmake}", "--build", f"{folder}", "--parallel", str(job_count())])
    return folder / OBJECT_NAME


def run(step: str, command: list[str]) -> None:
    print("+", " ".join(command), flush=True)
    if subprocess.run(command).returncode != 0:
        raise BuildError(
            f"CMake could not {step} the kernels; its message is above (pip shows it with -v). Without CUDA "
            "kernels: ACSCONV_BUILD=cpu; without any: ACSCONV_BUILD=none."
        )


def build_record(plan: Plan, version: str) -> dict[str, object]:
    """What `python -m acsconv_cuda.info` tells about this build."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.now(datetime.timezone.utc)
    date = datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc) if seconds else now
    commit = output_of("git", "rev-parse", "HEAD") if (ROOT / ".git").exists() else ""
    if commit and output_of("git", "status", "--porcelain", "--untracked-files=no"):
        commit += " with local changes"
    return {
        "version": version,
        "mode": plan.mode,
        "reason": plan.reason,
        "commit": commit or None,
        "date": date.isoformat(timespec="seconds"),
    }


def compiled_facts(plan: Plan, torch: Torch, archs: Architectures | None) -> dict[str, object]:
    facts: dict[str, object] = {
        "torch": torch.version,
        "torch_cuda": torch.cuda,
        "compiler": output_of(str(plan.compiler), "--version").partition("\n")[0],
        "cmake": output_of(str(find_tool("cmake")), "--version")
        .partition("\n")[0]
        .removeprefix("cmake version "),
        "cpu": cpu_instruction_sets(ROOT / "build" / f"cmake-{plan.mode}"),
    }
    if archs is not None:
        kernels = count_kernels(ROOT / "build" / f"cmake-{plan.mode}")
        counts = ", ".join(f"{architecture} {count}" for architecture, count in kernels.items())
        print(f"acsconv-cuda: kernel instantiations: {counts}; {sum(kernels.values())} in all", flush=True)
        facts["cuda"] = {
            "version": nvcc_version(str(plan.nvcc)),
            "architectures": archs.cubin,
            "ptx": archs.ptx,
            "kernels": sum(kernels.values()),
        }
    return facts


def cpu_instruction_sets(folder: Path) -> list[str]:
    """Those that CMake found the compiler to know."""
    folders = (folder / "CMakeFiles").glob("isa_*.dir")
    return sorted(path.name.removeprefix("isa_").removesuffix(".dir") for path in folders)


def count_kernels(folder: Path) -> dict[str, int]:
    """Kernel instantiations by architecture, from what ptxas said in a build folder."""
    kernels = (kernel for report in ptxas_reports(folder).values() for kernel in ptxas_report.read(report))
    return dict(collections.Counter(kernel.architecture for kernel in kernels))


def ptxas_reports(folder: Path) -> dict[str, Path]:
    """The report of each CUDA source, by the source's name, in a build folder; it may not be there."""
    objects = folder / "CMakeFiles" / "kernels.dir" / "kernels"
    sources = sorted((SOURCES / "kernels").glob("*.cu"))
    return {source.stem: objects / f"{source.name}.o{ptxas_report.SUFFIX}" for source in sources}


def build_object(plan: Plan, version: str, folder: Path = PACKAGE) -> None:
    """Puts libacsconv.so, where `plan` has one, and _build.json into `folder`."""
    target = folder / OBJECT_NAME
    folder.mkdir(parents=True, exist_ok=True)
    record = build_record(plan, version)
    if plan.mode == "none":
        target.unlink(missing_ok=True)
        message = f"acsconv-cuda is built as pure Python, without fused kernels: {plan.reason}."
        warnings.warn(message, stacklevel=1)
    else:
        torch = find_torch()
        archs = None
        print(
            f"acsconv-cuda: building for {plan.mode}; PyTorch {torch.version}, CUDA of PyTorch: {torch.cuda}"
        )
        print(f"acsconv-cuda: C++ compiler {plan.compiler}; {job_count()} jobs")
        if plan.nvcc:
            archs = architectures(plan.nvcc)
            print(f"acsconv-cuda: nvcc {plan.nvcc}, CUDA {nvcc_version(plan.nvcc)}; {archs}", flush=True)
            check_cuda_versions(torch, plan.nvcc)
        else:
            print(f"acsconv-cuda: no CUDA kernels: {plan.reason}", flush=True)
        built = compile_object(plan, torch, archs)
        record |= compiled_facts(plan, torch, archs)
        # Never write into an object that a running process has mapped.
        fresh = target.with_suffix(".new")
        shutil.copyfile(built, fresh)
        os.replace(fresh, target)
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")


def project_version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if found is None:
        raise BuildError("pyproject.toml names no version")
    return found[1]


if __name__ == "__main__":
    build_object(make_plan(), project_version())
