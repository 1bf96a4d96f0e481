"""The build: what it decides to build, what it says when it cannot, and what it leaves behind.

Decisions are tested with stand-ins for nvcc and torch; the real object is looked at where one has been built.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
OBJECT = ROOT / "acsconv_cuda" / "libacsconv.so"

NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.0" ;;
  --list-gpu-arch) printf 'compute_%s\\n' {known} ;;
esac
"""


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """csrc/build_object.py as a fresh module."""
    monkeypatch.syspath_prepend(ROOT / "csrc")
    spec = importlib.util.spec_from_file_location("build_object", ROOT / "csrc" / "build_object.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_object"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests start from no environment variable that steers the build."""
    for name in (
        "ACSCONV_BUILD",
        "FORCE_CUDA",
        "TORCH_CUDA_ARCH_LIST",
        "CUDA_HOME",
        "CUDA_PATH",
        "CXX",
        "MAX_JOBS",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a stand-in CUDA toolkit that CUDA_HOME points to."""

    def make(version: str = "13.0", known: str = "75 80 86 89 90 100 120") -> str:
        nvcc = tmp_path / "cuda" / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True, exist_ok=True)
        nvcc.write_text(NVCC.format(version=version, known=known))
        nvcc.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        return str(nvcc)

    return make


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stand-in C++ compiler and CMake, alone on PATH."""
    for name in ("c++", "cmake", "ninja"):
        tool = tmp_path / "tools" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    return str(tmp_path / "tools" / "c++")


def stand_in_torch(folder: Path, version: str, cuda: str | None) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("")
    (folder / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")


def copy_sources(folder: Path) -> Path:
    """A checkout without what builds left in it."""
    copy = folder / "checkout"
    for name in ("csrc", "acsconv_cuda"):
        ignore = shutil.ignore_patterns("libacsconv.so", "_build.json", "__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def run_build(checkout: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *options, str(checkout / "csrc" / "build_object.py")],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )


# --- what is built ----------------------------------------------------------------------------------------------------


def test_nvcc_and_compiler_give_cuda(build, toolkit, compiler):
    nvcc = toolkit()
    plan = build.make_plan()
    assert (plan.mode, plan.compiler, plan.nvcc, plan.reason) == ("cuda", compiler, nvcc, None)


def test_no_nvcc_gives_cpu(build, compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    plan = build.make_plan()
    assert plan.mode == "cpu"
    assert "no nvcc was found" in plan.reason and "nowhere" in plan.reason


@pytest.mark.parametrize(
    ("setting", "mode"),
    [
        ({"ACSCONV_BUILD": "cpu"}, "cpu"),
        ({"FORCE_CUDA": "0"}, "cpu"),
        ({"ACSCONV_BUILD": "none"}, "none"),
        ({"ACSCONV_BUILD": "cuda"}, "cuda"),
        ({"FORCE_CUDA": "1"}, "cuda"),
        ({"ACSCONV_BUILD": "AUTO"}, "cuda"),
    ],
)
def test_settings_are_followed(build, toolkit, compiler, monkeypatch, setting, mode):
    toolkit()
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert build.make_plan().mode == mode


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ACSCONV_BUILD": "gpu"}, "ACSCONV_BUILD must be auto, cuda, cpu or none, and is 'gpu'"),
        ({"ACSCONV_BUILD": "cpu", "FORCE_CUDA": "1"}, "contradict each other"),
        ({"ACSCONV_BUILD": "cuda", "CUDA_HOME": "/nowhere"}, "ACSCONV_BUILD=cuda cannot be done: no nvcc"),
        ({"FORCE_CUDA": "1", "CUDA_HOME": "/nowhere"}, "no nvcc was found (looked in /nowhere/bin)"),
        (
            {"ACSCONV_BUILD": "cpu", "CXX": "no-such-compiler"},
            "no C++ compiler was found (CXX='no-such-compiler'",
        ),
    ],
)
def test_what_cannot_be_done_is_said(build, compiler, monkeypatch, setting, message):
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=re.escape(message)):
        build.make_plan()


@pytest.mark.parametrize(("jobs", "valid"), [("3", True), ("0", False), ("many", False)])
def test_max_jobs(build, monkeypatch, jobs, valid):
    monkeypatch.setenv("MAX_JOBS", jobs)
    if valid:
        assert build.job_count() == int(jobs)
    else:
        with pytest.raises(SystemExit, match="MAX_JOBS must be a positive number"):
            build.job_count()


def test_jobs_are_capped_by_cores(build):
    assert 1 <= build.job_count() <= len(os.sched_getaffinity(0))


# --- architectures and versions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "known", "cubin", "ptx"),
    [
        ("", "80 86 89 90 100 120", ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0"), ("8.0",)),
        ("", "90 100", ("9.0a", "10.0"), ("9.0",)),
        ("8.0;9.0a", "80 90", ("8.0", "9.0a"), ()),
        ("8.6+PTX, 8.0 8.6", "80 86", ("8.6", "8.0"), ("8.0",)),
        ("12.0 9.0a+PTX", "90 120", ("12.0", "9.0a"), ("9.0",)),
    ],
)
def test_architectures(build, toolkit, monkeypatch, wanted, known, cubin, ptx):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    found = build.architectures(toolkit(known=known))
    assert (found.cubin, found.ptx) == (cubin, ptx)


def test_architecture_options(build):
    archs = build.Architectures(("12.0", "9.0a"), with_ptx=True)
    assert archs.gencode(native=False) == [
        "-gencode=arch=compute_90,code=sm_120",
        "-gencode=arch=compute_90,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert archs.gencode(native=True) == [
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    archs = build.Architectures(("8.6",), with_ptx=False)
    assert archs.gencode(native=False) == ["-gencode=arch=compute_86,code=sm_86"]


@pytest.mark.parametrize(
    ("wanted", "message"), [("Hopper", "'Hopper' is not of the form"), ("9.9", "cannot compile for 9.9")]
)
def test_unknown_architectures_are_refused(build, toolkit, monkeypatch, wanted, message):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    with pytest.raises(SystemExit, match=message):
        build.architectures(toolkit())


@pytest.mark.parametrize("cuda", [None, "13.2"])
def test_cuda_of_the_same_major_version_is_accepted(build, toolkit, tmp_path, cuda):
    build.check_cuda_versions(build.Torch(tmp_path, "2.13.0", cuda), toolkit("13.0"))


def test_cuda_of_another_major_version_is_refused(build, toolkit, tmp_path):
    message = r"is of CUDA 13\.0, and PyTorch 2\.13\.0 was built with CUDA 12\.8.*ACSCONV_BUILD=cpu"
    with pytest.raises(SystemExit, match=message):
        build.check_cuda_versions(build.Torch(tmp_path, "2.13.0", "12.8"), toolkit("13.0"))


def test_old_torch_is_refused(build, tmp_path, monkeypatch):
    stand_in_torch(tmp_path, "2.9.1", None)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: importlib.util.spec_from_file_location(name, tmp_path / name / "__init__.py"),
    )
    with pytest.raises(SystemExit, match=r"needs PyTorch >= 2\.10, and 2\.9\.1 is installed"):
        build.find_torch()


def test_missing_torch_names_the_option(tmp_path):
    """An isolated build sees no torch: -S leaves site-packages out just so."""
    checkout = copy_sources(tmp_path)
    result = run_build(checkout, "-S", ACSCONV_BUILD="auto", FORCE_CUDA="0")
    if "no C++ compiler" in result.stderr or "CMake was not found" in result.stderr:
        pytest.skip("this machine has no C++ compiler and CMake outside the environment")
    assert result.returncode != 0
    assert "PyTorch was not found" in result.stderr and "--no-build-isolation" in result.stderr
    assert "Traceback" not in result.stderr


# --- pure Python ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"ACSCONV_BUILD": "none"}, "ACSCONV_BUILD=none was set"),
        ({"PATH": "/nowhere"}, "no C++ compiler was found"),
    ],
    ids=["asked for", "no compiler"],
)
def test_pure_build_warns_and_removes_the_object(tmp_path, environment, reason):
    checkout = copy_sources(tmp_path)
    stale = checkout / "acsconv_cuda" / "libacsconv.so"
    stale.write_bytes(b"of an earlier build")
    result = run_build(checkout, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("is built as pure Python") == 1 and reason in result.stderr
    assert not stale.exists()
    record = json.loads((checkout / "acsconv_cuda" / "_build.json").read_text())
    assert record["mode"] == "none" and reason in record["reason"]


# --- the object -------------------------------------------------------------------------------------------------------

needs_object = pytest.mark.skipif(not OBJECT.exists(), reason="the compiled part is not built")


def tool(name: str, *arguments: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} (binutils) is not installed")
    return subprocess.run([name, *arguments], capture_output=True, text=True, check=True).stdout


@needs_object
def test_object_needs_torch_and_nothing_of_cuda():
    dynamic = tool("readelf", "-d", str(OBJECT))
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic))
    assert "libtorch_cpu.so" in needed
    assert not {name for name in needed if re.search(r"cud|c10|torch_python|python", name)}
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


@needs_object
def test_object_exports_nothing():
    assert tool("nm", "-D", "--defined-only", str(OBJECT)) == ""


@needs_object
def test_object_has_no_undefined_symbol():
    """Every symbol is bound at loading time, in a process that has torch and nothing else of ours."""
    script = f"import ctypes, os, torch; ctypes.CDLL({str(OBJECT)!r}, mode=os.RTLD_NOW)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd="/")


@needs_object
def test_object_names_no_folder_of_the_build_machine():
    assert str(ROOT).encode() not in OBJECT.read_bytes()


@needs_object
def test_instruction_sets_do_not_mix():
    """An inline function outside its namespace could reach every processor in its AVX-512 form."""
    mode = json.loads((OBJECT.parent / "_build.json").read_text())["mode"]
    objects = list((ROOT / "build" / f"cmake-{mode}").glob("CMakeFiles/isa_*.dir/cpu/*.cpp.o"))
    if not objects:
        pytest.skip("the build folder is not there")
    for path in objects:
        isa = path.parts[-3].removeprefix("isa_").removesuffix(".dir")
        listing = tool("nm", "--defined-only", "--extern-only", str(path))
        assert listing
        for line in listing.splitlines():
            assert isa in line, f"{path.name} of {isa} defines {line}"


@needs_object
def test_record_describes_the_build():
    record = json.loads((OBJECT.parent / "_build.json").read_text())
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert record["version"] == version
    assert record["mode"] in ("cpu", "cuda")
    assert {"torch", "torch_cuda", "compiler", "cmake", "cpu", "commit", "date", "reason"} <= record.keys()
    assert "portable" in record["cpu"]
    if record["mode"] == "cuda":
        assert {"version", "architectures", "ptx", "kernels"} == record["cuda"].keys()
        assert record["cuda"]["architectures"]


def test_import_is_free_of_side_effects():
    script = """
import sys, threading, warnings
import torch
before = set(sys.modules), threading.active_count()
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=ImportWarning)
import acsconv_cuda
assert not torch.cuda.is_initialized()
assert threading.active_count() == before[1]
new = {name.partition(".")[0] for name in set(sys.modules) - before[0]} - {"acsconv_cuda"}
assert not new & {"numpy", "subprocess", "setuptools", "acsconv", "matplotlib", "pkg_resources"}, new
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "" and result.stderr == ""
