"""What the modules for segmentation and classification share: the network, and how it is optimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import lightning
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

OPTIMIZERS = ("adam", "sgd")


class TrainedModule(lightning.LightningModule, ABC):
    """A network with its optimiser and a schedule that multiplies the learning rate by ``gamma`` at milestones.

    Args:
        network: what is trained.
        class_names: of the network's outputs.
        metrics: what outputs and targets of validation and test are added to; :meth:`summary` reads them.
        optimizer: ``'adam'`` or ``'sgd'``.
        lr: learning rate.
        weight_decay: L2 penalty, as the optimiser takes it.
        momentum: of SGD; Adam has none.
        milestones: epochs after which the learning rate falls.
        gamma: what it is multiplied by.
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        metrics: Mapping[str, Metric],
        *,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        milestones: Sequence[int] = (),
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {OPTIMIZERS}, got {optimizer!r}")
        self.network = network
        self.class_names = tuple(class_names)
        collection = MetricCollection(dict(metrics))
        self.metrics = nn.ModuleDict({"val": collection, "test": collection.clone()})
        #: What a result depends on, as plain values; see :func:`experiments.mylib.training.train`.
        self.settings = {
            "network": type(network).__name__,
            "classes": list(self.class_names),
            "optimizer": optimizer,
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum if optimizer == "sgd" else None,
            "milestones": list(milestones),
            "gamma": gamma,
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def configure_optimizers(self) -> dict:
        options = {"lr": self.settings["lr"], "weight_decay": self.settings["weight_decay"]}
        if self.settings["optimizer"] == "adam":
            optimizer = torch.optim.Adam(self.parameters(), **options)
        else:
            optimizer = torch.optim.SGD(self.parameters(), momentum=self.settings["momentum"], **options)
        schedule = torch.optim.lr_scheduler.MultiStepLR(
            optimizer, self.settings["milestones"], self.settings["gamma"]
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """A scalar, the mean over the samples of a batch."""

    @abstractmethod
    def summary(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is logged, after ``val_`` or ``test_``, of what the metrics have come to."""

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, target = batch
        loss = self.loss(self(x), target)
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(x), sync_dist=True
        )
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        self._summarise("val")

    def on_test_epoch_end(self) -> None:
        self._summarise("test")

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        x, target = batch
        output = self(x)
        self.log(f"{stage}_loss", self.loss(output, target), batch_size=len(x), sync_dist=True)
        # Of a batch whose logits all lie between 0 and 1 torchmetrics would think that they are probabilities.
        self.metrics[stage].update(output.float().softmax(1), target)

    def _summarise(self, stage: str) -> None:
        summary = self.summary(self.metrics[stage].compute())
        self.log_dict({f"{stage}_{name}": value for name, value in summary.items()}, sync_dist=True)
        self.metrics[stage].reset()
