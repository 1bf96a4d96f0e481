"""The files of ``generate_poc_data.py``, and of the original's script of that name, as datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiments.mylib.files import read_npz, require

_SOURCE = "generate_poc_data.py makes it"


class _Samples(Dataset):
    """``<name>_<i>.npz`` of a folder.

    Args:
        data_root: the folder.
        num_data: how many files to use, from number 0 on.

    Items: (sample float32 [1, ...], labels int64 [...]); label 0 is the background, 1 the first kind of shape.

    Raises:
        FileNotFoundError: the folder has fewer files.
        ValueError: a file that cannot be read.
    """

    name: str

    def __init__(self, data_root: str | Path, num_data: int) -> None:
        self.data_root, self.num_data = Path(data_root), num_data
        for index in range(num_data):
            require(self._path(index), _SOURCE)

    def _path(self, index: int) -> Path:
        return self.data_root / f"{self.name}_{index}.npz"

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.num_data:
            raise IndexError(f"sample {index} of {self.num_data}")
        file = read_npz(self._path(index), (self.name, "segs"), _SOURCE)
        sample, segs = file[self.name], file["segs"]
        # The last mask is the background: label 0, as MONAI and the field count.
        labels = (segs.argmax(0) + 1) % len(segs)
        return torch.from_numpy(sample.astype(np.float32))[None], torch.from_numpy(labels)

    def __len__(self) -> int:
        return self.num_data


class BaseDatasetShape(_Samples):
    """Images [1, H, W] and labels [H, W]: see :class:`_Samples`."""

    name = "shape"


class BaseDatasetVoxel(_Samples):
    """Volumes [1, D, H, W] and labels [D, H, W]: see :class:`_Samples`."""

    name = "voxel"
