"""From settings to a trained and evaluated network: the settings, the training, the files of results."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from acsconv.memory import make_memory_efficient
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from experiments.medmnist3d.dataset import INFO, SIZES, SPLITS, MedMNIST3D, file_name
from experiments.medmnist3d.evaluation import evaluate
from experiments.medmnist3d.models import MODELS, build, load_published
from experiments.mylib.classification import ClassificationModule
from experiments.mylib.data import VolumeDataModule
from experiments.mylib.files import read_checkpoint
from experiments.mylib.networks import CONVS
from experiments.mylib.options import setting
from experiments.mylib.saving import read_json, write_json
from experiments.mylib.training import train


@dataclass
class MedMNIST3DConfig:
    """Settings; folders are relative to the current one."""

    data_flag: str = setting("organmnist3d", "data set", tuple(INFO))
    size: int = setting(28, "voxels along each axis", SIZES)
    root: str = setting("data/medmnist3d", "folder of the data")
    output_root: str = setting("tmp/medmnist3d", "folder of logs and results")
    run: str = setting("model1", "name of this run, in its folder's and its predictions' names")

    num_epochs: int = setting(100, "passes through the training set; 0: evaluate model_path")
    batch_size: int = setting(32, "volumes in a step, on each device")
    lr: float = setting(0.001, "Adam's learning rate")
    milestones: tuple[float, ...] = setting((0.5, 0.75), "where it falls, as shares of the epochs")
    gamma: float = setting(0.1, "by which factor it falls")
    seed: int = setting(0, "of weights, order, shape_transform")

    model_flag: str = setting("resnet18", "network", tuple(MODELS))
    conv: str = setting("ACSConv", "its convolutions", CONVS)
    pretrained_3d: str = setting(
        "i3d", "of Conv3d: random 2D kernels, inflated, or random 3D ones", ("i3d", "nopretrained")
    )
    model_path: str = setting("", "file of weights to begin with, or, with num_epochs 0, to evaluate")
    as_rgb: bool = setting(False, "three equal channels")
    shape_transform: bool = setting(False, "vary the brightness; for adrenalmnist3d and vesselmnist3d")

    memory_efficient: bool = setting(False, "train in less memory")
    num_workers: int = setting(0, "processes that load volumes")
    accelerator: str = setting("auto", "auto | cpu | gpu")
    devices: int = setting(1, "how many of them")
    precision: str = setting("32-true", "32-true | bf16-mixed | 16-mixed")
    progress: bool = setting(True, "show a bar")

    @property
    def name(self) -> str:
        """Of the data set's file, without its ending."""
        return Path(file_name(self.data_flag, self.size)).stem

    @property
    def folder(self) -> Path:
        """Where logs and results go."""
        weights = "_nopretrained" if (self.conv, self.pretrained_3d) == ("Conv3d", "nopretrained") else ""
        # What is evaluated alone is not to lie among a training's results.
        only = "" if self.num_epochs else "_evaluated"
        return Path(self.output_root) / self.name / self.model_flag / f"{self.conv}{weights}_{self.run}{only}"


# Settings on which a result depends, beside those that the network, the data and the optimiser note themselves.
_NOTED = (
    "data_flag",
    "size",
    "model_flag",
    "conv",
    "pretrained_3d",
    "model_path",
    "as_rgb",
    "shape_transform",
    "memory_efficient",
    "devices",
)


def run(config: MedMNIST3DConfig) -> dict:
    """Trains, the best epoch being the one with the highest AUC on the validation set, and evaluates the best network.

    Returns:
        What :func:`experiments.mylib.training.train` returns, and ``evaluation``: AUC and ACC of each split. Only the
        latter where ``num_epochs`` is 0.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or of another format; the message names it.
    """
    classes = INFO[config.data_flag].classes
    sets = {
        split: MedMNIST3D(
            config.root, config.data_flag, split, config.size, config.as_rgb, config.shape_transform
        )
        for split in SPLITS
    }
    data = VolumeDataModule(
        *sets.values(),
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        seed=config.seed,
    )
    lightning.seed_everything(config.seed, verbose=False)
    channels = 3 if config.as_rgb else 1
    network = build(config.model_flag, config.conv, channels, len(classes), config.pretrained_3d)
    if config.memory_efficient:
        make_memory_efficient(network)
    if config.model_path:
        load_published(network, config.model_path)
    if config.num_epochs == 0:
        if not config.model_path:
            raise ValueError("num_epochs is 0, and there is no model_path to evaluate")
        return {"evaluation": _evaluate(network, sets, config)}
    module = ClassificationModule(
        network,
        classes,
        optimizer="adam",
        lr=config.lr,
        milestones=[int(share * config.num_epochs) for share in config.milestones],
        gamma=config.gamma,
    )
    result = train(
        module,
        data,
        folder=config.folder,
        epochs=config.num_epochs,
        seed=config.seed,
        monitor="val_auc",
        precision=config.precision,
        accelerator=config.accelerator,
        devices=config.devices,
        settings={name: getattr(config, name) for name in _NOTED},
        progress=config.progress,
    )
    evaluated = config.folder / "evaluation.json"
    if rank_zero_only.rank == 0 and not evaluated.exists():
        network.load_state_dict(
            read_checkpoint(config.folder / "model.dat", "Remove its folder to train again.")
        )
        write_json(evaluated, _evaluate(network, sets, config))
    return {**result, "evaluation": read_json(evaluated) if evaluated.exists() else None}


def _evaluate(
    network: nn.Module, sets: dict[str, MedMNIST3D], config: MedMNIST3DConfig
) -> dict[str, dict[str, float | None]]:
    """Evaluates on every split, and writes the predictions into ``config.folder``."""
    cuda = config.accelerator != "cpu" and torch.cuda.is_available()
    network.to("cuda" if cuda else "cpu")
    found = {}
    for split, volumes in sets.items():
        dataset = copy.copy(volumes)
        dataset.train = False
        name = f"{config.name}_{split}"
        metrics = evaluate(network, dataset, config.batch_size, config.folder, name, config.run)
        found[split] = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return found
