"""The CPU kernels without torch: under sanitizers, compiled by clang, and on an emulated aarch64 processor.

The sources are compiled as on a platform that has only the portable kernels, with vectors wider than its registers
once, and run over the table of layers and over problems drawn at random; ``cpu_driver.cpp`` compares
every result with loops.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from cases import CASES
from cpu_problems import LAYOUTS, Problem, depthwise_problem, pointwise_problem, random_problem, wide_problem

from acsconv_cuda.geometry import default_split, resolve

ROOT = Path(__file__).resolve().parents[2]
CPU = ROOT / "csrc" / "cpu"


class Build(NamedTuple):
    """A way to compile the driver, and to run it."""

    compilers: tuple[str, ...]  # any of them, with its arguments
    options: tuple[str, ...]
    vector_bytes: int
    accumulators: int
    runner: tuple[str, ...] = ()
    fault: tuple[str, str] | None = None  # a fault of cpu_driver.cpp, and the report that it must bring about


NATIVE = (os.environ.get("CXX") or "g++", "c++")
# No sanitizer sees what a processor's tiles load, and not every processor has the products of pairs: in the first two
# builds there are loops and plain products in their place, as instruction sets of their own.
SANITIZED = ("-O1", "-g1", "-DACSCONV_TILES_EVERYWHERE")
STRICT = ("-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=fast")
BUILDS = {
    "address": Build(
        NATIVE,
        (*SANITIZED, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        32,
        12,
        fault=("short", "heap-buffer-overflow"),
    ),
    "thread": Build(NATIVE, (*SANITIZED, "-fsanitize=thread"), 16, 12, fault=("twice", "data race")),
    "clang": Build(("clang++",), STRICT, 16, 12),
    "aarch64": Build(("aarch64-linux-gnu-g++",), (*STRICT, "-static"), 16, 24, runner=("qemu-aarch64",)),
}


class Driver(NamedTuple):
    name: str  # of the build
    command: list[str]


@pytest.fixture(scope="module", params=BUILDS)
def driver(request, tmp_path_factory) -> Driver:
    build = BUILDS[request.param]
    compiler = next((words for words in map(shlex.split, build.compilers) if shutil.which(words[0])), None)
    if compiler is None:
        pytest.skip(f"not found: {' or '.join(build.compilers)}")
    folder = tmp_path_factory.mktemp(request.param)
    names = {
        "ACSCONV_ISA": "portable",
        "ACSCONV_VECTOR_BYTES": build.vector_bytes,
        "ACSCONV_ACCUMULATORS": build.accumulators,
    }
    command = [*compiler, "-std=gnu++17", "-Wno-psabi", f"-I{ROOT / 'csrc'}", *build.options, "-pthread"]
    command += [f"-D{name}={value}" for name, value in names.items()]

    trial = folder / "trial.cpp"
    trial.write_text("int main() { return 0; }\n")
    for trial_command in (
        [*command, str(trial), "-o", str(folder / "trial")],
        [*build.runner, str(folder / "trial")],
    ):
        try:
            subprocess.run(trial_command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this machine cannot: {error}: {str(getattr(error, 'stderr', '')).strip()[-200:]}")

    sources = [*sorted(CPU.glob("*.cpp")), Path(__file__).with_name("cpu_driver.cpp")]
    objects = [folder / f"{source.stem}.o" for source in sources]
    jobs: list[subprocess.Popen] = []
    for source, object in zip(sources, objects):
        if len(jobs) >= 2:
            assert jobs.pop(0).wait() == 0
        jobs.append(subprocess.Popen([*command, "-c", str(source), "-o", str(object)]))
    assert [job.wait() for job in jobs] == [0] * len(jobs)
    program = folder / "driver"
    subprocess.run([*command, *map(str, objects), "-o", str(program)], check=True)
    return Driver(request.param, [*build.runner, str(program)])


def line(*numbers) -> str:
    """One problem as the driver reads it; nested sequences are flattened."""
    flat: list[int] = []
    for number in numbers:
        flat += [number] if isinstance(number, int) else [int(n) for n in line(*number).split()]
    return " ".join(map(str, flat))


def lines_of_cases(type: int) -> list[str]:
    lines = {}
    for case in CASES:
        small = case.small()
        geometry = resolve((small.kernel_size,) * 2, small.stride, small.padding, small.dilation)
        soft = small.kind != "acs"
        split = (small.out_channels, 0, 0) if soft else small.split or default_split(small.out_channels)
        for last in (0, 1):
            text = line(
                type, int(soft), last, small.groups, small.batch, small.in_channels, small.out_channels,
                small.size, small.output_size, geometry.kernel, split, small.stride, geometry.origin,
                geometry.dilation,
            )  # fmt: skip
            lines[text] = None
    return list(lines)


def lines_of_random_problems(type: int, draw: Callable[[int, str], Problem], seeds: range) -> list[str]:
    lines = []
    for seed in seeds:
        p = draw(seed, LAYOUTS[seed % 2])
        soft = not p.split
        out_channels = p.weight.shape[-4]
        lines.append(
            line(
                type, int(soft), seed % 2, p.groups, p.input.shape[0], p.input.shape[1], out_channels,
                p.input.shape[2:], p.output_size, p.weight.shape[-2:], p.split or (out_channels, 0, 0), p.stride,
                p.origin, p.dilation,
            )
        )  # fmt: skip
    return lines


def run(
    driver: Driver, lines: list[str], fault: str = "", isa: str = "portable"
) -> subprocess.CompletedProcess:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    environment["ACSCONV_CPU_ISA"] = isa
    return subprocess.run(
        [*driver.command, fault], input="\n".join(lines), capture_output=True, text=True, env=environment
    )


TYPES = ("float64", "float32", "float16", "bfloat16")


@pytest.mark.parametrize(
    ("type", "isa"),
    [
        *((type, "portable") for type in range(4)),
        (TYPES.index("bfloat16"), "portable_tiles"),
        (TYPES.index("bfloat16"), "portable_pairs"),
    ],
    ids=[*TYPES, "bfloat16 in tiles", "bfloat16 in pairs"],
)
def test_no_report_and_right_results(driver, type, isa):
    if driver.name == "thread" and TYPES[type] in ("float64", "float16"):
        pytest.skip("threads share the same memory whatever the type: float32 and bfloat16 are enough")
    if isa != "portable" and BUILDS[driver.name].fault is None:
        pytest.skip("only the sanitizers' builds have these everywhere")
    lines = lines_of_cases(type) + lines_of_random_problems(type, random_problem, range(12))
    lines += lines_of_random_problems(type, depthwise_problem, range(6))
    lines += lines_of_random_problems(type, wide_problem, range(6))
    lines += lines_of_random_problems(type, pointwise_problem, range(20))
    result = run(driver, lines, isa=isa)
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[:3000]
    assert result.stdout == f"{len(lines)} problems\n"


def test_a_planted_fault_is_reported(driver):
    if BUILDS[driver.name].fault is None:
        pytest.skip("this build has no sanitizer")
    fault, report = BUILDS[driver.name].fault
    result = run(driver, lines_of_cases(1)[:1], fault)
    assert result.returncode != 0
    assert report in result.stderr
