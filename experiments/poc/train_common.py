"""What the trainings of the 2D and the 3D network share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import lightning
from torch import nn

from experiments.mylib.data import VolumeDataModule
from experiments.mylib.saving import read_json
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
        ValueError: several devices, and no ``run``: each process would name the folder by its own clock. Or the data
            were made with another noise than ``config.noise``.
        FileNotFoundError: a folder has fewer files than its settings say.
    """
    if config.devices != 1 and not config.run:
        raise ValueError("run: on several devices give it a name, so that all processes have one folder")
    folders = {"train": config.data_train, "validation": config.data_valid, "test": config.data_test}
    made = {name: _made(folder, config.noise) for name, folder in folders.items()}
    data = VolumeDataModule(
        dataset(config.data_train, config.train_samples),
        _all(dataset, config.data_valid, made["validation"]),
        _all(dataset, config.data_test, made["test"]),
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
        settings={
            "noise": config.noise,
            "data": {name: _kept(entry) for name, entry in made.items()},
            **settings,
        },
    )
    return {**result, "folder": str(folder)}


def _made(folder: str, noise: float) -> dict | None:
    """What ``settings.json`` of a folder of data says; None where the original's script made them.

    Raises:
        ValueError: the data's noise is another, or how many there are is not noted.
    """
    note = Path(folder) / "settings.json"
    if not note.exists():
        return None
    made = read_json(note)
    if "count" not in made:
        raise ValueError(
            f"{note} does not say how many samples there are; generate_poc_data.py makes such data"
        )
    if made["noise"] != noise:
        raise ValueError(f"noise: {folder} was made with {made['noise']}, the setting says {noise}")
    return made


def _kept(made: Mapping | None) -> dict | None:
    """Of :func:`_made`, what a training depends on."""
    return made and {name: made[name] for name in ("size", "noise", "seed")}


def _all(
    dataset: type[BaseDatasetShape | BaseDatasetVoxel], folder: str, made: Mapping | None
) -> BaseDatasetShape | BaseDatasetVoxel:
    """All samples of a folder: as many as its settings say, so that none of them can lack unnoticed."""
    count = made["count"] if made else len(list(Path(folder).glob(f"{dataset.name}_*.npz")))
    return dataset(folder, max(1, count))


def run_name(pretrained: bool, seed: int) -> str:
    """How ``run.py`` names a training of the 3D network."""
    return f"{'pretrained' if pretrained else 'random'}-seed{seed}"


def summary(result: dict) -> str:
    """A line for people."""
    dice, iou = (
        "-" if result["metrics"][name] is None else f"{result['metrics'][name]:.3f}"
        for name in ("test_dice", "test_iou")
    )
    return (
        f"test Dice {dice}, IoU {iou} (epoch {result['best_epoch']} of "
        f"{result['epochs']}), {result['seconds']:.0f} s: {result['folder']}"
    )
