"""What the package tells about itself: the command, the reasons why CUDA cannot be used, the check of `acsconv`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch

from acsconv_cuda import _loader, info

CUDA_RECORD = {
    "mode": "cuda",
    "reason": None,
    "torch": "2.13.0",
    "cuda": {
        "version": "13.0",
        "architectures": ["8.0", "8.6", "9.0a", "10.0"],
        "ptx": ["10.0"],
        "kernels": 4,
    },
}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch):
    """Makes the loader believe in a build record and, if told so, in a loaded object."""

    def believe(record: dict | None, failure: str | None = None) -> None:
        monkeypatch.setattr(_loader, "build_info", lambda: record)
        monkeypatch.setattr(_loader, "_state", {"failure": failure})

    _loader._why_not_machine.cache_clear()
    _loader._why_not_capability.cache_clear()
    yield believe
    _loader._why_not_machine.cache_clear()
    _loader._why_not_capability.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Makes the loader see a machine with this torch, driver and these GPUs."""

    def see(torch_cuda: str | None, driver: tuple[int, int] | None, gpus: list[tuple[int, int]]) -> None:
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(_loader, "_ask_driver", lambda: (driver, gpus))

    return see


# --- the command ------------------------------------------------------------------------------------------------------


def test_command_prints_the_report():
    result = subprocess.run([sys.executable, "-m", "acsconv_cuda.info"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for word in ("acsconv-cuda", torch.__version__, "build", "acs_conv3d", "backward_weight", "acsconv  "):
        assert word in result.stdout


def test_report_of_a_cuda_build(built, machine):
    built(
        CUDA_RECORD
        | {
            "version": "0.2.0",
            "commit": "abc",
            "date": "2026-01-01",
            "torch_cuda": None,
            "compiler": "g++",
            "cmake": "4",
        }
    )
    machine("13.0", (13, 0), [(9, 0)])
    text = info.report()
    assert "nvcc 13.0, 4 kernels" in text and "8.0 8.6 9.0a 10.0, PTX 10.0" in text and "commit abc" in text


def test_every_absent_feature_has_its_reason(built):
    built(None, failure="the compiled part is not built: for a test")
    text = info.report()
    table = [line for line in text.splitlines() if line.startswith(("acs_conv3d", "soft_acs_conv3d"))]
    assert len(table) == 6
    numbers = {cell for line in table for cell in line.split()[2:] if cell != "yes"}
    assert numbers, "without a compiled part something must be absent"
    for number in numbers:
        assert text.count(f"\n  {number} ") == 1
    assert "the compiled part is not built: for a test" in text
    assert all(line.split()[-1] == "yes" for line in table), "torch computes everything"


def test_features_agree_with_the_operators_that_were_loaded():
    if not _loader.loaded():
        pytest.skip(f"no compiled part: {_loader.failure()}")
    for backend, key in (("cpu", "CPU"), ("cuda", "CUDA")):
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key("acsconv::fused_forward", key)
        assert has_kernel == (backend == "cpu" or _loader.has_cuda_kernels())


# --- why the object is not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (None, "not built: run `pip install"),
        ({"reason": "no C++ compiler was found"}, "no C++ compiler was found"),
    ],
)
def test_missing_object(monkeypatch, tmp_path, record, sentence):
    monkeypatch.setattr(_loader, "_OBJECT", tmp_path / "libacsconv.so")
    monkeypatch.setattr(_loader, "build_info", lambda: record)
    assert sentence in _loader._try_to_load()


def test_damaged_object(monkeypatch, tmp_path):
    (tmp_path / "libacsconv.so").write_bytes(b"not an object")
    monkeypatch.setattr(_loader, "_OBJECT", tmp_path / "libacsconv.so")
    monkeypatch.setattr(_loader, "build_info", lambda: {"torch": "2.99.0"})
    reason = _loader._try_to_load()
    assert "built with PyTorch 2.99.0" in reason and torch.__version__ in reason and "rebuild" in reason


def test_old_torch(monkeypatch, tmp_path):
    (tmp_path / "libacsconv.so").write_bytes(b"")
    monkeypatch.setattr(_loader, "_OBJECT", tmp_path / "libacsconv.so")
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert _loader._try_to_load() == "the compiled part needs PyTorch >= 2.10, and 2.9.1 is installed"


# --- why CUDA cannot be used ------------------------------------------------------------------------------------------


