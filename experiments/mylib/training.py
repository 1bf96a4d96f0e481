"""One training from seed to result, by Lightning's Trainer, which can be killed at any time and started again."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from benchmarks import environment
from benchmarks.harness import Peak, memory_meter

from .data import VolumeDataModule, seed_of
from .files import read_checkpoint
from .modules import TrainedModule
from .saving import claim, finite, read_json, whole, write_json


class TrainingError(RuntimeError):
    """A training cannot go on, or its folder has another one; the message says what to do."""


def train(
    module: TrainedModule,
    data: VolumeDataModule,
    *,
    folder: str | os.PathLike,
    epochs: int,
    seed: int,
    monitor: str | None = "val_dice",
    mode: str = "max",
    precision: str = "32-true",
    accelerator: str = "auto",
    devices: int | str = 1,
    strategy: str = "auto",
    patience: int | None = None,
    max_time: timedelta | dict[str, int] | str | None = None,
    progress: bool = True,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains, and tests the best checkpoint; or returns the result of the finished training in ``folder``.

    Args:
        module, data: what is trained, on what. The network's own initial weights are drawn before, so call
            ``lightning.seed_everything(seed)`` before it is built.
        folder: everything that the training writes, and the place where it goes on if it was interrupted.
        epochs: passes over the training data.
        seed: of what is random in training, but for the order of the samples, which has the data's.
        monitor, mode: the logged value that chooses the best checkpoint, ``'max'`` or ``'min'``; None: the last one is
            the best (where there are no validation data).
        precision, accelerator, devices, strategy, max_time: as Lightning's ``Trainer`` takes them.
        patience: epochs without improvement of ``monitor`` after which training ends.
        progress: show a bar.
        settings: more plain values on which the result depends, to be noted with it.

    Returns:
        What ``folder/result.json`` holds: ``metrics`` of the best checkpoint on the test data (NaN as None; empty
        without test data), ``validation`` (its ``monitor``), ``best_epoch`` and ``epochs`` (counted from 1),
        ``parameters``, ``seconds`` of training and validation in all starts together, ``peak_memory`` in bytes above
        what was in use before (of the last start; None: not measured), ``environment`` (machine, versions and commit
        of the last start, as the benchmarks note them) and ``settings``.

    Also in ``folder``: ``model.dat`` (the best network's state_dict), ``best.ckpt`` and ``last.ckpt`` (Lightning's),
    ``metrics.csv`` (a line per epoch), ``trained.json`` (what is known before the test), ``logs`` (Lightning's, a table
    per start) and ``tensorboard``.

    On several GPUs batch norm uses the statistics of all of them (``SyncBatchNorm``, which torch lacks on CPUs).

    Raises:
        TrainingError: the loss is not finite, or ``folder`` has a training with other settings.
        ValueError: a damaged file in ``folder``.
    """
    folder = Path(folder)
    record = {
        **module.settings,
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        **data.settings,
        "epochs": epochs,
        "seed": seed,
        "monitor": monitor,
        "mode": mode,
        "precision": str(precision),
        "devices": devices,
        "patience": patience,
        "max_time": None if max_time is None else str(max_time),
        **(settings or {}),
    }
    claim(folder, record, "a training", TrainingError)
    finished = folder / "result.json"
    if finished.exists():
        return read_json(finished)

    best = _Checkpoint(
        folder, "best", monitor=monitor, mode=mode, save_weights_only=True, enable_version_counter=False
    )
    last = _Checkpoint(folder, "last", enable_version_counter=False)
    timer = Timer(max_time, verbose=False)
    callbacks = [_FiniteLoss(), _SeedOfEpoch(seed), timer, best, last]
    if progress:
        callbacks.append(_Progress())
    if patience is not None:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=patience))
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            precision=precision,
            max_epochs=epochs,
            callbacks=callbacks,
            logger=[
                CSVLogger(folder, name="logs", flush_logs_every_n_steps=1),
                TensorBoardLogger(folder, name="", version="tensorboard"),
            ],
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            sync_batchnorm=torch.cuda.is_available() and accelerator != "cpu",
            enable_progress_bar=progress,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        lightning.seed_everything(seed, workers=True, verbose=False)
        trained = folder / "trained.json"  # without it, who was stopped early would train on after a kill
        if trained.exists():
            outcome = read_json(trained)
        else:
            peak = _fit(trainer, module, data, folder / "last.ckpt")
            outcome = {
                "validation": None if monitor is None else finite(best.best_model_score),
                "epochs": trainer.current_epoch,
                "seconds": round(timer.time_elapsed("train"), 2),
                "peak_memory": peak.bytes,
                "environment": environment.collect(trainer.strategy.root_device),
            }
            if trainer.is_global_zero:
                _write_history(folder)
                write_json(trained, outcome)
            trainer.strategy.barrier("trained.json")
        checkpoint = _read(folder / "best.ckpt")
        module.load_state_dict(checkpoint["state_dict"])
        tested = [{}] if data.test is None else trainer.test(module, data, verbose=False)
    result = {
        "metrics": {name: finite(value) for name, value in tested[0].items()},
        **outcome,
        "best_epoch": checkpoint["epoch"] + 1,
        "parameters": record["parameters"],
        "settings": record,
    }
    if trainer.is_global_zero:
        state = {key: value.cpu() for key, value in module.network.state_dict().items()}
        with whole(folder / "model.dat") as file:
            torch.save(state, file)
        write_json(finished, result)
    trainer.strategy.barrier("result.json")
    return result


