"""Training of a network that names the class of every pixel or voxel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from .modules import TrainedModule

#: (logits [N, classes, ...], labels [N, ...]) -> scalar
Loss = Callable[[Tensor, Tensor], Tensor]


class SegmentationModule(TrainedModule):
    """A network for segmentation, with its loss, metrics and optimiser.

    Args:
        network: [N, C, ...] -> logits [N, classes, ...], of images or volumes.
        class_names: of the classes, background first.
        loss: ``'dice_ce'`` (Dice and cross-entropy, MONAI's, added), or a function of logits and labels.
        include_background: in the means of the metrics, and in the Dice of ``'dice_ce'``.
        **optimisation: see :class:`~experiments.mylib.modules.TrainedModule`.

    Batches are (input, labels int64 [N, ...]). Logged for ``val_`` and ``test_``: ``loss``, ``dice_<class>``,
    ``iou_<class>``, and ``dice`` and ``iou``, the means over classes. They are those of all voxels of the set
    together, not means over volumes; a class that is neither in the labels nor predicted has none (NaN) and does not
    count.

    Raises:
        ValueError: an unknown loss or optimiser.
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        *,
        loss: str | Loss = "dice_ce",
        include_background: bool = False,
        **optimisation,
    ) -> None:
        super().__init__(
            network,
            class_names,
            {"confusion": MulticlassConfusionMatrix(len(class_names))},
            **optimisation,
        )
        if isinstance(loss, str):
            if loss != "dice_ce":
                raise ValueError(f"loss: expected 'dice_ce' or a function, got {loss!r}")
            criterion = DiceCELoss(softmax=True, to_onehot_y=True, include_background=include_background)
            self._loss: Loss = lambda logits, labels: criterion(logits, labels[:, None])
            self.settings["loss"] = loss
        else:
            self._loss = loss
            self.settings["loss"] = getattr(loss, "__qualname__", type(loss).__qualname__)
        self.include_background = self.settings["include_background"] = include_background

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self._loss(output, target)

    def summary(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        confusion = values["confusion"].double()  # rows: labels, columns: predictions
        hits, total = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
        logged = {}
        for name, scores in (("dice", 2 * hits / total), ("iou", hits / (total - hits))):
            logged[name] = torch.nanmean(scores if self.include_background else scores[1:])
            logged.update(zip((f"{name}_{label}" for label in self.class_names), scores))
        return {name: value.float() for name, value in logged.items()}
