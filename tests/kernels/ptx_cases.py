"""What the PTX instructions of csrc/common/ptx*.cuh do to given words, from the definitions of the PTX ISA.

Shared by test_ptx.py, which compares the emulator with it, and tests/gpu/golden.py, which compares a GPU. Fragments are
spelled out element by element here, independently of the emulator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORDS = 1024  # of every input and output
LANES = range(32)


@dataclass(frozen=True)
class Case:
    """A probe of ptx_probes.cu, its input words, and the words it must write: uint32 [n], compared bit by bit.

    ``tolerance`` > 0: the words are float32 and may differ by this much, since hardware sums in an order of its own.
    """

    probe: str
    words: np.ndarray
    expected: np.ndarray
    tolerance: float = 0.0
    needs_capability: int = 8  # major compute capability


def _padded(words: np.ndarray) -> np.ndarray:
    result = np.zeros(WORDS, np.uint32)
    result[: words.size] = words.reshape(-1)
    return result


def _bits(values: np.ndarray, kind: str) -> np.ndarray:
    """float values as the bits of a type, which must hold them exactly: uint32."""
    single = np.ascontiguousarray(values, np.float32)
    if kind == "float16":
        return single.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = single.view(np.uint32)
    return bits >> 16 if kind == "bfloat16" else bits


def _ldmatrix(count: int, transposed: bool) -> Case:
    words = np.arange(WORDS, dtype=np.uint32) * 2
    words |= (words + 1) << 16  # 16-bit element i of shared memory is i
    elements = words.view(np.uint16)
    expected = np.zeros((count, 32), np.uint32)
    for j in range(count):
        rows = [elements[(5 * (8 * j + row) % 32) * 8 :][:8] for row in range(8)]
        for lane in LANES:
            for half in range(2):
                row, column = lane // 4, 2 * (lane % 4) + half
                value = rows[column][row] if transposed else rows[row][column]
                expected[j, lane] |= np.uint32(value) << np.uint32(16 * half)
    return Case(f"ldmatrix_x{count}{'_trans' if transposed else ''}", words, expected.reshape(-1))


def _fragment_a(matrix: np.ndarray, kind: str) -> np.ndarray:
    """The four registers of each lane for A [16, k]: uint32 [32, 4]."""
    bits, registers = _bits(matrix, kind), np.zeros((32, 4), np.uint32)
    for lane in LANES:
        group, pair = divmod(lane, 4)
        for r, (row, column) in enumerate([(group, 0), (group + 8, 0), (group, 1), (group + 8, 1)]):
            if kind == "tf32":
                registers[lane, r] = bits[row, pair + 4 * column]
            else:
                low, high = bits[row, 2 * pair + 8 * column], bits[row, 2 * pair + 1 + 8 * column]
                registers[lane, r] = low | high << 16
    return registers


def _fragment_b(matrix: np.ndarray, kind: str) -> np.ndarray:
    """The two registers of each lane for B [k, 8]: uint32 [32, 2]."""
    bits, registers = _bits(matrix, kind), np.zeros((32, 2), np.uint32)
    for lane in LANES:
        group, pair = divmod(lane, 4)
        for r in range(2):
            if kind == "tf32":
                registers[lane, r] = bits[pair + 4 * r, group]
            else:
                registers[lane, r] = bits[2 * pair + 8 * r, group] | bits[2 * pair + 1 + 8 * r, group] << 16
    return registers


def _fragment_d(matrix: np.ndarray) -> np.ndarray:
    """The four registers of each lane for D [16, 8]: uint32 [32, 4]."""
    registers = np.zeros((32, 4), np.float32)
    for lane in LANES:
        group, pair = divmod(lane, 4)
        registers[lane] = [*matrix[group, 2 * pair :][:2], *matrix[group + 8, 2 * pair :][:2]]
    return registers.view(np.uint32)


def _operands(random: np.random.Generator, kind: str, count_a: int, count_b: int, integers: bool):
    depth = 8 if kind == "tf32" else 16
    shapes = [(count_a, 16, depth), (count_b, depth, 8)]
    if integers:
        return [random.integers(-8, 9, shape).astype(np.float64) for shape in shapes]
    values = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    dropped = {"bfloat16": 16, "tf32": 13}
    if kind in dropped:  # numbers that the type holds exactly
        return [
            (v.view(np.uint32) >> dropped[kind] << dropped[kind]).view(np.float32).astype(np.float64)
            for v in values
        ]
    return [v.astype(np.float16).astype(np.float64) for v in values]


def _mma(kind: str, integers: bool) -> Case:
    random = np.random.default_rng(7)
    (a,), (b,) = _operands(random, kind, 1, 1, integers)
    d = random.integers(-99, 100, (16, 8)).astype(np.float64)
    words = np.concatenate([_fragment_a(a, kind), _fragment_b(b, kind), _fragment_d(d)], axis=1)
    tolerance = 0.0 if integers else 2.0**-22 * (np.abs(a) @ np.abs(b) + np.abs(d)).max() * a.shape[1]
    return Case(f"mma_{kind}", _padded(words), _fragment_d(d + a @ b).reshape(-1), tolerance)


def _mma_tiles(kind: str) -> Case:
    a, b = _operands(np.random.default_rng(8), kind, 3, 3, True)
    fragments = [*(_fragment_a(m, kind) for m in a), *(_fragment_b(m, kind) for m in b)]
    expected = [_fragment_d(3 * m + n + a[1 + m] @ b[n]) for m in range(2) for n in range(3)]
    return Case(
        f"mma_tiles_{kind}",
        _padded(np.concatenate(fragments, axis=1)),
        np.concatenate(expected, axis=1).reshape(-1),
    )


def _cp_async(size: int) -> Case:
    words = np.arange(WORDS, dtype=np.uint32) + 5000
    expected = words[:128].copy().reshape(32, 4)
    for lane in LANES:
        source = words[4 * ((lane + 7) % 32) :][: size // 4]
        expected[lane, : size // 4] = source if lane % 2 == 0 else 0
    return Case(f"cp_async_{size}", words, expected.reshape(-1))


def _to_tf32() -> Case:
    one, ulp = 0x3F800000, 0x2000  # of TF32, in the bits of a float32
    sign = 0x80000000
    pairs = [
        (one, one),
        (one + 1, one),
        (one + ulp // 2 - 1, one),
        (one + ulp // 2, one + ulp),  # a tie goes away from zero
        (one + ulp + ulp // 2, one + 2 * ulp),
        (one + ulp // 2 + 1, one + ulp),
        (one + ulp - 1, one + ulp),
        (0x3FFFFFFF, 0x40000000),  # carries into the exponent
        (0, 0),
        (0x7F800000, 0x7F800000),
    ]
    pairs += [(bits | sign, rounded | sign) for bits, rounded in pairs]
    words, expected = np.zeros(WORDS, np.uint32), np.zeros(32, np.uint32)
    words[: len(pairs)], expected[: len(pairs)] = zip(*pairs, strict=True)
    return Case("to_tf32", words, expected)


def _mbarrier() -> Case:
    words = np.arange(WORDS, dtype=np.uint32) * 3
    lanes = np.arange(32)
    values = words[:32]
    for phase in range(3):
        values = values[lanes ^ (1 << phase)] + np.uint32(1)
    return Case("mbarrier", words, values[lanes ^ 31], needs_capability=9)


TENSOR = (2, 4, 5, 6, 8)  # of 16-bit elements, the input of the TMA's probes


def _random_words() -> np.ndarray:
    return np.random.default_rng(9).integers(1, 2**32, WORDS, dtype=np.uint32)


def _box(words: np.ndarray, *at: int) -> np.ndarray:
    """The box [2, 2, 3, 4, 8] at n, d, h, w, c of the tensor; zeros outside: uint32 [192]."""
    padded = np.pad(words.view(np.uint16)[: np.prod(TENSOR)].reshape(TENSOR), 8)
    box = padded[tuple(slice(a + 8, a + 8 + size) for a, size in zip(at, (2, 2, 3, 4, 8), strict=True))]
    return np.ascontiguousarray(box).reshape(-1).view(np.uint32)


def _tma_boxes() -> Case:
    words = _random_words()
    expected = np.concatenate([_box(words, 1, -1, 3, -1, 0), _box(words, 0, 3, -2, 4, 3)])
    return Case("tma_boxes", words, expected, needs_capability=9)


def _tma_outside() -> Case:
    """Boxes that lie wholly outside are zeros, and their bytes count like any others."""
    return Case("tma_outside", _random_words(), np.zeros(3 * 192, np.uint32), needs_capability=9)


def _tma_floats() -> Case:
    """A box [1, 2, 3, 4, 4] of 32-bit elements at channel 4 of 6, the seventh and eighth lying between voxels."""
    words = _random_words()
    tensor = words[: 2 * 3 * 5 * 8].reshape(2, 3, 5, 8)[..., :6]
    padded = np.pad(tensor, ((0, 0), (0, 1), (1, 0), (0, 2)))
    return Case("tma_floats", words, padded[:, 1:4, :4, 4:].reshape(-1), needs_capability=9)


def _tma_pipeline() -> Case:
    words, sums = _random_words(), np.zeros(32, np.uint32)
    for step in range(5):
        sums = sums * np.uint32(3) + _box(words, 0, 0, 0, step - 1, 0)[:32] + words[32 * step :][:32]
    return Case("tma_pipeline", words, sums, needs_capability=9)


KINDS = ("bfloat16", "float16", "tf32")
CASES: dict[str, Case] = {
    **{
        case.probe: case
        for case in [
            *(_ldmatrix(count, transposed) for count in (2, 4) for transposed in (False, True)),
            *(_mma(kind, integers=True) for kind in KINDS),
            *(_mma_tiles(kind) for kind in KINDS),
            *(_cp_async(size) for size in (4, 8, 16)),
            _to_tf32(),
            _mbarrier(),
            _tma_boxes(),
            _tma_outside(),
            _tma_floats(),
            _tma_pipeline(),
            Case("indices", np.zeros(WORDS, np.uint32), np.arange(32, dtype=np.uint32)),
        ]
    },
    **{f"mma_{kind}_reals": _mma(kind, integers=False) for kind in KINDS},
}


def assert_matches(case: Case, output: np.ndarray) -> None:
    """Compares what a probe wrote, uint32 [WORDS], with the case."""
    written = output[: case.expected.size]
    if case.tolerance > 0:
        error = np.abs(written.view(np.float32).astype(np.float64) - case.expected.view(np.float32))
        assert error.max() <= case.tolerance, f"{case.probe}: error {error.max()} over {case.tolerance}"
    else:
        np.testing.assert_array_equal(written, case.expected, err_msg=case.probe)
