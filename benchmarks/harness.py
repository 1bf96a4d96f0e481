"""How a number comes about: timing, peak memory, error against float64, ceilings of the machine.

Nothing here knows what is measured; functions take no arguments and return tensors or None. Times are in
seconds, memory in bytes.

Timing. All implementations of one case run in one process in rounds, one call each per round, in an order
that rotates: slow drift of the machine (frequency, neighbours) then meets all of them alike. The result is
the median and the interquartile range over rounds.

On a GPU two times are taken. ``device``: CUDA events around the call, after a write over twice the L2 cache
that is outside the window and long enough for the host to run ahead, so that launches do not show: the
kernels alone. ``wall``: the host's clock around call and synchronisation, launches and Python included. On a
CPU there is ``wall`` alone, and the caches hold what the other implementations left there; memory that a call frees
serves the next one (:func:`freed_memory_kept`)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

Function = Callable[[], object]


class Format(NamedTuple):
    """Of numbers: their dtype, and the distance ``epsilon`` from 1 to the next number as they are multiplied."""

    name: str
    dtype: torch.dtype
    epsilon: float

    def use(self) -> None:
        """Lets PyTorch's convolutions and matrix products on a GPU round float32 to TF32, or not."""
        allow = self.name == "tf32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allow


FORMATS = {
    **{
        name: Format(name, getattr(torch, name), torch.finfo(getattr(torch, name)).eps)
        for name in ("float64", "float32", "float16", "bfloat16")
    },
    "tf32": Format("tf32", torch.float32, 2.0**-10),
}


# -- statistics -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """Order statistics of a list of samples; ``q1`` and ``q3`` bound the interquartile range."""

    median: float
    q1: float
    q3: float
    minimum: float
    samples: int


def summarize(samples: Sequence[float]) -> Summary:
    """Median and quartiles (linear interpolation between samples); ValueError without samples."""
    if not samples:
        raise ValueError("no samples to summarize")
    if len(samples) == 1:
        return Summary(samples[0], samples[0], samples[0], samples[0], 1)
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(median, q1, q3, min(samples), len(samples))


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm: the fair mean of ratios. ValueError without values."""
    if not values:
        raise ValueError("no values to average")
    return math.exp(statistics.fmean(math.log(value) for value in values))


# -- clocks -----------------------------------------------------------------------------------------


class CpuClock:
    """One call, on the host's clock."""

    columns = ("wall",)

    def prepare(self, function: Function) -> None:
        function()

    def sample(self, function: Function) -> dict[str, float]:
        start = time.perf_counter()
        function()
        return {"wall": time.perf_counter() - start}


class CudaClock:
    """One call by events behind a flush of the L2 cache, and one call by the host's clock."""

    columns = ("device", "wall")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush_buffer = torch.empty(max(2 * l2_bytes, 64 << 20), dtype=torch.uint8, device=device)
        self._flush_time = statistics.median(self._events(self._flush_buffer.zero_) for _ in range(5))
        self._host_time: dict[int, float] = {}

    def _events(self, function: Function) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def prepare(self, function: Function) -> None:
        """Warm up, and learn how long the host needs to enqueue the call: the flush must last longer."""
        for _ in range(3):
            function()
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        function()
        self._host_time[id(function)] = time.perf_counter() - start
        torch.cuda.synchronize(self.device)

    def _flush(self, seconds: float) -> None:
        for _ in range(1 + math.ceil(1.5 * seconds / self._flush_time)):
            self._flush_buffer.zero_()

    def sample(self, function: Function) -> dict[str, float]:
        torch.cuda.synchronize(self.device)
        self._flush(self._host_time[id(function)])
        device_time = self._events(function)
        self._flush(0.0)
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        function()
        torch.cuda.synchronize(self.device)
        return {"device": device_time, "wall": time.perf_counter() - start}


def clock_for(device: torch.device) -> CpuClock | CudaClock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def _glibc() -> ctypes.CDLL | None:
    """The C library, if its malloc can be set up."""
    try:
        library = ctypes.CDLL(None)
        library.mallopt.argtypes = ctypes.c_int, ctypes.c_int
    except (OSError, AttributeError):
        return None
    library.malloc.argtypes, library.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    library.free.argtypes = (ctypes.c_void_p,)
    return library


def can_keep_freed_memory() -> bool:
    """Whether :func:`freed_memory_kept` has an effect here."""
    return _glibc() is not None


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, malloc keeps what is freed, as the allocators of long-running programs do.

    By itself glibc's malloc returns large blocks to the system, or not, depending on sizes and on who freed what
    before. A first touch of a returned page costs about as much as computing its contents, so a layer's time would
    tell which implementation was called before it. Peak memory is measured outside, with malloc's own settings."""
    glibc = _glibc()
    if glibc is None:
        yield
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # M_TRIM_THRESHOLD, ... of malloc.h
    glibc.mallopt(trim_threshold, -1)  # never
    glibc.mallopt(mmap_max, 0)  # no block has a mapping of its own
    # An aligned block leaves a small one in front of it. The first seven of each size malloc would put aside rather
    # than join with the freed large block behind, then too small for the next call: so there are seven already.
    for block in [glibc.malloc(size) for size in range(24, 136, 16) for _ in range(7)]:
        glibc.free(block)
    try:
        yield
    finally:
        glibc.mallopt(mmap_max, 65536)  # these are malloc's own settings
        glibc.mallopt(mmap_threshold, 128 << 10)
        glibc.mallopt(trim_threshold, 128 << 10)


