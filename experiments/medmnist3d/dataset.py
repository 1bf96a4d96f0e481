"""The six data sets of MedMNIST3D (Yang et al., Scientific Data, 2023), in their published files.

``<flag>.npz`` (28 x 28 x 28) and ``<flag>_64.npz`` (64 x 64 x 64) hold, for ``train``, ``val`` and ``test``:
``<split>_images``, uint8 [n, size, size, size], and ``<split>_labels``, [n, 1], the number of the class.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiments.mylib.files import read_npz

SPLITS = ("train", "val", "test")
SIZES = (28, 64)
RECORD = "https://zenodo.org/records/10519652/files"


class Info(NamedTuple):
    """A data set: its classes, and MD5 sums of its files by size."""

    classes: tuple[str, ...]
    md5: dict[int, str]


INFO = {
    "organmnist3d": Info(
        ("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right",
         "lung-left", "spleen", "pancreas"),
        {28: "a0c5a1ff56af4f155c46d46fbb45a2fe", 64: "58a2205adf14a9d0a189cb06dc78bf10"},
    ),
    "nodulemnist3d": Info(
        ("benign", "malignant"),
        {28: "8755a7e9e05a4d9ce80a24c3e7a256f3", 64: "c47c5b7d457bf6332200d2ea6d64ecd8"},
    ),
    "adrenalmnist3d": Info(
        ("normal", "hyperplasia"),
        {28: "bbd3c5a5576322bc4cdfea780653b1ce", 64: "17721accfe9fb005146a47d33bc54b2f"},
    ),
    "fracturemnist3d": Info(
        ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
        {28: "6aa7b0143a6b42da40027a9dda61302f", 64: "f01d7e6316aedf4210da0da5b7437b42"},
    ),
    "vesselmnist3d": Info(
        ("vessel", "aneurysm"),
        {28: "b41fd4f7e7e2feedddb201585ecafa1b", 64: "6bb274a8846e1097066dcd64e2c4520f"},
    ),
    "synapsemnist3d": Info(
        ("inhibitory synapse", "excitatory synapse"),
        {28: "1235b78a3cd6280881dd7850a78eadb6", 64: "43bd14ebf3af9d3dd072446fedc14d5e"},
    ),
}  # fmt: skip


def file_name(data_flag: str, size: int = 28) -> str:
    """The name of a data set's published file."""
    return f"{data_flag}.npz" if size == 28 else f"{data_flag}_{size}.npz"


class MedMNIST3D(Dataset):
    """One split of a data set.

    Args:
        root: the folder of the files.
        data_flag: one of :data:`INFO`.
        split: one of :data:`SPLITS`.
        size: 28 or 64.
        as_rgb: three equal channels; else one.
        shape_transform: for the sets of shapes, whose voxels are 0 and 255: a volume is multiplied by a random number
            from 0 to 1 in training, and by 0.5 in evaluation.
        train: which of the two it is; by default, training for the training set.

    Items:
        (volume [channels, size, size, size] float32 from 0 to 1, the number of its class).

    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged, or of another format; the message names it, and
            says where to get it.
    """

    def __init__(
        self,
        root: str | Path,
        data_flag: str,
        split: str,
        size: int = 28,
        as_rgb: bool = False,
        shape_transform: bool = False,
        train: bool | None = None,
    ) -> None:
        info = INFO[data_flag]
        path = Path(root) / file_name(data_flag, size)
        names = images, labels = f"{split}_images", f"{split}_labels"
        source = f"It is {RECORD}/{path.name}?download=1 (MD5 {info.md5[size]}); put it into {root}."
        found = read_npz(path, names, source)
        self.images, self.labels = found[images], found[labels]
        count = len(self.images) if self.images.ndim else 0
        for name, shape, kinds in ((images, (count, size, size, size), "u"), (labels, (count, 1), "ui")):
            array = found[name]
            if array.shape != shape or array.dtype.kind not in kinds or not count:
                wanted = ["n", *shape[1:]]
                raise ValueError(
                    f"{path}: {name} must be integers {wanted}, n the same for images and labels, got "
                    f"{list(array.shape)} {array.dtype}. {source}"
                )
        classes = len(info.classes)
        if self.labels.min() < 0 or self.labels.max() >= classes:
            raise ValueError(
                f"{path}: {labels} must be 0 to {classes - 1}, got {self.labels.min()} to {self.labels.max()}. {source}"
            )
        self.channels = 3 if as_rgb else 1
        self.shape_transform = shape_transform
        self.train = split == "train" if train is None else train

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        volume = torch.from_numpy(self.images[index].astype(np.float32)) / 255
        if self.shape_transform:
            volume *= torch.rand(()) if self.train else 0.5
        return volume.expand(self.channels, *volume.shape).contiguous(), int(self.labels[index, 0])
