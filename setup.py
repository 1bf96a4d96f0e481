"""Packages acsconv-cuda: two Python packages and, where the machine can build it, one shared object.

    pip install --no-build-isolation .        # or -e . for development

csrc/build_object.py builds the object, and explains what is built and which environment variables steer it.
pyproject.toml has the rest.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))
from build_object import OBJECT_NAME, PACKAGE, RECORD_NAME, build_object, make_plan

PLAN = make_plan()


class BuildAll(build):
    """Runs build_ext also without extensions, so that a pure build leaves its record."""

    sub_commands = tuple(
        (name, None if name == "build_ext" else wanted) for name, wanted in build.sub_commands
    )

    def run(self) -> None:
        # Left-overs of an earlier build (a module since renamed, a shared object) would end up in the wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildObject(build_ext):
    """Builds libacsconv.so through CMake and writes _build.json beside it."""

    def run(self) -> None:
        folder = PACKAGE if self.inplace else Path(self.build_lib) / PACKAGE.name
        build_object(PLAN, self.distribution.get_version(), folder)

    def get_outputs(self) -> list[str]:
        names = [RECORD_NAME] if PLAN.mode == "none" else [OBJECT_NAME, RECORD_NAME]
        return [str(Path(self.build_lib) / PACKAGE.name / name) for name in names]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {output: f"{PACKAGE.name}/{Path(output).name}" for output in self.get_outputs()}

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in lists them


class Wheel(bdist_wheel):
    """Tags a compiled wheel py3-none-<platform>: it serves every Python and every torch >= 2.10."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return ("py3", "none", "any" if self.root_is_pure else platform)


setup(
    packages=[
        *find_packages(".", include=["acsconv_cuda", "acsconv_cuda.*"]),
        *find_packages("python", include=["acsconv", "acsconv.*"]),
    ],
    ext_modules=[] if PLAN.mode == "none" else [Extension(f"{PACKAGE.name}.libacsconv", sources=[])],
    cmdclass={"bdist_wheel": Wheel, "build": BuildAll, "build_ext": BuildObject},
)
