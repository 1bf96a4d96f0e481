"""Every setting of the proof of concept, under the names of the original's ``poc_config.py``.

Change a default here, or give it on the command line: every field of these classes is an option of the script that uses
it (``--n-epochs 10``). Folders are relative to the current one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from experiments.mylib.networks import CONVS
from experiments.mylib.options import setting

#: Names of the labels in the targets, background first; the files' ``segs`` have it last.
SHAPE_CLASSES = ("background", "square", "circle")
VOXEL_CLASSES = ("background", "cone", "pyramid", "cube", "cylinder", "ball")

#: What ``shape_checkpoint`` says for the newest checkpoint there is.
NEWEST = "newest"
_CHECKPOINT = f"model.dat of the 2D network, or {NEWEST!r}: the last one trained"


@dataclass
class POCShapeEnv:
    """Where the images are."""

    data_train: str = setting("data/poc/shape/train", "folder of the training images")
    data_valid: str = setting("data/poc/shape/valid", "folder of the images that choose the checkpoint")
    data_test: str = setting("data/poc/shape/test", "folder of the test images")


@dataclass
class POCVoxelEnv:
    """Where the volumes and the pretrained 2D network are."""

    data_train: str = setting("data/poc/voxel/train", "folder of the training volumes")
    data_valid: str = setting("data/poc/voxel/valid", "folder of the volumes that choose the checkpoint")
    data_test: str = setting("data/poc/voxel/test", "folder of the test volumes")
    shape_checkpoint: str = setting(NEWEST, _CHECKPOINT)


@dataclass
class POCDataConfig:
    """What ``generate_poc_data.py`` makes, into the folders of the two classes above."""

    shape_train: int = setting(10000, "training images")
    shape_valid: int = setting(500, "validation images")
    shape_test: int = setting(2000, "test images")
    voxel_train: int = setting(100, "training volumes")
    voxel_valid: int = setting(20, "validation volumes")
    voxel_test: int = setting(200, "test volumes")
    size: int = setting(
        48, "pixels or voxels along every edge, at least 10; the networks need a multiple of 4"
    )
    noise: float = setting(0.5, "standard deviation of the noise; shapes are 1, background is 0")
    seed: int = setting(0, "the same seed gives the same files")
    root: str = setting(".", "folder in which data/poc is made")


@dataclass
class POCTrainingConfig:
    """What the trainings of both networks share."""

    n_epochs: int = setting(50, "passes over the training data")
    seed: int = setting(0, "of the weights and of the order")
    num_workers: int = setting(0, "processes that load data")

    gamma: float = setting(0.1, "factor of the learning rate at each milestone")

    accelerator: str = setting("auto", "auto | cpu | gpu")
    devices: int = setting(1, "how many of them")
    precision: str = setting("32-true", "32-true | bf16-mixed | 16-mixed")

    noise: float = setting(0.5, "of the data; part of the folder's name")
    save: str = setting("tmp/poc", "folder of all checkpoints")
    run: str = setting("", "folder of this one; by default date, time and samples")


@dataclass
class POCShapeConfig(POCTrainingConfig, POCShapeEnv):
    """Training of the 2D network; the optimiser is SGD."""

    train_samples: int = setting(10000, "training images to use")
    batch_size: int = setting(64, "images per step")

    lr: float = setting(0.01, "learning rate")
    wd: float = setting(0.0001, "weight decay")
    momentum: float = setting(0.9, "momentum")
    milestones: tuple[float, ...] = setting(
        (0.5, 0.75), "parts of n_epochs after which the rate falls by gamma"
    )


@dataclass
class POCVoxelConfig(POCTrainingConfig, POCVoxelEnv):
    """Training of the 3D network; the optimiser is Adam."""

    train_samples: int = setting(100, "training volumes to use")
    train_batch_size: int = setting(4, "volumes per step")

    lr: float = setting(0.001, "learning rate")
    wd: float = setting(0.0, "weight decay")
    milestones: tuple[float, ...] = setting((), "parts of n_epochs after which the rate falls by gamma")

    conv: str = setting("ACSConv", "the convolutions", CONVS)
    pretrained: bool = setting(True, "begin with the weights of shape_checkpoint")


@dataclass
class POCFeaturesConfig:
    """What ``measure_features.py`` measures."""

    data_test: str = setting(POCVoxelEnv.data_test, "folder of the volumes")
    shape_checkpoint: str = setting(NEWEST, _CHECKPOINT)
    convs: tuple[str, ...] = setting(("ACSConv", "SoftACSConv", "Conv2_5d"), "the convolutions", CONVS)
    seeds: int = setting(3, "random networks of each convolution")
    test_samples: int = setting(200, "test volumes to use")
    batch_size: int = setting(4, "volumes that go through a network at a time")
    noise: float = setting(0.5, "of the data; part of the folder's name")
    save: str = setting("tmp/poc", "folder of all checkpoints, and of single measurements")
    result: str = setting("tmp/poc/features.json", "the result file")


def run_folder(config: POCShapeConfig | POCVoxelConfig) -> Path:
    """The folder of a training, ``save/noise0.5/shape/<run>`` or ``save/noise0.5/voxel/<conv>/<run>``."""
    run = config.run or f"{time.strftime('%y%m%d_%H%M%S')}_{config.train_samples}samples"
    kind = Path("shape") if isinstance(config, POCShapeConfig) else Path("voxel", config.conv)
    return Path(config.save) / f"noise{config.noise}" / kind / run


def find_shape_checkpoint(config: POCVoxelConfig | POCFeaturesConfig) -> Path:
    """The 2D network that ``config.shape_checkpoint`` means.

    Raises:
        FileNotFoundError: there is none; the message says how to make one.
    """
    if config.shape_checkpoint != NEWEST:
        path = Path(config.shape_checkpoint)
        if not path.is_file():
            raise FileNotFoundError(f"shape_checkpoint: {path} does not exist")
        return path
    folder = Path(config.save) / f"noise{config.noise}" / "shape"
    found = sorted(folder.glob("*/model.dat"), key=lambda path: (path.stat().st_mtime_ns, path))
    if not found:
        raise FileNotFoundError(
            f"shape_checkpoint: no */model.dat in {folder}; train_poc_shape.py makes one, or give a path"
        )
    return found[-1]
