"""The wheel and the source distribution, installed into a clean environment and used from another folder.

One wheel with CPU kernels is compiled, in a copy of the sources. The environments borrow torch from the running
interpreter by a .pth file; nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("csrc", "acsconv_cuda", "python")
FILES = (
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "constraints.txt",
)

USE = """
import json, sys, torch
import acsconv, acsconv_cuda
from acsconv_cuda import _loader
x = torch.randn(2, 4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
w = torch.randn(7, 4, 3, 3, generator=torch.Generator().manual_seed(1))
reference = acsconv_cuda.acs_conv3d(x, w, padding=1, backend="torch")
fused = acsconv_cuda.acs_conv3d(x, w, padding=1, backend="auto")
from acsconv.models import ACSUNet
ACSUNet(2, pretrained="poc-2d")
print(json.dumps({
    "files": [acsconv.__file__, acsconv_cuda.__file__],
    "loaded": _loader.loaded(),
    "failure": _loader.failure(),
    "package": _loader.check_acsconv_package(),
    "error": (fused - reference).abs().max().item(),
}))
"""

CHECK = "from acsconv_cuda._loader import check_acsconv_package as check; print(check())"

for module in ("setuptools", "wheel", "pip"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed", allow_module_level=True)


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ACSCONV_BUILD")
    }
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources without what builds left in them."""
    copy = tmp_path_factory.mktemp("sources")
    ignore = shutil.ignore_patterns("libacsconv.so", "_build.json", "__pycache__", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    return copy


def make_wheel(sources: Path, folder: Path, mode: str) -> Path:
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"),
        *("--wheel-dir", str(folder), str(sources)),
        cwd=sources,
        ACSCONV_BUILD=mode,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def pure_wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(checkout, tmp_path_factory.mktemp("pure"), "none")


@pytest.fixture(scope="module")
def compiled_wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("this machine has no C++ compiler")
    return make_wheel(checkout, tmp_path_factory.mktemp("compiled"), "cpu")


class Environment:
    """A virtual environment that sees this interpreter's torch behind its own packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site = Path(
            sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
        )
        # Not on the path itself: its own .pth files (an editable install of this project) stay without effect.
        borrowed = {Path(torch.__file__).parents[1], *map(Path, (sysconfig.get_path("purelib"),))}
        (self.site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))

    def pip(self, command: str, *arguments: str) -> None:
        run(sys.executable, "-m", "pip", "--python", str(self.python), command, *arguments, cwd=self.folder)

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", "--ignore-installed", str(wheel))

    def execute(self, script: str) -> str:
        """What a script prints that runs elsewhere than in the sources."""
        return run(str(self.python), "-c", script, cwd=self.folder).stdout

    def checked(self) -> str:
        return self.execute(CHECK).strip()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


# --- what is in them --------------------------------------------------------------------------------------------------


def test_compiled_wheel(compiled_wheel):
    assert compiled_wheel.name.startswith("acsconv_cuda-0.2.0-py3-none-")
    assert not compiled_wheel.name.endswith("none-any.whl")
    assert {"acsconv_cuda/libacsconv.so", "acsconv_cuda/_build.json"} <= names(compiled_wheel)


def test_pure_wheel(pure_wheel):
    assert pure_wheel.name == "acsconv_cuda-0.2.0-py3-none-any.whl"
    assert "acsconv_cuda/_build.json" in names(pure_wheel)
    assert not {name for name in names(pure_wheel) if name.endswith(".so")}


def test_wheel_holds_every_module_the_weights_and_nothing_else(pure_wheel):
    packaged = {name for name in names(pure_wheel) if ".dist-info/" not in name} - {
        "acsconv_cuda/_build.json"
    }
    expected = {
        str(path.relative_to(folder))
        for folder, package in ((ROOT, "acsconv_cuda"), (ROOT / "python", "acsconv"))
        for path in (folder / package).rglob("*")
        if path.suffix in (".py", ".safetensors") or path.name == "index.json"
    }
    assert packaged == expected
    assert any(name.endswith("licenses/LICENSE") for name in names(pure_wheel))


def test_wheel_after_a_change_has_no_left_overs(checkout, pure_wheel, tmp_path):
    """The build folder of an earlier wheel is still there; a module that went away since must not be packaged."""
    for path in (checkout / "build").glob("lib*"):
        (path / "acsconv_cuda").mkdir(parents=True, exist_ok=True)
        (path / "acsconv_cuda" / "removed.py").write_text("")
    assert "acsconv_cuda/removed.py" not in names(make_wheel(checkout, tmp_path, "none"))


def test_source_distribution(checkout, tmp_path):
    script = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    archive = tmp_path / run(sys.executable, "-c", script, cwd=checkout).stdout.split()[-1]
    with tarfile.open(archive) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
        sdist.extractall(tmp_path / "unpacked", filter="data")
    kinds = (".py", ".h", ".cuh", ".cpp", ".cu", ".txt", ".md", ".json", ".safetensors")
    needed = {
        str(path.relative_to(checkout))
        for name in SOURCES
        for path in (checkout / name).rglob("*")
        if path.suffix in kinds
    }
    assert needed | set(FILES) <= packed
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert make_wheel(unpacked, tmp_path / "wheel", "none").name.endswith("py3-none-any.whl")


# --- installed --------------------------------------------------------------------------------------------------------


def use(environment: Environment) -> dict:
    facts = json.loads(environment.execute(USE).splitlines()[-1])
    assert all(Path(name).is_relative_to(environment.site) for name in facts["files"])
    assert facts["package"] is None
    assert facts["error"] < 1e-5
    return facts


def test_compiled_wheel_is_used_from_another_folder(environment, compiled_wheel):
    environment.install(compiled_wheel)
    facts = use(environment)
    assert facts["loaded"], facts["failure"]
    report = run(str(environment.python), "-m", "acsconv_cuda.info", cwd=environment.folder).stdout
    assert str(environment.site) in report and "\nbuild          cpu" in report


def test_pure_wheel_is_used_from_another_folder(environment, pure_wheel):
    environment.install(pure_wheel)
    facts = use(environment)
    assert not facts["loaded"] and "ACSCONV_BUILD=none" in facts["failure"]


# --- beside the old distribution --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with the name and the file names of acsconv 0.1.1."""
    wheel = tmp_path_factory.mktemp("old") / "acsconv-0.1.1-py3-none-any.whl"
    info = "acsconv-0.1.1.dist-info"
    contents = {
        "acsconv/__init__.py": "",
        "acsconv/utils.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: acsconv\nVersion: 0.1.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*contents, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in contents.items():
            archive.writestr(name, text)
    return wheel


def test_installed_after_the_old_distribution(environment, old_wheel, pure_wheel):
    environment.install(old_wheel)
    environment.install(pure_wheel)
    assert "mixes files of acsconv-cuda and of the old distribution acsconv 0.1.1" in environment.checked()
    # Uninstalling only the old one takes our files with it ...
    environment.pip("uninstall", "--yes", "acsconv")
    assert "was not found" in environment.checked()
    # ... and what the sentence says mends it.
    environment.pip("uninstall", "--yes", "acsconv", "acsconv-cuda")
    environment.install(pure_wheel)
    assert environment.checked() == "None"


def test_installed_before_the_old_distribution(environment, old_wheel, pure_wheel):
    environment.install(pure_wheel)
    environment.install(old_wheel)
    assert "belongs to the old distribution acsconv 0.1.1" in environment.checked()
    environment.pip("uninstall", "--yes", "acsconv", "acsconv-cuda")
    environment.install(pure_wheel)
    assert environment.checked() == "None"


# --- again ------------------------------------------------------------------------------------------------------------


def test_building_again_compiles_only_what_changed(checkout, compiled_wheel):
    """The folder in which the wheel was compiled serves the next build; objects depend on the headers they include."""

    def build() -> str:
        return run(
            sys.executable, str(checkout / "csrc" / "build_object.py"), cwd=checkout, ACSCONV_BUILD="cpu"
        ).stdout

    assert "Building" not in build()
    (checkout / "csrc" / "cpu" / "isa.h").touch()
    again = build()
    assert "isa.cpp" in again and "gather_pass.cpp" in again
    assert "plan.cpp" not in again and "ops.cpp" not in again
