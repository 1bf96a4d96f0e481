"""The CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, without torch.

The sources are compiled as on a platform that has only the portable kernels, with vectors wider than its registers
once, and run over the table of layers and over problems drawn at random; ``cpu_driver.cpp`` compares
every result with loops.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import CASES
from cpu_problems import LAYOUTS, Problem, depthwise_problem, random_problem

from acsconv_cuda.geometry import default_split, resolve

ROOT = Path(__file__).resolve().parents[2]
CPU = ROOT / "csrc" / "cpu"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")

# sanitizer: options, bytes of a vector
BUILDS = {
    "address": (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], 32),
    "thread": (["-fsanitize=thread"], 16),
}


@pytest.fixture(scope="module", params=BUILDS)
def driver(request, tmp_path_factory) -> tuple[str, Path]:
    """The sanitizer's name, and the program."""
    if COMPILER is None:
        pytest.skip("no C++ compiler was found")
    options, vector_bytes = BUILDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    command = [
        COMPILER,
        "-std=gnu++17",
        "-O1",
        "-g1",
        "-Wno-psabi",
        f"-I{ROOT / 'csrc'}",
        *options,
        "-pthread",
    ]
    trial = folder / "trial.cpp"
    trial.write_text("int main() { return 0; }\n")
    tried = subprocess.run(
        [*command, str(trial), "-o", str(folder / "trial")], capture_output=True, text=True
    )
    if tried.returncode != 0 or subprocess.run([str(folder / "trial")]).returncode != 0:
        pytest.skip(f"{COMPILER} cannot build and run with {options[0]}: {tried.stderr.strip()[-200:]}")
    names = {
        "ACSCONV_ISA": "portable",
        "ACSCONV_VECTOR_BYTES": vector_bytes,
        "ACSCONV_ACCUMULATORS": 12,
    }
    # No sanitizer sees what a processor's tiles load: here they are loops.
    command += ["-DACSCONV_TILES_EVERYWHERE", *(f"-D{name}={value}" for name, value in names.items())]
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
    return request.param, program


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


def run(program: Path, lines: list[str], fault: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [str(program), fault], input="\n".join(lines), capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("type", range(4), ids=["float64", "float32", "float16", "bfloat16"])
def test_no_report_and_right_results(driver, type):
    if driver[0] == "thread" and type in (0, 2):
        pytest.skip("threads share the same memory whatever the type: float32 and bfloat16 are enough")
    lines = lines_of_cases(type) + lines_of_random_problems(type, random_problem, range(12))
    lines += lines_of_random_problems(type, depthwise_problem, range(6))
    result = run(driver[1], lines)
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[:3000]
    assert result.stdout == f"{len(lines)} problems\n"


def test_a_planted_fault_is_reported(driver):
    fault, report = {"address": ("short", "heap-buffer-overflow"), "thread": ("twice", "data race")}[
        driver[0]
    ]
    result = run(driver[1], lines_of_cases(1)[:1], fault)
    assert result.returncode != 0
    assert report in result.stderr
