"""How numbers come about: statistics, rounds, the memory meter against known allocations, error and its limit."""

import math
import subprocess
import sys
import time
from pathlib import Path

import harness
import pytest
import torch
from environment import conv3d_warnings, thread_warnings
from harness import (
    FORMATS,
    Ceiling,
    CpuClock,
    ResidentMemory,
    can_keep_freed_memory,
    ceilings,
    error_limit,
    geometric_mean,
    interleave,
    relative_error,
    summarize,
)
from measure import roofline_time

MIB = 2**20


def test_summarize():
    summary = summarize([9.0, 1.0, 3.0, 5.0, 7.0])
    assert (summary.median, summary.q1, summary.q3, summary.minimum, summary.samples) == (5, 3, 7, 1, 5)
    assert summarize([2.0]).q3 == 2.0
    assert summarize([1.0, 2.0]).median == 1.5
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([8.0, 1.0, 1.0]) == pytest.approx(2.0)


class FakeClock(CpuClock):
    """Counts calls, and says that each took as long as the function returns."""

    def __init__(self):
        self.prepared = 0

    def prepare(self, function):
        self.prepared += 1

    def sample(self, function):
        return {"wall": function()}


def test_rounds_are_interleaved_and_rotate():
    calls = []
    functions = {name: lambda name=name: calls.append(name) or 1.0 for name in "abc"}
    clock = FakeClock()
    timings = interleave(functions, clock, repeats=3)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert clock.prepared == 3
    assert timings["a"]["wall"].samples == 3


def test_rounds_go_on_until_the_quickest_has_run_long_enough():
    functions = {"quick": lambda: 0.1, "slow": lambda: 5.0}
    assert interleave(functions, FakeClock(), repeats=2, min_time=0.75)["slow"]["wall"].samples == 8
    # ... but not for ever
    assert interleave(functions, FakeClock(), repeats=2, min_time=1e9)["slow"]["wall"].samples == 10


def test_cpu_clock_measures_the_call():
    functions = {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}
    timings = interleave(functions, CpuClock(), 5)
    assert 0.002 <= timings["short"]["wall"].minimum < 0.02 <= timings["long"]["wall"].minimum


def test_ceilings_are_rates_of_this_machine():
    found = ceilings(torch.device("cpu"), torch.float32)
    times = interleave({name: ceiling.function for name, ceiling in found.items()}, CpuClock(), 2)
    rates = {name: found[name].work / times[name]["wall"].minimum for name in found}
    assert 1e9 < rates["matrix product"] < 1e15
    assert 1e8 < rates["copy"] < 1e13


def test_least_time_is_the_slower_of_arithmetic_and_memory():
    limits = {"matrix product": Ceiling(None, 100.0, "FLOP"), "copy": Ceiling(None, 10.0, "B")}
    times = {"matrix product": 2.0, "copy": 1.0}  # 50 FLOP/s, 10 B/s
    assert roofline_time(500, 20, limits, times) == 10.0
    assert roofline_time(50, 20, limits, times) == 2.0


@pytest.fixture
def meter():
    meter = ResidentMemory()
    if not meter.available:
        pytest.skip(ResidentMemory.unavailable)
    return meter


def filled(mebibytes):
    """Memory that is really there: untouched pages are not resident."""
    return torch.ones(mebibytes * MIB, dtype=torch.uint8)


@pytest.mark.parametrize("mebibytes", [8, 64, 200])
def test_memory_meter_sees_an_allocation(meter, mebibytes):
    peak = meter.measure(lambda: filled(mebibytes)).bytes / MIB
    assert mebibytes - 1 <= peak <= mebibytes + 6


def test_memory_meter_sees_a_peak_that_is_over_at_the_end(meter):
    def together():
        filled(96)
        return filled(16)

    def one_after_the_other():
        for _ in range(4):
            filled(32)

    assert 95 <= meter.measure(together).bytes / MIB <= 102
    assert 31 <= meter.measure(one_after_the_other).bytes / MIB <= 38


def test_memory_meter_is_not_misled_by_memory_that_malloc_keeps(meter):
    small = [bytearray(60_000) for _ in range(1000)]  # below the threshold of mmap: comes from the heap
    blocker = bytearray(60_000)  # keeps the top of the heap in use
    del small
    peak = meter.measure(lambda: [bytearray(60_000) for _ in range(1000)]).bytes / MIB
    assert len(blocker) == 60_000
    assert 55 <= peak <= 65


