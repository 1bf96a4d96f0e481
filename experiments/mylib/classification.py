"""Training of a network that names the class of a whole image or volume."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from .modules import TrainedModule


class ClassificationModule(TrainedModule):
    """A network for classification, with cross-entropy, metrics and optimiser.

    Args:
        network: [N, C, ...] -> logits [N, classes].
        class_names: of the classes, two or more.
        **optimisation: see :class:`~experiments.mylib.modules.TrainedModule`.

    Batches are (input, labels int64 [N]). Logged for ``val_`` and ``test_``: ``loss``, ``accuracy`` (the share of right
    answers) and ``auc`` (exact, each class against the rest, the mean over classes).
    """

    def __init__(self, network: nn.Module, class_names: Sequence[str], **optimisation) -> None:
        classes = len(class_names)
        metrics = {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "auc": MulticlassAUROC(classes, average="macro"),
        }
        super().__init__(network, class_names, metrics, **optimisation)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target)

    def summary(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return values
