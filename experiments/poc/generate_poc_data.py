"""Makes the proof of concept's data: noisy images of squares and circles, noisy volumes of five solids.

    python experiments/poc/generate_poc_data.py                  # 10,000 + 500 + 2,000 images, 100 + 20 + 200 volumes
    python experiments/poc/generate_poc_data.py --size 32 --shape-train 1000

An image holds three shapes in three of its four quadrants, a volume four solids in four of its eight octants; kinds,
places and edges, from 5 to half the image, are uniformly random, and so are the quarter turns of cones and pyramids.
Shapes are 1, the background 0, and Gaussian noise is added. It is the distribution of the original's script.

``shape_<i>.npz`` holds ``shape`` float32 [size, size] and ``segs`` bool [3, size, size]: squares, circles, background.
``voxel_<i>.npz`` holds ``voxel`` float32 [size, size, size] and ``segs`` bool [6, size, size, size]: cones, pyramids,
cubes, cylinders, balls, background. ``settings.json`` beside them says how many there are, and how
they were made. Every file is made from its own seed and written in one go: what was interrupted goes on where it
stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import trange

if not __package__:
    import _init_paths  # noqa: F401

from experiments.mylib.options import parse
from experiments.mylib.saving import claim, whole
from experiments.poc.poc_config import POCDataConfig, POCShapeEnv, POCVoxelEnv

SMALLEST_EDGE = 5
SPLITS = ("train", "valid", "test")

#: (edge, height, generator) -> mask; flat shapes have no height.
Maker = Callable[[int, int, np.random.Generator], np.ndarray]


def _from_middle(*sizes: int) -> list[np.ndarray]:
    """The distance of every cell from the middle, along each axis."""
    return [np.abs(index - (size - 1) / 2) for index, size in zip(np.indices(sizes), sizes)]


def _turned(solid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for axes in ((0, 1), (0, 2), (1, 2)):
        solid = np.rot90(solid, rng.integers(4), axes)
    return solid


def square(edge: int, height: int, rng: np.random.Generator) -> np.ndarray:
    return np.ones((edge, edge), dtype=bool)


def circle(edge: int, height: int, rng: np.random.Generator) -> np.ndarray:
    return np.hypot(*_from_middle(edge, edge)) <= edge / 2


def cone(edge: int, height: int, rng: np.random.Generator) -> np.ndarray:
    x, y, _ = _from_middle(edge, edge, height)
    return _turned(np.hypot(x, y) <= np.linspace(0, edge / 2, height), rng)


def pyramid(edge: int, height: int, rng: np.random.Generator) -> np.ndarray:
    x, y, _ = _from_middle(edge, edge, height)
    return _turned(np.maximum(x, y) <= np.linspace(0, edge / 2, height), rng)


def cube(edge: int, height: int, rng: np.random.Generator) -> np.ndarray:
    return np.ones((edge, edge, edge), dtype=bool)


def cylinder(edge: int, height: int, rng: np.random.Generator) -> np.ndarray:
    x, y, _ = _from_middle(edge, edge, height)
    return np.hypot(x, y) <= edge / 2


def ball(edge: int, height: int, rng: np.random.Generator) -> np.ndarray:
    x, y, z = _from_middle(edge, edge, edge)
    return x**2 + y**2 + z**2 <= (edge / 2) ** 2


SHAPES: tuple[Maker, ...] = (square, circle)
VOXELS: tuple[Maker, ...] = (cone, pyramid, cube, cylinder, ball)


def draw(
    makers: Sequence[Maker], dims: int, size: int, noise: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One sample: ``dims + 1`` of the corners of the image or volume hold a shape each.

    Returns:
        The noisy sample float32 [size] * dims, and the masks bool [len(makers) + 1, ...], background last.
    """
    half = size // 2
    segs = np.zeros((len(makers) + 1, *[size] * dims), dtype=bool)
    for corner in rng.choice(2**dims, dims + 1, replace=False):
        edge, height = rng.integers(SMALLEST_EDGE, half, size=2, endpoint=True)
        kind = rng.integers(len(makers))
        mask = makers[kind](edge, height, rng)
        starts = [
            half * (corner >> axis & 1) + rng.integers(0, half - length, endpoint=True)
            for axis, length in enumerate(mask.shape)
        ]
        window = tuple(slice(start, start + length) for start, length in zip(starts, mask.shape))
        segs[(kind, *window)] = mask
    mixed = segs.any(0)
    segs[-1] = ~mixed
    return (mixed + noise * rng.standard_normal(mixed.shape)).astype(np.float32), segs


def generate_shapes(path: str | Path, num_instance: int, **options) -> None:
    """Writes ``shape_0.npz`` to ``shape_<num_instance - 1>.npz``; options as :func:`_generate`."""
    _generate(Path(path), num_instance, "shape", SHAPES, 2, **options)


def generate_voxels(path: str | Path, num_instance: int, **options) -> None:
    """Writes ``voxel_0.npz`` to ``voxel_<num_instance - 1>.npz``; options as :func:`_generate`."""
    _generate(Path(path), num_instance, "voxel", VOXELS, 3, **options)


def _generate(
    folder: Path,
    count: int,
    name: str,
    makers: Sequence[Maker],
    dims: int,
    *,
    split: str = "train",
    size: int = POCDataConfig.size,
    noise: float = POCDataConfig.noise,
    seed: int = POCDataConfig.seed,
    progress: bool = True,
) -> None:
    """Writes the samples that ``folder`` lacks.

    Args:
        split: ``'train'``, ``'valid'`` or ``'test'``: samples of other splits are others.
        size: pixels or voxels along every edge.
        noise: standard deviation of the noise.
        progress: show a bar.

    Raises:
        ValueError: an unknown split, a size below 10, or files in the folder that were made otherwise.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(map(repr, SPLITS))}, got {split!r}")
    if size < 2 * SMALLEST_EDGE:
        raise ValueError(f"size: expected at least {2 * SMALLEST_EDGE}, got {size}")
    settings = {"sample": name, "split": split, "count": count, "size": size, "noise": noise, "seed": seed}
    if any(folder.glob("*.npz")) and not (folder / "settings.json").exists():
        raise ValueError(f"{folder} holds data without settings.json; choose another folder or remove it")
    claim(folder, settings, "data", ValueError)
    for index in trange(count, desc=str(folder), disable=not progress):
        path = folder / f"{name}_{index}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        sample, segs = draw(makers, dims, size, noise, rng)
        with whole(path) as file:
            np.savez_compressed(file, **{name: sample, "segs": segs})


def generate(config: POCDataConfig, *, progress: bool = True) -> None:
    """All six folders of the proof of concept, below ``config.root``."""
    options = {"size": config.size, "noise": config.noise, "seed": config.seed, "progress": progress}
    for env, prefix, make in (
        (POCShapeEnv, "shape", generate_shapes),
        (POCVoxelEnv, "voxel", generate_voxels),
    ):
        for split in SPLITS:
            folder = Path(config.root) / getattr(env, f"data_{split}")
            make(folder, getattr(config, f"{prefix}_{split}"), split=split, **options)


def main() -> None:
    generate(parse(POCDataConfig, "Makes the proof of concept's data."))


if __name__ == "__main__":
    main()
