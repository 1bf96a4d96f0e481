"""Datasets for training, validation and test, as Lightning takes them."""

from __future__ import annotations

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class VolumeDataModule(lightning.LightningDataModule):
    """Loaders over datasets of (input, target).

    Args:
        train, validation, test: map-style datasets; the last two may be None.
        batch_size: samples of a step, on each device.
        eval_batch_size: samples of a step of validation and test, where they are others.
        num_workers: processes that load.
        seed: of the order of the training samples, and of what is random in loading. Both are functions of the seed
            and the epoch alone: a resumed training sees what an uninterrupted one does, and n processes with batches
            of b/n share the batches of b that one process sees.

    On several devices Lightning gives each process its share of validation and test, and repeats samples where the
    shares would differ in length.
    """

    def __init__(
        self,
        train: Dataset,
        validation: Dataset | None = None,
        test: Dataset | None = None,
        *,
        batch_size: int,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, dataset in (("train", train), ("validation", validation), ("test", test)):
            if dataset is not None and len(dataset) == 0:
                raise ValueError(f"{name}: the dataset is empty")
        self.train, self.validation, self.test = train, validation, test
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.seed = num_workers, seed

    @property
    def settings(self) -> dict:
        """What a result depends on; see :func:`experiments.mylib.training.train`."""
        sizes = {
            f"{name}_samples": 0 if dataset is None else len(dataset)
            for name, dataset in (
                ("train", self.train),
                ("validation", self.validation),
                ("test", self.test),
            )
        }
        return {**sizes, "batch_size": self.batch_size, "data_seed": self.seed}

    def train_dataloader(self) -> DataLoader:
        sampler = _SeededSampler(
            self.train,
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
            shuffle=True,
            seed=self.seed,
        )
        sampler.set_epoch(self.trainer.current_epoch)  # workers may fetch before Lightning says which it is
        return self._loader(self.train, self.batch_size, sampler=sampler, generator=sampler.of_workers)

    def val_dataloader(self) -> DataLoader | list:
        return [] if self.validation is None else self._loader(self.validation, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader | list:
        return [] if self.test is None else self._loader(self.test, self.eval_batch_size)

    def _loader(self, dataset: Dataset, batch_size: int, **options) -> DataLoader:
        return DataLoader(dataset, batch_size=batch_size, num_workers=self.num_workers, **options)


class _SeededSampler(DistributedSampler):
    """The epoch decides the seeds of the loading processes as well, and none is drawn from the training's generator."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.of_workers = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.of_workers.manual_seed(seed_of(self.seed, epoch * self.num_replicas + self.rank))


def seed_of(seed: int, index: int) -> int:
    """The seed of the part ``index`` of what ``seed`` decides."""
    return (seed + 1_000_003 * (index + 1)) % 2**32
