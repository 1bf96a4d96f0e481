"""AUC and accuracy as MedMNIST's evaluator defines them, and its files of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, Dataset

from experiments.mylib.saving import whole


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Of labels [n] and scores [n, classes]: with two classes that of the last score, else the mean over classes of
    one class against the rest; NaN where a class has no volume."""
    if scores.shape[1] == 2:
        return _area(labels == 1, scores[:, 1])
    return float(np.mean([_area(labels == number, score) for number, score in enumerate(scores.T)]))


def accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of right answers: with two classes the second one where its score is above 0.5, else the highest."""
    answers = scores[:, 1] > 0.5 if scores.shape[1] == 2 else scores.argmax(1)
    return float((answers == labels).mean())


def _area(truth: np.ndarray, score: np.ndarray) -> float:
    return float(roc_auc_score(truth, score)) if 0 < truth.sum() < len(truth) else float("nan")


def predict(network: nn.Module, dataset: Dataset, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels [n] of a data set, and the network's probabilities [n, classes]; the network is left in eval mode."""
    device = next(network.parameters()).device
    labels, scores = [], []
    network.eval()
    with torch.inference_mode():
        for volumes, targets in DataLoader(dataset, batch_size):
            labels.append(targets)
            scores.append(network(volumes.to(device)).softmax(1).cpu())
    return torch.cat(labels).numpy(), torch.cat(scores).numpy()


def evaluate(
    network: nn.Module, dataset: Dataset, batch_size: int, folder: str | Path, name: str, run: str
) -> dict[str, float]:
    """AUC and ACC of a data set; the probabilities are written to ``folder``, where MedMNIST's evaluator reads them.

    The file is ``<name>_[AUC]0.123_[ACC]0.456@<run>.csv``, ``name`` being a flag, a size if not 28, and a split; a line
    is the number of a volume and its probabilities.
    """
    labels, scores = predict(network, dataset, batch_size)
    found = {"AUC": auc(labels, scores), "ACC": accuracy(labels, scores)}
    figures = "_".join(f"[{key}]{value:.3f}" for key, value in found.items())
    lines = [f"{number},{','.join(map(str, row))}\n" for number, row in enumerate(scores.tolist())]
    Path(folder).mkdir(parents=True, exist_ok=True)
    with whole(Path(folder) / f"{name}_{figures}@{run}.csv") as file:
        file.write("".join(lines).encode())
    return found