def test_reasons_against_cuda_are_told_apart(built, machine):
    reasons = []
    built(None, failure="the compiled part is not built: for a test")
    reasons.append(_loader.why_no_cuda())

    built({"mode": "cpu", "reason": "no nvcc was found"})
    reasons.append(_loader.why_no_cuda())
    assert reasons[-1] == "the compiled part was built without CUDA kernels: no nvcc was found"

    built(CUDA_RECORD)
    for torch_cuda, driver, gpus, words in [
        (None, (13, 0), [(9, 0)], "was built without CUDA"),
        ("13.0", None, [], "no NVIDIA driver"),
        ("13.0", (12, 4), [(9, 0)], "driver supports CUDA 12.4, older than the CUDA runtime 13.0"),
        ("13.0", (13, 0), [], "sees no CUDA device"),
        ("13.0", (13, 0), [(7, 5)], "no kernel for this GPU: its compute capability is 7.5"),
    ]:
        _loader._why_not_machine.cache_clear()
        machine(torch_cuda, driver, gpus)
        reasons.append(_loader.why_no_cuda())
        assert words in reasons[-1]
    assert len(set(reasons)) == len(reasons)
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize("gpus", [[(9, 0)], [(7, 5), (9, 0)]], ids=["one", "one of two"])
def test_cuda_can_be_used(built, machine, gpus):
    built(CUDA_RECORD)
    machine("13.0", (13, 0), gpus)
    assert _loader.why_no_cuda() is None


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((12, 0), True),
        ((7, 5), False),
        ((9, 1), False),
    ],
)
def test_compute_capabilities(built, capability, runs):
    """Machine code serves later minor versions, but "9.0a" serves 9.0 alone; PTX serves all later GPUs."""
    built(CUDA_RECORD)
    reason = _loader._why_not_capability(capability)
    assert (reason is None) == runs
    if reason is not None:
        assert f'TORCH_CUDA_ARCH_LIST="{capability[0]}.{capability[1]}"' in reason


# --- whose package `acsconv` is ---------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages folder that is all the check sees."""

    def distribution(name: str) -> importlib.metadata.Distribution:
        found = importlib.metadata.distributions(name=name, path=[str(tmp_path)])
        try:
            return next(iter(found))
        except StopIteration:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: PathFinder.find_spec(name, [str(tmp_path)]))
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    return tmp_path


def put_package(site: Path, text: str) -> None:
    (site / "acsconv").mkdir(exist_ok=True)
    (site / "acsconv" / "__init__.py").write_text(text)


def put_old_distribution(site: Path) -> None:
    (site / "acsconv-0.1.1.dist-info").mkdir()
    (site / "acsconv-0.1.1.dist-info" / "METADATA").write_text("Name: acsconv\nVersion: 0.1.1\n")


OURS = '"""Docstring."""\n\n__distribution__ = "acsconv-cuda"\nraise AssertionError("imported")\n'
MEND = "pip uninstall -y acsconv acsconv-cuda"


def test_our_package_is_recognised_without_importing_it(site):
    put_package(site, OURS)
    assert _loader.check_acsconv_package() is None


def test_the_old_package_is_named(site):
    put_package(site, "from .converters import *\n")
    put_old_distribution(site)
    text = _loader.check_acsconv_package()
    assert "belongs to the old distribution acsconv 0.1.1" in text and MEND in text


def test_a_foreign_package_is_named(site):
    put_package(site, "")
    text = _loader.check_acsconv_package()
    assert "belongs to another distribution" in text and MEND in text


def test_a_mixture_is_named(site):
    put_package(site, OURS)
    put_old_distribution(site)
    text = _loader.check_acsconv_package()
    assert "mixes files of acsconv-cuda and of the old distribution acsconv 0.1.1" in text and MEND in text


@pytest.mark.parametrize("left", [False, True], ids=["nothing", "an empty folder"])
def test_a_missing_package_is_named(site, left):
    if left:
        (site / "acsconv").mkdir()
    text = _loader.check_acsconv_package()
    assert "was not found" in text and MEND in text


def test_every_answer_is_one_sentence(site):
    put_package(site, "")
    text = _loader.check_acsconv_package()
    assert "\n" not in text and text.endswith(".")


def test_the_command_says_it_too(site):
    put_package(site, "")
    assert "belongs to another distribution" in info.report()