def _fit(trainer: lightning.Trainer, module: TrainedModule, data: VolumeDataModule, last: Path) -> Peak:
    """Trains, from the last checkpoint if there is one."""
    if last.exists():
        _read(last)  # an error of ours, before Lightning's
    return memory_meter(trainer.strategy.root_device).measure(
        lambda: trainer.fit(module, data, ckpt_path=last if last.exists() else None)
    )


def _read(checkpoint: Path) -> Mapping:
    return read_checkpoint(checkpoint, f"Remove {checkpoint.parent} to train from the start")


class _Checkpoint(ModelCheckpoint):
    """Lightning forgets the best score if the folder has another path than when ``last.ckpt`` was written."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return os.path.join(self.dirpath, os.path.basename(path)) if path else path

        state = {name: here(value) if name.endswith("_path") else value for name, value in state_dict.items()}
        scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state, "dirpath": self.dirpath, "best_k_models": scores})


class _FiniteLoss(Callback):
    """Stops at the first loss that is NaN or infinite, before it reaches the weights."""

    def on_before_backward(self, trainer, module, loss) -> None:
        if not torch.isfinite(loss).all():
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {trainer.current_epoch + 1}, step {trainer.global_step + 1}: "
                "lower the learning rate, or look for NaN in the data"
            )


class _SeedOfEpoch(Callback):
    """Seeds every epoch by its number, so that a resumed training draws what an uninterrupted one does."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer, module) -> None:
        index = trainer.current_epoch * trainer.world_size + trainer.global_rank
        lightning.seed_everything(seed_of(self.seed, index), workers=True, verbose=False)


class _Progress(TQDMProgressBar):
    """Lightning's bar without the number of the log."""

    def get_metrics(self, trainer, module) -> dict:
        return {
            name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"
        }


def _write_history(folder: Path) -> None:
    """Joins the logs of all starts: ``metrics.csv`` with a line per epoch, a repeated epoch as it was last.

    What an interrupted test logged, as if of an epoch of its own, stays out. Lightning logs the training loss after the
    epoch's checkpoint: of a training killed between them that one is missing.
    """
    epochs: dict[int, dict[str, str]] = {}
    logs = folder.glob("logs/version_*/metrics.csv")
    for path in sorted(logs, key=lambda path: int(path.parent.name.removeprefix("version_"))):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                logged = {
                    name: value
                    for name, value in row.items()
                    if value and name.startswith(("train_", "val_"))
                }
                if logged:
                    epochs.setdefault(int(row["epoch"]), {}).update(logged)
    columns = sorted({name for row in epochs.values() for name in row})
    lines = [["epoch", *columns]]
    lines += [[epoch + 1, *(epochs[epoch].get(name, "") for name in columns)] for epoch in sorted(epochs)]
    with whole(folder / "metrics.csv") as file:
        file.write("".join(",".join(map(str, line)) + "\n" for line in lines).encode())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says of every Trainer."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*exists and is not empty.*",
            ".*LeafSpec.*",
            ".*across ranks is zero.*",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            logger.setLevel(level)