def test_memory_meter_forgets_earlier_peaks(meter):
    filled(150)
    assert meter.measure(lambda: filled(8)).bytes / MIB < 15


def test_memory_meter_says_that_it_could_not_measure(meter):
    meter.available = False
    peak = meter.measure(lambda: filled(8))
    assert peak.bytes is None
    assert "not measured" in peak.method


def test_relative_error():
    oracle = torch.tensor([1.0, -4.0, 2.0], dtype=torch.float64)
    assert relative_error(torch.tensor([1.0, -4.0, 2.5]), oracle) == pytest.approx(0.125)
    assert relative_error(torch.tensor([1.0, -4.0]), oracle) == math.inf
    assert relative_error(torch.tensor([1.0, math.nan, 2.0]), oracle) == math.inf
    assert relative_error(torch.zeros(0), torch.zeros(0, dtype=torch.float64)) == 0
    assert relative_error(torch.tensor([0.5]), torch.zeros(1, dtype=torch.float64)) == 0.5


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_limit_admits_rounding_and_catches_faults(name):
    dtype = FORMATS[name].dtype
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(64, 576, generator=generator, dtype=torch.float64).to(dtype)
    right = torch.randn(576, 200, generator=generator, dtype=torch.float64).to(dtype)
    oracle = left.double() @ right.double()
    limit = error_limit(FORMATS[name], 576)
    assert relative_error(left @ right, oracle) < limit
    assert relative_error(left[:, 1:] @ right[1:], oracle) > limit  # one of 576 products missing
    if dtype == torch.float32:
        rounded = [(matrix.view(torch.int32) & -(1 << 13)).view(torch.float32) for matrix in (left, right)]
        error = relative_error(rounded[0] @ rounded[1], oracle)
        assert limit < error < error_limit(FORMATS["tf32"], 576)  # TF32 keeps 10 bits of 23


@pytest.mark.parametrize("name", FORMATS)
def test_float32_is_rounded_in_tf32_alone(name):
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        FORMATS[name].use()
        assert [backend.allow_tf32 for backend in backends] == [name == "tf32"] * 2
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@pytest.mark.parametrize(
    ("torch_version", "cudnn", "device", "words"),
    [
        ("2.9.0+cu128", 91002, "cuda", ["torch 2.9.0", "cuDNN 9.10.2"]),
        ("2.9.1+cu128", 91501, "cuda", ["torch 2.9.1"]),
        ("2.10.0+cu130", 90800, "cuda", ["cuDNN 9.8.0"]),
        ("2.10.0+cu130", 91499, "cuda", ["cuDNN 9.14.99"]),
        ("2.13.0+cu130", 91500, "cuda", []),
        ("2.13.0+cu130", 90702, "cuda", []),
        ("2.9.0+cpu", None, "cpu", []),
    ],
)
def test_known_faults_of_conv3d_are_named(torch_version, cudnn, device, words):
    found = conv3d_warnings(torch_version, cudnn, device)
    assert len(found) == len(words)
    for word, line in zip(words, found, strict=True):
        assert line.startswith(word)


def test_threads_without_cores_are_named():
    assert thread_warnings(2, 1, "cpu") == ["2 threads have 1 core: they wait for one another."]
    assert thread_warnings(2, 2, "cpu") == thread_warnings(2, 1, "cuda") == []


KEPT = """
import contextlib, resource, sys
import torch
from harness import freed_memory_kept

def faults(mebibytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(mebibytes * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with freed_memory_kept() if sys.argv[1] == "kept" else contextlib.nullcontext():
    print(*(faults(64) for _ in range(12)))
print(*(faults(256) for _ in range(4)))
"""


@pytest.mark.skipif(not can_keep_freed_memory(), reason="malloc is not glibc's")
def test_freed_memory_serves_the_next_call_while_it_is_kept():
    """64 MiB are 16384 pages, or 32 where pages are huge: fresh ones at every call, or soon none."""

    def faults(policy):
        command = [sys.executable, "-c", KEPT, policy]
        folder = Path(harness.__file__).parent
        text = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
        return [[int(number) for number in line.split()] for line in text.splitlines()]

    kept, afterwards = faults("kept")
    assert kept[0] >= 32
    assert kept[-1] + kept[-2] < 8
    assert min(afterwards) >= 128
    assert min(faults("as it is")[0]) >= 32
