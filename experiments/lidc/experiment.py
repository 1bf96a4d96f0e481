"""What segmentation and classification of nodules share: from settings to a result."""

from __future__ import annotations

from collections.abc import Callable

import lightning
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from experiments.lidc.lidc_config import LIDCSegConfig
from experiments.lidc.networks import build
from experiments.mylib.data import VolumeDataModule
from experiments.mylib.modules import TrainedModule
from experiments.mylib.training import train

# Settings on which a result depends, beside those that the network, the data and the optimiser note themselves.
_NOTED = (
    "backbone",
    "conv",
    "weights",
    "shortcut",
    "memory_efficient",
    "crop_size",
    "move",
    "hold_out",
    "num_workers",  # each has random numbers of its own, of which crops are drawn
    "devices",
)


def run(
    config: LIDCSegConfig,
    dataset: type[Dataset],
    networks: dict[str, type[nn.Module]],
    module: Callable[..., TrainedModule],
    monitor: str,
) -> dict:
    """Trains and tests in ``config.folder``; a finished training's result is returned at once.

    Args:
        config: the settings.
        dataset: one of the classes of :mod:`experiments.lidc.lidc_dataset`.
        networks: the network of each backbone.
        module: (network, optimiser's options) -> what is trained.
        monitor: the metric that chooses the best epoch.

    Returns:
        See :func:`experiments.mylib.training.train`.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or of another format; the message names it.
    """
    data = data_module(config, dataset)
    lightning.seed_everything(config.seed, verbose=False)
    trained = module(
        build(config, networks),
        optimizer="adam",
        lr=config.lr,
        milestones=[int(share * config.n_epochs) for share in config.milestones],
        gamma=config.gamma,
    )
    return train(
        trained,
        data,
        folder=config.folder,
        epochs=config.n_epochs,
        seed=config.seed,
        monitor=monitor,
        precision=config.precision,
        accelerator=config.accelerator,
        devices=config.devices,
        settings={name: getattr(config, name) for name in _NOTED},
        progress=config.progress,
    )


def data_module(config: LIDCSegConfig, dataset: type[Dataset]) -> VolumeDataModule:
    """Training and test set; the best epoch is chosen by ``hold_out`` of the former, or else by the latter."""

    def volumes(train: bool, augment: bool) -> Dataset:
        copy_channels = config.channels == 3
        return dataset(config.crop_size, config.move, config.data, train, copy_channels, augment)

    training, test = volumes(True, True), volumes(False, False)
    validation = test
    held_out = round(config.hold_out * len(training))
    if held_out:
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(config.seed)).tolist()
        validation = Subset(volumes(True, False), order[:held_out])
        training = Subset(training, order[held_out:])
    return VolumeDataModule(
        training,
        validation,
        test,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        seed=config.seed,
    )
