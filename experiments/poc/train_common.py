"""What the trainings of the 2D and the 3D network share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning
from torch import nn
from torch.utils.data import Dataset

from experiments.mylib.data import VolumeDataModule
from experiments.mylib.segmentation import SegmentationModule
from experiments.mylib.training import train
from experiments.poc.poc_config import POCShapeConfig, POCVoxelConfig, run_folder
from experiments.poc.poc_dataset import BaseDatasetShape, BaseDatasetVoxel


def train_on(
    config: POCShapeConfig | POCVoxelConfig,
    build: Callable[[], nn.Module],
    classes: tuple[str, ...],
    dataset: type[BaseDatasetShape | BaseDatasetVoxel],
    batch_size: int,
    *,
    optimizer: str,
    settings: dict,
    progress: bool,
) -> dict:
    """Trains the network that ``build`` makes on the first ``train_samples`` files, chooses the epoch on all of
    ``data_valid``, tests on all of ``data_test``; the loss is Dice and cross-entropy.

    Returns:
        As :func:`experiments.mylib.training.train`, and ``folder``, where everything about the training is.

    Raises:
        ValueError: several devices, and no ``run``: each process would name the folder by its own clock.
    """
    if config.devices != 1 and not config.run:
        raise ValueError("run: on several devices give it a name, so that all processes have one folder")
    data = VolumeDataModule(
        dataset(config.data_train, config.train_samples),
        _all(dataset, config.data_valid),
        _all(dataset, config.data_test),
        batch_size=batch_size,
        num_workers=config.num_workers,
        seed=config.seed,
    )
    lightning.seed_everything(config.seed, verbose=False)
    module = SegmentationModule(
        build(),
        classes,
        optimizer=optimizer,
        lr=config.lr,
        weight_decay=config.wd,
        momentum=getattr(config, "momentum", 0.0),
        milestones=[round(part * config.n_epochs) for part in config.milestones],
        gamma=config.gamma,
    )
    folder = run_folder(config)
    result = train(
        module,
        data,
        folder=folder,
        epochs=config.n_epochs,
        seed=config.seed,
        precision=config.precision,
        accelerator=config.accelerator,
        devices=config.devices,
        progress=progress,
        settings={"noise": config.noise, **settings},
    )
    return {**result, "folder": str(folder)}


def _all(dataset: type[BaseDatasetShape | BaseDatasetVoxel], folder: str) -> Dataset:
    return dataset(folder, max(1, len(list(Path(folder).glob(f"{dataset.name}_*.npz")))))


def run_name(pretrained: bool, seed: int) -> str:
    """How ``run.py`` names a training of the 3D network."""
    return f"{'pretrained' if pretrained else 'random'}-seed{seed}"


def summary(result: dict) -> str:
    """A line for people."""
    metrics = result["metrics"]
    return (
        f"test Dice {metrics['test_dice']:.3f}, IoU {metrics['test_iou']:.3f} (epoch {result['best_epoch']} of "
        f"{result['epochs']}), {result['seconds']:.0f} s: {result['folder']}"
    )
