"""Every setting of the proof of concept, under the names of the original's ``poc_config.py``.

Change a default here, or give it on the command line: every field of these classes is an option of the script that uses
it (``--n-epochs 10``). Folders are relative to the current one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

#: Names of the labels in the targets, background first; the files' ``segs`` have it last.
SHAPE_CLASSES = ("background", "square", "circle")
VOXEL_CLASSES = ("background", "cone", "pyramid", "cube", "cylinder", "ball")

#: What ``shape_checkpoint`` says for the newest checkpoint there is.
NEWEST = "newest"


def _setting(default: object, meaning: str):
    return field(default=default, metadata={"help": meaning})


@dataclass
class POCShapeEnv:
    """Where the images are."""

    data_train: str = _setting("data/poc/shape/train", "folder of the training images")
    data_valid: str = _setting("data/poc/shape/valid", "folder of the images that choose the checkpoint")
    data_test: str = _setting("data/poc/shape/test", "folder of the test images")


@dataclass
class POCVoxelEnv:
    """Where the volumes and the pretrained 2D network are."""

    data_train: str = _setting("data/poc/voxel/train", "folder of the training volumes")
    data_valid: str = _setting("data/poc/voxel/valid", "folder of the volumes that choose the checkpoint")
    data_test: str = _setting("data/poc/voxel/test", "folder of the test volumes")
    shape_checkpoint: str = _setting(NEWEST, "model.dat of the 2D network, or 'newest': the last one trained")


@dataclass
class POCDataConfig:
    """What ``generate_poc_data.py`` makes, into the folders of the two classes above."""

    shape_train: int = _setting(10000, "training images")
    shape_valid: int = _setting(500, "validation images")
    shape_test: int = _setting(2000, "test images")
    voxel_train: int = _setting(100, "training volumes")
    voxel_valid: int = _setting(20, "validation volumes")
    voxel_test: int = _setting(200, "test volumes")
    size: int = _setting(
        48, "pixels or voxels along every edge, at least 10; the networks need a multiple of 4"
    )
    noise: float = _setting(0.5, "standard deviation of the noise; shapes are 1, background is 0")
    seed: int = _setting(0, "the same seed gives the same files")
    root: str = _setting(".", "folder in which data/poc is made")


@dataclass
class POCShapeConfig(POCShapeEnv):
    """Training of the 2D network; the optimiser is SGD."""

    batch_size: int = _setting(64, "images per step")
    n_epochs: int = _setting(50, "passes over the training images")
    seed: int = _setting(0, "of the weights and of the order")
    num_workers: int = _setting(0, "processes that load images")

    lr: float = _setting(0.01, "learning rate")
    wd: float = _setting(0.0001, "weight decay")
    momentum: float = _setting(0.9, "momentum")
    milestones: tuple[float, ...] = _setting(
        (0.5, 0.75), "parts of n_epochs after which the rate falls by gamma"
    )
    gamma: float = _setting(0.1, "factor of the learning rate at each milestone")

    accelerator: str = _setting("auto", "auto | cpu | gpu")
    devices: int = _setting(1, "how many of them")
    precision: str = _setting("32-true", "32-true | bf16-mixed | 16-mixed")

    train_samples: int = _setting(10000, "training images to use")
    noise: float = _setting(0.5, "of the data; part of the folder's name")
    save: str = _setting("tmp/poc", "folder of all checkpoints")
    run: str = _setting("", "folder of this one; by default date, time and samples")


@dataclass
class POCVoxelConfig(POCVoxelEnv):
    """Training of the 3D network; the optimiser is Adam."""

    train_batch_size: int = _setting(4, "volumes per step")
    n_epochs: int = _setting(50, "passes over the training volumes")
    seed: int = _setting(0, "of the weights and of the order")
    num_workers: int = _setting(0, "processes that load volumes")

    lr: float = _setting(0.001, "learning rate")
    wd: float = _setting(0.0, "weight decay")
    milestones: tuple[float, ...] = _setting((), "parts of n_epochs after which the rate falls by gamma")
    gamma: float = _setting(0.1, "factor of the learning rate at each milestone")

    conv: Literal["ACSConv", "SoftACSConv", "Conv2_5d", "Conv3d"] = _setting("ACSConv", "the convolutions")
    pretrained: bool = _setting(True, "begin with the weights of shape_checkpoint")

    accelerator: str = _setting("auto", "auto | cpu | gpu")
    devices: int = _setting(1, "how many of them")
    precision: str = _setting("32-true", "32-true | bf16-mixed | 16-mixed")

    train_samples: int = _setting(100, "training volumes to use")
    noise: float = _setting(0.5, "of the data; part of the folder's name")
    save: str = _setting("tmp/poc", "folder of all checkpoints")
    run: str = _setting("", "folder of this one; by default date, time and samples")


def run_folder(config: POCShapeConfig | POCVoxelConfig) -> Path:
    """The folder of a training, ``save/noise0.5/shape/<run>`` or ``save/noise0.5/voxel/<conv>/<run>``."""
    run = config.run or f"{time.strftime('%y%m%d_%H%M%S')}_{config.train_samples}samples"
    kind = Path("shape") if isinstance(config, POCShapeConfig) else Path("voxel", config.conv)
    return Path(config.save) / f"noise{config.noise}" / kind / run


def find_shape_checkpoint(config: POCVoxelConfig) -> Path:
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