def interleave(
    functions: dict[str, Function],
    clock: CpuClock | CudaClock,
    repeats: int,
    min_time: float = 0.0,
    progress: Callable[[], None] | None = None,
) -> dict[str, dict[str, Summary]]:
    """Time all functions in rounds; name -> clock column -> Summary.

    Each function is called once per round and at least ``repeats`` times; rounds go on until the quickest
    function has been running for ``min_time`` seconds in all, or 5 * ``repeats`` rounds are done. The
    functions are warmed up first. ``progress`` is called after each of the first ``repeats`` rounds."""
    for function in functions.values():
        clock.prepare(function)
    names = list(functions)
    samples: dict[str, dict[str, list[float]]] = {name: {c: [] for c in clock.columns} for name in names}
    rounds = 0
    while names and rounds < 5 * repeats:
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            for column, value in clock.sample(functions[name]).items():
                samples[name][column].append(value)
        rounds += 1
        if progress is not None and rounds <= repeats:
            progress()
        if rounds >= repeats and min(sum(samples[name]["wall"]) for name in names) >= min_time:
            break
    return {
        name: {c: summarize(values) for c, values in columns.items()} for name, columns in samples.items()
    }


# -- peak memory ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peak:
    """Largest memory in use during a call above what was in use before it; ``None``: not measured."""

    bytes: int | None
    method: str


class CudaMemory:
    """Peak of torch's allocator; memory that libraries take by themselves is not seen."""

    method = "torch.cuda.max_memory_allocated above the memory allocated before the call"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def measure(self, function: Function) -> Peak:
        gc.collect()
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        result = function()
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) - before
        del result
        return Peak(peak, self.method)


class ResidentMemory:
    """Peak resident set of this process, by Linux's resettable high-water mark.

    Writing 5 to /proc/self/clear_refs sets VmHWM back to the present size. Memory that malloc keeps from
    earlier calls would hide later use of it, so it is given back first (malloc_trim)."""

    method = "peak RSS (VmHWM after clear_refs and malloc_trim) above RSS before the call"
    unavailable = "not measured: /proc/self/clear_refs or VmHWM is not available here"

    def __init__(self) -> None:
        try:
            self._trim = ctypes.CDLL(None).malloc_trim
        except (OSError, AttributeError):  # not glibc
            self._trim = None
        self.available = self._trim is not None and self._reset() and self._high_water_mark() is not None

    @staticmethod
    def _reset() -> bool:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    @staticmethod
    def _high_water_mark() -> int | None:
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        return None

    def measure(self, function: Function) -> Peak:
        if not self.available:
            return Peak(None, self.unavailable)
        gc.collect()
        self._trim(0)
        self._reset()
        before = self._high_water_mark()
        result = function()
        peak = self._high_water_mark() - before
        del result
        return Peak(peak, self.method)


def memory_meter(device: torch.device) -> CudaMemory | ResidentMemory:
    return CudaMemory(device) if device.type == "cuda" else ResidentMemory()


# -- error ------------------------------------------------------------------------------------------


def relative_error(actual: torch.Tensor, oracle: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value of the float64 oracle; inf for a wrong
    shape or NaN.
    """
    if actual.shape != oracle.shape:
        return math.inf
    if oracle.numel() == 0:
        return 0.0
    difference = (actual.detach().to(torch.float64) - oracle).abs().max().item()
    scale = oracle.abs().max().item()
    if not math.isfinite(difference):
        return math.inf
    return difference / scale if scale else difference


def error_limit(format: Format, terms: int) -> float:
    """Relative error up to which a result is published.

    Two units in the last place of ``format`` for the inputs' and outputs' rounding, plus the accumulation of
    ``terms`` products in the accumulator (float32, or float64 for float64): rounding errors add like a random
    walk, so the square root, with a factor of 4 to spare. TF32, a missed tap or a shifted border exceed it by
    far in float32."""
    accumulator = FORMATS["float64" if format.name == "float64" else "float32"]
    return 2 * format.epsilon + 4 * accumulator.epsilon * math.sqrt(terms)


# -- ceilings ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ceiling:
    """What the machine can do at best: ``work`` done by ``function``, in ``unit`` per second."""

    function: Function
    work: float
    unit: str


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, Ceiling]:
    """A matrix product at ``dtype`` and a copy of memory; sized to fill the machine, small enough for each
    case.
    """
    m, n, k = (8192, 8192, 8192) if device.type == "cuda" else (2048, 1024, 512)
    copy_bytes = (1 << 30) if device.type == "cuda" else (128 << 20)
    left = torch.randn(m, k, device=device).to(dtype)
    right = torch.randn(k, n, device=device).to(dtype)
    product = torch.empty(m, n, device=device, dtype=dtype)
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "matrix product": Ceiling(lambda: torch.mm(left, right, out=product), 2.0 * m * n * k, "FLOP"),
        "copy": Ceiling(lambda: target.copy_(source), 2.0 * copy_bytes, "B"),
    }
