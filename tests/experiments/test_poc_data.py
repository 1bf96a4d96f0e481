"""The proof of concept's data: what files hold, that a seed decides it, what an interrupt leaves, what is refused."""

import os

import numpy as np
import pytest
import torch
from scipy import ndimage

from experiments.poc import generate_poc_data as data
from experiments.poc.poc_config import (
    SHAPE_CLASSES,
    VOXEL_CLASSES,
    POCDataConfig,
    POCShapeConfig,
    POCVoxelConfig,
    find_shape_checkpoint,
    run_folder,
)
from experiments.poc.poc_dataset import BaseDatasetShape, BaseDatasetVoxel

QUIET = {"progress": False}


def generator():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 images and 12 volumes of 24 cells along every edge."""
    root = tmp_path_factory.mktemp("poc")
    data.generate_shapes(root / "shape", 60, size=24, **QUIET)
    data.generate_voxels(root / "voxel", 12, size=24, **QUIET)
    return root


def load(path):
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(("name", "dims", "kinds", "count"), [("shape", 2, 2, 60), ("voxel", 3, 5, 12)])
def test_what_files_hold(folder, name, dims, kinds, count):
    noise, found = [], set()
    for index in range(count):
        file = load(folder / name / f"{name}_{index}.npz")
        sample, segs = file[name], file["segs"]
        assert (sample.dtype, segs.dtype) == (np.float32, np.bool_)
        assert sample.shape == (24,) * dims and segs.shape == (kinds + 1, *sample.shape)
        assert (segs.sum(0) == 1).all()
        noise.append(sample - ~segs[-1])
        # In each corner at most one shape, of one kind; corners with shapes: three of four, or four of eight.
        corners = segs[:-1].reshape(kinds, *[2, 12] * dims).any(tuple(range(2, 2 * dims + 1, 2)))
        assert corners.sum(0).max() == 1 and corners.sum() == dims + 1
        found |= set(np.flatnonzero(corners.reshape(kinds, -1).any(1)))
    assert found == set(range(kinds))
    assert abs(np.mean(noise)) < 0.02 and abs(np.std(noise) - 0.5) < 0.02


def test_shapes_have_the_sizes_of_geometry():
    edge, height = 24, 21
    solid = {maker.__name__: maker(edge, height, generator()) for maker in data.SHAPES + data.VOXELS}
    assert solid["square"].sum() == 24**2 and solid["cube"].sum() == 24**3
    assert solid["circle"].sum() == pytest.approx(np.pi * 12**2, rel=0.02)
    assert solid["ball"].sum() == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.02)
    assert solid["cylinder"].sum() == pytest.approx(np.pi * 12**2 * height, rel=0.02)
    assert solid["cone"].sum() == pytest.approx(np.pi * 12**2 * height / 3, rel=0.1)
    assert solid["pyramid"].sum() == pytest.approx(24**2 * height / 3, rel=0.1)
    assert all(ndimage.label(mask)[1] == 1 for mask in solid.values())


@pytest.mark.parametrize("maker", [data.cone, data.pyramid])
def test_pointed_solids_point_along_every_axis(maker):
    def direction(mask):
        """Axis and sign along which the cross-sections grow."""
        for axis in range(3):
            areas = mask.sum(tuple({0, 1, 2} - {axis}))
            if (np.diff(areas) >= 0).all() or (np.diff(areas) <= 0).all():
                return axis, np.sign(areas[-1] - areas[0])
        return None

    rng = generator()
    directions = {direction(maker(12, 17, rng)) for _ in range(80)}
    assert directions == {(axis, sign) for axis in range(3) for sign in (-1, 1)}


def test_a_seed_decides_every_file(folder, tmp_path):
    data.generate_voxels(tmp_path / "again", 3, size=24, **QUIET)
    data.generate_voxels(tmp_path / "seed", 3, size=24, seed=1, **QUIET)
    data.generate_voxels(tmp_path / "split", 3, size=24, split="test", **QUIET)
    for index in range(3):
        name = f"voxel_{index}.npz"
        first = load(folder / "voxel" / name)
        again, *others = (load(tmp_path / kind / name) for kind in ("again", "seed", "split"))
        assert np.array_equal(first["voxel"], again["voxel"]) and np.array_equal(first["segs"], again["segs"])
        assert not any(np.array_equal(first["voxel"], other["voxel"]) for other in others)


def test_an_interrupt_leaves_whole_files_and_the_next_call_the_rest(tmp_path, monkeypatch):
    save, calls = np.savez_compressed, []

    def interrupted(file, **arrays):
        calls.append(file)
        if len(calls) == 3:
            file.write(b"half a file")
            raise KeyboardInterrupt
        save(file, **arrays)

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.generate_shapes(tmp_path, 5, size=24, **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "shape_0.npz", "shape_1.npz"]
    monkeypatch.undo()
    first = (tmp_path / "shape_0.npz").stat().st_mtime_ns
    data.generate_shapes(tmp_path, 5, size=24, **QUIET)
    assert (tmp_path / "shape_0.npz").stat().st_mtime_ns == first
    assert len(list(tmp_path.glob("shape_*.npz"))) == 5


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has data with other settings: noise is 0\.5 there and 0\.1 now"):
        data.generate_shapes(folder / "shape", 60, size=24, noise=0.1, **QUIET)
    with pytest.raises(ValueError, match="count is 60 there and 61 now"):
        data.generate_shapes(folder / "shape", 61, size=24, **QUIET)
    (tmp_path / "shape_0.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="holds data without settings"):
        data.generate_shapes(tmp_path, 1, **QUIET)
    with pytest.raises(ValueError, match="size: expected at least 10, got 8"):
        data.generate_shapes(tmp_path / "small", 1, size=8, **QUIET)
    with pytest.raises(ValueError, match="split: expected one of 'train', 'valid', 'test', got 'dev'"):
        data.generate_shapes(tmp_path / "split", 1, split="dev", **QUIET)


def test_all_six_folders(tmp_path):
    counts = {
        f"{kind}_{split}": index
        for index, (kind, split) in enumerate(
            (kind, split) for kind in ("shape", "voxel") for split in data.SPLITS
        )
    }
    data.generate(POCDataConfig(size=12, root=str(tmp_path), **counts), progress=False)
    for key, count in counts.items():
        kind, split = key.split("_")
        assert len(list((tmp_path / "data" / "poc" / kind / split).glob("*.npz"))) == count


@pytest.mark.parametrize(
    ("dataset", "name", "classes"),
    [(BaseDatasetShape, "shape", SHAPE_CLASSES), (BaseDatasetVoxel, "voxel", VOXEL_CLASSES)],
)
def test_datasets(folder, dataset, name, classes):
    samples = dataset(folder / name, 12)
    assert len(list(samples)) == 12
    sample, labels = samples[7]
    file = load(folder / name / f"{name}_7.npz")
    assert torch.equal(sample[0], torch.from_numpy(file[name])) and sample.dtype == torch.float32
    assert labels.dtype == torch.int64
    makers = data.SHAPES + data.VOXELS
    for mask, maker in zip(file["segs"], [m for m in makers if m.__name__ in classes]):
        assert np.array_equal(labels.numpy() == classes.index(maker.__name__), mask)
    assert np.array_equal(labels.numpy() == 0, file["segs"][-1])
    with pytest.raises(IndexError):
        samples[12]


def test_missing_and_damaged_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shape_60\.npz"):
        BaseDatasetShape(folder / "shape", 61)
    whole = (folder / "voxel" / "voxel_0.npz").read_bytes()
    for damaged in (b"", whole[:-40], whole[:200] + bytes(200) + whole[400:]):
        (tmp_path / "voxel_0.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"voxel_0\.npz"):
            BaseDatasetVoxel(tmp_path, 1)[0]


def test_folders_of_runs_and_the_newest_checkpoint(tmp_path):
    save = str(tmp_path)
    assert run_folder(POCShapeConfig(save=save, run="a")) == tmp_path / "noise0.5" / "shape" / "a"
    assert run_folder(POCVoxelConfig(save=save, run="a")).parts[-3:] == ("voxel", "ACSConv", "a")
    assert run_folder(POCVoxelConfig(conv="Conv3d", train_samples=7)).name.endswith("_7samples")
    with pytest.raises(FileNotFoundError, match=r"train_poc_shape\.py"):
        find_shape_checkpoint(POCVoxelConfig(save=save))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.dat"):
        find_shape_checkpoint(POCVoxelConfig(shape_checkpoint="nowhere.dat"))
    for second, run in enumerate("ba"):
        folder = run_folder(POCShapeConfig(save=save, run=run))
        folder.mkdir(parents=True)
        (folder / "model.dat").write_bytes(b"")
        os.utime(folder / "model.dat", (second, second))
    assert (
        find_shape_checkpoint(POCVoxelConfig(save=save))
        == tmp_path / "noise0.5" / "shape" / "a" / "model.dat"
    )
    chosen = str(tmp_path / "noise0.5" / "shape" / "b" / "model.dat")
    assert str(find_shape_checkpoint(POCVoxelConfig(shape_checkpoint=chosen))) == chosen
