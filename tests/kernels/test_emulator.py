"""The emulator itself: every operation against a hand-made table, every kind of fault must be reported."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from kernels.harness import Layer, assert_equal, forward, integer_data, run_forward

PROBES = Path(__file__).with_name("probes.cu")
UNWRITTEN = -1
FULL = list(range(32))


@pytest.fixture(scope="module")
def library(emulator_builder):
    library = ctypes.CDLL(str(emulator_builder.library(PROBES)))
    library.run_probe.restype = ctypes.c_char_p
    library.run_probe.argtypes = [
        ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_bool, ctypes.c_void_p,
        ctypes.c_void_p,
    ]  # fmt: skip
    return library


LATE, EARLY, RANDOM = range(3)  # when asynchronous copies move their bytes


def run(library, name, threads=32, blocks=1, seed=0, async_copies=LATE, detect_races=True):
    """Runs a probe on in = 0, 1, 2, ...; returns what it wrote and the report of the fault, if any."""
    values, out = np.arange(threads, dtype=np.int32), np.empty(threads, np.int32)
    error = library.run_probe(
        name.encode(), blocks, threads, seed, async_copies, detect_races, values.ctypes.data, out.ctypes.data
    )
    return out.tolist(), None if error is None else error.decode()


# What each lane receives, written out from the definition in the CUDA C++ programming guide.
TABLES = {
    "shuffle_index": [1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 2, 5, 8, 11, 14,
                      17, 20, 23, 26, 29, 0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30],
    "shuffle_index_segment": [1] * 8 + [9] * 8 + [17] * 8 + [25] * 8,
    "shuffle_xor": [5, 4, 7, 6, 1, 0, 3, 2, 13, 12, 15, 14, 9, 8, 11, 10,
                    21, 20, 23, 22, 17, 16, 19, 18, 29, 28, 31, 30, 25, 24, 27, 26],
    "shuffle_down": [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 13, 14, 15,
                     19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 29, 30, 31],
    "shuffle_up": [0, 1, 0, 1, 2, 3, 4, 5, 8, 9, 8, 9, 10, 11, 12, 13,
                   16, 17, 16, 17, 18, 19, 20, 21, 24, 25, 24, 25, 26, 27, 28, 29],
    "shuffle_half_mask": [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14] + [UNWRITTEN] * 16,
    "shuffle_wide": [3, 1, 7, 5, 11, 9, 15, 13, 19, 17, 23, 21, 27, 25, 31, 29,
                     35, 33, 39, 37, 43, 41, 47, 45, 51, 49, 55, 53, 59, 57, 63, 61],
    "votes": [0b01001001001001001001001001001001] + [3] * 31,
    "atomics": [100 + 496 + 17] * 32,
    "block_reverse": FULL[::-1],
    "warp_reverse": FULL[::-1],
    "read_by_all_then_write": [1] * 32,
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", TABLES)
def test_operation(library, name, seed):
    out, error = run(library, name, seed=seed)
    assert error is None
    assert out == TABLES[name]


def test_barrier_spans_warps(library):
    out, error = run(library, "block_reverse", threads=160)
    assert error is None
    assert out == list(range(160))[::-1]


# Name of the probe, number of threads, number of blocks, what the report must say.
FAULTS = [
    ("race_write_read", 64, 1, ["RACE", "write is not ordered after the read by thread 32", "probes.cu:"]),
    ("race_read_write", 64, 1, ["RACE", "read is not ordered after the write by thread 63"]),
    ("race_write_write", 32, 1, ["RACE", "write is not ordered after the write by thread 0"]),
    ("race_between_blocks", 32, 2, ["RACE between blocks", "block (1, 0, 0) thread 0"]),
    ("race_with_atomic", 32, 1, ["RACE", "atomic is not ordered after the read by thread 31"]),
    ("uninitialised", 32, 1, ["uninitialised memory", "shared byte 0"]),
    ("shared_out_of_bounds", 32, 1, ["shared write out of bounds", "thread 31"]),
    ("device_read_past_end", 32, 1, ["device read out of bounds", "bytes 128 to 132 of a buffer of 128"]),
    ("device_write_before_start", 32, 1, ["device write", "thread 0"]),
    ("wild_pointer", 32, 1, ["memory fault at address"]),
    ("null_pointer", 32, 1, ["write through a null pointer"]),
    ("divergent_barrier", 32, 1, ["divergent barrier", "probes.cu:"]),
    (
        "missing_thread_at_barrier",
        32,
        1,
        ["DEADLOCK", "threads 5 exited", "threads 0-4, 6-31 wait at __syncthreads"],
    ),
    ("missing_lanes_at_shuffle", 32, 1, ["DEADLOCK", "threads 0-7 wait at __shfl_sync"]),
    ("lane_outside_its_mask", 32, 1, ["not in its own mask", "lane 1"]),
    ("misaligned_bulk_copy", 32, 1, ["misaligned cp.async.bulk", "to shared byte 8", "probes.cu:"]),
    ("misaligned_bulk_source", 32, 1, ["misaligned cp.async.bulk of 32 bytes", "thread 0"]),
    ("bulk_copy_past_the_end", 32, 1, ["device read out of bounds", "bytes 112 to 144 of a buffer of 128"]),
    ("copy_past_the_end", 32, 1, ["device read out of bounds", "thread 8", "probes.cu:"]),
    ("copy_past_shared_memory", 32, 1, ["shared write out of bounds", "thread 4"]),
    ("misaligned_copy_source", 32, 1, ["misaligned cp.async of 8 bytes", "thread 2"]),
    (
        "misaligned_copy_destination",
        32,
        1,
        ["misaligned cp.async of 16 bytes", "to shared byte 8", "probes.cu:"],
    ),
    ("half_a_copy", 32, 1, ["cp.async of 16 bytes reads 8"]),
    (
        "matrix_past_shared_memory",
        32,
        1,
        ["shared read out of bounds", "thread 31", "bytes 512 to 528 of 512"],
    ),
    ("misaligned_matrix", 32, 1, ["misaligned ldmatrix: shared byte 8", "probes.cu:"]),
    ("uninitialised_matrix", 32, 1, ["uninitialised memory"]),
    ("divergent_matrix", 32, 1, ["divergent warp", "ldmatrix"]),
    ("missing_lanes_at_mma", 32, 1, ["DEADLOCK", "threads 0-30 wait at mma"]),
    ("misaligned_device_read", 32, 1, ["misaligned access", "alignment 16", "probes.cu:"]),
    ("misaligned_device_write", 32, 1, ["misaligned access", "alignment 8"]),
    ("misaligned_shared_write", 32, 1, ["misaligned access", "alignment 16", "thread 1"]),
    ("pipeline_WeakWait", 64, 1, ["RACE", "read is not ordered after the asynchronous copy by thread"]),
    ("pipeline_NoBarrierAfterUse", 64, 1, ["RACE"]),
    ("pipeline_StageReleasedEarly", 64, 1, ["RACE", "asynchronous copy"]),
    ("pipeline_NoWaitAtEnd", 64, 1, ["exits with", "asynchronous copies under way"]),
    ("bulk_pipeline_NoWait", 64, 1, ["shared byte", "nobody wrote these bytes"]),
    ("bulk_pipeline_ReleasedEarly", 64, 1, ["RACE"]),
    ("bulk_pipeline_NotReleased", 64, 1, ["DEADLOCK", "wait at mbarrier.try_wait (", "probes.cu:"]),
    ("bulk_pipeline_WrongBytes", 64, 1, ["DEADLOCK", "wait at mbarrier.try_wait ("]),
    ("bulk_pipeline_Misaligned", 64, 1, ["misaligned TMA copy to shared byte 16", "probes.cu:"]),
    ("bulk_pipeline_NoBarrierAfterInit", 64, 1, ["initialis", "RACE: mbarrier.try_wait", "by thread 0"]),
    (
        "bulk_pipeline_NoProxyFence",
        64,
        1,
        ["no proxy fence between the TMA copy and the write by", "probes.cu:"],
    ),
    ("bulk_pipeline_NoWaitAtEnd", 64, 1, ["ends with a TMA copy under way"]),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name, threads, blocks, expected", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_fault_is_reported(library, name, threads, blocks, expected, seed):
    _, error = run(library, name, threads, blocks, seed)
    assert error is not None
    assert expected[0] in error
    for text in expected[1:] if seed == 0 else ():  # other schedules meet the same fault elsewhere
        assert text in error


PIPELINE = [sum((i + c) % 64 for c in range(5)) for i in (thread ^ 33 for thread in range(64))]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("async_copies", [LATE, EARLY, RANDOM])
def test_pipeline(library, async_copies, seed):
    assert run(library, "pipeline_None", 64, seed=seed, async_copies=async_copies) == (PIPELINE, None)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("async_copies", [LATE, EARLY, RANDOM])
@pytest.mark.parametrize("name", ["bulk_pipeline_None", "bulk_pipeline_NoneOverStores"])
def test_bulk_pipeline(library, name, async_copies, seed):
    expected = [3 * (thread % 32) + 2 * (32 + thread % 32) for thread in range(64)]
    assert run(library, name, 64, seed=seed, async_copies=async_copies) == (expected, None)


@pytest.mark.parametrize("bug", ["WeakWait", "NoBarrierAfterWait", "NoBarrierAfterUse", "StageReleasedEarly"])
@pytest.mark.parametrize("async_copies", [LATE, EARLY, RANDOM])
def test_pipeline_bug_is_reported_whenever_copies_move(library, bug, async_copies):
    error = run(library, f"pipeline_{bug}", 64, async_copies=async_copies)[1]
    assert "RACE" in error or "uninitialised" in error


@pytest.mark.parametrize("bug, async_copies", [("WeakWait", LATE), ("StageReleasedEarly", EARLY)])
def test_pipeline_bug_gives_wrong_values_without_the_race_detector(library, bug, async_copies):
    out, error = run(library, f"pipeline_{bug}", 64, async_copies=async_copies, detect_races=False)
    assert error is None
    assert out != PIPELINE


def test_runs_again_after_a_fault(library):
    run(library, "race_write_read", 64)
    assert run(library, "block_reverse")[0] == FULL[::-1]


def test_memory_is_given_back_and_taken_again(emulator):
    layer = Layer(3, 4, (3, 4, 5))
    data = integer_data(layer)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("\n")

    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)
    held = mappings()
    emulator.release_memory()
    assert mappings() <= held - 2 * 32  # a stack and its guard for each lane of a warp
    assert_equal(run_forward(emulator, layer, data), forward(layer, data), layer.dtype)


@pytest.mark.parametrize("blocks, threads", [(0, 32), (1, 0), (1, 1025)])
def test_impossible_launch(library, blocks, threads):
    _, error = run(library, "block_reverse", threads=threads, blocks=blocks)
    assert error == "invalid configuration argument"
