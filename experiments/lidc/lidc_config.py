"""Settings of the LIDC-IDRI experiments: names and defaults of ACSConv's authors; every one is an option as well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.mylib.options import setting


@dataclass
class LIDCEnv:
    """Where things are; folders are relative to the current one."""

    data: str = setting("data/lidc", "folder of the LIDC data")
    imagenet_pretrain_path: str = setting(
        "", "file of 2D ImageNet weights; empty: torchvision downloads its own"
    )
    video_resnet18_pretrain_path: str = setting(
        "resnet-18-kinetics.pth", "file of weights from Kinetics' videos"
    )
    mednet_resnet18_pretrain_path: str = setting("resnet_18_23dataset.pth", "file of MedicalNet's weights")
    save: str = setting(
        "", "folder of logs and results; empty: tmp/LIDC/<backbone>/<conv>_<weights>_seed<seed>"
    )


@dataclass
class LIDCSegConfig(LIDCEnv):
    """Segmentation of nodules."""

    batch_size: int = setting(8, "volumes in a step, on each device")
    n_epochs: int = setting(100, "passes through the training set")
    seed: int = setting(0, "of weights, order, crops")
    hold_out: float = setting(
        0.0, "share of the training set that chooses the best epoch; 0: the test set does, as published"
    )
    num_workers: int = setting(8, "processes that load volumes")
    crop_size: int = setting(48, "voxels of a crop along each axis")
    move: int = setting(5, "how far crops are moved in training, voxels")

    lr: float = setting(0.001, "Adam's learning rate")
    milestones: tuple[float, ...] = setting((0.5, 0.75), "where it falls, as shares of the epochs")
    gamma: float = setting(0.1, "by which factor it falls")

    backbone: Literal["resnet18", "densenet121", "vgg16"] = setting("resnet18", "network")
    conv: Literal["ACSConv", "SoftACSConv", "Conv2_5d", "Conv3d"] = setting("ACSConv", "its convolutions")
    pretrained: bool = setting(True, "2D ImageNet weights, for every conv but Conv3d")
    pretrained_3d: Literal["i3d", "video", "mednet", "nopretrained"] = setting(
        "i3d", "weights of Conv3d: ImageNet's, inflated; Kinetics'; MedicalNet's; none"
    )
    shortcut: Literal["A", "B"] = setting("B", "of resnet18: A is that of the files of video and mednet")

    memory_efficient: bool = setting(False, "train in less memory")
    accelerator: str = setting("auto", "auto | cpu | gpu")
    devices: int = setting(1, "how many of them")
    precision: str = setting("32-true", "32-true | bf16-mixed | 16-mixed")
    progress: bool = setting(True, "show a bar")

    _task = "LIDC"

    def __post_init__(self) -> None:
        if (
            self.conv == "Conv3d"
            and self.pretrained_3d in ("video", "mednet")
            and self.backbone != "resnet18"
        ):
            raise ValueError(f"pretrained_3d: only resnet18 loads {self.pretrained_3d}, got {self.backbone}")
        if not 0 <= self.hold_out < 1:
            raise ValueError(f"hold_out: expected a share from 0 to 1, got {self.hold_out}")
        if self.crop_size % 2:
            raise ValueError(f"crop_size: expected an even number, got {self.crop_size}")

    @property
    def weights(self) -> str:
        """What the network starts from: ``pretrained``, ``nopretrained``, or ``pretrained_3d``."""
        if self.conv == "Conv3d":
            return self.pretrained_3d
        return "pretrained" if self.pretrained else "nopretrained"

    @property
    def channels(self) -> int:
        """Of the network's input: MedicalNet's takes one."""
        return 1 if self.weights == "mednet" else 3

    @property
    def folder(self) -> Path:
        """Where logs and results go."""
        name = f"{self.conv}_{self.weights}_seed{self.seed}"
        return Path(self.save or Path("tmp") / self._task / self.backbone / name)


@dataclass
class LIDCClassConfig(LIDCSegConfig):
    """Classification of nodules."""

    batch_size: int = setting(24, "volumes in a step, on each device")

    _task = "LIDCClass"
