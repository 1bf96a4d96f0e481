"""The loss of the published segmentation experiments."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def soft_dice_loss(logits: Tensor, labels: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice of probabilities, of all voxels of a batch together, the sum over classes by their number.

    Args:
        logits: [N, classes, ...].
        labels: [N, ...] int64. A class that no voxel of the batch has counts as 0.
        smooth: added to both parts of Dice's fraction.
    """
    classes = logits.shape[1]
    axes = [0, *range(2, logits.dim())]
    probabilities = logits.softmax(1)
    truth = functional.one_hot(labels, classes).movedim(-1, 1)
    total = truth.sum(axes)
    dice = (2 * (probabilities * truth).sum(axes) + smooth) / (probabilities.sum(axes) + total + smooth)
    return torch.where(total > 0, 1 - dice, 0.0).sum() / classes
